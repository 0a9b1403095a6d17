"""Everything that a GPU is needed for, in one command and ten minutes: python benchmarks/gpu.py --out FOLDER

Stages (`gpu_stages/__init__.py` lists them), each in a process of its own, with its own share of the time. What a stage
found is in FOLDER/results.json as soon as it ended, whatever happens to the next; what is there is not made again
(--again STAGE makes it). FOLDER/summary.json, and the table printed at the end, say what ran, what failed, and how the
kernels stand beside their floors and the vendor's; store.tar.gz holds the profile folders (times of kernels and
operators), to be unpacked into profiles/. H100 and H200 alike: floors come from the machine's own rates.

Up to `time` only torch, Triton and numpy are needed. The commands need pydantic, optuna, typer, rich, orjson,
zstandard, PyYAML, numba and pyarrow; where the host lacks some, bring them as wheels and put them on PYTHONPATH:

  python3 -m pip install -q --no-index --no-deps --target /tmp/site .whl/*.whl
  PYTHONPATH=/tmp/site python3 benchmarks/gpu.py --out "$OUT" --minutes 9

--device cpu goes through all of it with the torch fallbacks on tiny shapes, to see that the script itself is whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "optimizer"), str(ROOT / "kernels"), str(Path(__file__).resolve().parent)]

from gpu_stages import STAGES, Result, Session, load  # noqa: E402
from gpu_stages.verdicts import verdicts  # noqa: E402

LEAST_S = 30.0
"""Of a stage, whatever its share: importing torch takes some of it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT", "gpu-results"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--again", choices=STAGES, action="append", default=[])
    parser.add_argument("--only", choices=STAGES, action="append")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "fwopt-gpu")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out, arguments.work = Path(arguments.out).resolve(), arguments.work.resolve()
    for folder in (arguments.out, arguments.work):
        folder.mkdir(parents=True, exist_ok=True)
    if arguments.stage:
        _one_stage(arguments)
        return
    sys.exit(_all_stages(arguments))


def _one_stage(arguments: argparse.Namespace) -> None:
    before = _read(arguments.out / "results.json")
    session = Session(arguments.device, arguments.seconds, arguments.work, before)
    _write(_answer(arguments.work, arguments.stage), load(arguments.stage)(session))


def _all_stages(arguments: argparse.Namespace) -> int:
    results = arguments.out / "results.json"
    found = _read(results)
    wanted = list(arguments.only or STAGES)
    todo = [s for s in wanted if s in arguments.again or "error" in found.get(s, {"error": ""})]
    ends = time.monotonic() + 60 * arguments.minutes
    for stage in wanted:
        if stage not in todo:
            print(f"{stage:8}      -    made before")
            continue
        missing = [need for need in STAGES[stage].needs if "error" in found.get(need, {"error": "missing"})]
        if missing:
            found[stage] = {"error": f"needs stage {missing[0]}"}
            print(f"{stage:8}      -    needs stage {missing[0]}")
        else:
            later = todo[todo.index(stage) :]
            share = STAGES[stage].share / sum(STAGES[s].share for s in later)  # of what is left: no time is lost
            found[stage] = _run(stage, arguments, max(LEAST_S, share * (ends - time.monotonic()) - 5))
        _write(results, found)
        _pack(arguments.work, arguments.out)
    summary = {
        "stages": {stage: found[stage].get("error") or "ok" for stage in wanted},
        "device": arguments.device,
        "must_show": verdicts(found),
        "wrong": [line for stage in ("first", "correct") for line in found.get(stage, {}).get("wrong", [])],
    }
    _write(arguments.out / "summary.json", summary)
    _print(summary, found)
    return int(any(text != "ok" for text in summary["stages"].values()))


def _run(stage: str, arguments: argparse.Namespace, seconds: float) -> Result:
    """A stage in its own process: its result, or the reason why there is none."""
    file = _answer(arguments.work, stage)
    file.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--stage", stage, "--out", str(arguments.out), "--device",
               arguments.device, "--work", str(arguments.work), "--seconds", str(seconds)]  # fmt: skip
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | str = child.wait(seconds + 15)
        except subprocess.TimeoutExpired:
            code = f"not done within {seconds:.0f} s"
        finally:
            _end_group(child)
        said.seek(0)
        words = said.read()[-2000:].strip()
    result = _read(file)
    if not result:
        reason = words.splitlines()[-1] if words else f"exit status {code}"
        result = {"error": code if isinstance(code, str) else reason, "words": words}
    print(f"{stage:8} {time.monotonic() - started:6.0f} s  {result.get('error') or 'ok'}", flush=True)
    return result


def _end_group(child: subprocess.Popen[Any]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _answer(work: Path, stage: str) -> Path:
    """Where a stage's process leaves what it found."""
    return work / f"{stage}.json"


def _read(file: Path) -> Result:
    found: Result = json.loads(file.read_text()) if file.exists() else {}
    return found


def _write(file: Path, content: Any) -> None:
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=1))
    beside.replace(file)


def _pack(work: Path, out: Path) -> None:
    store = work / "store"
    if store.exists():
        beside = work / "store.tar.gz"
        with tarfile.open(beside, "w:gz") as archive:
            archive.add(store, arcname="profiles")
        (out / "store.tar.gz").write_bytes(beside.read_bytes())


def _print(summary: Result, found: Result) -> None:
    m = found.get("machine", {})
    if "copy_bytes_per_s" in m:
        fp8 = f"{m['fp8_flops'] / 1e12:.1f}" if isinstance(m["fp8_flops"], float) else "none"
        print(f"{m['name']}, torch {m['torch']}, Triton {m['triton']}: copy {m['copy_bytes_per_s'] / 1e12:.3f} TB/s, "
              f"bf16 {m['bf16_flops'] / 1e12:.1f} TFLOP/s, fp8 {fp8}")  # fmt: skip
    for row in found.get("time", {}).get("rows", []):
        sizes = " ".join(f"{k}{v}" for k, v in row["fixed"].items())
        default, best = (f"{1e6 * s:9.2f}" if s else "     none" for s in (row["default_s"], row["best_s"]))
        reached = f"{row['floor_s'] / row['best_s']:5.0%}" if row["best_s"] else ""
        print(f"{row['operator']:16} {row['format']:10} {'x'.join(map(str, row['point'])):>9} {default} {best} us "
              f"{reached} of floor  {row['variant']}  {sizes}")  # fmt: skip
    for line in summary["wrong"]:
        print("WRONG", *line)
    if summary["device"] == "cpu":
        print("a dry run on a processor: the script is whole; no figure below says anything of a GPU")
    for verdict in summary["must_show"]:
        mark = "held  " if verdict["held"] else "MISSED"
        print(f"{mark} {verdict['what']}: {verdict['value']:.3f}, limit {verdict['limit']}")
    for stage, text in summary["stages"].items():
        print(f"{stage:8} {text}")


if __name__ == "__main__":
    main()
