"""What a running server says of itself: the name it serves under, and its version."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from fwopt.errors import InputError
from fwopt.spec.engine import EngineName

_TIMEOUT_S = 10.0
_VERSION_PATH: dict[EngineName, tuple[str, str]] = {
    "vllm": ("/version", "version"),
    "llamacpp": ("/props", "build_info"),
    "fwopt": ("/version", "version"),
    "sglang": ("/get_server_info", "version"),
}


def served_name(url: str) -> str:
    """The first model of `/v1/models`."""
    try:
        return str(_get(url, "/v1/models")["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise InputError(f"{url}/v1/models: names no model; is this an OpenAI-compatible server?") from None


def running_version(url: str, engine: EngineName) -> str:
    """As a folder may be named by: `0.32.0`, `b7312-abc`."""
    path, field = _VERSION_PATH[engine]
    try:
        text = str(_get(url, path)[field])
    except (KeyError, TypeError):
        raise InputError(f"{url}{path}: says no version; add it to --engine, as in {engine}==1.2.3") from None
    return re.sub(r"[^A-Za-z0-9.]+", "-", text.partition("+")[0]).strip("-") or "unknown"


def _get(url: str, path: str) -> Any:
    try:
        with urlopen(f"{url}{path}", timeout=_TIMEOUT_S) as answer:
            return json.load(answer)
    except HTTPError as error:
        raise InputError(f"{url}{path}: answered {error.code}; is the engine the one named by --engine?") from None
    except (URLError, OSError, ValueError) as error:
        raise InputError(f"{url}{path}: no answer ({error}); start the engine first") from None
