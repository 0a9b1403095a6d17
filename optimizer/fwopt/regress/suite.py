"""`SUITE.yaml` read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fwopt.errors import InputError
from fwopt.spec.base import content_hash
from fwopt.spec.bench import Bench, Metric, Suite
from fwopt.spec.strict_yaml import Loader

_LATENCIES = (
    Metric(series="ttft", statistic="p50"),
    Metric(series="ttft", statistic="p90"),
    Metric(series="tpot", statistic="p50"),
    Metric(series="tpot", statistic="p90"),
    Metric(series="e2e", statistic="p90"),
    Metric(series="throughput", statistic="mean", unit="tokens/s", better="higher"),
)
DEFAULT_METRICS: dict[str, tuple[Metric, ...]] = {
    "command": (Metric(series="wall", statistic="p50"),),
    "kernels": (Metric(series="call", statistic="p50"),),
    "live": _LATENCIES,
    "simulated": _LATENCIES,
}
"""Of benches that name none."""


def load_suite(path: Path) -> Suite:
    """Paths in it are taken from its own folder."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; name a SUITE.yaml or a run folder") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not YAML: {' '.join(str(error).split())[:160]}") from None
    return _at_home(parse_suite(content, str(path)), path.resolve().parent)


def parse_suite(content: Any, where: str) -> Suite:
    try:
        suite = Suite.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{where}: {first_problem(error)}; docs/bench.md shows a suite") from None
    for bench in suite.benches:
        if bench.kind == "command" and bench.output == "json" and not bench.metrics:
            raise InputError(f"{where}: bench '{bench.name}' prints JSON: name its metrics, for example "
                             "[{series: latency, statistic: p99}]")  # fmt: skip
    return suite


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a file, on one line."""
    first = error.errors()[0]
    at = ".".join(str(part) for part in first["loc"]) or "the file"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return " ".join(f"{at}: {message}".split())[:240]


def metrics_of(bench: Bench) -> tuple[Metric, ...]:
    return bench.metrics or DEFAULT_METRICS[bench.kind]


def what_digest(suite: Suite) -> str:
    """Of what is measured: equal digests mean that results may be compared."""
    benches = [bench.model_dump(mode="json", exclude={"run", "config"}) for bench in suite.benches]
    for bench, dumped in zip(suite.benches, benches, strict=True):
        dumped["metrics"] = [m.model_dump(mode="json", exclude={"min_effect"}) for m in metrics_of(bench)]
        for name in ("trace", "tokenizer"):  # where files lie does not matter; what is in them is in the key
            if dumped.get(name):
                dumped[name] = Path(dumped[name]).name
    return content_hash([suite.name, benches])


def _at_home(suite: Suite, home: Path) -> Suite:
    """Every path absolute."""

    def placed(path: Path | None) -> Path | None:
        return None if path is None else home / path.expanduser()

    arms = {
        name: arm.model_copy(update={n: placed(getattr(arm, n)) for n in ("cwd", "run", "config")} | {
            "cwd": placed(arm.cwd) or home, "python": None if arm.python is None else home / arm.python.expanduser()})
        for name, arm in suite.arms.items()
    }  # fmt: skip
    benches = tuple(
        b.model_copy(
            update={n: placed(getattr(b, n)) for n in ("trace", "run", "config", "tokenizer") if hasattr(b, n)}
        )
        for b in suite.benches
    )
    if "head" not in arms:
        from fwopt.spec.bench import Arm

        arms["head"] = Arm(cwd=home)
    return suite.model_copy(update={"arms": arms, "benches": benches})
