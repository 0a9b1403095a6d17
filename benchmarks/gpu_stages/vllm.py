"""vLLM's own fused experts tuned in place on the sample trace; then vLLM itself is asked whether it takes the file."""

from __future__ import annotations

from pathlib import Path

from gpu_stages import Result, Session
from gpu_stages.commands import command, hardware, models, sample_trace, store


def run(session: Session) -> Result:
    """`tuned`: what `fwopt kernels tune` says, its default being vLLM's own choice; `export`: what was written, and
    what vLLM answered."""
    from fwopt.tuning.operators import vllm_python

    if session.small:
        return {"skipped": "a processor has no kernel to choose; tests/tuning/test_vllm_experts.py asks vLLM there"}
    if vllm_python() is None:
        return {"skipped": "vLLM is not installed here, and FWOPT_VLLM_PYTHON names no Python that has it"}
    folder, (_, model) = session.work / "vllm-files", models(session)
    where = hardware(session) or ["--hardware", "h200:1"]
    tune = ["kernels", "tune", str(sample_trace(session)), "--model", model, *where, "--op", "vllm_fused_moe",
            "--budget", f"{0.6 * session.seconds:.0f}s", "--out", str(store(session)), "--json"]  # fmt: skip
    tuned = command(tune, 0.8 * session.seconds)
    if "error" in tuned:
        return {"error": tuned["error"]}
    if tuned["profile"] is None:
        return {"error": "nothing could be timed", "tuned": tuned}
    export = ["kernels", "export", "vllm", "--device", Path(tuned["profile"]).parent.name, "--triton",
              tuned["timed_on"]["triton"], "--profiles", str(store(session)), "--out", str(folder)]  # fmt: skip
    said = command(export, 0.2 * session.seconds)
    files = {path.name: path.read_text() for path in folder.glob("*.json")}
    found = {"tuned": tuned, "export": said, "files": files}
    return {**found, "error": said["error"]} if "error" in said else found
