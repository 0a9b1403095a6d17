"""What `fwopt record` is told, checked before anything is opened."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field

from fwopt.errors import InputError
from fwopt.spec.base import Frozen

_SIZE = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
_TIME = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Rotation(Frozen):
    """When the file is closed, renamed and begun anew."""

    size_bytes: int | None = None
    period_s: float | None = None

    @classmethod
    def parse(cls, texts: list[str]) -> Self:
        """`100MB`, `1GB`, `30m`, `1h`, `1d`: one size, one time, or both."""
        found: dict[str, float] = {}
        for text in texts:
            match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB|s|m|h|d)", text.strip())
            if match is None or float(match[1]) <= 0:
                raise InputError(f"--rotate: must be a size (100MB, 1GB) or a time (30m, 1h, 1d), got {text!r}")
            number, unit = float(match[1]), match[2]
            name, value = (
                ("size_bytes", int(number * _SIZE[unit])) if unit in _SIZE else ("period_s", number * _TIME[unit])
            )
            if name in found:
                raise InputError(f"--rotate: must be one size, one time or one of each, got {' and '.join(texts)}")
            found[name] = value
        return cls.model_validate(found)


class RecordSettings(Frozen):
    """One recording."""

    upstream: str
    """Scheme, host, port and perhaps a path in front of `/v1`."""
    out: Path
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """0: a free one."""
    with_text: bool = False
    """Also write prompts and replies."""
    tokenizer: Path | None = None
    """Folder with `tokenizer.json`, or that file: prefix blocks are then tokens."""
    key_file: Path | None = None
    """Secret of the prefix hashes; a random one, forgotten at the end, when absent."""
    rotation: Rotation = Rotation()
    fsync_ms: Annotated[int, Field(ge=1)] = 200
    """Lines reach the disk at the latest this long after they were written."""
    drain_s: Annotated[float, Field(ge=0)] = 60.0
    """How long replies under way may take once the recorder was told to stop."""
    ask_usage: bool = True
    """Ask streaming servers for token counts that the client did not ask for, and keep those from the client."""


def checked_upstream(url: str) -> str:
    """The URL without a closing slash or `/v1`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--upstream: must be a URL like http://127.0.0.1:8000, got {url!r}")
    if "@" in parts.netloc:
        raise InputError("--upstream: must hold no user and password; clients send their own Authorization header")
    if parts.query or parts.fragment:
        raise InputError("--upstream: must end with the path; leave out the part from '?' or '#'")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def checked_out(path: Path) -> None:
    if path.suffix in (".gz", ".zst"):
        raise InputError(f"--out: must be a plain file, since it is appended to; compress complete files, got {path}")
    if path.exists() and not path.is_file():
        raise InputError(f"--out: must be a file, for example workload.jsonl, got {path}")
    if not path.parent.is_dir():
        raise InputError(f"--out: the folder {path.parent} does not exist; create it first")
