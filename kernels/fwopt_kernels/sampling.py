"""The next token of each row of logits: temperature, min_p, top_k, top_p, and a draw that depends on nothing else.

In vLLM's order (`v1/sample/sampler.py`, `topk_topp_sampler.py`, Apache-2.0): logits over temperature; tokens less than
min_p times as likely as the likeliest go; then all but the top_k likeliest; of what is left, renormalised, all but the
fewest whose share reaches top_p, the last included. Whatever equals the last that stays is kept too: with ties there
are more than top_k. The draw is an exponential race with Philox numbers of (seed, position, token), so it does not
depend on the batch, nor, on one device, on the variant; of equal scores the first token wins, as of the largest logits
of a greedy row. NaN counts as minus infinity; a row without anything above that gets -1; among infinite logits, those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fwopt_kernels import row_formats
from fwopt_kernels.contract import FALLBACK, NUM_WARPS, Expected, Launch, Space, Variant, Work, variant
from fwopt_kernels.sampling_case import (
    DTYPES,
    PARAMETER_TYPES,
    Parameters,
    SamplingCase,
    expected,
    fallback,
    random_case,
)
from fwopt_kernels.sampling_draw import draw
from fwopt_kernels.sampling_kernels import BINS, LIST, collect, cut, peak, weigh

MOST_TOKENS = 2**22
"""Of a vocabulary: sums of weights in units of 2**-40 stay below 2**63."""
_NAMES = ("temperature", "top_k", "top_p", "min_p", "seed", "position")
_WORKSPACE: dict[str, tuple[torch.dtype, str]] = {
    "peaks": (torch.float32, "parts"), "peak_tokens": (torch.int32, "parts"), "scores": (torch.float32, "parts"),
    "score_tokens": (torch.int32, "parts"), "masses": (torch.int64, "parts"), "counts": (torch.int32, "bins"),
    "cuts": (torch.int32, "row"), "begins": (torch.int32, "ends"), "listed": (torch.float32, "list"),
    "listed_tokens": (torch.int32, "list"),
}  # fmt: skip
"""What kernels leave for the next: type, and how many numbers a row has."""
_POINTERS = {torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64", torch.bfloat16: "*bf16"}


def _workspace(rows: int, splits: int, device: torch.device) -> dict[str, Tensor]:
    each = {"parts": splits, "bins": splits * BINS, "row": 1, "ends": splits + 1, "list": LIST}
    return {
        name: torch.empty(rows * each[size], dtype=dtype, device=device) for name, (dtype, size) in _WORKSPACE.items()
    }


def sampling(
    logits: Tensor, parameters: Parameters, out: Tensor, *, drawn: bool = True, restricted: bool = True,
    variant: Variant | None = None,
) -> None:  # fmt: skip
    """out (rows,) int64 = a token of each row of logits (rows, vocabulary) float32 or bfloat16, which stay.

    `drawn` False: all rows are greedy; `restricted` False: none has top_k or top_p. Each spares launches, and says
    what only the device would know. ValueError for other types and layouts, and for more than 2**22 tokens.
    """
    rows, vocabulary = logits.shape
    _require(logits, parameters, out)
    if variant == FALLBACK:
        fallback(SamplingCase(logits, parameters, out))
        return
    if rows == 0:
        return
    chosen = variant or SPACE.default
    space = _workspace(rows, chosen["SPLITS"], logits.device)
    named = {
        "logits": logits, **dict(zip(_NAMES, parameters.parts(), strict=True)), **space, "out": out,
        "vocabulary": vocabulary, "row_stride": logits.stride(0), **dict(chosen.constants),
        "DRAWN": drawn, "RESTRICTED": drawn and restricted,
    }  # fmt: skip
    for kernel, whole_rows in _steps(drawn, drawn and restricted):
        grid = (rows,) if whole_rows else (rows, chosen["SPLITS"])
        named["BLOCK"] = _block(kernel, chosen)
        kernel[grid](**{name: named[name] for name in kernel.arg_names}, **chosen.options)


def _block(kernel: Any, chosen: Variant) -> int:
    """A list is short, and bisected step by step: four numbers a thread, for latency."""
    return 128 * chosen.num_warps if kernel is draw else chosen["BLOCK"]


def _steps(drawn: bool, restricted: bool) -> tuple[tuple[Any, bool], ...]:
    """(kernel, whether a program has a whole row)."""
    weighed = ((weigh, False), (cut, True)) if restricted else ()
    return ((peak, False), *weighed, *(((collect, False),) if drawn else ()), (draw, True))


def _require(logits: Tensor, parameters: Parameters, out: Tensor) -> None:
    rows, vocabulary = logits.shape
    row_formats.require_packed(logits=logits)
    if logits.dtype not in DTYPES.values():
        raise ValueError(f"logits: must be float32 or bfloat16, got {logits.dtype}")
    if vocabulary > MOST_TOKENS or vocabulary == 0:
        raise ValueError(f"logits: a vocabulary has 1 to {MOST_TOKENS:,} tokens, got {vocabulary:,}")
    for name, part, dtype in (
        *zip(_NAMES, parameters.parts(), PARAMETER_TYPES, strict=True),
        ("out", out, torch.int64),
    ):
        if part.shape != (rows,) or part.dtype != dtype or not part.is_contiguous():
            raise ValueError(
                f"{name}: must be {rows} contiguous numbers of {dtype}, got {tuple(part.shape)} {part.dtype}"
            )


def _allowed(v: Variant) -> bool:
    """4 or 8 logits a thread, loaded by 16 bytes of float32: with 16, beside sums and random words, registers spill."""
    return v["BLOCK"] // (32 * v.num_warps) in (4, 8)


SPACE = Space(
    {"BLOCK": (1024, 2048, 4096), "SPLITS": (1, 4, 8, 16, 32, 64), NUM_WARPS: (4, 8, 16)},
    default=variant(8, 1, BLOCK=2048, SPLITS=16),
    allowed=_allowed,
)


class Sampling:
    """The operator `sampling`; shape: rows, vocabulary. Random rows ask for eight kinds of draws in turn."""

    name = "sampling"
    formats: tuple[str, ...] = tuple(DTYPES)
    dimensions = ("rows", "vocabulary")

    def space(self, format: str) -> Space:
        return SPACE

    def launches(self, format: str, variant: Variant) -> tuple[Launch, ...]:
        types: dict[str, str] = {
            "logits": _POINTERS[DTYPES[format]], "out": "*i64", "vocabulary": "i32", "row_stride": "i32",
            **{name: _POINTERS[dtype] for name, dtype in zip(_NAMES, PARAMETER_TYPES, strict=True)},
            **{name: _POINTERS[dtype] for name, (dtype, _) in _WORKSPACE.items()},
        }  # fmt: skip
        constants = {**dict(variant.constants), "DRAWN": True, "RESTRICTED": True}
        found = []
        for kernel, _ in _steps(drawn=True, restricted=True):
            constants["BLOCK"] = _block(kernel, variant)
            signature = {name: types[name] for name in kernel.arg_names if name in types}
            own = {name: constants[name] for name in kernel.arg_names if name in constants}
            found.append(Launch(kernel, signature, own, tuple(signature), variant.options, kernel.__name__))
        return tuple(found)

    def work(self, format: str, shape: Mapping[str, int]) -> Work:
        """Logits are read once, six numbers a row asked for, a token written."""
        rows, vocabulary = (shape[name] for name in self.dimensions)
        asked = sum(dtype.itemsize for dtype in PARAMETER_TYPES)
        return Work(rows * (vocabulary * DTYPES[format].itemsize + asked + 8), 0)

    def case(
        self, format: str, shape: Mapping[str, int], seed: int, *, padding: int = 0, device: str = "cpu"
    ) -> SamplingCase:
        return random_case(format, shape, seed, padding, device)

    def reference(self, case: SamplingCase) -> dict[str, Expected]:
        return expected(case)

    def run(self, case: SamplingCase, variant: Variant) -> None:
        sampling(case.logits, case.parameters, case.out, variant=variant)

    def fallback(self, case: SamplingCase) -> None:
        fallback(case)


SAMPLING = Sampling()
