"""Step times measured on the engine itself: the `steps` table of a profile, and the step grids made of it.

On a device whose operators nobody timed, the most honest source is the engine: `fwopt profile` asks it through its own
API and keeps what a step took, per model, scheme, KV dtype and tensor parallelism. Between measured points times are
interpolated; of a scheme or a layout without rows nothing is known.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import UnmeasuredError
from fwopt.perf.grid import Floats, StepGrid
from fwopt.perf.step_law import StepLaw, StepRows, fit, fit_beside
from fwopt.perf.store import Columns, Profile
from fwopt.spec.candidate import Candidate, KvDtype, scheme_name
from fwopt.spec.engine import EngineSpec
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.model import ModelSpec
from fwopt.spec.provenance import ASSUMED, CODES, INTERPOLATED, MEASURED

TABLE = "steps"
SUBJECT = ("model", "scheme", "kv_dtype", "tp")
KEY = (*SUBJECT, "phase", "batch", "context", "past", "tokens")
COLUMNS = (*KEY, "p20_s", "p50_s", "p80_s", "samples")
"""`model`: the digest of its config.json; `context`: mean tokens that the `batch` decoding sequences attend to;
`past`, `tokens`: of the prompt chunk; `samples`: repeats behind the quantiles."""

NEAR = 1.25
"""Up to so many times the longest measured prompt, a step counts as interpolated: the curve is a line there."""
_ATTENTION_POINTS = 192
_DENSE = 64
"""Batches up to here are tabulated one by one: the parts of a step bend at different points."""


@dataclass(frozen=True, slots=True, order=True)
class StepKey:
    """What a set of step times is of."""

    scheme: str
    kv_dtype: KvDtype
    tp: int


@dataclass(slots=True)
class StepProfile:
    """Step times of one model under one engine on one device, as that engine showed them."""

    model: ModelSpec
    device: DeviceSpec
    engine: EngineSpec
    profile: Profile
    _laws: dict[StepKey, StepLaw] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def grid(self, candidate: Candidate) -> StepGrid:
        """Step times of `candidate`; UnmeasuredError where nobody measured its scheme or layout."""
        parallelism, batching = candidate.parallelism, candidate.batching
        if parallelism.pp > 1 or parallelism.dp > 1:
            raise UnmeasuredError(
                f"{self.profile.name} holds step times of one scheduler on tp GPUs, not of pp={parallelism.pp} "
                f"dp={parallelism.dp}; search tp and replicas"
            )
        law = self.law(StepKey(scheme_name(candidate.quantization), candidate.kv_dtype, parallelism.tp))
        longest = float(batching.max_model_len or self.model.max_context_tokens)
        overlaps = self.device.kind == "gpu" and self.engine.name in ("vllm", "sglang")
        return grid_of(law, batching.max_num_seqs, batching.max_num_batched_tokens, longest, overlaps=overlaps)

    def law(self, key: StepKey) -> StepLaw:
        with self._lock:
            if key not in self._laws:
                self._laws[key] = fit(self._rows(key), f"{self.profile.name} {key.scheme} tp{key.tp}")
            return self._laws[key]

    def _rows(self, key: StepKey) -> StepRows:
        columns = self.profile.columns(TABLE)
        at = _matching(columns, self.model, key)
        if not at.any():
            have = ", ".join(f"{k.scheme} kv-{k.kv_dtype} tp{k.tp}" for k in self.keys)
            raise UnmeasuredError(
                f"{self.profile.name} has no step times of {self.model.name} in {key.scheme} kv-{key.kv_dtype} "
                f"tp{key.tp}; there is {have}; measure it with `fwopt profile`"
            )
        return StepRows(**{name: columns[name][at] for name in StepRows.__slots__})

    @property
    def keys(self) -> tuple[StepKey, ...]:
        """What was measured of this model."""
        return measured_keys(self.profile, self.model)

    @property
    def left_open(self) -> str | None:
        """What the profile does not know, in one line for the plan."""
        missing = [key.scheme for key in self.keys if not _saw_contexts_beside(self._rows(key).of("mixed"))]
        if not missing:
            return None
        return (
            f"what a prompt costs more beside long contexts was not measured ({', '.join(missing)}) and counts as "
            "nothing, which is far off where sequences share one pool of cells (llama.cpp); `fwopt profile --again` "
            "without --quick measures it"
        )

    def largest_batch(self, key: StepKey) -> int:
        """Most sequences that were seen decoding together."""
        return int(self.law(key).decode.batch[-1])


def _saw_contexts_beside(mixed: StepRows) -> bool:
    lengths, _ = fit_beside(mixed, mixed.p50_s)
    return len(lengths) > 1


def measured_keys(profile: Profile, model: ModelSpec) -> tuple[StepKey, ...]:
    """Schemes and layouts of `model` that the profile has step times of."""
    if not profile.has(TABLE):
        return ()
    columns = profile.columns(TABLE)
    at = np.flatnonzero(columns["model"] == model.config_digest)
    found = {(str(columns["scheme"][i]), str(columns["kv_dtype"][i]), int(columns["tp"][i])) for i in at}
    return tuple(sorted(StepKey(scheme, "fp8" if kv == "fp8" else "bf16", tp) for scheme, kv, tp in found))


def _matching(columns: Columns, model: ModelSpec, key: StepKey) -> NDArray[np.bool_]:
    wanted = {"model": model.config_digest, "scheme": key.scheme, "kv_dtype": key.kv_dtype, "tp": key.tp}
    at: NDArray[np.bool_] = np.all([columns[name] == value for name, value in wanted.items()], axis=0)
    return at


def grid_of(law: StepLaw, sequences: int, budget: int, longest: float, *, overlaps: bool) -> StepGrid:
    """The law as the simulator's tables, up to `sequences` at once, `budget` tokens a step and contexts of `longest`.

    Nothing is padded to captured sizes and no host time is apart: what an engine does of that is in its step times.
    `overlaps`: the engine puts a step together while the one before runs.
    """
    tokens = np.unique([*law.tokens, *np.arange(1.0, min(sequences, _DENSE) + 1), float(max(budget, 2))])
    batch = np.unique([*law.decode.batch, float(max(sequences, 2))])
    context = np.unique([1.0, *law.decode.context, max(longest, law.decode.context[-1] + 1)])
    decode = _decode_table(law, batch, context)
    lengths = np.unique(np.round(np.linspace(0.0, np.sqrt(longest), _ATTENTION_POINTS) ** 2))
    sampled = np.unique([*batch, *np.arange(1.0, min(sequences, _DENSE) + 1)])
    return StepGrid(
        tokens=tokens,
        token_graph_s=law.token(tokens),
        token_eager_s=law.token(tokens),
        token_share=_share(_token_codes(law, tokens)),
        capture_sizes=np.zeros(0, dtype=np.int64),
        decode_batch=batch,
        decode_context=context,
        decode_s=decode,
        decode_share=_share(_decode_codes(law, batch, context)),
        prefill_length=lengths,
        prefill_s=law.prompt(np.zeros_like(lengths), lengths),
        prefill_share=_share(np.where(lengths <= NEAR * law.tokens[-1], INTERPOLATED, ASSUMED)),
        sample_batch=sampled,
        sample_s=np.maximum(law.decode.at_zero(sampled) - law.token(sampled), 0.0),
        sample_share=_share(_batch_codes(law, sampled)),
        prefill_chunk_floor_s=0.0,
        step_cpu_s=0.0,
        sequence_cpu_s=0.0,
        serial_s=0.0,
        prefill_step_s=law.chunk_s,
        beside_step_s=law.beside_step_s,
        request_s=law.request_s,
        prompt_token_s=law.prompt_token_s,
        beside_s=law.beside(tokens),
        async_scheduling=overlaps,
    )


def _decode_table(law: StepLaw, batch: Floats, context: Floats) -> Floats:
    """(B, C) what contexts add to a decode step."""
    rows = [
        np.interp(context, np.concatenate(([0.0], law.decode.context)), np.concatenate(([base], row)))
        + slope * np.maximum(context - law.decode.context[-1], 0.0)
        - base
        for base, row, slope in zip(law.decode.base_s, law.decode.seconds, law.decode.slope_s, strict=True)
    ]
    known: Floats = np.maximum(np.asarray(rows), 0.0)
    if len(batch) == len(known):
        return known
    last, before = law.decode.batch[-1], law.decode.batch[-2]
    reach = (batch[-1] - last) / (last - before)
    beyond: Floats = known[-1] + np.maximum(known[-1] - known[-2], 0.0) * reach
    return np.concatenate([known, beyond[None]])


def _token_codes(law: StepLaw, tokens: Floats) -> NDArray[np.int_]:
    codes = np.where(tokens <= NEAR * law.tokens[-1], INTERPOLATED, ASSUMED)
    return np.where(np.isin(tokens, law.tokens) | np.isin(tokens, law.decode.batch), MEASURED, codes)


def _batch_codes(law: StepLaw, batch: Floats) -> NDArray[np.int_]:
    return np.where(batch <= law.decode.batch[-1], np.where(np.isin(batch, law.decode.batch), MEASURED, 1), ASSUMED)


def _decode_codes(law: StepLaw, batch: Floats, context: Floats) -> NDArray[np.int_]:
    """Measured points are; everything up to the largest batch and the longest context is between such."""
    within = (batch <= law.decode.batch[-1])[:, None] & (context <= NEAR * law.decode.context[-1])
    codes = np.where(within, INTERPOLATED, ASSUMED)
    rows = np.searchsorted(batch, law.decode.batch)
    columns = np.searchsorted(context, law.decode.context)
    there = codes[np.ix_(rows, columns)]
    codes[np.ix_(rows, columns)] = np.where(law.decode.measured, MEASURED, there)
    return codes


def _share(codes: NDArray[np.int_]) -> Floats:
    shares: Floats = (codes[..., None] == np.arange(len(CODES))).astype(np.float64)
    return shares
