"""The pipelines in docs/ci do what they say: their own commands, in a repository with a change that is slower."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DOCS = Path(__file__).parents[2] / "docs" / "ci"
APP = "import time\ntime.sleep({})\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A branch off origin/main whose program sleeps four times as long."""
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    git(tmp_path, "init", "-q", "-b", "main", str(origin))
    (origin / "bench").mkdir()
    shutil.copy(DOCS / "suite.yaml", origin / "bench")
    (origin / "app.py").write_text(APP.format(0.02))
    commit(origin, "one")
    git(tmp_path, "clone", "-q", str(origin), str(clone))
    git(clone, "checkout", "-q", "-b", "change")
    (clone / "app.py").write_text(APP.format(0.5))
    commit(clone, "slower")
    return clone


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=folder, check=True)


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", message)


def shell(script: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """As both services call it. `fwopt` and `python` are this interpreter's."""
    tools = cwd.parent / "tools"
    tools.mkdir(exist_ok=True)
    for name, words in (("fwopt", f'"{sys.executable}" -m fwopt'), ("python", f'"{sys.executable}" -S')):
        (tools / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (tools / name).chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=cwd, env=os.environ | {"PATH": path} | env, capture_output=True, text=True)


def test_the_github_workflow_fails_a_slower_change_and_summarises_it(checkout: Path, tmp_path: Path) -> None:
    (job,) = yaml.safe_load((DOCS / "github-actions.yml").read_text())["jobs"].values()
    steps = {step["name"]: step for step in job["steps"] if "run" in step}
    assert list(steps) == ["install", "base", "bench"]
    assert steps["install"]["run"] == "pip install fwopt"
    summary = tmp_path / "summary.md"
    env = {"BASE_REF": "main", "GITHUB_STEP_SUMMARY": str(summary)}
    assert set(steps["base"]["env"]) == {"BASE_REF"}
    assert shell(steps["base"]["run"], checkout, **env).returncode == 0
    done = shell(steps["bench"]["run"], checkout, **env)
    assert done.returncode == 1, done.stdout + done.stderr
    assert summary.read_text().startswith("## ❌ fwopt bench: fail: app")
    (upload,) = (step for step in job["steps"] if "upload-artifact" in step.get("uses", ""))
    assert (checkout / upload["with"]["path"] / "comparison.json").is_file()


def test_the_gitlab_template_fails_a_slower_change_and_leaves_its_reports(checkout: Path) -> None:
    job = yaml.safe_load((DOCS / "gitlab-ci.yml").read_text())["bench"]
    assert job["before_script"] == ["pip install fwopt"]
    done = shell("\n".join(job["script"]), checkout, CI_MERGE_REQUEST_TARGET_BRANCH_NAME="main")
    assert done.returncode == 1, done.stdout + done.stderr
    assert job["allow_failure"]["exit_codes"] == 3
    assert "<failure" in (checkout / job["artifacts"]["reports"]["junit"]).read_text()
