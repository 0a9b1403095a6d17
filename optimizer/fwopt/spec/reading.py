"""Files that fwopt wrote, read back: a damaged or newer one is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from fwopt.errors import InputError
from fwopt.spec.base import SCHEMA_VERSION, Frozen

F = TypeVar("F", bound=Frozen)


def read_back(path: Path, kind: type[F], what: str, remedy: str) -> F:
    """`what` it is of which verb; `remedy`: how to get a good one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise InputError(f"{path}: has schema_version {version}, this fwopt reads up to {SCHEMA_VERSION}; upgrade")
        return kind.model_validate(values)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, AttributeError, ValidationError):
        raise InputError(f"{path}: is no {what}; {remedy}") from None
