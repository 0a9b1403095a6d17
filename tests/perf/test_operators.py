"""Operator tables: measured points come back as measured, and what lies between is close to what was left out."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwopt.errors import UnmeasuredError
from fwopt.perf import roofline
from fwopt.perf.operators import attention, moe
from fwopt.perf.operators.collective import CollectiveTable
from fwopt.perf.operators.gemm import GemmTable
from fwopt.perf.operators.linear_attention import LinearTable
from fwopt.perf.priors import load_priors
from fwopt.spec.model import LinearAttention
from fwopt.spec.provenance import ASSUMED, INTERPOLATED, MEASURED

_GDN = {"key_heads": 16, "value_heads": 64, "key_head_dim": 128, "value_head_dim": 128, "conv_tokens": 4}
ROUTING = load_priors().moe.routing


@pytest.fixture(scope="module", params=["vllm", "sglang"])
def profile(request, profile_of):
    return profile_of("h200", request.param)


@pytest.fixture(scope="module")
def gemm(profile, h200):
    return GemmTable(profile.columns("gemm"), h200, load_priors().substitutes.dense)


def _code(timed, at=0):
    return int(timed.by_code[at].argmax())


def test_every_measured_product_comes_back_exactly(profile, gemm):
    c = profile.columns("gemm")
    picked = np.random.default_rng(0).choice(len(c["m"]), 300, replace=False)
    for i in picked:
        found = gemm.time(str(c["dtype"][i]), np.asarray([float(c["m"][i])]), int(c["n"][i]), int(c["k"][i]))
        assert found.seconds[0] == pytest.approx(c["p50_s"][i], rel=1e-6)
        assert _code(found) == MEASURED


@pytest.mark.parametrize("axis", ["n", "k"])
def test_leaving_out_a_plane_of_products_is_predicted_from_its_neighbours(profile, h200, axis):
    c = profile.columns("gemm")
    errors = []
    for value in (2560, 6144):
        out = c[axis] == value
        table = GemmTable({key: column[~out] for key, column in c.items()}, h200, {})
        for other in (1024, 4096, 8192):
            there = out & (c["k" if axis == "n" else "n"] == other) & (c["dtype"] == "bf16")
            m, n, k = (c[key][there].astype(float) for key in "mnk")
            found = table.time("bf16", m, int(n[0]), int(k[0]))
            assert set(found.by_code.argmax(-1)) == {INTERPOLATED}
            errors.append(found.seconds / c["p50_s"][there] - 1)
    error = np.concatenate(errors)
    assert np.median(np.abs(error)) < 0.07
    assert np.quantile(np.abs(error), 0.9) < 0.25
    assert abs(np.median(error)) < 0.04


@given(m=st.integers(1, 40000), n=st.integers(16, 200_000), k=st.integers(16, 40_000))
@settings(max_examples=60, deadline=None)
def test_a_product_never_beats_the_device(h200, profile_of, m, n, k):
    table = _sglang_gemm(profile_of, h200)
    for dtype in ("bf16", "fp8", "fp8_block", "int8", "w4a16"):
        rows = np.asarray([float(m)])
        found = table.time(dtype, rows, n, k).seconds[0]
        assert np.isfinite(found)
        assert found * 1.1 >= roofline.gemm(h200, dtype, rows, n, k)[0]


@functools.cache
def _sglang_gemm(profile_of, h200):
    return GemmTable(profile_of("h200", "sglang").columns("gemm"), h200, load_priors().substitutes.dense)


def test_an_lm_head_beyond_the_mesh_costs_as_many_times_more_as_it_has_columns(gemm):
    rows = np.asarray([1.0, 64.0])
    edge, head = gemm.time("bf16", rows, 65536, 4096), gemm.time("bf16", rows, 151_936, 4096)
    assert _code(head) == INTERPOLATED
    assert head.seconds / edge.seconds == pytest.approx(151_936 / 65536, rel=0.02)
    assert _code(gemm.time("bf16", rows, 1_000_000, 4096)) == ASSUMED


def test_block_fp8_products_of_few_rows_are_not_bound_by_the_host(profile_of, h200):
    table = GemmTable(profile_of("h200", "vllm").columns("gemm"), h200, {})
    assert table.time("fp8_block", np.asarray([1.0, 16.0]), 6144, 4096).seconds.max() < 25e-6


def test_weight_only_4_bit_is_faster_for_few_rows_slower_for_many_and_assumed(gemm):
    rows = np.asarray([1.0, 16.0, 4096.0])
    bf16, w4 = gemm.time("bf16", rows, 12288, 4096), gemm.time("w4a16", rows, 12288, 4096)
    assert set(w4.by_code.argmax(-1)) == {ASSUMED}
    assert (w4.seconds[:2] < bf16.seconds[:2] / 2).all()
    assert (w4.seconds[:2] > bf16.seconds[:2] / 4).all()
    assert bf16.seconds[2] < w4.seconds[2] < bf16.seconds[2] / 0.7


def test_a_dtype_without_table_or_prior_is_refused(profile, h200):
    table = GemmTable(profile.columns("gemm"), h200, {})
    with pytest.raises(UnmeasuredError, match="w4a16"):
        table.time("w4a16", np.ones(1), 1024, 1024)


def test_decode_attention_comes_back_exactly_and_grows_with_context(profile, h200):
    table = attention.DecodeTable(profile.columns("decode_attention"), h200)
    shape, batch, context = attention.Shape("bf16", 32, 8, 128), np.asarray([1.0, 64.0]), np.asarray([1024.0, 1500.0])
    found = table.time(shape, batch, context)
    c = profile.columns("decode_attention")
    there = np.logical_and.reduce(
        [c[k] == v for k, v in zip(attention._KEYS, shape.key, strict=True)] + [c["batch"] == 64, c["context"] == 1024]
    )
    assert found.seconds[1, 0] == pytest.approx(float(c["p50_s"][there][0]), rel=1e-6)
    assert found.by_code[1].argmax(-1).tolist() == [MEASURED, INTERPOLATED]
    assert found.seconds[1, 1] > found.seconds[1, 0]


def test_decode_attention_beyond_the_measured_corner_reads_the_cache_at_the_best_rate(profile_of, h200):
    table = attention.DecodeTable(profile_of("h200", "vllm").columns("decode_attention"), h200)
    shape, contexts = attention.Shape("bf16", 32, 8, 128), np.asarray([8192.0, 16384.0, 262144.0])
    found = table.time(shape, np.asarray([256.0]), contexts).seconds[0]
    bound = roofline.decode_attention(h200, "bf16", 256.0, contexts, 32, 8, 128, 0)
    assert (found >= bound).all()
    assert (found < 1.3 * bound).all()


@pytest.mark.parametrize(
    ("shape", "code"),
    [
        (attention.Shape("bf16", 28, 4, 128), INTERPOLATED),
        (attention.Shape("bf16", 32, 8, 96), INTERPOLATED),
        (attention.Shape("bf16", 32, 16, 64, 4096), INTERPOLATED),
        (attention.Shape("bf16", 128, 64, 80), ASSUMED),
    ],
)
def test_attention_shapes_that_were_not_measured_say_so(profile_of, h200, shape, code):
    columns = profile_of("h200", "vllm").columns("decode_attention")
    found = attention.DecodeTable(columns, h200).time(shape, np.asarray([8.0]), np.asarray([4096.0]))
    assert found.by_code[0, 0].argmax() == code
    assert found.seconds[0, 0] > 0


def test_a_window_ends_the_growth_of_attention(profile, h200):
    decode = attention.DecodeTable(profile.columns("decode_attention"), h200)
    shape = attention.Shape("bf16", 64, 8, 64, 128)
    found = decode.time(shape, np.asarray([64.0]), np.asarray([512.0, 32768.0])).seconds[0]
    full = decode.time(attention.Shape("bf16", 64, 8, 64), np.asarray([64.0]), np.asarray([32768.0])).seconds[0, 0]
    assert found[1] < 1.5 * found[0]
    assert found[1] < full / 5


def test_prefill_attention_is_monotone_quadratic_and_free_for_nothing(profile, h200):
    table = attention.PrefillTable(profile.columns("prefill_attention"), h200)
    lengths = np.concatenate([[0.0], np.geomspace(1, 200_000, 80)])
    found = table.time(attention.Shape("bf16", 32, 8, 128), lengths)
    assert found.seconds[0] == 0
    assert (np.diff(found.seconds) >= 0).all()
    long = table.time(attention.Shape("bf16", 32, 8, 128), np.asarray([16384.0, 32768.0, 65536.0])).seconds
    assert long[1:] / long[:-1] == pytest.approx([4, 4], rel=0.01)


def _moe(profile, h200):
    return moe.MoeTable(profile.columns("moe"), h200, ROUTING, load_priors().substitutes.moe)


def test_experts_come_back_exactly_and_more_tokens_take_longer(profile, h200):
    tokens = np.asarray([1.0, 4, 16, 64, 256, 1024, 4096, 16384])
    found = _moe(profile, h200).time(moe.Shape("bf16", 2048, 768, 8, 128), tokens)
    assert set(found.by_code.argmax(-1)) == {MEASURED}
    assert (np.diff(found.seconds) > 0).all()


def test_experts_between_measured_token_counts_follow_their_neighbours(profile, h200):
    c = profile.columns("moe")
    inside = c["tokens"] != 256
    full = _moe(profile, h200)
    part = moe.MoeTable({k: v[inside] for k, v in c.items()}, h200, ROUTING, {})
    errors = []
    for shape in list(full._rows)[::10]:
        at = np.asarray([256.0])
        errors.append(part.time(shape, at).seconds[0] / full.time(shape, at).seconds[0] - 1)
    assert np.median(np.abs(errors)) < 0.06


@pytest.mark.parametrize("dtype", ["int8", "w4a16"])
def test_expert_dtypes_without_a_near_table_are_assumed(profile, h200, dtype):
    found = _moe(profile, h200).time(moe.Shape(dtype, 2048, 768, 8, 128), np.asarray([16.0]))
    assert _code(found) == ASSUMED
    assert 1e-5 < found.seconds[0] < 1e-3


def test_linear_attention_comes_back_exactly_and_shapes_not_measured_say_so(profile, h200):
    c = profile.columns("linear_attention")
    table, measured = LinearTable(c, h200), LinearAttention(**_GDN)
    there = (c["phase"] == "generation") & (c["key_heads"] == 2) & (c["value_heads"] == 8)
    at = there & (c["batch"] == 4)
    found = table.decode(measured, 8, np.asarray([4.0, 5.0]))
    assert found.seconds[0] == pytest.approx(float(c["p50_s"][at][0]), rel=1e-6)
    assert found.by_code.argmax(-1).tolist() == [MEASURED, INTERPOLATED]
    prompt = table.prefill(measured, 8, np.asarray([0.0, 8192.0, 100_000.0]))
    alone = (c["phase"] == "context") & (c["key_heads"] == 2) & (c["value_heads"] == 8) & (c["batch"] == 1)
    assert prompt.seconds[0] == 0
    assert prompt.seconds[1] == pytest.approx(float(c["p50_s"][alone & (c["length"] == 8192)][0]), rel=1e-6)
    wider = LinearAttention(**{**_GDN, "value_heads": 96})
    assert _code(table.decode(wider, 8, np.asarray([4.0]))) == INTERPOLATED
    assert _code(table.decode(LinearAttention(**{**_GDN, "value_head_dim": 1024}), 8, np.asarray([4.0]))) == ASSUMED


def test_a_state_in_fp32_is_never_moved_faster_than_the_memory_allows(profile, h200):
    """The rows were taken with states in bf16; served models keep fp32."""
    table, batch = LinearTable(profile.columns("linear_attention"), h200), np.asarray([512.0])
    found = {
        dtype: table.decode(LinearAttention(**{**_GDN, "state_dtype": dtype}), 1, batch) for dtype in ("fp32", "bf16")
    }
    assert found["fp32"].seconds[0] >= roofline.linear_decode(h200, batch, 64, 128, 128, 4.0)[0]
    assert found["fp32"].seconds[0] >= found["bf16"].seconds[0]


def test_messages_are_elements_and_large_ones_run_at_the_speed_of_the_link(profile, h200):
    table = CollectiveTable(profile.columns("all_reduce"), "mode")
    elements = 2.0**28
    seconds = table.time("graph", 2, np.asarray([elements])).seconds[0]
    # between two GPUs an all-reduce sends each byte once in each direction
    assert 0.5 < elements * 2 / seconds / h200.link_bytes_per_s < 1.0


def test_captured_all_reduce_is_faster_than_eager_and_one_gpu_needs_none(profile):
    table = CollectiveTable(profile.columns("all_reduce"), "mode")
    small = np.asarray([4096.0])
    assert table.time("graph", 8, small).seconds[0] < 10e-6 < table.time("eager", 8, small).seconds[0]
    assert table.time("graph", 1, small).seconds[0] == 0
    with pytest.raises(UnmeasuredError, match="16 GPUs"):
        table.time("graph", 16, small)
