"""What the command costs before it does anything, and the defaults that its help states."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fwopt.cli.app import GROUPS, VERBS
from fwopt.search.settings import Settings
from fwopt.spec.engine import EngineSpec

HEAVY = ("torch", "triton", "pandas", "optuna", "numba", "numpy", "pydantic", "pyarrow", "yaml", "jinja2", "scipy")


def imported_by(*arguments: str) -> tuple[set[str], str]:
    """Top-level modules after `fwopt ARGUMENTS`, and what it printed."""
    code = (
        "import sys, json; from fwopt.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    return set(json.loads(done.stderr.splitlines()[-1])), done.stdout


@pytest.mark.parametrize("arguments", [("--help",), ("tune", "--help"), ("--version",)], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    modules, text = imported_by(*arguments)
    allowed = {"pydantic"} if "tune" in arguments else set()  # typer itself checks numbers with it
    assert not modules & set(HEAVY) - allowed
    assert text


def test_help_names_every_verb() -> None:
    _, text = imported_by("--help")
    for name in [*VERBS, *GROUPS]:
        assert f"  {name} " in text


def test_help_states_the_defaults_that_hold() -> None:
    text = " ".join(imported_by("tune", "--help")[1].split())
    settings = Settings()
    for stated in (
        f"[default: {settings.trials}]",
        f"[default: {settings.seed}]",
        f"[default: {settings.rate_scale:g}]",
        f"{EngineSpec().name}=={EngineSpec().version} (the default)",
    ):
        assert stated in text
