"""One value of an engine's YAML file."""

from __future__ import annotations

import json
import re

import yaml

_PLAIN = re.compile(r"^[A-Za-z0-9_./][A-Za-z0-9_./@+-]*$")
"""Names that YAML reads without quotes, unless they look like a number or a switch."""


def yaml_scalar(value: str | int | float | bool) -> str:
    """YAML 1.1 scalar; a name that could be read as anything but a string is quoted."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return value if _PLAIN.match(value) and yaml.safe_load(value) == value else json.dumps(value)
