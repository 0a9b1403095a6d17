"""`fwopt kernels export`: tuned experts as engines' own files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fwopt.errors import InputError


def export(
    target: Annotated[Literal["vllm", "sglang"], typer.Argument(help="Whose files to write.")],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where to: VLLM_TUNED_CONFIG_FOLDER, SGLANG_MOE_CONFIG_DIR.")
    ],
    device: Annotated[str, typer.Option(help="Device that was tuned on, for example h200.")],
    triton: Annotated[str | None, typer.Option(help="Triton that was tuned with. [default: the one here]")] = None,
    store: Annotated[
        Path | None, typer.Option("--profiles", metavar="FOLDER", help="Profile store. [default: this machine's]")
    ] = None,
) -> None:
    """Write tuned experts as vLLM's or SGLang's own configuration files, and ask vLLM whether it takes them."""
    import importlib.metadata

    from fwopt.atomic import written_whole
    from fwopt.paths import own_profiles
    from fwopt.perf.store import ENVIRONMENT, open_profile
    from fwopt.tuning.handover import hand_over
    from fwopt.tuning.pickup import prove
    from fwopt.tuning.tuned import folder_of

    folder = folder_of(store or own_profiles(), device, triton or importlib.metadata.version("triton"))
    if not (folder / ENVIRONMENT).exists():
        raise InputError(f"{folder}: no kernels were tuned there; run `fwopt kernels tune` or name --device, --triton")
    profile = open_profile(folder)
    handed = hand_over(profile, target)
    if not handed.files:
        raise InputError(f"{folder}: nothing to write: {'; '.join(handed.skipped)}")
    for name, text in handed.files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as whole:
            whole.write_text(text, encoding="utf-8")
        typer.echo(path)
    for line in handed.skipped:
        print(f"fwopt: {line}", file=sys.stderr)
    if target == "vllm":
        typer.echo(prove(out, profile.environment.device_full_name, handed.written))
    variable = {"vllm": "VLLM_TUNED_CONFIG_FOLDER", "sglang": "SGLANG_MOE_CONFIG_DIR"}[target]
    typer.echo(f"start the server with {variable}={out.resolve()}")
