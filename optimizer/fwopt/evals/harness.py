"""Tasks of lm-evaluation-harness on a server, through its own API, as graded answers that can be paired."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fwopt.errors import InputError
from fwopt.evals.files import Answers, AnswersWriter
from fwopt.evals.run import new_header, new_path
from fwopt.live.endpoint import Endpoint
from fwopt.spec.base import content_hash
from fwopt.spec.evals import EvalSettings, Graded

PREFIX = "lm-eval:"
_MODELS = {"chat": "local-chat-completions", "completions": "local-completions"}
_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@dataclass(frozen=True, slots=True)
class HarnessAsk:
    """A task for a server. Prompts, filters and scores are the task's own."""

    task: str
    endpoint: Endpoint
    version: str | None
    settings: EvalSettings
    folder: Path
    tasks: Path | None = None
    """Folder with tasks of the user's own, beside the harness's."""
    scheme: str | None = None
    config_digest: str | None = None


def run(ask: HarnessAsk) -> Answers:
    """Scores of every document. The harness shows its own progress, and starts anew when it was stopped."""
    graded = [_graded(sample, metric) for sample, metric in _first_figure(_evaluate(ask), ask.task)]
    digest = content_hash([[found.id, found.raw["doc_hash"], found.raw["prompt_hash"]] for found in graded])
    name = f"{PREFIX.removesuffix(':')}-{ask.task}"
    header = new_header(
        name, digest, len(graded), ask.endpoint, ask.version, ask.settings, ask.scheme, ask.config_digest
    )
    writer = AnswersWriter(new_path(ask.folder / name, header), header, graded)
    return writer.finish(found.id for found in graded)


def _evaluate(ask: HarnessAsk) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    where, settings = ask.endpoint, ask.settings
    arguments = {
        "model": where.model,
        "base_url": where.url + _PATHS[settings.api],
        "tokenizer_backend": None,
        "tokenized_requests": False,
        "num_concurrent": settings.concurrency,
        "timeout": settings.timeout_s,
        "seed": settings.seed,
    }
    try:
        with _key(where.api_key):
            found: dict[str, Any] = lm_eval.simple_evaluate(
                model=_MODELS[settings.api], model_args=arguments, tasks=[ask.task], limit=settings.limit,
                task_manager=TaskManager(include_path=str(ask.tasks) if ask.tasks else None),
                apply_chat_template=settings.api == "chat", log_samples=True, bootstrap_iters=0,
                random_seed=settings.seed, numpy_random_seed=settings.seed, fewshot_random_seed=settings.seed,
            )  # fmt: skip
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        raise InputError(f"{PREFIX}{ask.task}: lm-evaluation-harness fails: {type(error).__name__}: {words}") from error
    return found


@contextmanager
def _key(api_key: str | None) -> Iterator[None]:
    """The harness takes a server's key from the environment alone."""
    before = os.environ.get("OPENAI_API_KEY")
    os.environ["OPENAI_API_KEY"] = api_key or before or "none"
    try:
        yield
    finally:
        os.environ.pop("OPENAI_API_KEY")
        if before is not None:
            os.environ["OPENAI_API_KEY"] = before


def _first_figure(found: dict[str, Any], task: str) -> list[tuple[dict[str, Any], str]]:
    """(document's sample, metric), by the task's first filter and first metric, in order of documents."""
    samples = (found.get("samples") or {}).get(task)
    if not samples:
        raise InputError(f"{PREFIX}{task}: has no documents of its own; name a single task, not a group")
    first, metric = samples[0].get("filter"), samples[0]["metrics"][0]
    chosen = [sample for sample in samples if sample.get("filter") == first]
    wild = next((sample[metric] for sample in chosen if not _is_share(sample[metric])), None)
    if wild is not None:
        raise InputError(f"{PREFIX}{task}: its metric {metric} gives {wild!r} for a document, no score from 0 to 1")
    return [(sample, metric) for sample in sorted(chosen, key=lambda sample: int(sample["doc_id"]))]


def _is_share(value: Any) -> bool:
    return isinstance(value, bool | int | float) and 0 <= value <= 1


def _graded(sample: dict[str, Any], metric: str) -> Graded:
    score, answers = float(sample[metric]), sample["resps"]
    text = str(answers[0][0]) if answers and answers[0] else ""
    kept = {key: str(sample[key]) for key in ("doc_hash", "prompt_hash", "target", "filter") if key in sample}
    why = None if score == 1 else f"{metric} {score:g}; target {str(sample.get('target'))[:60]!r}"
    return Graded(id=str(sample["doc_id"]), score=score, why=why, text=text, raw=kept)
