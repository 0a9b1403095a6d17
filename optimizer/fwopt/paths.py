"""Where shipped data lies: the repository checkout when run from one, the installed package otherwise."""

from __future__ import annotations

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
