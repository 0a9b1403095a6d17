"""Whether two results may be compared at all: refused with the reason, before any statistics."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from fwopt.errors import InputError
from fwopt.spec.base import content_hash
from fwopt.spec.bench import Rules
from fwopt.spec.bench_result import BenchResult, Result

FIELDS = ("hardware", "engine", "model", "workload", "config")
ALWAYS = ("hardware", "workload")
"""Never the subject of a test: other hardware or other requests make other figures."""
_DAY_S = 86_400.0


class ForeignError(InputError):
    """A baseline of something else, or too old."""


def require_kin(base: Result, head: Result, rules: Rules, across: Collection[str] = ()) -> None:
    """Refuse a base that is foreign or stale. `across`: fields of the key that are meant to differ."""
    unknown = sorted(set(across) - set(FIELDS))
    if unknown:
        raise InputError(f"--across: must name {', '.join(n for n in FIELDS if n not in ALWAYS)}, got '{unknown[0]}'")
    fixed = sorted(set(across) & set(ALWAYS))
    if fixed:
        raise InputError(f"--across {fixed[0]}: figures of other {fixed[0]} cannot be compared; measure a base there")
    if base.suite != head.suite:
        raise ForeignError(f"base is of suite '{base.suite}', head of '{head.suite}'; compare results of one suite")
    if base.suite_digest != head.suite_digest:
        raise ForeignError(
            f"base measured another version of suite '{head.suite}' ({base.suite_digest}, head {head.suite_digest}); "
            "measure the base again with this one"
        )
    together = base.session == head.session
    theirs = {bench.name: bench for bench in base.benches}
    for bench in head.benches:
        other = theirs.get(bench.name)
        if other is None:
            raise ForeignError(f"base has no bench '{bench.name}'; measure it again with this suite")
        _same(other, bench, set(FIELDS) - set(ALWAYS) if together or bench.exact else set(across))
    if not together:
        _fresh(base, head, rules)


def _same(base: BenchResult, head: BenchResult, may_differ: Collection[str]) -> None:
    for name in FIELDS:
        was, now = (str(getattr(bench.key, name)) for bench in (base, head))
        if was != now and name not in may_differ:
            advice = (
                f"measure a base on this {name}" if name in ALWAYS else f"add --across {name} if that is what is tested"
            )
            raise ForeignError(f"bench '{head.name}': base has {name} '{was}', head '{now}'; {advice}")


def _fresh(base: Result, head: Result, rules: Rules) -> None:
    days = (moment(head) - moment(base)).total_seconds() / _DAY_S
    if days > rules.max_age_days:
        raise ForeignError(
            f"base was measured {days:.0f} days before head, at most {rules.max_age_days:g} are allowed "
            "(rules: max_age_days); save and promote a newer one"
        )


def moment(result: Result) -> datetime:
    try:
        found = datetime.fromisoformat(result.made_at)
    except ValueError:
        raise InputError(f"made_at must be an ISO 8601 time, got '{result.made_at}'; the result is corrupt") from None
    if found.tzinfo is None:
        raise InputError(f"made_at must state its time zone, got '{result.made_at}'; the result is corrupt")
    return found


def key_digest(result: Result) -> str:
    """Of hardware, engine, model, workload and configuration of every bench."""
    return content_hash([[bench.name, bench.key.model_dump(mode="json")] for bench in result.benches])
