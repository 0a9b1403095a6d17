"""A child under another Python: an engine's own, with the packages of that Python and, of ours, only those named.

Also the program that such a child runs: `python elsewhere.py FILE-DESCRIPTOR NAME=FOLDER...`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

_PRIVATE = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")
"""Of this Python, and no other's."""


@dataclass(frozen=True)
class Elsewhere:
    """Where a child runs."""

    python: str
    packages: tuple[str, ...] = ("fwopt_kernels",)
    """Packages of ours that it may import, found as here; their own dependencies are that Python's."""
    environment: tuple[tuple[str, str], ...] = ()
    """Added to this process's."""


class Process:
    """One that runs, with what `apart.Child` needs of multiprocessing's."""

    def __init__(self, there: Elsewhere, pipe: Connection) -> None:
        own = there.python == sys.executable
        kept = {name: value for name, value in os.environ.items() if own or name not in _PRIVATE}
        folders = [f"{name}={_folder(name)}" for name in there.packages]
        self._popen = subprocess.Popen(
            [there.python, str(Path(__file__).resolve()), str(pipe.fileno()), *folders],
            pass_fds=(pipe.fileno(),), env={**kept, "PYTHONSAFEPATH": "1", **dict(there.environment)},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    @property
    def exitcode(self) -> int | None:
        return self._popen.returncode

    def kill(self) -> None:
        self._popen.kill()

    def join(self, timeout: float | None = None) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout)

    def close(self) -> None:
        """Nothing is left to release once it was joined."""


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _adopt(name: str, folder: Path) -> None:
    """Make a package importable without the folder it lies in, which may hold more."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


def _main() -> None:
    for given in sys.argv[2:]:
        name, _, folder = given.partition("=")
        _adopt(name, Path(folder))
    from fwopt_kernels.apart import serve

    pipe = Connection(int(sys.argv[1]))
    function, prepare = pipe.recv()
    serve(pipe, function, prepare)


if __name__ == "__main__":
    _main()
