"""Tasks of lm-evaluation-harness, where it is installed."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from fwopt.errors import InputError
from fwopt.evals.files import read_answers

from .conftest import run

here = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed; pip install 'fwopt[lm-eval]'")
TASK = """
task: own_sums
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"{i} + 1", "answer": str(i + 1)} for i in range(30)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sums.yaml").write_text(TASK.replace("DATA", str(folder / "sums.jsonl")))
    return folder


def adds(limit):
    return lambda asked, body: str(int(asked.split()[0]) + 1) if int(asked.split()[0]) >= limit else "?"


@here
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_task_is_paired_document_by_document(api, start, tasks, tmp_path):
    good, bad = start(adds(0)), start(adds(20))
    done = run("lm-eval:own_sums", "--lm-eval-tasks", tasks, "--url", bad.url, "--against", good.url, "--api", api,
               "--out", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 1, done.stdout
    assert "lm-eval-own_sums: 30 items" in done.stdout
    assert "worse: -66.67 pp" in done.stdout
    found = [read_answers(path) for path in sorted((tmp_path / "out" / "lm-eval-own_sums").glob("*.gz"))]
    assert sorted(answers.score for answers in found) == [pytest.approx(1 / 3), 1]
    assert len({answers.header.digest for answers in found}) == 1


@here
@pytest.mark.filterwarnings("ignore")
def test_a_task_that_is_not_there_is_one_line(start, tasks, tmp_path):
    with pytest.raises(InputError, match="lm-eval:no_such_task: lm-evaluation-harness fails") as caught:
        run("lm-eval:no_such_task", "--lm-eval-tasks", tasks, "--url", start(adds(0)).url, "--out", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_the_harness_the_extra_is_named(start, tmp_path):
    with pytest.raises(InputError, match=r"lm_eval: not installed; pip install 'fwopt\[lm-eval\]'"):
        run("lm-eval:gsm8k", "--url", start(adds(0)).url, "--out", tmp_path)
