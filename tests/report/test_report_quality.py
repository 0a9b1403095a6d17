"""How a quality figure is known is said wherever it is shown."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from fwopt import deploy, report
from fwopt.report.terminal import render
from fwopt.spec.plan import QualityEstimate

FIGURES = r"top-1[^\n]{0,60}9[78]\.\d+%|KL[^\n]{0,20}0\.00\d+|KL 0\.00\d+"


@pytest.mark.parametrize("known", ["assumed", "measured"])
@pytest.mark.parametrize("width", [80, 160])
def test_every_rendered_file_says_how_quality_is_known(sample, tmp_path, known, width):
    plan, trials = sample.plan(), sample.trials()
    found = QualityEstimate(kl=0.0035, top1=0.987, known=known, source="fwopt quality: study/results.json")
    runners = tuple(e.model_copy(update={"quality": found}) for e in plan.runners_up)
    chosen = plan.chosen.model_copy(update={"quality": found})
    plan = plan.model_copy(update={"chosen": chosen, "runners_up": runners, "unmeasured": ()})
    out = io.StringIO()
    render(plan, trials, Console(file=out, width=width))
    texts = {"terminal": out.getvalue()}
    for path in [*report.write(plan, trials, tmp_path), *deploy.write(plan, tmp_path / "deploy")]:
        texts[path.name] = path.read_text()
    for name, text in texts.items():
        text = " ".join(re.sub(r"<[^>]+>", " ", text).replace("\\", "").split())
        if re.search(FIGURES, text):
            assert re.search(rf"(top-1|KL)[^.]{{0,80}}\d[^;]{{0,90}}{known}", text), name
    assert {"terminal", "report.md", "report.html", "config.yaml"} <= {
        n for n, t in texts.items() if re.search(FIGURES, t)
    }
    assert all("study/results.json" in texts[name] for name in ("report.md", "report.html", "config.yaml"))
    assert json.loads(plan.model_dump_json())["chosen"]["quality"]["known"] == known
