"""What answers at a URL: asked over HTTP, of servers that fwopt started and of any other."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from fwopt.spec.engine import EngineName

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Loopback addresses are never asked through a proxy."""
_OWNERS: dict[str, EngineName] = {"vllm": "vllm", "llamacpp": "llamacpp", "sglang": "sglang", "fwopt": "fwopt"}
"""`owned_by` of a model list -> engine."""


class HttpError(Exception):
    """The server answered with something else than success."""

    def __init__(self, status: int, body: str) -> None:
        self.status, self.body = status, body
        super().__init__(f"HTTP {status}: {body[:200]}")


@dataclass(frozen=True, slots=True)
class Identity:
    """A server as it describes itself."""

    models: tuple[str, ...]
    engine: EngineName | None
    version: str | None
    max_context_tokens: int | None


def fetch(url: str, *, timeout_s: float, body: dict[str, Any] | None = None, api_key: str | None = None) -> bytes:
    """GET, or POST of JSON. Raises HttpError on a status that is no success, OSError when nothing answers in time."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with _DIRECT.open(request, timeout=timeout_s) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            raise HttpError(error.code, error.read().decode("utf-8", "replace")) from None


def identify(url: str, *, timeout_s: float, api_key: str | None = None) -> Identity:
    """Model list, engine and version. Raises HttpError, OSError, or ValueError when the list is not OpenAI's."""
    listed = json.loads(fetch(f"{url}/v1/models", timeout_s=timeout_s, api_key=api_key))
    models = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(models, list) or not models or not all(isinstance(m, dict) and "id" in m for m in models):
        raise ValueError(f"{url}/v1/models: must be a list of at least one model, got {str(listed)[:120]}")
    first = models[0]
    engine = _OWNERS.get(str(first.get("owned_by")))
    longest = first.get("max_model_len") or (first.get("meta") or {}).get("n_ctx")
    return Identity(
        models=tuple(str(m["id"]) for m in models),
        engine=engine,
        version=_version(url, engine, timeout_s, api_key),
        max_context_tokens=int(longest) if longest else None,
    )


def _version(url: str, engine: EngineName | None, timeout_s: float, api_key: str | None) -> str | None:
    """Where each engine states its version; None where it does not."""
    path, key = {
        "llamacpp": ("/props", "build_info"),
        "sglang": ("/get_server_info", "version"),
    }.get(engine or "", ("/version", "version"))
    try:
        answer = json.loads(fetch(url + path, timeout_s=timeout_s, api_key=api_key))
    except (HttpError, OSError, ValueError):
        return None
    return str(answer[key]) if isinstance(answer, dict) and answer.get(key) else None
