"""`fwopt models` and `fwopt hardware`: what fwopt knows without being told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fwopt.spec.model import ModelSpec

Name = Annotated[str | None, typer.Argument(help="Only this one, in full; a model may also be a path or a cached id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def models(name: Name = None, as_json: AsJson = False) -> None:
    """List the models whose shape is known, or show one."""
    from fwopt.errors import InputError
    from fwopt.targets.models import catalogue_models, load_model

    if name is not None:
        row = _model_row(load_model(name))
        return _emit([row], list(row), as_json, detail=True)
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    for entry in catalogue_models():
        try:
            rows.append(_model_row(load_model(entry)))
        except InputError as error:
            refused.append({"name": entry, "not_modelled": str(error)})
    columns = ["name", "parameters", "context_tokens", "weights", "weight_bytes"]
    if as_json:
        return _emit(rows + refused, columns, as_json)
    _emit(rows, columns, as_json)
    for item in refused:
        typer.echo(item["not_modelled"], err=True)
    return None


def hardware(name: Name = None, as_json: AsJson = False) -> None:
    """List the GPUs in the catalogue with dated prices, or show one."""
    from fwopt.targets.hardware import NAMES, device_and_price, resolve

    rows = []
    for short in [resolve(name)] if name is not None else NAMES:
        device, price = device_and_price(short)
        priced = price.model_dump() if price else dict.fromkeys(("usd_per_gpu_hour", "basis", "dates", "source"))
        priced["price_source"] = priced.pop("source")
        rows.append({**device.model_dump(), **priced})
    columns = ["name", "memory_bytes", "bandwidth_bytes_per_s", "bf16_flops", "fp8_flops", "usd_per_gpu_hour", "dates"]
    _emit(rows, columns if name is None else list(rows[0]), as_json, detail=name is not None)


def _model_row(model: ModelSpec) -> dict[str, Any]:
    from fwopt.spec.candidate import Parallelism
    from fwopt.targets.quantization import native_quantization
    from fwopt.targets.weights import parameter_count, weight_bytes

    native = native_quantization(model)
    return {
        "name": model.name,
        "architecture": model.architecture,
        "parameters": parameter_count(model),
        "layers": model.layer_count,
        "attention": ", ".join(dict.fromkeys(_attention(g.attention) for g in model.layers)),
        "context_tokens": model.max_context_tokens,
        "weights": model.checkpoint_quantization or "bf16",
        "weight_bytes": weight_bytes(model, native, Parallelism()),
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "config_digest": model.config_digest,
        "source": model.source,
    }


def _attention(attention: Any) -> str:
    if attention.kind == "mla":
        return f"mla {attention.heads} heads, rank {attention.kv_lora_rank}"
    if attention.kind == "gdn":
        return f"linear {attention.key_heads}/{attention.value_heads} x {attention.value_head_dim}"
    window = f" window {attention.window_tokens}" if attention.window_tokens else ""
    return f"{attention.heads}/{attention.kv_heads} x {attention.head_dim}{window}"


def _emit(rows: list[dict[str, Any]], columns: list[str], as_json: bool, detail: bool = False) -> None:
    """JSON with plain units, a table with readable ones, or one field a line."""
    if as_json:
        import json

        typer.echo(json.dumps(rows[0] if detail else rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fwopt.errors import plain

    def cell(key: str, value: Any) -> Text:
        return Text(plain(_shown(key, value)))

    table = Table(box=None, show_header=not detail, header_style="bold", pad_edge=False)
    if detail:
        for key, value in rows[0].items():
            table.add_row(_HEADINGS.get(key, key.replace("_", " ")), cell(key, value))
    else:
        for column in columns:
            numeric = not isinstance(rows[0][column], str)
            heading = _HEADINGS.get(column, column.replace("_", " "))
            table.add_column(heading, justify="right" if numeric else "left", no_wrap=column != "dates")
        for row in rows:
            table.add_row(*(cell(column, row[column]) for column in columns))
    Console().print(table)


_HEADINGS = {
    "context_tokens": "context",
    "weight_bytes": "size",
    "memory_bytes": "memory",
    "bandwidth_bytes_per_s": "bandwidth",
    "bf16_flops": "bf16",
    "fp8_flops": "fp8",
    "link_bytes_per_s": "link",
    "usd_per_gpu_hour": "$/GPU-h",
    "dates": "price dates",
}


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "parameters":
        return f"{value / 1e9:.2f} B"
    if key.endswith("bytes_per_s"):
        return f"{value / 1e9:,.0f} GB/s"
    if key.endswith("_bytes"):
        return f"{value / 2**30:,.1f} GiB"
    if key.endswith(("_flops", "_ops")):
        return f"{value / 1e12:,.0f} T/s"
    if key == "usd_per_gpu_hour":
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
