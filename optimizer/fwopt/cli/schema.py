"""`fwopt schema`: the JSON Schema of every file fwopt reads or writes."""

from __future__ import annotations

from typing import Annotated

import typer

from fwopt.errors import UnknownNameError

SCHEMAS: dict[str, tuple[str, str]] = {
    "workload": ("fwopt.workload.formats.own:WorkloadLine", "one request line of fwopt's own trace format"),
    "workload-header": ("fwopt.workload.formats.own:WorkloadHeader", "its optional first line"),
    "inspection": ("fwopt.workload.inspection:Inspection", "what `fwopt inspect --json` prints"),
    "candidate": ("fwopt.spec.candidate:Candidate", "one deployment that could be"),
    "objective": ("fwopt.spec.objective:Objective", "limits and goals"),
    "model": ("fwopt.spec.model:ModelSpec", "a model's shape"),
    "hardware": ("fwopt.spec.hardware:HardwareSpec", "devices, links and prices"),
    "engine": ("fwopt.spec.engine:EngineSpec", "serving engine and version"),
    "trial": ("fwopt.spec.outcome:Trial", "one line of trials.jsonl"),
    "plan": ("fwopt.spec.plan:Plan", "plan.json"),
}


def schema(
    name: Annotated[
        str | None, typer.Argument(help="Which schema; lists them when absent.", show_default=False)
    ] = None,
) -> None:
    """Print a JSON Schema, or list the schemas there are."""
    if name is None:
        for known, (_, what) in SCHEMAS.items():
            typer.echo(f"{known:<16} {what}")
        return
    import json

    typer.echo(json.dumps(json_schema(name), indent=2))


def json_schema(name: str) -> dict[str, object]:
    """Draft 2020-12 schema of one file."""
    import importlib

    if name not in SCHEMAS:
        raise UnknownNameError("schema", name, SCHEMAS)
    module, _, attribute = SCHEMAS[name][0].partition(":")
    found: dict[str, object] = getattr(importlib.import_module(module), attribute).model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
