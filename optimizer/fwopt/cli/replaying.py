"""What `fwopt replay` was asked for, checked; and the run itself, with progress on stderr."""

from __future__ import annotations

import os
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import ValidationError

from fwopt.cli.counting import counting
from fwopt.errors import InputError, UnknownNameError
from fwopt.live import ClosedLoop, Endpoint, Load, Poisson, Ramp, Recorded, Replay, ReplayOptions, replay_sync
from fwopt.live.identify import complete
from fwopt.spec.engine import EngineName
from fwopt.workload.columns import Workload

_APIS: dict[str, Literal["completions", "chat"]] = {"completions": "completions", "chat": "chat"}


def choose_load(
    *, rate_scale: float | None, closed: int | None, poisson: float | None, ramp: str | None, seed: int
) -> Load:
    """One law of arrivals; two are a contradiction."""
    given = {"--rate-scale": rate_scale, "--closed": closed, "--poisson": poisson, "--ramp": ramp}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise InputError(f"requests arrive by one law; got {' and '.join(named)}: keep one")
    try:
        if closed is not None:
            return ClosedLoop(concurrency=closed)
        if poisson is not None:
            return Poisson(rate=poisson, seed=seed)
        if ramp is not None:
            start, end = _pair("--ramp", ramp, float, "1:20")
            return Ramp(start_rate=start, end_rate=end)
        return Recorded() if rate_scale is None else Recorded(rate_scale=rate_scale)
    except ValidationError as error:
        raise InputError(f"{named[0]}: {_first(error)}") from None


def choose_options(*, vocabulary: str | None, **given: Any) -> ReplayOptions:
    """What was left out stays at the model's default."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if vocabulary is not None:
        chosen["vocabulary"] = _pair("--vocabulary", vocabulary, int, "1000:31000")
    try:
        return ReplayOptions(**chosen)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0]).removesuffix("_s").replace("_", "-")
        raise InputError(f"--{name}: {_first(error)}") from None


def _pair(name: str, text: str, kind: type[Any], example: str) -> tuple[Any, Any]:
    first, colon, second = text.partition(":")
    try:
        if colon:
            return kind(first), kind(second)
    except ValueError:
        pass
    raise InputError(f"{name} must be two numbers, for example {example}, got '{text}'")


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{first['msg'].replace('Input should be', 'must be')}, got {first['input']!r}"


def find_endpoint(
    url: str, *, model: str | None, engine: str | None, api: str, key_variable: str | None, max_context: int | None
) -> Endpoint:
    """The server as named, completed by what it says about itself."""
    engines: tuple[EngineName, ...] = get_args(EngineName)
    if engine is not None and engine not in engines:
        raise UnknownNameError("engine", engine, engines)
    if api not in _APIS:
        raise InputError(f"--api must be {' or '.join(_APIS)}, got '{api}'")
    if urlsplit(url).path.rstrip("/").endswith("/v1"):
        raise InputError(f"--url is the server's address without /v1, got '{url}'")
    key = None
    if key_variable is not None:
        key = os.environ.get(key_variable)
        if not key:
            raise InputError(f"--api-key-env {key_variable}: no such environment variable, or empty; export it first")
    endpoint = Endpoint(
        url.rstrip("/"), model or "", engine=engine, api=_APIS[api], api_key=key, max_context_tokens=max_context
    )
    return complete(endpoint, named=model is not None)


def run(endpoint: Endpoint, workload: Workload, load: Load, options: ReplayOptions) -> Replay:
    """Replay with a count on stderr."""
    what = f"replaying on {endpoint.url}, Ctrl-C ends with a result"
    with counting() as tell:
        return replay_sync(endpoint, workload, load, options, progress=lambda done, total: tell(what, done, total))
