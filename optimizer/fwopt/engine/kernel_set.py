"""The tuned kernels that a deployed config names: read, held against this machine, and turned into variants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fwopt.errors import InputError
from fwopt.spec.kernels import KernelSet
from fwopt.spec.reading import require_version
from fwopt_kernels.aot import sources
from fwopt_kernels.choice import Choice
from fwopt_kernels.contract import FALLBACK
from fwopt_kernels.host import Host
from fwopt_kernels.registry import OPERATORS, load

_AGAIN = "run `fwopt kernels tune` and `fwopt tune` again"


def read_set(file: Path, digest: str) -> KernelSet:
    """The set called `digest`, out of the file that `fwopt export` writes beside the config."""
    advice = "write it anew with fwopt export"
    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        require_version(file, content)
        found = KernelSet.model_validate(content)
    except OSError as error:
        raise InputError(f"{file}: the config names the kernels {digest}, {error.strerror}; {advice}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: must be YAML: {' '.join(str(error).split())[:160]}; {advice}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{file}: {where}: {first['msg']}; {advice}") from None
    if found.digest != digest:
        raise InputError(f"{file}: holds the kernels {found.digest}, the config names {digest}; {advice}")
    return found


def choices_of(kernels: KernelSet, host: Host) -> tuple[Choice, ...]:
    """Its variants; refused where another GPU, Triton or source would run them."""
    what = f"kernels {kernels.digest}"
    if kernels.device_full_name != host.name:
        raise InputError(f"{what} were tuned on {kernels.device_full_name}, here is {host.name}; {_AGAIN}")
    if kernels.triton != host.triton:
        raise InputError(f"{what} were tuned with Triton {kernels.triton}, here is {host.triton}; {_AGAIN}")
    for operator, there in kernels.sources.items():
        here = sources(OPERATORS[operator]) if operator in OPERATORS else None
        if here != there:
            raise InputError(
                f"{what}: {operator} was tuned from kernel sources {there[:12]}, here they are "
                f"{here[:12] if here else 'none'}; {_AGAIN}"
            )
    known = {}
    found = []
    for c in kernels.choices:
        space = c.operator, c.format
        if space not in known:
            variants = load(OPERATORS[c.operator]).space(c.format).variants()
            known[space] = {v.id: v for v in (*variants, FALLBACK)}
        if c.variant not in known[space]:
            raise InputError(f"{what}: {c.operator} {c.format} has no variant {c.variant}; {_AGAIN}")
        found.append(Choice(c.operator, c.format, c.shape, known[space][c.variant]))
    return tuple(found)
