"""The line under "To reproduce" resolves to the inputs of the run."""

from __future__ import annotations

import shlex

from fwopt.search.command import command
from fwopt.search.space import SpaceOverrides
from fwopt.spec.hardware import Price
from fwopt.spec.objective import QualityLimit, Slo


def values(words, flag):
    return [words[i + 1] for i, word in enumerate(words) if word == flag]


def test_everything_that_shaped_the_run_is_in_the_command(toy):
    base = toy.inputs()
    price = Price(usd_per_gpu_hour=2.5, basis="given with --price", dates="now", source="user")
    run = base.model_copy(
        update={
            "hardware": base.hardware.model_copy(update={"price": price}),
            "objective": base.objective.model_copy(
                update={"max_quality_drop": (QualityLimit.parse("top1>99%"), QualityLimit.parse("kl<0.01"))}
            ),
            "only_model": "some model",
            "skip_bad": True,
            "rate_scale": 16.0,
            "allow_unmeasured": True,
            "overrides": SpaceOverrides(tp=(1,)),
        }
    )
    words = shlex.split(command(run))
    assert words[:3] == ["fwopt", "tune", "TRACE"]
    assert tuple(Slo.parse(text) for text in values(words, "--slo")) == run.objective.slos
    assert values(words, "--price") == ["2.5"]
    assert values(words, "--only-model") == ["some model"]
    assert values(words, "--rate-scale") == ["16"]
    limits = tuple(QualityLimit.parse(text) for text in values(words, "--max-quality-drop"))
    assert limits == run.objective.max_quality_drop
    assert values(words, "--trials") == ["60"]
    assert values(words, "--config") == ["FWOPT.yaml"]
    assert {"--skip-bad", "--allow-unmeasured"} <= set(words)


def test_defaults_are_left_out(toy):
    words = shlex.split(command(toy.inputs(trials=160)))
    assert not {"--trials", "--config", "--price", "--rate-scale", "--allow-unmeasured", "--baseline"} & set(words)
