"""What every server implementation offers, and how it fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from fwopt.errors import FwoptError
from fwopt.live.endpoint import Endpoint
from fwopt.spec.candidate import Candidate
from fwopt.spec.outcome import Rejected

Failure = Literal["refused", "crashed", "out of memory", "never ready", "hung", "gone"]
"""refused: a flag, file or port it does not accept; crashed: died while starting; hung: lives and does not answer;
gone: died after it had been ready."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start: one replica of an exported deployment, without its router."""

    folder: Path
    """Exported files of one target, as `fwopt.deploy.write` leaves them."""
    scratch: Path
    """Working directory and logs of the server; created when missing."""
    model: str | None = None
    """Weights to load instead of those the files name (a folder, or a GGUF file)."""
    port: int | None = None
    """None: a free one."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's environment."""
    arguments: tuple[str, ...] = ()
    """Further words for the engine's command line, after everything the files say."""
    ready_timeout_s: float = 900.0
    answer_timeout_s: float = 30.0
    """How long a server that is up may take to answer `check` before it counts as hung."""
    stop_grace_s: float = 15.0
    """From SIGTERM to SIGKILL."""


class ServerError(FwoptError):
    """A server did not start, or is no longer there: one line, with the engine's own last words."""

    def __init__(self, engine: str, failure: Failure, last_words: str, log: Path | None) -> None:
        self.engine, self.failure, self.last_words, self.log = engine, failure, last_words, log
        super().__init__(f"{engine} {failure}: {last_words}" + (f" (log: {log})" if log else ""))

    def rejected(self, candidate: Candidate) -> Rejected:
        """The same as an outcome of the candidate that was to be served."""
        return Rejected(
            candidate_id=candidate.id, rung="live", reason=f"{self.engine} {self.failure}: {self.last_words}"
        )


class Server(Protocol):
    """One running deployment, on loopback. A context manager: leaving it ends every process of it."""

    def start(self) -> Endpoint:
        """Start, wait until it has generated a token; raises `ServerError`, leaving no process behind."""
        ...

    def check(self, *, generate: bool = False) -> None:
        """Raise `ServerError` when it no longer runs or no longer answers.

        `generate` asks for one token too: a front end may answer while its engine is stuck. Not under load, where the
        request waits its turn.
        """
        ...

    def stop(self) -> None:
        """End every process it started and wait until GPU memory is free. Harmless when called again."""
        ...

    def __enter__(self) -> Endpoint: ...

    def __exit__(self, *details: object) -> None: ...
