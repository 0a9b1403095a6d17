"""From a model and texts to figures: what is known already is read, what is missing is computed, and added."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fwopt import __version__
from fwopt.errors import InputError
from fwopt.quality import text
from fwopt.quality.folder import StudyFolder
from fwopt.quality.rounding import library_version
from fwopt.quality.schemes import Scheme
from fwopt.quality.shards import weights_digest
from fwopt.quality.stored import stored_scheme
from fwopt.spec.base import SCHEMA_VERSION, content_hash
from fwopt.spec.quality import ArmFigures, LeftOut, QualityResults, QualitySettings
from fwopt.targets.models import config_digest

if TYPE_CHECKING:
    import torch

    from fwopt.quality.arms import Arm
    from fwopt.quality.model import StreamedModel
    from fwopt.quality.windows import Windows

Tell = Callable[[str, int, int], None]

REFERENCE = "reference"
CONTROLS = {
    "control-batch": "the same numbers, each window by itself, in reverse order, padded",
    "control-kernel": "the same numbers, other attention and matrix kernels, other batches",
}
METHOD = 2
"""Raised when figures of the same inputs would come out otherwise."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to compare."""

    model: str
    """As the user named it."""
    folder: Path
    files: tuple[Path, ...]
    traces: tuple[Path, ...]
    schemes: tuple[Scheme, ...]
    strict: bool
    """Schemes were asked for by name: one that does not fit is an error, not left out."""
    settings: QualitySettings
    home: Path
    """Folder of all studies."""
    checkpoints: tuple[Path, ...] = ()
    """Quantized already, to compare as they are."""


@dataclass(frozen=True, slots=True)
class _Study:
    request: Request
    folder: StudyFolder
    key: str
    weights: str
    text: str


def run(request: Request, tell: Tell) -> tuple[QualityResults, Path]:
    """(figures, the file that holds them)."""
    study = _open(request, tell)
    known = study.folder.results()
    seen = {arm.name for arm in known.arms} | {item.name for item in known.left_out} if known else set()
    if known is not None and request.strict:
        _refuse(known.left_out, request.schemes)
    schemes = [*request.schemes, *(stored_scheme(path, request.folder, request.home) for path in request.checkpoints)]
    missing = [scheme for scheme in schemes if scheme.name not in seen]
    if known is not None and not missing:
        return known, study.folder.results_path
    results = _compute(study, known, missing, tell)
    return results, study.folder.results_path


def require(request: Request, vocabulary: int) -> None:
    """Refuse, before any work, what the libraries here, the files or the text do not allow."""
    library_version()
    read_windows(request, vocabulary, lambda what, done, total: None)


def place(request: Request, tell: Tell) -> Path:
    """The folder of this model, text and settings."""
    return _open(request, tell).folder.path


def _open(request: Request, tell: Tell) -> _Study:
    try:
        request.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{request.home}: cannot be written ({error.strerror}); choose another --out") from None
    text_digest = text.digest(request.files, request.traces)
    tell("reading weights", 0, 0)
    weights = weights_digest(request.folder, request.home / "digests.json")
    tokens = text.tokens_digest(request.folder, chats=bool(request.traces))
    parts = [METHOD, weights, tokens, text_digest]
    key = content_hash([*parts, request.settings.model_dump(mode="json")])
    folder = StudyFolder(request.home / f"{Path(request.model).name}-{key}")
    try:
        folder.path.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder.path}: cannot be written ({error.strerror}); choose another --out") from None
    return _Study(request, folder, key, weights[:16], text_digest[:16])


def _compute(study: _Study, known: QualityResults | None, missing: Sequence[Scheme], tell: Tell) -> QualityResults:
    import torch

    from fwopt.quality.compare import Places, compare
    from fwopt.quality.model import StreamedModel
    from fwopt.quality.states import States
    from fwopt.quality.statistics import Bootstrap
    from fwopt.quality.summary import Summary
    from fwopt.quality.walk import Walk

    request, folder = study.request, study.folder
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[request.settings.dtype]
    versions = _versions()
    model = StreamedModel(request.folder, dtype)
    fitting, unfit = _fitting(model, missing)
    if request.strict:
        _refuse(unfit, missing)
    windows = read_windows(request, model.config.vocab_size, tell)
    if known is not None and known.windows_digest != windows.digest:
        known = None  # other libraries make other tokens of this text
    same = known is not None and known.made_by == _made_by(versions)
    controls = [arm for arm in control_arms(model) if not same or not folder.has_tokens(arm.name)]
    arms = [_reference(), *controls, *(_arm(scheme, dtype) for scheme in fitting)]
    heads = {arm.name: arm.stored.model for arm in arms if arm.stored is not None}
    with folder.working(_made_by(versions) | {"fwopt": __version__}) as work:
        states = States(work, len(windows.tokens), model.config.hidden_size, dtype)
        walk = Walk(model, windows, states, model.stored_dtype())
        walk.run(arms, tell)
        alive = [arm.name for arm in arms[1:] if arm.name not in walk.failed]
        found, reference = compare(model, windows, states, REFERENCE, alive, tell, heads)
        for name, tokens in found.items():
            folder.save_tokens(name, tokens)
        noise = {name: folder.tokens(name) for name in CONTROLS if folder.has_tokens(name)}
        tell("intervals", 0, 0)
        summary = Summary(windows, Places.of(windows), reference, Bootstrap(request.settings.seed))
        control = [summary.control(name, CONTROLS[name], tokens) for name, tokens in noise.items()]
        measured = [
            summary.scheme(scheme.name, scheme.says, found[scheme.name], noise, control)
            for scheme in fitting
            if scheme.name in found
        ]
        left_out = [*unfit, *(LeftOut(name=name, reason=why) for name, why in walk.failed.items())]
        results = _results(study, known, control, measured, left_out, versions, windows, reference.mean())
        folder.save(results)
    return results


def _results(
    study: _Study,
    known: QualityResults | None,
    controls: Sequence[ArmFigures],
    measured: Sequence[ArmFigures],
    left_out: Sequence[LeftOut],
    versions: dict[str, str],
    windows: Windows,
    surprise: float,
) -> QualityResults:
    import math

    made_by, request = _made_by(versions), study.request
    config = (request.folder / "config.json").read_bytes()
    before = [arm for arm in known.arms if arm.kind == "scheme"] if known else []
    if known is not None and known.made_by != made_by:
        before = [arm.model_copy(update={"computed_by": arm.computed_by or known.made_by}) for arm in before]
    return QualityResults(
        schema_version=SCHEMA_VERSION,
        fwopt_version=__version__,
        key=study.key,
        model=request.model,
        config_digest=config_digest(config),
        weights_digest=study.weights,
        text=tuple(path.name for path in (*request.files, *request.traces)),
        text_digest=study.text,
        windows_digest=windows.digest,
        settings=request.settings,
        reference_perplexity=math.exp(surprise),
        arms=(*controls, *before, *measured),
        left_out=(*(known.left_out if known else ()), *left_out),
        versions=versions,
        machine=made_by["machine"],
        threads=int(made_by["threads"]),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def read_windows(request: Request, vocabulary: int, tell: Tell) -> Windows:
    """The tokens to compare on."""
    from fwopt.quality.windows import cut

    tell("reading text", 0, 0)
    reader = text.Reader(request.folder)
    documents = [
        reader.file(path, label) for path, label in zip(request.files, text.labels(request.files), strict=True)
    ]
    for path, label in zip(request.traces, text.labels(request.traces), strict=True):
        documents += reader.trace(path, label)
    settings = request.settings
    return cut(
        documents, prefix=reader.prefix(), window=settings.window, max_tokens=settings.max_tokens,
        seed=settings.seed, vocabulary=vocabulary,
    )  # fmt: skip


def control_arms(model: StreamedModel) -> list[Arm]:
    """The reference against itself, computed otherwise."""
    from fwopt.quality.arms import BATCH_TOKENS, Arm

    other = model.attentions[-1]
    return [
        Arm("control-batch", batch_tokens=1, backwards=True, padding=7),
        Arm("control-kernel", attention=other, batch_tokens=BATCH_TOKENS // 2, backwards=True, wide=True),
    ]


def _reference() -> Arm:
    from fwopt.quality.arms import Arm

    return Arm(REFERENCE)


def _arm(scheme: Scheme, dtype: torch.dtype) -> Arm:
    from fwopt.quality.arms import Arm
    from fwopt.quality.stored import StoredCheckpoint

    if scheme.checkpoint is None:
        return _scheme_arm(scheme)
    return Arm(scheme.name, stored=StoredCheckpoint.open(scheme.checkpoint, dtype))


def _scheme_arm(scheme: Scheme) -> Arm:
    from fwopt.quality.arms import Arm

    return Arm(scheme.name, scheme=scheme)


def _fitting(model: StreamedModel, schemes: Sequence[Scheme]) -> tuple[list[Scheme], list[LeftOut]]:
    from fwopt.quality.arms import unfit

    fitting, left_out = [], []
    for scheme in schemes:
        fits = (unfit(scheme, index, layer) for index, layer in enumerate(model.modules))
        why = next((why for why in fits if why is not None), None)
        if why is None:
            fitting.append(scheme)
        else:
            left_out.append(LeftOut(name=scheme.name, reason=why))
    return fitting, left_out


def _refuse(left_out: Sequence[LeftOut], schemes: Sequence[Scheme]) -> None:
    wanted = {scheme.name for scheme in schemes}
    for item in left_out:
        if item.name in wanted:
            raise InputError(f"scheme {item.name}: {item.reason}; leave it out of --schemes")


def _made_by(versions: dict[str, str]) -> dict[str, str]:
    """What the last digits depend on, beside the inputs."""
    import torch

    from fwopt.targets.cpu import processor_name

    return versions | {"threads": str(torch.get_num_threads()), "machine": processor_name()}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    known = {name: version(name) for name in ("torch", "transformers", "numpy", "tokenizers")}
    return known | {"compressed-tensors": library_version(), "python": platform.python_version()}
