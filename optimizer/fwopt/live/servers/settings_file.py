"""Reads the `NAME=value` files that deployments are exported as."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from fwopt.errors import InputError

_DIRECTIVE = re.compile(r"^#\s*fwopt:\s*([a-z_]+)\s*=\s*(.*?)\s*$", re.MULTILINE)
_ASSIGNMENT = re.compile(r"^([A-Za-z_][A-Za-z0-9_]*)=(.*)$")


def assignments(path: Path) -> dict[str, str]:
    """Name -> value, as a shell that reads the file would set it. InputError naming file, line and rule."""
    found: dict[str, str] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _ASSIGNMENT.match(line)
        try:
            words = shlex.split(match[2]) if match else []
        except ValueError:  # a quote that does not end
            match = None
        if match is None or len(words) > 1:
            raise InputError(f"{path}:{number}: must be NAME=VALUE, got '{line[:80]}'")
        found[match[1]] = words[0] if words else ""
    return found


def directives(path: Path) -> dict[str, str]:
    """The `# fwopt: key=value` comment lines: what the engine has no name for."""
    return dict(_DIRECTIVE.findall(_text(path)))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); write it with fwopt export") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: must be UTF-8 text; write it with fwopt export") from None
