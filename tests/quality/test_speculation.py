"""Acceptance of guessed tokens: what is proposed, what is counted, what is kept, bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from fwopt.cli.guessing import request
from fwopt.errors import InputError
from fwopt.quality.speculation import replies, study
from fwopt.quality.speculation.acceptance import Reply, Walked, figures, steps
from fwopt.quality.speculation.drafting import DraftModel, Lookup, load
from fwopt.quality.statistics import Bootstrap
from fwopt.report.speculation import render
from fwopt.spec.speculation import ModelDrafter, NgramDrafter, SpeculationSettings

pytestmark = pytest.mark.usefixtures("one_thread")
VLLM = os.environ.get("FWOPT_VLLM_PYTHON")
needs_vllm = pytest.mark.skipif(VLLM is None, reason="FWOPT_VLLM_PYTHON names no interpreter with vLLM")


def quiet(*_):
    pass


def cases(count=60):
    """Token rows that repeat themselves, and limits."""
    generator = np.random.default_rng(4)
    for _ in range(count):
        low = int(generator.integers(1, 4))
        drafter = NgramDrafter(
            tokens=int(generator.integers(1, 6)), lookup_min=low, lookup_max=low + int(generator.integers(0, 3))
        )
        yield drafter, generator.integers(0, int(generator.integers(2, 9)), int(generator.integers(1, 60))).tolist()


def by_hand(drafter, tokens):
    for size in range(drafter.lookup_max, drafter.lookup_min - 1, -1):
        for start in range(len(tokens) - size):
            if tokens[start : start + size] == tokens[len(tokens) - size :]:
                return tokens[start + size :][: drafter.tokens]
    return []


def test_lookup_proposes_what_followed_the_longest_repeat_at_its_earliest_place():
    for drafter, tokens in cases():
        lookup = Lookup(drafter)
        for end in range(1, len(tokens) + 1):
            assert lookup.propose(tokens[:end]) == by_hand(drafter, tokens[:end])


@pytest.mark.live
@needs_vllm
def test_lookup_proposes_what_vllm_proposes(tmp_path):
    rows = [(d.model_dump(), t, Lookup(d).propose(t)) for d, t in cases(200)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    script = (
        "import json, sys, numpy as np\n"
        "from vllm.v1.spec_decode.ngram_proposer import _find_longest_matched_ngram_and_propose_tokens as find\n"
        "for d, tokens, ours in json.load(open(sys.argv[1])):\n"
        "    theirs = find(np.array(tokens, dtype=np.int32), d['lookup_min'], d['lookup_max'], 4096, d['tokens'])\n"
        "    assert theirs.tolist() == ours, (d, tokens, theirs, ours)\n"
    )
    env = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [VLLM, "-c", script, str(tmp_path / "rows.json")],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.live
@needs_vllm
@pytest.mark.skipif("FWOPT_SMOLLM2" not in os.environ, reason="FWOPT_SMOLLM2 names no folder of a small real model")
def test_vllm_counts_the_same_drafts_on_its_own_replies(tmp_path):
    """Its replies divided into steps by us give its own counters. What it accepts beyond a reply's last token is
    counted there and cannot be seen here: at most the last draft of each."""
    import pydoc_data.topics

    model, prose = Path(os.environ["FWOPT_SMOLLM2"]), tmp_path / "topics.txt"
    prose.write_text("\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))[:60000])
    settings = SpeculationSettings(replies="generated", prompt_tokens=64, reply_tokens=32, max_replies=8)
    prompts = replies.openings(model, [prose], [], settings)
    drafter = NgramDrafter(tokens=4, lookup_min=2, lookup_max=4)
    asked = {"config": drafter.vllm(), "prompts": [list(p.prompt) for p in prompts], "tokens": 32}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    script = Path(__file__).with_name("ask_vllm_speculation.py")
    done = subprocess.run(
        [VLLM, str(script), str(model), str(tmp_path / "asked.json")],
        cwd=tmp_path, env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": ""}, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    own = [Reply("a", p.prompt, tuple(tokens)) for p, tokens in zip(prompts, answer["replies"], strict=True)]
    walked = [list(steps(reply, Lookup(drafter))) for reply in own]
    got, theirs = figures(Walked.of(walked), 4, Bootstrap(0)), answer["counted"]
    assert (got.drafts, got.draft_tokens) == (theirs["num_drafts"], theirs["num_draft_tokens"])
    unseen = sum(proposed - accepted for proposed, accepted in (row[-1] for row in walked))
    assert got.drafts > 20
    assert got.accepted_tokens <= theirs["num_accepted_tokens"] <= got.accepted_tokens + unseen


@pytest.mark.live
@needs_vllm
@pytest.mark.parametrize("drafter", [NgramDrafter(), ModelDrafter(model="MODEL", tokens=3)], ids=["ngram", "draft"])
def test_vllm_accepts_what_is_printed_for_it(drafter, tiny, tmp_path):
    if drafter.kind == "draft":
        drafter = drafter.model_copy(update={"model": str(tiny)})
    script = (
        "import json, sys\n"
        "from vllm.engine.arg_utils import AsyncEngineArgs\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "line = ['--model', sys.argv[1], '--skip-tokenizer-init', '--speculative-config', sys.argv[2]]\n"
        "engine = AsyncEngineArgs.from_cli_args(make_arg_parser(FlexibleArgumentParser()).parse_args(line))\n"
        "found = engine.create_engine_config().speculative_config\n"
        "print(json.dumps({key: getattr(found, key) for key in json.loads(sys.argv[2])}))\n"
    )
    env = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": "", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [VLLM, "-c", script, str(tiny), json.dumps(drafter.vllm())],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == drafter.vllm()


class Scripted:
    """Proposes what it was told to, step by step."""

    def __init__(self, *proposals):
        self.proposals = iter(proposals)

    def propose(self, tokens):
        return next(self.proposals)


def test_steps_and_figures_are_counted_as_vllm_counts_them():
    reply = Reply("a", (1, 2), (10, 11, 12, 13, 14, 15, 16))
    found = list(steps(reply, Scripted([11, 12, 99], [], [15, 99, 99])))
    assert found == [(3, 2), (0, 0), (3, 1)]  # 10 | 11 12 13 | 14 | 15 16
    walked = Walked.of([found, [(2, 0)]])
    got = figures(walked, 3, Bootstrap(0))
    assert (got.replies, got.steps, got.drafts, got.draft_tokens, got.accepted_tokens) == (2, 4, 3, 8, 3)
    assert got.acceptance_length.value == pytest.approx(1 + 3 / 3)
    assert [rate.value for rate in got.by_position] == pytest.approx([2 / 3, 1 / 3, 0])
    assert got.tokens_per_step.value == pytest.approx((3 + 1 + 2 + 1) / 4)
    assert got.steps_by_tokens == (2, 1, 1, 0)


def test_every_token_comes_in_exactly_one_step_whatever_is_proposed():
    generator = np.random.default_rng(1)
    for _ in range(50):
        tokens = tuple(generator.integers(0, 4, int(generator.integers(2, 40))).tolist())
        found = list(steps(Reply("a", (0, 1), tokens), Lookup(NgramDrafter(tokens=4, lookup_min=1, lookup_max=3))))
        given = 1 + sum(accepted + 1 for _, accepted in found)
        assert len(tokens) <= given <= len(tokens) + 1  # the last step may give its own token beyond the end
        assert all(accepted <= proposed <= 4 for proposed, accepted in found)


@pytest.fixture(scope="module")
def tiny(model_folder):
    return model_folder("llama", torch.bfloat16)


@pytest.fixture(scope="module")
def prose(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    words = np.random.default_rng(0).choice(["alpha", "beta", "gamma", "delta\n", "rest", "of", "it"], 300)
    path.write_text(" ".join(words))
    return path


def test_a_draft_model_proposes_its_own_greedy_continuation_from_any_prefix(tiny):
    """Whatever was accepted or rejected before: its cache must not show."""
    drafting, model = DraftModel(tiny, 3), load(tiny)
    row = np.random.default_rng(2).integers(3, 300, 40).tolist()
    for end in (5, 9, 10, 7, 40, 12):
        expected = list(row[:end])
        for _ in range(3):
            expected.append(int(model(input_ids=torch.tensor([expected])).logits[0, -1].argmax()))
        assert drafting.propose(row[:end]) == expected[end:]


SETTINGS = SpeculationSettings(replies="generated", prompt_tokens=32, reply_tokens=24, max_replies=6)


def ask(folder, files, home, *, traces=(), drafts=(), tokens=(3,), ngrams=("2-3",), settings=SETTINGS):
    return request(str(folder), files, traces, ngrams, drafts, tokens, settings, home)


def test_a_model_that_guesses_for_itself_is_nearly_always_right(tiny, prose, tmp_path):
    results, _ = study.run(ask(tiny, [prose], tmp_path, drafts=[str(tiny)], ngrams=()), quiet)
    figures_ = results.drafters[0].overall
    assert figures_.drafts == figures_.steps
    assert figures_.by_position[0].value > 0.95
    assert figures_.tokens_per_step.value > 3.7


def test_replies_are_generated_once_and_drafters_are_added(tiny, prose, tmp_path, monkeypatch):
    first, file = study.run(ask(tiny, [prose], tmp_path), quiet)
    made = (file.parent / "replies.jsonl").read_bytes()
    monkeypatch.setattr(replies, "load", lambda _: pytest.fail("generated again"))
    more, _ = study.run(ask(tiny, [prose], tmp_path, tokens=(3, 5)), quiet)
    assert [a.drafter.tokens for a in more.drafters] == [3, 5]
    assert more.drafters[0] == first.drafters[0]
    assert "ngram5:2-3" in render(more, ("ngram5:2-3",), str(file))
    monkeypatch.undo()
    (file.parent / "replies.jsonl").write_bytes(made[: len(made) * 2 // 3])  # killed while writing
    file.unlink()
    again, _ = study.run(ask(tiny, [prose], tmp_path), quiet)
    assert (file.parent / "replies.jsonl").read_bytes() == made
    assert again == first


def test_another_end_token_is_another_study(tiny, prose, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(tiny, folder)
    _, before = study.run(ask(folder, [prose], tmp_path / "h"), quiet)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 77]}')
    assert study.run(ask(folder, [prose], tmp_path / "h"), quiet)[1] != before


def recorded(path, tiny_text):
    lines = []
    for i in range(6):
        text = {"prompt": f"{tiny_text} {i}", "reply": f"{tiny_text} {tiny_text}"}
        lines.append(json.dumps({"arrival_s": i, "prompt_tokens": 9, "output_tokens": 9, "text": text}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_recorded_replies_need_no_weights_and_copies_are_found(tiny, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(tiny / name, bare / name)
    trace = recorded(tmp_path / "trace.jsonl", "one two three four")
    settings = SpeculationSettings(replies="recorded")
    results, _ = study.run(ask(bare, [], tmp_path / "home", traces=[trace], settings=settings), quiet)
    overall = results.drafters[0].overall
    assert results.weights_digest is None
    assert overall.replies == 6
    assert overall.by_position[0].value > 0.8
    assert overall.tokens_per_step.value > 2.5


def test_bad_input_is_one_line(tiny, prose, tmp_path):
    with pytest.raises(InputError, match="needs text"):
        ask(tiny, [], tmp_path)
    with pytest.raises(InputError, match="holds no replies"):
        ask(tiny, [prose], tmp_path, settings=SpeculationSettings(replies="recorded"))
    with pytest.raises(InputError, match="write the fewest and most"):
        ask(tiny, [prose], tmp_path, ngrams=["4-2"])
    with pytest.raises(InputError, match="at least 6 are needed"):
        study.run(ask(tiny, [prose], tmp_path, settings=SETTINGS.model_copy(update={"prompt_tokens": 5000})), quiet)
    with pytest.raises(InputError, match="exceed the model's 512"):
        study.run(ask(tiny, [prose], tmp_path, settings=SETTINGS.model_copy(update={"reply_tokens": 500})), quiet)
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["another"] = tokenizer["model"]["vocab"].pop("w300")
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="must have the target's own tokens"):
        study.run(ask(tiny, [prose], tmp_path, drafts=[str(other)]), quiet)
