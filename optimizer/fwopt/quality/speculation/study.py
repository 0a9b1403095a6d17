"""From a model, texts and drafters to acceptance figures: what is known is read, what is missing is computed."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fwopt import __version__
from fwopt.atomic import written_whole
from fwopt.errors import InputError
from fwopt.quality import text
from fwopt.quality.shards import weights_digest
from fwopt.quality.speculation import replies
from fwopt.quality.speculation.acceptance import Reply, Walked, figures, steps
from fwopt.quality.speculation.drafting import Drafting, DraftModel, Lookup
from fwopt.quality.statistics import Bootstrap
from fwopt.spec.base import content_hash
from fwopt.spec.speculation import (
    Acceptance,
    ModelDrafter,
    NgramDrafter,
    SpeculationResults,
    SpeculationSettings,
    read_speculation,
)
from fwopt.targets.cpu import processor_name
from fwopt.targets.models import config_digest

Tell = Callable[[str, int, int], None]
METHOD = 2
"""Raised when figures of the same inputs would come out otherwise."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure."""

    model: str
    folder: Path
    files: tuple[Path, ...]
    traces: tuple[Path, ...]
    drafters: tuple[tuple[NgramDrafter | ModelDrafter, Path | None], ...]
    """With the folder of a draft model."""
    settings: SpeculationSettings
    home: Path

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(drafter.name for drafter, _ in self.drafters)


def run(request: Request, tell: Tell) -> tuple[SpeculationResults, Path]:
    """(figures, the file that holds them)."""
    try:
        request.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{request.home}: cannot be written ({error.strerror}); choose another --out") from None
    text_digest = text.digest(request.files, request.traces)
    memory = request.home / "digests.json"
    generated = request.settings.replies == "generated"
    weights = weights_digest(request.folder, memory)[:16] if generated else None
    ends = sorted(replies.end_tokens(request.folder)) if generated else []
    tokens = text.tokens_digest(request.folder, chats=True)
    key = content_hash([METHOD, weights, tokens, ends, text_digest, request.settings.model_dump(mode="json")])
    folder = request.home / f"{Path(request.model).name}-{key}"
    folder.mkdir(exist_ok=True)
    file = folder / "results.json"
    known = read_speculation(file) if file.is_file() else None
    wanted = []
    for drafter, place in request.drafters:
        digest = _same_vocabulary(request.folder, place, memory) if place is not None else None
        if known is None or known.find(drafter, digest) is None:
            wanted.append((drafter, place, digest))
    if known is not None and not wanted:
        return known, file
    found = _replies(request, folder, tell)
    fresh = [_measure(drafter, place, digest, found, request.settings.seed, tell) for drafter, place, digest in wanted]
    results = SpeculationResults(
        fwopt_version=__version__,
        key=key,
        model=request.model,
        config_digest=config_digest((request.folder / "config.json").read_bytes()),
        weights_digest=weights,
        text=tuple(path.name for path in (*request.files, *request.traces)),
        text_digest=text_digest[:16],
        replies_digest=replies.digest(found),
        settings=request.settings,
        drafters=(*(known.drafters if known else ()), *fresh),
        versions={name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
        | {"python": platform.python_version()},
        machine=processor_name(),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    with written_whole(file) as path:
        path.write_text(results.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return results, file


def _replies(request: Request, folder: Path, tell: Tell) -> list[Reply]:
    tell("reading text", 0, 0)
    if request.settings.replies == "recorded":
        return replies.recorded(request.folder, request.traces, request.settings)
    prompts = replies.openings(request.folder, request.files, request.traces, request.settings)
    return replies.Answers(folder / "replies.jsonl", request.folder, request.settings).of(prompts, tell)


def _measure(
    drafter: NgramDrafter | ModelDrafter,
    place: Path | None,
    digest: str | None,
    found: list[Reply],
    seed: int,
    tell: Tell,
) -> Acceptance:
    drafting: Drafting
    if drafter.kind == "ngram":
        drafting = Lookup(drafter)
    else:
        assert place is not None
        tell(f"loading {drafter.name}", 0, 0)
        drafting = DraftModel(place, drafter.tokens)
    walked = []
    for number, reply in enumerate(found):
        tell(drafter.name, number, len(found))
        walked.append(list(steps(reply, drafting)))
    whole, bootstrap = Walked.of(walked), Bootstrap(seed)
    if not len(whole.reply):
        raise InputError("no reply has a second token, so there is no decode step; give longer replies")
    classes = np.array([reply.label for reply in found])
    by_class = {
        label: figures(part, drafter.tokens, bootstrap)
        for label in dict.fromkeys(reply.label for reply in found)
        if len((part := whole.of_replies(classes == label)).reply)
    }
    overall = figures(whole, drafter.tokens, bootstrap)
    return Acceptance(drafter=drafter, weights_digest=digest, overall=overall, by_class=by_class, steps=whole.taken())


def _same_vocabulary(target: Path, draft: Path, memory: Path) -> str:
    """The draft's weights; a draft of other tokens is refused, as vLLM does."""
    from tokenizers import Tokenizer

    own, drafts = (str(text.tokenizer_file(place)) for place in (target, draft))
    if Tokenizer.from_file(own).get_vocab() != Tokenizer.from_file(drafts).get_vocab():
        raise InputError(
            f"{draft}: a draft model must have the target's own tokens, and its tokenizer.json has others than {target}"
        )
    return weights_digest(draft, memory)[:16]
