"""Typed access to a config.json: every missing or malformed field is an error that names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fwopt.errors import InputError


class Config:
    """A (section of a) config.json and the label that its errors carry."""

    def __init__(self, values: Mapping[str, Any], label: str) -> None:
        self._values, self.label = values, label

    def error(self, field: str, rule: str) -> InputError:
        return InputError(f"{self.label}: {field}: {rule}, got {self._values.get(field)!r}"[:400])

    def has(self, field: str) -> bool:
        return self._values.get(field) is not None

    def integer(self, field: str, default: int | None = None) -> int:
        """A positive integer; without a default the field must be there."""
        value = self._values.get(field)
        if value is None:
            if default is None:
                raise InputError(f"{self.label}: {field}: this field is missing, and nothing can stand in for it")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(field, "must be a positive integer")
        return value

    def optional(self, field: str) -> int | None:
        """A positive integer, or None when the field is absent, null or zero."""
        return self.integer(field) if self._values.get(field) else None

    def flag(self, field: str, default: bool) -> bool:
        value = self._values.get(field, default)
        if not isinstance(value, bool):
            raise self.error(field, "must be true or false")
        return value

    def text(self, field: str) -> str | None:
        value = self._values.get(field)
        if value is not None and not isinstance(value, str):
            raise self.error(field, "must be a string")
        return value

    def items(self, field: str, kind: type, length: int | None = None) -> list[Any] | None:
        """A list of `kind` with `length` entries, or None when absent."""
        value = self._values.get(field)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(v, kind) for v in value):
            raise InputError(f"{self.label}: {field}: must be a list of {kind.__name__}")
        if length is not None and len(value) != length:
            raise InputError(f"{self.label}: {field}: must have one entry a layer ({length}), got {len(value)}")
        return value

    def fields(self) -> Mapping[str, Any]:
        return self._values

    def extended(self, more: Mapping[str, Any]) -> Config:
        """The same section with further fields."""
        return Config({**self._values, **more}, self.label)

    def section(self, field: str) -> Config:
        value = self._values.get(field)
        if not isinstance(value, dict):
            raise self.error(field, "must be an object")
        return Config(value, f"{self.label}: {field}")
