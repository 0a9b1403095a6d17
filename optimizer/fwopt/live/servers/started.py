"""What all engines that fwopt starts have in common: start, wait, watch, end."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from fwopt.live.endpoint import Endpoint
from fwopt.live.servers.base import Failure, Launch, ServerError
from fwopt.live.servers.identity import HttpError, Identity, fetch, identify
from fwopt.live.servers.last_words import failure, last_words, says_port_taken
from fwopt.live.servers.process import EngineProcess, environment, free_port, is_taken
from fwopt.spec.engine import EngineName

_PORT_ATTEMPTS = 3
_POLL_S = 0.1
_ASK_S = 5.0
"""One question while starting; the next poll asks again."""
_DYING_S = 10.0
"""A front end whose engine died gets this long to end by itself, so that its log is complete."""


class StartedServer(ABC):
    """A server process on loopback. An engine says how it is called and what its environment is."""

    engine: ClassVar[EngineName]
    name: ClassVar[str]
    """As its makers write it."""
    env_prefix: ClassVar[str] = ""
    """Variables of this process with this prefix are not passed on: the exported files alone configure the engine."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.endpoint: Endpoint | None = None
        self.identity: Identity | None = None
        """What it says of itself, engine version included; None before it was ready."""
        self._process: EngineProcess | None = None

    @abstractmethod
    def command(self, port: int) -> list[str]:
        """The whole command line, `--host 127.0.0.1` included; InputError when a file or executable is missing."""

    def env(self) -> dict[str, str]:
        """Variables of this engine's own."""
        return {}

    def verify(self, url: str) -> None:  # noqa: B027 - most engines refuse what they do not know
        """Raise ServerError when the running server is not what the files say."""

    def start(self) -> Endpoint:
        if self._process is not None:
            raise RuntimeError("a server is started once")
        for attempt in range(_PORT_ATTEMPTS):
            port = self.launch.port or free_port()
            if self.launch.port and is_taken(port):
                raise ServerError(self.name, "refused", f"port {port} of 127.0.0.1 is taken; choose another", None)
            try:
                self.endpoint = self._start_on(port)
                return self.endpoint
            except ServerError as error:
                lost_race = self._process is not None and says_port_taken(self._process.output())
                self.stop()
                if not lost_race or self.launch.port or attempt + 1 == _PORT_ATTEMPTS:
                    raise error from None
            except BaseException:
                self.stop()
                raise
        raise AssertionError("unreachable")

    def check(self, *, generate: bool = False) -> None:
        process, endpoint = self._running()
        if process.ended() is not None:
            raise self._died(process, "gone")
        url, patience = endpoint.url, self.launch.answer_timeout_s
        try:
            fetch(f"{url}/health", timeout_s=patience)
            if generate:
                self._generate(endpoint, patience)
        except (HttpError, OSError) as error:
            deadline = time.monotonic() + _DYING_S
            while process.ended() is None and not isinstance(error, TimeoutError) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            if process.ended() is not None:
                raise self._died(process, "gone") from None
            raise ServerError(self.name, "hung", f"no answer within {patience:g} s: {error}", process.log) from None

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def pids(self) -> list[int]:
        """Its processes, children of children included."""
        return self._process.pids() if self._process else []

    def __enter__(self) -> Endpoint:
        return self.start()

    def __exit__(self, *details: object) -> None:
        self.stop()

    def _start_on(self, port: int) -> Endpoint:
        command = [*self.command(port), *self.launch.arguments]
        env = environment(self.env() | dict(self.launch.env), without=self.env_prefix)
        process = EngineProcess(command, self.launch.scratch, env, self.launch.stop_grace_s)
        self._process = process
        process.start()
        deadline = time.monotonic() + self.launch.ready_timeout_s
        url = f"http://127.0.0.1:{port}"
        while not self._healthy(url):
            self._still_starting(process, deadline)
            time.sleep(_POLL_S)
        try:
            self.identity = found = identify(url, timeout_s=_ASK_S)
            self.verify(url)
            endpoint = Endpoint(
                url=url, model=found.models[0], engine=self.engine, max_context_tokens=found.max_context_tokens
            )
            self._generate(endpoint, max(_ASK_S, deadline - time.monotonic()))
        except (HttpError, OSError, ValueError) as error:
            if process.ended() is not None:
                raise self._died(process) from None
            kind: Failure = "never ready" if isinstance(error, TimeoutError) else "crashed"
            raise ServerError(self.name, kind, f"its first answer: {error}", process.log) from None
        return endpoint

    def _healthy(self, url: str) -> bool:
        try:
            fetch(f"{url}/health", timeout_s=_ASK_S)
        except (HttpError, OSError):
            return False
        return True

    def _still_starting(self, process: EngineProcess, deadline: float) -> None:
        if process.ended() is not None:
            raise self._died(process)
        if time.monotonic() > deadline:
            words = f"not within {self.launch.ready_timeout_s:g} s; its last line: {last_words(process.output())}"
            raise ServerError(self.name, "never ready", words, process.log)

    def _generate(self, endpoint: Endpoint, timeout_s: float) -> None:
        body = {"model": endpoint.model, "prompt": "Hello", "max_tokens": 1}
        fetch(f"{endpoint.url}/v1/completions", body=body, timeout_s=timeout_s)

    def _died(self, process: EngineProcess, otherwise: Failure | None = None) -> ServerError:
        """The error of a process that ended; `otherwise` is its kind where memory was not the cause."""
        killed = process.out_of_memory()
        words = last_words(process.output())
        kind = failure(words, killed_for_memory=killed)
        if otherwise and kind != "out of memory":
            kind = otherwise
            words = f"exit status {process.ended()}; {words}"
        elif killed:
            words = f"killed by the kernel, which was short of memory; its last line: {words}"
        elif kind == "crashed":
            words = f"exit status {process.ended()}; {words}"
        return ServerError(self.name, kind, words, process.log)

    def _running(self) -> tuple[EngineProcess, Endpoint]:
        if self._process is None or self.endpoint is None:
            raise RuntimeError("the server was not started")
        return self._process, self.endpoint


def is_missing_folder(model: str) -> bool:
    """Whether a model is named by a path, and nothing lies there: engines take such a name for a repository's."""
    return model.startswith(("/", ".")) and not Path(model).exists()
