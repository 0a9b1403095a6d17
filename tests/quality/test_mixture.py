"""Mixtures: an exact choice, verified on the assembled model, written so that engines can fuse what they fuse."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from fwopt.errors import FwoptError
from fwopt.quality.schemes import SCHEMES
from fwopt.quantize.assign import Option, assign, total
from fwopt.quantize.bands import Product, bands, mixture
from fwopt.quantize.layout import Place, pattern, quantization_config
from fwopt.quantize.mix import Mixer
from fwopt.quantize.readback import check
from fwopt.quantize.steps import parse_steps
from fwopt.quantize.times import Times, from_profile
from fwopt.quantize.write import Writer, appearing

CHOICES = (SCHEMES["int8"], SCHEMES["w4a16-g64"])


def quiet(*_):
    return None


def drawn(seed: int) -> list[Option]:
    generator = np.random.default_rng(seed)
    return [
        Option(f"g{group}", f"s{scheme}", float(generator.exponential(1e-3)), float(generator.uniform(1e-5, 9e-5)))
        for group in range(5)
        for scheme in range(3)
    ]


@pytest.mark.parametrize("seed", range(12))
def test_the_assignment_is_the_best_of_all(seed):
    options = drawn(seed)
    limit = float(np.random.default_rng(seed).uniform(1e-3, 6e-3))
    by_group = [options[at : at + 3] for at in range(0, len(options), 3)]
    allowed = [c for c in itertools.product(*by_group) if sum(o.kl for o in c) <= limit]
    if not allowed:
        with pytest.raises(FwoptError, match=r"the best one has .*; raise --max-kl"):
            assign(options, limit)
        return
    kl, seconds = total(assign(options, limit))
    assert kl <= limit * (1 + 1e-6)
    assert seconds == pytest.approx(min(sum(o.seconds for o in c) for c in allowed), rel=1e-9)


def test_the_solver_prints_nothing(capfd):
    assign(drawn(0), 1.0)
    assert capfd.readouterr() == ("", "")


def known_times(where) -> Times:
    """Time by bytes of weights."""
    known = {}
    for band in where:
        for product in band.products:
            for name, size in (("bf16", 2.0), ("int8", 1.0), ("w4a16-g64", 0.5)):
                known[name, product] = product.n * product.k * size * 1e-12
    return Times(known, "measured", "a table of this test", "steps of this test")


@pytest.fixture
def asked(model_folder, tmp_path):
    import pydoc_data.topics as topics

    from fwopt.cli.comparing_quality import request

    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(topics.topics[k] for k in sorted(topics.topics))[:4000], encoding="utf-8")
    source = model_folder("llama", torch.bfloat16)
    return request(str(source), [text], [], "int8", tmp_path / "home", max_tokens=512, window=64, seed=0, dtype="bf16")


def test_a_mixture_is_faster_than_any_scheme_that_keeps_its_budget(asked, tmp_path):
    where = bands(asked.folder, 1)
    mixer = Mixer(asked, where, CHOICES, known_times(where), quiet)
    uniform = mixer.uniform()
    budget = (uniform["int8"][0] * uniform["w4a16-g64"][0]) ** 0.5  # between the two
    scheme, found = mixer.choose(budget)
    assert found.measured_kl <= budget
    assert found.seconds < min(seconds for kl, seconds in uniform.values() if kl <= budget)
    assert found.measured_kl == mixer.measure([scheme])[0]
    assert {g.scheme for g in found.groups} == {"int8", "w4a16-g64"}
    with appearing(tmp_path / "w") as work:
        Writer(asked.folder, scheme, quiet).write(work)
    assert check(asked.folder, scheme, tmp_path / "w", quiet) == 21
    config = json.loads((tmp_path / "w" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    assert len(config["config_groups"]) == 2


def test_a_budget_of_nothing_leaves_the_model_as_it_is(asked):
    where = bands(asked.folder, 3)
    scheme, found = Mixer(asked, where, CHOICES, known_times(where), quiet).choose(0.0)
    assert found.measured_kl == 0.0
    assert {g.scheme for g in found.groups} == {"bf16"}
    with pytest.raises(FwoptError, match="nothing is quantized in this mixture"):
        quantization_config(scheme, [Place("model.layers.0.mlp.down_proj", 0, "mlp.down_proj")], [])


def test_an_arm_that_starts_late_shows_what_it_shows_from_the_start(asked):
    from fwopt.quantize import mix

    where = bands(asked.folder, 1)
    last = next(band for band in where if band.name == "2-2.mlp.down_proj")
    scheme = mixture({b.name: CHOICES[0] if b is last else None for b in where}, where)
    late = mix.measure(asked, [scheme], quiet)[scheme.name]
    original, mix._first_layer = mix._first_layer, lambda _: 0
    try:
        early = mix.measure(asked, [scheme], quiet)[scheme.name]
    finally:
        mix._first_layer = original
    assert late == early > 0


def test_what_engines_fuse_is_one_group(model_folder):
    where = bands(model_folder("llama", torch.bfloat16), 2)
    assert [band.name for band in where] == [
        f"{layers}.{group}"
        for layers in ("0-1", "2-2")
        for group in ("mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj", "self_attn.qkv_proj")
    ]
    assert where[3].products == (Product(256, 128), Product(256, 128))  # 4 + 2 + 2 heads of 32


@pytest.mark.parametrize(
    ("group", "module", "named"),
    [
        ("self_attn.qkv_proj", "model.layers.3.self_attn.v_proj", True),
        ("self_attn.qkv_proj", "model.layers.3.self_attn.qkv_proj", True),
        ("self_attn.qkv_proj", "model.layers.31.self_attn.v_proj", False),
        ("self_attn.qkv_proj", "model.layers.3.self_attn.o_proj", False),
        ("mlp.gate_up_proj", "model.layers.11.mlp.up_proj", True),
        ("experts", "model.layers.3.mlp.experts.17.down_proj", True),
        ("experts", "model.layers.3.mlp.shared_expert.down_proj", False),
    ],
)
def test_targets_name_their_layers_alone(group, module, named):
    from compressed_tensors.utils.match import match_name

    assert match_name(module, pattern(group, [3, 11])) is named


def test_times_of_an_operator_profile_are_told_by_their_provenance(model_folder):
    from fwopt.paths import data_folder

    where = bands(model_folder("llama", torch.bfloat16), 3)
    folder = data_folder("profiles") / "h200" / "vllm-0.24.0"
    times = from_profile(folder, where, [SCHEMES["fp8"]], parse_steps("8:3,512:1"))
    product = where[0].products[0]
    assert times.seconds("fp8", product) > 0
    assert set(times.provenance.split(", ")) <= {"measured", "interpolated", "assumed", "bound"}
    with pytest.raises(FwoptError, match="no int8 matrix products in this profile"):
        from_profile(folder, where, [SCHEMES["int8"]], parse_steps("8"))


@pytest.mark.parametrize("text", ["", "8:x", "0", "8:-1", "8:nan", "8,,9"])
def test_steps_that_are_none_are_refused(text):
    with pytest.raises(FwoptError, match="--step"):
        parse_steps(text)
