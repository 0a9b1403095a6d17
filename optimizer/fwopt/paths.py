"""Where data lies: shipped in the checkout or the package, measured on this machine in the user's data folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parents[1]


def data_folder(name: Literal["profiles", "workloads"]) -> Path:
    """Folder of shipped profiles or workloads.

    The checkout comes first: an editable install copies these folders when it is built, and later edits
    must not go unseen.
    """
    checkout = _CHECKOUT / name
    if (_CHECKOUT / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    return _PACKAGE / "_data" / name


def own_profiles() -> Path:
    """Where `fwopt profile` keeps what it measured on this machine."""
    return _own() / "profiles"


def own_quality() -> Path:
    """Where `fwopt quality` keeps what it found."""
    return _own() / "quality"


def _own() -> Path:
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return home / "fwopt"
