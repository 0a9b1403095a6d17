"""What schemes store: bounds of the error, and the library's own fake quantization."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization.lifecycle.forward import fake_quantize

from fwopt.errors import FwoptError
from fwopt.quality.rounding import arguments, round_activations, round_kv, round_weight, scales
from fwopt.quality.schemes import SCHEMES, parse_schemes

STORED = [scheme for scheme in SCHEMES.values() if scheme.weights is not None]


def matrix(rows=192, columns=256, dtype=torch.float32):
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.05).to(dtype)


def _by_element(weight, scheme):
    """The scale that each element is stored with."""
    scale, fields = scales(weight, scheme.weights).float(), scheme.weights
    if fields["strategy"] == "group":
        return scale.repeat_interleave(fields["group_size"], 1)
    if fields["strategy"] == "block":
        return scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: weight.shape[0], : weight.shape[1]]
    return scale.expand(weight.shape)


@pytest.mark.parametrize("scheme", STORED, ids=lambda s: s.name)
def test_no_element_is_off_by_more_than_its_format_allows(scheme):
    weight = matrix()
    error = (round_weight(weight, scheme.weights) - weight).abs()
    step = _by_element(weight, scheme)
    if scheme.weights["type"] == "int":
        assert (error <= step * 0.5001).all()
    elif scheme.weights["num_bits"] == 8:  # three bits of mantissa, and steps of 2^-9 at the lower end
        assert (error <= torch.maximum(weight.abs() / 16, step * 2**-10) * 1.0001).all()
    else:  # one bit of mantissa; above 6 the greatest of a group is cut to it
        assert (error <= torch.maximum(weight.abs() / 4, step * 0.25) * 1.0001).all()


@pytest.mark.parametrize("scheme", STORED, ids=lambda s: s.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_is_the_librarys_fake_quantization(scheme, dtype):
    weight = matrix(dtype=dtype)
    scale = scales(weight, scheme.weights)
    theirs = fake_quantize(weight, scale, torch.zeros_like(scale), arguments(scheme.weights))
    ours = round_weight(weight, scheme.weights)
    torch.testing.assert_close(ours.to(theirs.dtype), theirs, atol=0, rtol=0)


@pytest.mark.parametrize("scheme", STORED, ids=lambda s: s.name)
def test_numbers_stored_once_are_stored_again_unchanged(scheme):
    once = round_weight(matrix(), scheme.weights)
    scale = scales(matrix(), scheme.weights)
    torch.testing.assert_close(round_weight(once, scheme.weights, scale), once, atol=1e-7, rtol=1e-6)


def test_finer_groups_err_less():
    weight = matrix()
    errors = [(round_weight(weight, SCHEMES[n].weights) - weight).norm() for n in ("w4a16", "w4a16-g64", "w4a16-g32")]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("name", ["fp8", "int8", "fp8-block"])
def test_a_token_is_rounded_alike_whatever_stands_beside_it(name):
    x = torch.randn(6, 256) * torch.logspace(-2, 2, 6)[:, None]
    alone = torch.cat([round_activations(row[None], SCHEMES[name].activations) for row in x])
    torch.testing.assert_close(round_activations(x, SCHEMES[name].activations), alone, atol=0, rtol=0)


def test_keys_beyond_e4m3_are_cut_to_its_greatest_number():
    assert round_kv(torch.tensor([1e4, -1e4, 0.3]), "fp8").tolist() == [448.0, -448.0, 0.3125]


def test_names_of_deployments_are_names_here():
    from fwopt.search.schemes import NAMES

    assert {"bf16", "fp8", "fp8-block", "int8", "w4a16", "mxfp4"} <= set(NAMES) & set(SCHEMES)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("fp9", "unknown scheme 'fp9'"),
        ("bf16", "beside bf16"),
        ("fp8+int8", "only kv-fp8 or kv-int8"),
        ("kv-fp8+kv-int8", "only kv-fp8 or kv-int8"),
        (",", "at least one"),
    ],
)
def test_names_that_mean_nothing_are_refused(text, problem):
    with pytest.raises(FwoptError, match=problem):
        parse_schemes(text)


def test_a_cache_can_be_added_to_a_scheme():
    (scheme,) = parse_schemes("fp8+kv-fp8")
    assert scheme.cache == "fp8"
    assert scheme.weights == SCHEMES["fp8"].weights


def test_a_tokens_int8_scale_is_what_engines_find():
    """Greatest magnitude / 127 (vLLM's `scaled_int8_quant`, on the CPU measured to the digit), not / 127.5."""
    x = torch.tensor([[[1.0, -12.7, 0.04]], [[0.0, 0.0, 0.0]]], dtype=torch.bfloat16)
    found = round_activations(x, SCHEMES["int8"].activations)
    scale = x.float().abs().amax(-1, keepdim=True) / 127
    assert found[0, 0, 1] == x[0, 0, 1].float()
    torch.testing.assert_close(found[0], (x[0].float() / scale[0]).round() * scale[0])
    assert not found[1].any()


def test_int8_caches_have_a_scale_for_each_token_and_head_and_round_halves_outwards():
    heads = torch.tensor([[[127.0, 2.5, -2.5, 0.4], [12.7, 0.25, 0.26, -0.1]], [[0.0, 0.0, 0.0, 0.0], [1e-9, 0, 0, 0]]])
    expected = torch.tensor([[[127.0, 3, -3, 0], [12.7, 0.3, 0.3, -0.1]], [[0.0, 0, 0, 0], [0.0, 0, 0, 0]]])
    assert torch.allclose(round_kv(heads, "int8"), expected, atol=1e-6)
    drawn = torch.randn(3, 2, 50, 64, generator=torch.Generator().manual_seed(0))
    error = (round_kv(drawn, "int8") - drawn).abs()
    assert bool((error <= drawn.abs().amax(dim=-1, keepdim=True) / 254 * 1.001).all())
