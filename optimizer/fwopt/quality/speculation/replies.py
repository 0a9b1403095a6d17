"""Replies to divide into steps: those that were recorded, or what the model at hand goes on with, greedily."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fwopt.errors import InputError
from fwopt.quality.speculation.acceptance import Reply
from fwopt.quality.speculation.drafting import load
from fwopt.quality.text import Reader, labels
from fwopt.spec.speculation import SpeculationSettings

Tell = Callable[[str, int, int], None]

LEAST_REPLIES = 6
"""Fewer give no interval."""
BEYOND = 16
"""Tokens generated after the end of a reply: the last draft may reach there."""


def recorded(folder: Path, traces: Sequence[Path], settings: SpeculationSettings) -> list[Reply]:
    """What the traces' own model answered, cut to `reply_tokens`; what follows the cut is known."""
    reader = Reader(folder)
    by_class = {
        label: [
            Reply(label, tuple(prompt), tuple(reply[: settings.reply_tokens]),
                  tuple(reply[settings.reply_tokens :][:BEYOND]))
            for prompt, reply in reader.exchanges(path)
            if len(reply) > 1
        ]
        for path, label in zip(traces, labels(traces), strict=True)
    }  # fmt: skip
    return _chosen(by_class, settings)


def openings(folder: Path, files: Sequence[Path], traces: Sequence[Path], settings: SpeculationSettings) -> list[Reply]:
    """Prompts to be answered: stretches of plain text, and requests as they were recorded."""
    reader = Reader(folder)
    prefix, by_class = reader.prefix(), {}
    for path, label in zip(files, labels(files), strict=True):
        tokens, size = reader.file(path, label).tokens, settings.prompt_tokens
        pieces = [tokens[at : at + size] for at in range(0, len(tokens) - size + 1, size)]
        by_class[label] = [Reply(label, (*prefix, *piece), ()) for piece in pieces]
    for path, label in zip(traces, labels(traces), strict=True):
        by_class[label] = [Reply(label, tuple(prompt), ()) for prompt, _ in reader.exchanges(path)]
    return _chosen(by_class, settings)


def _chosen(by_class: dict[str, list[Reply]], settings: SpeculationSettings) -> list[Reply]:
    """Classes take turns up to `max_replies`, each in an order drawn by the seed."""
    generator = np.random.default_rng(settings.seed)
    queues = [[own[i] for i in generator.permutation(len(own))] for own in by_class.values()]
    taken: list[Reply] = []
    for turn in range(max(map(len, queues), default=0)):
        taken += [queue[turn] for queue in queues if turn < len(queue)]
    taken = taken[: settings.max_replies]
    if len(taken) < LEAST_REPLIES:
        raise InputError(
            f"the text gives {len(taken)} replies; at least {LEAST_REPLIES} are needed: give more text, or a smaller "
            "--prompt-tokens"
        )
    return taken


class Answers:
    """Generated replies, one a line as they are made: a run that is killed goes on with the next one."""

    def __init__(self, path: Path, folder: Path, settings: SpeculationSettings) -> None:
        self._path, self._folder, self._settings = path, folder, settings

    def of(self, prompts: Sequence[Reply], tell: Tell) -> list[Reply]:
        known = self._known()
        if len(known) < len(prompts):
            with self._path.open("a", encoding="utf-8") as file:
                for tokens in self._generated(prompts[len(known) :], len(known), len(prompts), tell):
                    file.write(json.dumps(tokens) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                    known.append(tokens)
        return [self._divided(prompt, tokens) for prompt, tokens in zip(prompts, known, strict=True)]

    def _known(self) -> list[list[int]]:
        """A torn last line is cut off."""
        if not self._path.is_file():
            return []
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self._path, whole)
        return [json.loads(line) for line in data[:whole].splitlines()]

    def _generated(self, prompts: Sequence[Reply], at: int, total: int, tell: Tell) -> Iterator[list[int]]:
        import torch

        tell("loading the model", 0, 0)
        model = load(self._folder)
        length = self._settings.reply_tokens + BEYOND
        room = getattr(model.config, "max_position_embeddings", None)
        for number, prompt in enumerate(prompts):
            tell("generating replies", at + number, total)
            if room is not None and len(prompt.prompt) + length > room:
                raise InputError(
                    f"a prompt of {len(prompt.prompt)} tokens and {length} more exceed the model's {room}; "
                    "lower --prompt-tokens or --reply-tokens"
                )
            tokens = torch.tensor([prompt.prompt])
            with torch.inference_mode():
                out = model.generate(
                    input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=length,
                    min_new_tokens=length, do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None,
                    eos_token_id=None, pad_token_id=0,
                )  # fmt: skip
            yield [int(token) for token in out[0, len(prompt.prompt) :]]

    def _divided(self, prompt: Reply, tokens: Sequence[int]) -> Reply:
        """The reply ends with the token that ends it for a server, or at its limit."""
        ends = end_tokens(self._folder)
        limit = self._settings.reply_tokens
        end = next((i + 1 for i, token in enumerate(tokens[:limit]) if token in ends), limit)
        return Reply(prompt.label, prompt.prompt, tuple(tokens[:end]), tuple(tokens[end:]))


def end_tokens(folder: Path) -> frozenset[int]:
    """As a server reads them: generation_config.json, else config.json."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        if file.is_file():
            value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            found |= set(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(found)


def digest(replies: Sequence[Reply]) -> str:
    seen = hashlib.sha256()
    for reply in replies:
        seen.update(repr((reply.label, reply.prompt, reply.tokens, reply.beyond)).encode())
    return seen.hexdigest()[:16]
