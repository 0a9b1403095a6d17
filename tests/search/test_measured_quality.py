"""Plans rest on what `fwopt quality` measured of the model, and say so."""

from __future__ import annotations

import pytest

from fwopt.errors import InputError
from fwopt.search.quality import QualityScreen, estimate, find_measured
from fwopt.spec.candidate import W4A16, Candidate, Fp8, Int8
from fwopt.spec.objective import QualityLimit
from fwopt.spec.quality import ArmFigures, Estimate, Figures, QualityResults, QualitySettings


def _arm(name, kl, top1):
    def around(value):
        return Estimate(value=value, low=value * 0.99, high=value * 1.1)

    figures = Figures(
        tokens=1000, windows=8, kl=around(kl), kl_p99=kl, top1=around(top1), top5=around(0.9),
        perplexity_ratio=around(1.0),
    )  # fmt: skip
    return ArmFigures(
        name=name, kind="scheme", says="", overall=figures, by_class={}, by_position={}, excess_kl=None,
        verdict="different",
    )  # fmt: skip


@pytest.fixture
def home(toy, tmp_path):
    results = QualityResults(
        fwopt_version="0", key="k", model=toy.MODEL.name, config_digest=toy.MODEL.config_digest, weights_digest="w",
        text=("prose.txt",), text_digest="t", windows_digest="x",
        settings=QualitySettings(window=64, max_tokens=1000, seed=0, dtype="bf16"), reference_perplexity=9.0,
        arms=(_arm("fp8", 0.02, 0.93), _arm("kv-fp8", 0.01, 0.95), _arm("w4a16-g64", 0.4, 0.7)),
        versions={}, machine="m", threads=1, date="2026-01-01",
    )  # fmt: skip
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "results.json").write_text(results.model_dump_json())
    return tmp_path


def test_a_measured_scheme_is_measured_and_names_the_file(toy, home):
    measured = find_measured(toy.MODEL, home)
    found = estimate(Candidate(quantization=Fp8()), toy.MODEL, measured)
    assert (found.kl, found.top1, found.known) == (0.02, 0.93, "measured")
    assert str(home / "study" / "results.json") in found.source
    assert estimate(Candidate(quantization=W4A16(group_size=64)), toy.MODEL, measured).kl == 0.4


def test_parts_measured_apart_add_up(toy, home):
    found = estimate(Candidate(quantization=Fp8(), kv_dtype="fp8"), toy.MODEL, find_measured(toy.MODEL, home))
    assert found.kl == pytest.approx(0.03)
    assert found.top1 == pytest.approx(0.88)
    assert found.known == "measured"


def test_what_was_not_measured_stays_assumed(toy, home):
    measured = find_measured(toy.MODEL, home)
    assert estimate(Candidate(quantization=Int8()), toy.MODEL, measured).known == "assumed"
    assert estimate(Candidate(quantization=W4A16()), toy.MODEL, measured).known == "assumed"


def test_a_limit_is_held_against_the_bad_end_of_the_interval(toy, home):
    measured = find_measured(toy.MODEL, home)
    fp8 = Candidate(quantization=Fp8())
    assert QualityScreen(toy.MODEL, QualityLimit.parse("kl<0.0221"), measured).check(fp8) is None
    rejected = QualityScreen(toy.MODEL, QualityLimit.parse("kl<0.021"), measured).check(fp8)
    assert rejected is not None
    assert "measured" in rejected.reason


def test_another_models_study_is_not_taken(toy, home):
    other = toy.MODEL.model_copy(update={"config_digest": "f" * 16})
    assert find_measured(other, home) is None


def test_a_broken_results_file_is_named(toy, home):
    (home / "study" / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"results\.json: is no result"):
        find_measured(toy.MODEL, home)
