"""`fwopt kernels check` through the real command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

CODE = "from fwopt.cli.app import main; main()"


def fwopt(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"{before}\n{CODE}", "kernels", "check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_json(compile_cache: Path) -> None:
    done = fwopt("--op", "silu_mul", "--sample", "2", "--json")
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)["operators"]
    assert (report["operator"], report["variants"]) == ("silu_mul", 6)
    assert report["compiled"] + report["failed"] == 6
    assert report["rejected"] == len(report["rejections"])
    assert report["failed"] == len(report["failures"]) == 0
    assert [f["format"] for f in report["formats"]] == ["bf16", "fp8-row", "int8-row"]
    assert all(f["default"]["registers"] > 0 for f in report["formats"])


def test_the_table_and_formats_that_a_gpu_lacks(compile_cache: Path) -> None:
    done = fwopt("--op", "rope_cache", "--sample", "1", "--arch", "sm_80")
    assert done.returncode == 0, done.stderr
    assert "heads8-w2-s1" in done.stdout
    assert "rope_cache fp8: sm_80 has no conversions to e4m3; they begin with sm_89" in done.stdout


def test_a_default_that_cannot_run_is_exit_1(compile_cache: Path) -> None:
    small = (
        "import dataclasses, fwopt_kernels.contract as c\n"
        "c.ARCHITECTURES['sm_90'] = dataclasses.replace(c.ARCHITECTURES['sm_90'], shared_bytes=10)"
    )
    done = fwopt("--op", "rms_norm", "--sample", "1", before=small)
    assert done.returncode == 1
    assert "rejected: row in registers: 32 bytes of shared memory; sm_90 has 10" in done.stdout
    assert done.stderr.splitlines()[-1] == "fwopt: the default variant cannot run on sm_90: rms_norm"


@pytest.mark.parametrize(
    ("arguments", "before", "words"),
    [
        (("--arch", "sm_9"), "", "unknown GPU architecture 'sm_9'; nearest: sm_90"),
        (("--op", "rmsnorm"), "", "unknown operator 'rmsnorm'; nearest: rms_norm"),
        (("--sample", "0"), "", "see fwopt kernels check --help"),
        ((), "import sys; sys.modules['triton'] = None", "triton is missing; install it with pip install 'fwopt[gpu]'"),
        ((), "import sys; sys.modules['torch'] = None", "torch is missing; install it with pip install 'fwopt[gpu]'"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], before: str, words: str) -> None:
    done = fwopt(*arguments, before=before)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
