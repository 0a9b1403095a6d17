"""Same seed, same bytes: whatever the number of workers, and whether or not the run was killed half-way."""

import signal
import subprocess
import sys
import time

import pytest

from fwopt.search.log import TrialLog
from fwopt.search.run_folder import read_plan
from fwopt.search.stopping import Stopper


def _finish(script, folder, delay="0"):
    subprocess.run([sys.executable, str(script), str(folder), delay], check=True, timeout=120)
    return (folder / "trials.jsonl").read_bytes()


def _start(script, folder, delay):
    process = subprocess.Popen([sys.executable, str(script), str(folder), delay], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


def _wait_for_lines(path, count):
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [2, 5])
def test_any_number_of_workers_writes_the_same_bytes(toy, tmp_path, workers):
    written = []
    for count in (1, workers):
        log = TrialLog(tmp_path / f"{count}.jsonl")
        plan = toy.tune(toy.inputs(toy.LARGE), toy.Toy(delay_s=0.001), log, workers=count)
        written.append(((tmp_path / f"{count}.jsonl").read_bytes(), plan.model_dump_json()))
    assert written[0] == written[1]
    assert written[0][0].count(b"\n") > 60


def test_another_seed_searches_another_way(toy):
    def order(seed):
        log = TrialLog()
        toy.tune(toy.inputs(toy.LARGE, seed=seed), toy.Toy(), log)
        return [t.candidate.id for t in log.trials]

    assert order(1) != order(2)


def test_a_killed_run_resumes_to_the_very_bytes_of_an_uninterrupted_one(toy_script, tmp_path):
    whole = _finish(toy_script, tmp_path / "whole")
    killed = tmp_path / "killed"
    process = _start(toy_script, killed, "0.02")
    _wait_for_lines(killed / "trials.jsonl", 25)
    process.kill()
    process.wait()
    process.stdout.close()
    kept = (killed / "trials.jsonl").read_bytes()
    assert not (killed / "plan.json").exists()
    assert whole.startswith(kept[: kept.rfind(b"\n") + 1])
    assert _finish(toy_script, killed) == whole


def test_a_torn_last_line_is_cut_off_and_done_again(toy_script, tmp_path):
    whole = _finish(toy_script, tmp_path / "whole")
    torn = tmp_path / "whole" / "trials.jsonl"
    torn.write_bytes(whole[: len(whole) // 2])
    assert _finish(toy_script, tmp_path / "whole") == whole


def test_ctrl_c_ends_with_a_valid_plan_that_can_go_on(toy_script, tmp_path):
    folder = tmp_path / "run"
    process = _start(toy_script, folder, "0.02")
    _wait_for_lines(folder / "trials.jsonl", 20)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    process.stdout.close()
    plan = read_plan(folder)
    assert plan.status == "interrupted"
    assert plan.chosen is not None
    assert any("--resume" in note for note in plan.notes)
    _finish(toy_script, folder)
    assert read_plan(folder).status == "complete"


def test_recalled_trials_are_not_evaluated_again(toy, tmp_path):
    path = tmp_path / "trials.jsonl"
    first = toy.Toy()
    toy.tune(toy.inputs(toy.LARGE), first, TrialLog(path))
    again = toy.Toy()
    log = TrialLog(path).load()
    toy.tune(toy.inputs(toy.LARGE), again, log)
    assert first.calls
    assert again.calls == []


def test_more_trials_on_resume_extend_the_same_search(toy, tmp_path):
    path = tmp_path / "trials.jsonl"
    toy.tune(toy.inputs(toy.LARGE, trials=40), toy.Toy(), TrialLog(path))
    search_only = [line for line in path.read_bytes().splitlines() if b'"capacity"' not in line]
    toy.tune(toy.inputs(toy.LARGE, trials=80), toy.Toy(), TrialLog(path).load())
    longer = [line for line in path.read_bytes().splitlines() if b'"capacity"' not in line]
    assert longer[: len(search_only)] == search_only
    assert len(longer) > len(search_only)


def test_a_time_limit_of_nothing_still_gives_a_plan(toy):
    plan = toy.tune(toy.inputs(toy.LARGE), toy.Toy(), TrialLog(), stopper=Stopper(timeout_s=1e-9))
    assert plan.status == "infeasible"
    assert plan.evaluated == 0
    assert any("--timeout" in note for note in plan.notes)
