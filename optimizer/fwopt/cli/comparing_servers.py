"""What `fwopt ab` was asked for, checked before the first request."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

from fwopt.ab.session import Server, Session
from fwopt.cli.counting import Tell
from fwopt.cli.evaluating import drawn_sets, eval_settings, parse_margin
from fwopt.cli.replaying import find_endpoint
from fwopt.errors import InputError
from fwopt.evals.extra import require
from fwopt.live.identify import served
from fwopt.search.traffic import load_traffic
from fwopt.spec.ab import AbSettings
from fwopt.workload.columns import Workload
from fwopt.workload.select import cut_context


def prepare(
    urls: tuple[str, str],
    models: tuple[str | None, str | None],
    evals: list[Path],
    trace: Path | None,
    out: Path | None,
    tell: Tell,
    *,
    key_variable: str | None,
    requests: int,
    blocks: int,
    concurrency: int | None,
    rate_scale: float,
    max_slowdown: str,
    tokenizer: Path | None,
    margin: str,
    tools: str,
    limit: int | None,
    seed: int,
) -> Session:
    if not evals and trace is None:
        raise InputError("`fwopt ab` compares on something: add --evals FILE, --workload TRACE, or both")
    if requests < blocks:
        raise InputError(f"--requests {requests} are fewer than --blocks {blocks}; a block holds at least one request")
    require("evals", "scipy", "jsonschema")
    settings = AbSettings(
        seed=seed, blocks=blocks, requests=requests, margin=parse_margin(margin), slowdown=_share(max_slowdown),
        concurrency=concurrency, rate_scale=rate_scale,
        evals=eval_settings(tools=tools, limit=limit, seed=seed),
    )  # fmt: skip
    sets = drawn_sets(evals, settings.evals)
    a, b = (_server(url, model, key_variable) for url, model in zip(urls, models, strict=True))
    workload = _workload(trace, (a, b), blocks) if trace is not None else None
    folder = out or Path("reports") / f"ab-{datetime.now():%Y%m%d-%H%M%S}"
    if folder.exists():
        raise InputError(f"{folder}: exists; choose another --out")
    return Session({"a": a, "b": b}, sets, workload, settings, folder, tell, tokenizer)


def _server(url: str, model: str | None, key_variable: str | None) -> Server:
    plain = find_endpoint(url, model=model, engine=None, api="completions", key_variable=key_variable, max_context=None)
    return Server(replace(plain, api="chat"), plain, served(plain).version)


def _workload(trace: Path, servers: tuple[Server, Server], blocks: int) -> Workload:
    """Cut to the shorter context: a request that only one of them can serve compares nothing."""
    traffic = load_traffic(trace, format=None, skip_bad=False, only_model=None, rate_scale=1.0)
    if len(traffic.workload) < blocks:
        raise InputError(f"{trace}: has {len(traffic.workload)} requests, fewer than --blocks {blocks}")
    contexts = [server.plain.max_context_tokens for server in servers]
    known = [tokens for tokens in contexts if tokens is not None]
    return cut_context(traffic.workload, min(known)) if known else traffic.workload


def _share(text: str) -> float:
    """`5%` -> 0.05."""
    try:
        share = float(text.strip().removesuffix("%")) / 100 if text.strip().endswith("%") else -1.0
    except ValueError:
        share = -1.0
    if not 0 <= share < 10:
        raise InputError(f"--max-slowdown '{text}': write a share, for example 5%")
    return share
