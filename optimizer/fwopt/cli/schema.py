"""`fwopt schema`: the JSON Schema of every file fwopt reads or writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fwopt.errors import InputError, UnknownNameError

SCHEMAS: dict[str, tuple[str, str]] = {
    "workload": ("fwopt.workload.formats.own:WorkloadLine", "one request line of fwopt's own trace format"),
    "workload-header": ("fwopt.workload.formats.own:WorkloadHeader", "its optional first line"),
    "workload-left-out": ("fwopt.workload.formats.recorded:LeftOutLine", "a recorded request that is no load"),
    "inspection": ("fwopt.workload.inspection:Inspection", "what `fwopt inspect --json` prints"),
    "candidate": ("fwopt.spec.candidate:Candidate", "one deployment that could be"),
    "objective": ("fwopt.spec.objective:Objective", "limits and goals"),
    "model": ("fwopt.spec.model:ModelSpec", "a model's shape"),
    "hardware": ("fwopt.spec.hardware:HardwareSpec", "devices, links and prices"),
    "engine": ("fwopt.spec.engine:EngineSpec", "serving engine and version"),
    "trial": ("fwopt.spec.outcome:Trial", "one line of trials.jsonl"),
    "inputs": ("fwopt.search.run_folder:RunInputs", "inputs.json"),
    "settings": ("fwopt.search.settings:Settings", "fwopt.yaml"),
    "replay-header": ("fwopt.live.result:ReplayHeader", "first line of a live replay's file"),
    "replay-wanted": ("fwopt.live.lines:ReplayWanted", "its second line"),
    "replay-line": ("fwopt.live.lines:ReplayLine", "its line of a request"),
    "replay-end": ("fwopt.live.result:ReplayEnd", "its last line"),
    "plan": ("fwopt.spec.plan:Plan", "plan.json"),
    "quality": ("fwopt.spec.quality:QualityResults", "results.json of `fwopt quality`"),
    "bench-suite": ("fwopt.spec.bench:Suite", "SUITE.yaml of `fwopt bench`"),
    "bench-result": ("fwopt.spec.bench_result:Result", "what `fwopt bench run` measured, and a stored baseline"),
    "bench-comparison": ("fwopt.spec.comparison:Comparison", "the verdict of `fwopt bench compare`"),
    "bench-series": ("fwopt.spec.comparison:Series", "one metric of `fwopt bench history --json`"),
}


def schema(
    name: Annotated[
        str | None, typer.Argument(help="Which schema; lists them when absent.", show_default=False)
    ] = None,
    write: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write every schema to this folder instead.")
    ] = None,
) -> None:
    """Print a JSON Schema, or list the schemas there are."""
    if write is not None:
        for known in SCHEMAS:
            path = write / f"{known}.schema.json"
            try:
                path.write_text(schema_text(known), encoding="utf-8")
            except OSError as error:
                raise InputError(f"{path} cannot be written: {error.strerror}") from None
            typer.echo(path)
        return
    if name is None:
        for known, (_, what) in SCHEMAS.items():
            typer.echo(f"{known:<18} {what}")
        return
    typer.echo(schema_text(name), nl=False)


def schema_text(name: str) -> str:
    """As published in docs/schemas/."""
    import json

    return json.dumps(json_schema(name), indent=2, ensure_ascii=False) + "\n"


def json_schema(name: str) -> dict[str, object]:
    """Draft 2020-12 schema of one file."""
    import importlib

    if name not in SCHEMAS:
        raise UnknownNameError("schema", name, SCHEMAS)
    module, _, attribute = SCHEMAS[name][0].partition(":")
    found: dict[str, object] = getattr(importlib.import_module(module), attribute).model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
