"""Every variant compiled ahead of time, for this GPU with this Triton."""

from __future__ import annotations

import random
import time

from gpu_stages import Result, Session


def run(session: Session) -> Result:
    """Defaults first, then the spaces in turn, as far as the time goes; what was compiled is kept for later stages."""
    from fwopt_kernels.aot import Job, compile_all
    from fwopt_kernels.contract import ARCHITECTURES, supported
    from fwopt_kernels.registry import OPERATORS, load

    arch = session.before["machine"]["arch"] or "sm_90"
    spaces = {}
    for name, target in OPERATORS.items():
        operator = load(target)
        for format in operator.formats:
            if supported(format, ARCHITECTURES[arch]):
                space = operator.space(format)
                rest = [v for v in space.variants() if v not in space.defaults]
                random.Random(0).shuffle(rest)
                spaces[name, format] = [*space.defaults, *(rest if not session.small else [])]
    jobs = [
        (key, Job(OPERATORS[key[0]], key[1], variants[at], arch))
        for at in range(max(map(len, spaces.values())))
        for key, variants in spaces.items()
        if at < len(variants)
    ]
    keys = {job: key for key, job in jobs}
    rows: dict[tuple[str, str], Result] = {
        key: {"operator": key[0], "format": key[1], "variants": len(load(OPERATORS[key[0]]).space(key[1]).variants()),
              "compiled": 0, "rejected": [], "failed": [], "default_error": "not compiled"} for key in spaces
    }  # fmt: skip
    ends = time.monotonic() + 0.9 * session.seconds
    for outcome in compile_all([job for _, job in jobs]):
        row = rows[keys[outcome.job]]
        row["compiled"] += outcome.failure is None
        if outcome.failure:
            row["failed"].append([outcome.job.variant.id, outcome.failure])
        elif outcome.rejection:
            row["rejected"].append([outcome.job.variant.id, outcome.rejection])
        if outcome.job.variant == spaces[keys[outcome.job]][0]:
            row["default_error"] = outcome.failure or outcome.rejection
        if time.monotonic() > ends:
            break
    return {"arch": arch, "spaces": list(rows.values())}
