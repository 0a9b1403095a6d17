"""Every format, read from a small file written after its specification, and from the shipped traces."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard

from fwopt.errors import TraceError, UnknownNameError
from fwopt.paths import data_folder
from fwopt.workload import read, statistics
from fwopt.workload.registry import FORMATS, load

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED = {
    # file: format, arrivals, prompts, outputs
    "own.jsonl": ("fwopt", [0, 0.75, 0.75], [40, 9, 55], [7, 1, 30]),
    "mooncake.jsonl": ("mooncake", [0, 0, 3.001], [1030, 513, 512], [500, 1, 20]),
    "vllm_timed.jsonl": ("vllm-timed", [0, 0.75], [40, 33], [12, 8]),
    "azure_2023.csv": ("azure", [0, 2e-7], [374, 396], [44, 109]),
    "azure_2024.csv": ("azure", [0, 0.007405], [2162, 2399], [5, 6]),
    "servegen.csv": ("servegen", [0, 0.125], [160, 385], [174, 549]),
    "burstgpt.csv": ("burstgpt", [0, 40], [472, 1087], [18, 230]),
    "burstgpt_sessions.csv": ("burstgpt", [0, 51, 82.5], [906, 36, 1779], [446, 29, 123]),
    "openai.jsonl": ("openai", [0, 2.5, 4], [60, 48, 4], [9, 21, 16]),
    "otel.jsonl": ("otel", [0, 1.5], [80, 120], [12, 33]),
    "otel_vllm.jsonl": ("otel", [0], [512], [64]),
}


@pytest.mark.parametrize("file", EXPECTED)
def test_format_is_detected_and_read(file: str) -> None:
    name, arrivals, prompts, outputs = EXPECTED[file]
    found = read(FIXTURES / file)
    w = found.workload
    assert found.format == w.source_format == name
    assert w.arrival_s.tolist() == arrivals
    assert w.prompt_tokens.tolist() == prompts
    assert w.output_tokens.tolist() == outputs
    assert found.skipped_count == 0
    assert read(FIXTURES / file, format=name).workload.digest == w.digest


def test_every_registered_format_has_a_fixture() -> None:
    assert {name for name, *_ in EXPECTED.values()} == set(FORMATS)
    assert all(load(name).title for name in FORMATS)


def test_own_format_carries_everything() -> None:
    w = read(FIXTURES / "own.jsonl").workload
    assert w.name == "support desk"
    assert w.models == ("Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B")
    assert w.model.tolist() == [0, 1, 0]
    assert w.adapters == ("billing",)
    assert w.max_tokens.tolist() == [64, 0, 0]
    assert w.session.tolist() == [0, -1, 0]
    assert w.parent.tolist() == [-1, -1, 0]
    assert w.tools.tolist() == [2, 0, 0]
    assert w.block_tokens == 16
    assert w.block_offsets.tolist() == [0, 3, 3, 6]
    # "00ff" and 255 are one hash; the third block differs
    assert w.block_ids.tolist() == [0, 1, 2, 0, 1, 3]


def test_mooncake_blocks_are_dense_ids_in_order_of_appearance() -> None:
    w = read(FIXTURES / "mooncake.jsonl").workload
    assert w.block_tokens == 512
    assert w.block_ids.tolist() == [0, 1, 2, 0, 3, 4]


def test_openai_log_is_sorted_hashed_and_keeps_no_text() -> None:
    found = read(FIXTURES / "openai.jsonl")
    w = found.workload
    assert w.session.tolist() == [0, 1, -1]
    assert w.tools.tolist() == [1, 0, 0]
    assert w.max_tokens.tolist() == [0, 200, 0]
    assert w.models == ("Qwen/Qwen3-8B",)
    assert w.block_tokens > 0
    assert any("sorted by time" in note for note in found.notes)
    assert read(FIXTURES / "openai.jsonl").workload.digest == w.digest, "the random key must not reach the digest"
    assert "library" not in repr(w)


def test_openai_conversations_share_their_common_beginning(tmp_path: Path) -> None:
    system = {"role": "system", "content": "x y z " * 100}
    turns = [system, {"role": "user", "content": "a " * 200}]
    rows = [
        {"created": 1, "messages": turns, "usage": {"prompt_tokens": 500, "completion_tokens": 5}},
        {"created": 2, "messages": [*turns, {"role": "user", "content": "b " * 200}],
         "usage": {"prompt_tokens": 700, "completion_tokens": 5}},
        {"created": 3, "messages": [{"role": "system", "content": "other " * 100}],
         "usage": {"prompt_tokens": 100, "completion_tokens": 5}},
    ]  # fmt: skip
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(r) + "\n" for r in rows))
    w = read(log).workload
    blocks = [w.block_ids[w.block_offsets[i] : w.block_offsets[i + 1]].tolist() for i in range(3)]
    assert blocks[1][: len(blocks[0]) - 1] == blocks[0][:-1]
    assert not set(blocks[2]) & set(blocks[0] + blocks[1])


def test_agent_spans_are_counted_not_read() -> None:
    found = read(FIXTURES / "otel.jsonl")
    assert found.workload.session.tolist() == [0, 0]
    assert found.workload.max_tokens.tolist() == [0, 256]
    assert any("no model calls" in note and note.endswith(": 1") for note in found.notes)


def test_agents_and_embeddings_of_older_instrumentations_are_not_read_either(tmp_path: Path) -> None:
    """They count by vLLM's names, `prompt_tokens` and `completion_tokens`, and name the operation."""

    def span(operation: str | None, **tokens: int) -> dict:
        values = [{"key": f"gen_ai.usage.{name}", "value": {"intValue": str(n)}} for name, n in tokens.items()]
        named = [{"key": "gen_ai.operation.name", "value": {"stringValue": operation}}] if operation else []
        return {"startTimeUnixNano": "1740823200000000000", "attributes": [*named, *values]}

    spans = [
        span("chat", prompt_tokens=100, completion_tokens=10),
        span("invoke_agent", prompt_tokens=300, completion_tokens=30),
        span("embeddings", prompt_tokens=50),
        span(None, prompt_tokens=200, completion_tokens=20),
    ]
    trace = tmp_path / "spans.jsonl"
    trace.write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}) + "\n")
    found = read(trace)
    assert found.workload.prompt_tokens.tolist() == [100, 200]
    assert any("no model calls" in note and note.endswith(": 2") for note in found.notes)


def test_client_and_server_spans_of_one_request_are_not_both_counted(tmp_path: Path) -> None:
    both = tmp_path / "both.jsonl"
    both.write_bytes((FIXTURES / "otel.jsonl").read_bytes() + (FIXTURES / "otel_vllm.jsonl").read_bytes())
    with pytest.raises(TraceError, match="one instrumentation"):
        read(both)


def test_columns_that_are_not_read_are_named() -> None:
    assert read(FIXTURES / "servegen.csv").notes == ("columns not read: client, reason_ratio",)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_compression_is_recognised_by_content_and_members_join(tmp_path: Path, pack) -> None:
    plain = (FIXTURES / "mooncake.jsonl").read_bytes()
    packed = tmp_path / "trace.bin"
    packed.write_bytes(pack(plain[:200]) + pack(plain[200:]))
    assert read(packed).workload.digest == read(FIXTURES / "mooncake.jsonl").workload.digest


def test_windows_line_ends_blank_lines_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    text = (FIXTURES / "azure_2023.csv").read_text().replace("\n", "\r\n\r\n")
    file = tmp_path / "t.csv"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read(file).workload.digest == read(FIXTURES / "azure_2023.csv").workload.digest


def test_quoted_csv_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text('"TIMESTAMP","ContextTokens","GeneratedTokens"\n"2023-11-16 18:15:46.6805900","374","44"\n')
    assert read(file).workload.prompt_tokens.tolist() == [374]


def test_same_fields_in_two_units_ask_for_the_format(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"timestamp": 1, "input_length": 40, "output_length": 12}\n')
    with pytest.raises(TraceError, match="--format mooncake"):
        read(file)
    assert len(read(file, format="mooncake").workload) == 1
    with pytest.raises(UnknownNameError, match="mooncake"):
        read(file, format="moncake")


def test_azure_conversation_facts() -> None:
    s = statistics(read(data_folder("workloads") / "azure-2023-conv.csv.gz").workload)
    assert s.requests == 19_366
    assert s.rate.gap_cv == pytest.approx(1.09, abs=0.005)
    assert (s.prompt_tokens.p50, s.prompt_tokens.p99) == (1_020, 4_142)
    assert (s.output_tokens.p50, s.output_tokens.p99) == (129, 601)
    assert s.prefix is None
    assert s.grain.tick_s is None


def test_azure_code_facts() -> None:
    s = statistics(read(data_folder("workloads") / "azure-2023-code.csv.gz").workload)
    assert s.requests == 8_819
    assert s.rate.gap_cv == pytest.approx(13.15, abs=0.01)
    assert s.output_tokens.p50 == 13


def test_mooncake_facts() -> None:
    found = read(data_folder("workloads") / "mooncake-conversation.jsonl.gz")
    s = statistics(found.workload)
    assert s.requests == 12_031
    assert s.grain.tick_s == 3.0
    assert s.grain.most_at_once == 28
    assert s.grain.coarse
    assert s.prefix is not None
    assert s.prefix.hit_share == pytest.approx(0.3736, abs=1e-4)
    assert s.prefix.unique_blocks == 182_790
    assert s.prompt_tokens.max == 126_195
    over = found.workload.prompt_tokens.astype(np.int64) + found.workload.output_tokens > 40_960
    assert int(over.sum()) == 574


def test_tokens_are_counted_with_the_models_own_files_when_usage_is_missing(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs fwopt[tokenizer]")
    words = "<|user|> <|end|> <|assistant|> hello world a b c".split()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    template = (
        "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} {{ eos_token }} {% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    config = {"eos_token": {"content": "<|end|>"}, "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    first = [{"role": "user", "content": "hello world " * 12}]
    parts = [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
    then = [*first, {"role": "assistant", "content": "a b c"}, {"role": "user", "content": parts}]
    answers = [{"message": {"content": "a b c"}, "finish_reason": "stop"}, {"message": {"content": "a"}}]
    log = tmp_path / "log.jsonl"
    log.write_text(
        "".join(
            json.dumps({"created": i, "messages": messages, "response": {"choices": [answers[i]]}}) + "\n"
            for i, messages in enumerate((first, then))
        )
    )
    found = read(log, model=tmp_path)
    assert found.workload.prompt_tokens.tolist() == [27, 36]
    assert found.workload.output_tokens.tolist() == [4, 1], "the end token of a natural stop was generated too"
    assert found.workload.block_tokens == 16
    assert found.workload.block_ids.tolist() == [0, 0, 1]
    with pytest.raises(TraceError, match="--model FOLDER"):
        read(log)
