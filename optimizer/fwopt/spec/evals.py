"""What `fwopt evals` found: a served model's graded answers to an eval set, and two such runs item by item."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fwopt.spec.base import SCHEMA_VERSION, Frozen
from fwopt.spec.reading import read_back

CONFIDENCE = 0.95
Verdict = Literal["not worse", "worse", "undecided"]
"""not worse: the whole interval lies above the margin; worse: it lies below zero and not above the margin."""


class Served(Frozen):
    """Who answered; never its key."""

    url: str
    model: str
    engine: str | None = None
    version: str | None = None
    """Of the engine, where it tells."""


class EvalSettings(Frozen):
    """What answers depend on, beside the server and the set."""

    api: Literal["chat", "completions"] = "chat"
    tools: Literal["server", "prompt"] = "server"
    """`server`: it takes `tools` and parses calls; `prompt`: tools are described in the system message."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only so many items of the set, drawn by `seed`."""
    seed: Annotated[int, Field(ge=0)] = 0
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 1
    """Requests in flight. With more than one, what is computed together varies, and with it some answers."""
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """For one answer."""


class EvalsHeader(Frozen):
    """First line of a file of answers."""

    kind: Literal["evals"] = "evals"
    schema_version: int = SCHEMA_VERSION
    fwopt_version: str
    started_at: str
    """UTC, ISO 8601."""
    set: str
    """Name of the eval set: its file's, without ending."""
    digest: str
    """Of the items asked: prompts, expectations and graders."""
    items: int
    served: Served
    settings: EvalSettings
    scheme: str | None = None
    """How the model was quantized, in the names of `fwopt quality`, where the user said so."""
    config_digest: str | None = None
    """Of the model's config.json, as in a ModelSpec, where the user named it."""

    @property
    def key(self) -> str:
        """Equal for runs whose answers may be put together."""
        return str(self.model_copy(update={"started_at": "", "fwopt_version": ""}).content_hash())


class Call(Frozen):
    """A tool that an answer calls."""

    name: str
    arguments: dict[str, Any] | None
    """None: not a JSON object."""


class Graded(Frozen):
    """A line of a file of answers: one item."""

    kind: Literal["answer"] = "answer"
    id: str
    group: str | None = None
    score: Annotated[float, Field(ge=0, le=1)]
    """1: right, 0: wrong; graders of your own may give something between."""
    why: str | None = None
    """What was missed."""
    error: str | None = None
    """The server answered with an error: counts as wrong."""
    text: str = ""
    tool_calls: tuple[Call, ...] = ()
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    seconds: float | None = None
    """From request to answer."""
    raw: Any = None
    """The server's whole answer."""


class Difference(Frozen):
    """Mean score less the reference's, with its 95 % interval."""

    value: float
    low: float
    high: float


class Paired(Frozen):
    """Scores of the same items under two servers."""

    items: int
    reference: float
    """Mean score."""
    score: float
    """Mean score."""
    only_reference: int
    """Items that the reference scores higher on."""
    only_this: int
    difference: Difference
    method: Literal["Tango", "bootstrap"]
    """Of the interval: Tango's score interval where every score is 0 or 1, else BCa over items."""
    p_value: float
    """Exact McNemar (a sign test where scores are no 0 or 1), two-sided."""
    verdict: Verdict
    more_items: int | None
    """Where undecided: about so many more items decide if they come out as these did; None: not foreseeable."""


class EvalComparison(Frozen):
    """One server against another on one eval set."""

    schema_version: int = SCHEMA_VERSION
    fwopt_version: str
    set: str
    margin: float
    """Largest drop of the mean score that passes, as a share: 0.01 is one percentage point."""
    confidence: float = CONFIDENCE
    reference: EvalsHeader
    this: EvalsHeader
    reference_file: str
    this_file: str
    overall: Paired
    by_group: dict[str, Paired]
    reference_errors: int
    """Items that a server answered with an error; they count as wrong."""
    this_errors: int


class EvalFigure(Frozen):
    """One scheme's difference to the unquantized model on one set, as a search uses it."""

    value: float
    low: float
    """Low end of the 95 % interval: what a limit is held against."""
    items: int
    file: str


class MeasuredEvals(Frozen):
    """Eval sets -> schemes -> what `fwopt evals` found of one model."""

    sets: dict[str, dict[str, EvalFigure]]


def read_comparison(path: Path) -> EvalComparison:
    return read_back(path, EvalComparison, "comparison of `fwopt evals`", "remove it and compare again")
