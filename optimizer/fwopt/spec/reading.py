"""Files that fwopt wrote, read back: a damaged or newer one is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from fwopt.errors import FwoptError, InputError
from fwopt.spec.base import SCHEMA_VERSION, Frozen

F = TypeVar("F", bound=Frozen)


def require_version(path: Path, values: Any, error: type[FwoptError] = InputError) -> None:
    """Refuse a file that states no version, or one that this fwopt does not know yet."""
    version = values.get("schema_version") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise error(f"{path}: is no {path.name} of fwopt, it states no schema_version; write it anew")
    if version > SCHEMA_VERSION:
        raise error(f"{path}: has schema_version {version}, this fwopt reads up to {SCHEMA_VERSION}; upgrade fwopt")


def read_back(path: Path, kind: type[F], what: str, remedy: str) -> F:
    """`what` it is of which verb; `remedy`: how to get a good one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if "schema_version" in values:
            require_version(path, values)
        return kind.model_validate(values)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, ValidationError):
        raise InputError(f"{path}: is no {what}; {remedy}") from None
