"""What is settled before the first request: what prompts are made of, how they are sent, what the record says of it."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from time import perf_counter
from typing import Literal

from fwopt import __version__
from fwopt.errors import InputError
from fwopt.live import vocabulary as vocabularies
from fwopt.live.bodies import FORCING, FRESH_CONNECTIONS, Bodies
from fwopt.live.cache import CacheState, choose_salt
from fwopt.live.endpoint import Endpoint
from fwopt.live.exchange import Exchange
from fwopt.live.http import Pool
from fwopt.live.load import Load, schedule
from fwopt.live.options import ReplayOptions
from fwopt.live.prompts import Prompts
from fwopt.live.result import ClientEnvironment, EndpointFacts, ReplayHeader
from fwopt.live.rows import Rows
from fwopt.live.vocabulary import Vocabulary
from fwopt.workload.columns import Workload

_PROBE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about a replay that does not change while it runs."""

    endpoint: Endpoint
    workload: Workload
    load: Load
    options: ReplayOptions
    requests: int
    text: bool
    vocabulary: Vocabulary
    reserved: int
    salt: str

    def pool(self) -> Pool:
        fresh = self.endpoint.engine in FRESH_CONNECTIONS
        return Pool(self.endpoint.url, fresh=fresh, timeout_s=self.options.connect_timeout_s)

    def bodies(self, netloc: str) -> Bodies:
        prompts = Prompts(self.workload, self.vocabulary, self.salt, reserved=self.reserved)
        return Bodies(self.endpoint, prompts, self.options, text=self.text, netloc=netloc)

    @property
    def form(self) -> Literal["ids", "text"]:
        return "text" if self.text else "ids"


async def prepare(
    endpoint: Endpoint, workload: Workload, load: Load, options: ReplayOptions, stop: asyncio.Event
) -> Plan:
    requests = options.requests or len(workload)
    schedule(load, workload, requests)  # refuses what cannot be sent before anything is
    text = _sends_text(endpoint, options)
    vocabulary = _vocabulary(endpoint, options, text)
    plan = Plan(
        endpoint=endpoint,
        workload=workload,
        load=load,
        options=options,
        requests=requests,
        text=text,
        vocabulary=vocabulary,
        reserved=vocabulary.added_tokens if text and endpoint.api == "completions" else 0,
        salt=choose_salt(options),
    )
    return replace(plan, reserved=await _template_tokens(plan, stop)) if endpoint.api == "chat" else plan


def _sends_text(endpoint: Endpoint, options: ReplayOptions) -> bool:
    if endpoint.api == "chat":
        if options.prompts == "ids":
            raise InputError("the chat API takes text, not token ids; use the completions API, or text prompts")
        return True
    if options.prompts is not None:
        return options.prompts == "text"
    return endpoint.engine is None


def _vocabulary(endpoint: Endpoint, options: ReplayOptions, text: bool) -> Vocabulary:
    if text:
        if options.tokenizer is None:
            raise InputError(
                f"{endpoint.url} is sent text prompts ({'chat API' if endpoint.api == 'chat' else 'unknown engine'}): "
                "name the model's tokenizer.json with --tokenizer, or the engine with --engine"
            )
        return vocabularies.words_of(options.tokenizer)
    if options.vocabulary is not None:
        return vocabularies.given(*options.vocabulary)
    return vocabularies.from_tokenizer(options.tokenizer) if options.tokenizer else vocabularies.assumed()


async def _template_tokens(plan: Plan, stop: asyncio.Event) -> int:
    """Tokens that the chat template puts around a message, by the server's own count."""
    pool = plan.pool()
    text = "".join(plan.vocabulary.texts[:_PROBE_TOKENS])
    own = len(plan.vocabulary.tokenizer.encode(text, add_special_tokens=False).ids)
    rows, done = Rows.empty(1), asyncio.Event()
    now = perf_counter()
    exchange = Exchange(0, rows, now, now, True, lambda _: done.set())
    waiting = [asyncio.ensure_future(event.wait()) for event in (done, stop)]
    try:
        connection = await pool.open()
        connection.send(plan.bodies(pool.netloc).probe(text), exchange)
        limit_s = plan.options.first_token_timeout_s
        await asyncio.wait(waiting, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if not done.is_set():
            raise TimeoutError("stopped" if stop.is_set() else f"no answer within {limit_s:g} s")
    except OSError as error:
        raise InputError(f"{plan.endpoint.url}: cannot ask for the length of the chat template: {error}") from None
    finally:
        for task in waiting:
            task.cancel()
        pool.close()
    if exchange.usage is None:
        reason = rows.errors.get(0, "it tells no token counts")
        raise InputError(f"{plan.endpoint.url}: cannot ask for the length of the chat template: {reason}")
    return exchange.usage.prompt_tokens - own


def header_of(plan: Plan, state: CacheState, warm_up_failures: int) -> ReplayHeader:
    endpoint, vocabulary = plan.endpoint, plan.vocabulary
    ids = vocabulary.ids
    return ReplayHeader(
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment(),
        endpoint=EndpointFacts(
            url=endpoint.url,
            model=endpoint.model,
            engine=endpoint.engine,
            api=endpoint.api,
            max_context_tokens=endpoint.max_context_tokens,
        ),
        load=plan.load,
        options=plan.options,
        workload=plan.workload.name,
        workload_digest=plan.workload.digest,
        requests=plan.requests,
        cache=state,
        prompt_form=plan.form,
        vocabulary=f"{len(ids):,} ids from {ids[0]} to {ids[-1]} ({vocabulary.source})",
        chat_template_tokens=plan.reserved,
        forced=endpoint.engine in FORCING,
        warm_up_failures=warm_up_failures,
    )


def environment() -> ClientEnvironment:
    names = ("numpy", "orjson", "pydantic", "uvloop") if sys.platform != "win32" else ("numpy", "orjson", "pydantic")
    return ClientEnvironment(
        fwopt=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpus=os.cpu_count() or 1,
        packages={name: version(name) for name in names},
    )
