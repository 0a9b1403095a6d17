"""One operator of `fwopt_kernels`, timed in a process of the arm's own: two builds lie beside each other."""

from __future__ import annotations

import json
from collections.abc import Mapping

from fwopt.errors import InputError, UnknownNameError
from fwopt.regress.machine import hardware
from fwopt.regress.samplers.base import Visit
from fwopt.regress.samplers.command import call, parse, python_of
from fwopt.spec.base import content_hash
from fwopt.spec.bench import Arm, ArmName, KernelsBench
from fwopt.spec.bench_result import Key


class KernelsSampler:
    """Satisfies `Sampler`. Checked against its float64 reference before it is timed, on inputs that no cache holds."""

    exact = False
    notes = ("a sample is the median over at least five rounds through inputs larger than the cache",)

    def __init__(self, bench: KernelsBench, arms: Mapping[ArmName, Arm]) -> None:
        from fwopt.tuning.operators import load_operator, targets

        if bench.operator not in targets():
            raise UnknownNameError("operator", bench.operator, targets())
        operator = load_operator(bench.operator)
        if bench.format not in operator.formats:
            raise UnknownNameError(f"format of {bench.operator}", bench.format, operator.formats)
        if set(bench.shape) != set(operator.dimensions):
            raise InputError(f"{bench.operator} has dimensions {', '.join(operator.dimensions)}; bench '{bench.name}' "
                             f"gives {', '.join(bench.shape)}")  # fmt: skip
        self.bench, self.arms = bench, arms
        self._question = json.dumps(
            {
                "target": targets()[bench.operator], "format": bench.format, "device": bench.device,
                "shape": {name: bench.shape[name] for name in operator.dimensions}, "repeat": bench.repeat,
            }
        )  # fmt: skip

    def key(self, arm: ArmName) -> Key:
        how = self.arms[arm]
        return Key(
            hardware=hardware(),
            engine=how.version or "fwopt_kernels",
            model="-",
            workload=content_hash(self._question),
            config=content_hash(how.env),
        )

    def visit(self, arm: ArmName) -> Visit:
        how = self.arms[arm]
        command = [python_of(how), "-m", "fwopt.regress.samplers.kernel_process", self._question]
        done = call(command, how, self.bench.timeout_s)
        if isinstance(done, str):
            return Visit({}, problem=done)
        found = parse(done[2])
        return found if isinstance(found, Visit) else Visit({}, problem=found)

    def __enter__(self) -> KernelsSampler:
        return self

    def __exit__(self, *details: object) -> None:
        return
