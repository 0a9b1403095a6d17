"""What an extra brings, asked for by name."""

from __future__ import annotations

from importlib.util import find_spec

from fwopt.errors import InputError


def require(extra: str, *modules: str) -> None:
    """InputError in place of a traceback half way through."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)}: not installed; pip install 'fwopt[{extra}]'")
