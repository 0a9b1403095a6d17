"""Ask a server one eval set, and keep what it answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from fwopt import __version__
from fwopt.errors import FwoptError
from fwopt.evals.asking import ServerGoneError, ask_all
from fwopt.evals.files import ANSWERS, Answers, AnswersWriter, unfinished
from fwopt.evals.items import EvalSet
from fwopt.evals.requests import check_sendable
from fwopt.live.endpoint import Endpoint
from fwopt.live.signals import until_signal
from fwopt.spec.evals import EvalSettings, EvalsHeader, Graded, Served

Progress = Callable[[str, int, int], None]
_Result = TypeVar("_Result")


class StoppedError(FwoptError):
    """Ctrl-C, or the server went away: what was answered is kept."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A set for a server."""

    asked: EvalSet
    """Already drawn."""
    endpoint: Endpoint
    version: str | None
    """Of the engine."""
    settings: EvalSettings
    folder: Path
    """Files go below it, in a folder of the set's name."""
    scheme: str | None = None
    config_digest: str | None = None

    def header(self) -> EvalsHeader:
        asked = self.asked
        return new_header(
            asked.name, asked.digest, len(asked.items), self.endpoint, self.version, self.settings, self.scheme,
            self.config_digest,
        )  # fmt: skip


def new_header(
    name: str,
    digest: str,
    items: int,
    where: Endpoint,
    version: str | None,
    settings: EvalSettings,
    scheme: str | None,
    config_digest: str | None,
) -> EvalsHeader:
    return EvalsHeader(
        fwopt_version=__version__,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        set=name,
        digest=digest,
        items=items,
        served=Served(url=where.url, model=where.model, engine=where.engine, version=version),
        settings=settings,
        scheme=scheme,
        config_digest=config_digest,
    )


def run(ask: Ask, progress: Progress, *, resume: bool) -> Answers:
    """Graded answers to every item. `resume`: go on with the newest run that was stopped; errors are asked again."""
    check_sendable(ask.asked, ask.settings)
    header, folder = ask.header(), ask.folder / ask.asked.name
    found = unfinished(folder, header) if resume else None
    kept = [answer for answer in found.graded.values() if answer.error is None] if found else []
    path = found.path.with_name(found.path.name.removesuffix(".partial")) if found else new_path(folder, header)
    writer = AnswersWriter(path, found.header if found else header, kept)
    what = f"asking {ask.endpoint.url} set {ask.asked.name}"
    progress(what, len(kept), header.items)

    def on_answer(answer: Graded) -> None:
        writer.add(answer)
        progress(what, len(writer.graded), header.items)

    left = [item for item in ask.asked.items if item.name not in writer.graded]
    try:
        complete = until_signal(lambda stop: ask_all(left, ask.endpoint, ask.settings, on_answer, stop))
    except ServerGoneError as error:
        raise StoppedError(f"{error} after {_progress(writer)}; go on with --resume") from None
    finally:
        writer.abandon()
    if not complete:
        raise StoppedError(f"stopped after {_progress(writer)}; go on with --resume")
    return writer.finish(item.name for item in ask.asked.items)


def _progress(writer: AnswersWriter) -> str:
    return f"{len(writer.graded)} of {writer.header.items} answers ({writer.partial})"


def new_path(folder: Path, header: EvalsHeader) -> Path:
    stamp = re.sub(r"[^0-9T]", "", header.started_at.partition("+")[0])
    label = re.sub(r"[^\w.+-]+", "-", header.scheme or Path(header.served.model).name)
    path, again = folder / f"{stamp}-{label}{ANSWERS}", 1
    while path.exists() or path.with_name(path.name + ".partial").exists():
        again += 1
        path = folder / f"{stamp}-{label}-{again}{ANSWERS}"
    return path
