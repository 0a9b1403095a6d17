"""The store and its importer: the traps of the source are handled, stated and undone."""

import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from fwopt.cli.profiles import app
from fwopt.errors import InputError, UnknownNameError, UnmeasuredError
from fwopt.perf.importer import MANTISSA_BITS, import_profile
from fwopt.perf.store import entries, load_profile, open_profile
from fwopt.spec.engine import EngineSpec


def _write(root, path, rows, **common):
    frame = pd.DataFrame([{"device": "NVIDIA H200", "kernel_source": "k", **common, **row} for row in rows])
    target = root / "data" / "h200_sxm" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(target)


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "tables"
    bf16 = [{"gemm_dtype": "bfloat16", "m": m, "n": 64, "k": 64, "latency": m * 1e-3} for m in (1, 64, 1024)]
    slow = [{"gemm_dtype": "bfloat16", "m": 512, "n": 64, "k": 64, "latency": 1.9}]
    twice = [{"gemm_dtype": "bfloat16", "m": 1, "n": 64, "k": 64, "latency": 3e-3}]
    broken = [{"gemm_dtype": "bfloat16", "m": 2, "n": 64, "k": 64, "latency": float("nan")}]
    host = [{"gemm_dtype": "fp8_block", "m": 1, "n": 64, "k": 64, "latency": 0.055}]
    _write(root, "gemm/vllm/0.24.0/gemm_perf.parquet", bf16 + slow + twice + broken + host)
    _write(root, "gemm/vllm/0.9.0/gemm_perf.parquet", bf16)
    block = [{"gemm_dtype": "fp8_block", "m": 1, "n": 64, "k": 64, "latency": 0.010}]
    _write(root, "gemm/sglang/0.5.14/gemm_perf.parquet", block, kernel_source="deepgemm")
    _write(
        root,
        "comm/vllm/0.24.0/custom_allreduce_perf.parquet",
        [{"backend": "vllm_graph", "num_gpus": 2, "message_size": 128, "latency": 0.0044}],
    )
    a2a = {"phase": "dispatch", "ep_size": 8, "hidden_size": 4096, "topk": 8, "num_experts": 256, "num_tokens": 16}
    _write(root, "comm/vllm/0.24.0/moe_a2a_perf.parquet", [{"comm_backend": "deepep_ll", "latency": 50.0, **a2a}])
    generation = {"batch_size": 1, "num_heads": 8, "num_key_value_heads": 8, "head_dim": 128, "window_size": 0}
    _write(
        root,
        "attention/vllm/0.24.0/generation_attention_perf.parquet",
        [{"kv_cache_dtype": "bfloat16", "step": 1023, "latency": 0.01, **generation}],
    )
    heads = {"num_k_heads": 2, "num_v_heads": 8, "head_k_dim": 128, "head_v_dim": 128, "d_conv": 4}
    recurrence = [
        {"phase": "generation", "batch_size": b, "seq_len": 1, "kernel_source": kernel, "latency": latency, **heads}
        for b, kernel, latency in ((1, "conv", 0.002), (1, "scan", 0.004), (1, "scan", 0.006), (2, "conv", 0.002))
    ]
    _write(root, "linear_attention/vllm/0.24.0/gdn_perf.parquet", recurrence)
    (root / "data" / "h200_sxm" / "indexer").mkdir()
    return root


def test_the_import_undoes_the_traps_and_says_so(source, tmp_path, h200):
    folder = import_profile(source, "h200", "vllm", None, tmp_path / "out")
    assert folder.name == "vllm-0.24.0", "the newest version, by number and not by letter"
    profile = open_profile(folder)
    gemm = profile.columns("gemm")
    times = {(d, m): s for d, m, s in zip(gemm["dtype"], gemm["m"], gemm["p50_s"], strict=True)}
    assert set(times) == {("bf16", 1), ("bf16", 64), ("bf16", 1024), ("fp8_block", 1)}
    assert times["bf16", 1] == pytest.approx(2e-6, rel=2**-MANTISSA_BITS), "median of 1 and 3 us, in seconds"
    assert times["fp8_block", 1] == pytest.approx(1e-5, rel=1e-3), "SGLang's row, not vLLM's 55 us"
    dropped = {d.reason: d.rows for d in profile.environment.tables["gemm"].dropped}
    assert sorted(dropped.values()) == [1, 1, 1, 1]
    assert any("bound by the host" in reason for reason in dropped)
    assert profile.columns("all_to_all")["p50_s"][0] == pytest.approx(50e-6, rel=1e-3), "microseconds there"
    assert profile.columns("decode_attention")["context"][0] == 1024, "step + 1"
    assert profile.columns("all_reduce")["elements"][0] == 128
    assert "not imported: indexer" in profile.environment.notes
    linear = profile.columns("linear_attention")
    assert (linear["batch"].tolist(), linear["variant"].tolist()) == ([1], ["conv + scan"]), (
        "a lone kernel is no operator"
    )
    assert linear["p50_s"][0] == pytest.approx(7e-6, rel=1e-3), "convolution, and the median of the recurrence's rows"


def test_the_same_tables_give_the_same_digest_and_other_times_another(source, tmp_path):
    first = open_profile(import_profile(source, "h200", "vllm", None, tmp_path / "a"))
    again = open_profile(import_profile(source, "h200", "vllm", None, tmp_path / "b"))
    assert first.digest == again.digest
    _write(
        source,
        "comm/vllm/0.24.0/custom_allreduce_perf.parquet",
        [{"backend": "vllm_graph", "num_gpus": 2, "message_size": 128, "latency": 0.0045}],
    )
    changed = open_profile(import_profile(source, "h200", "vllm", None, tmp_path / "b"))
    assert changed.digest != first.digest


def test_a_failed_import_leaves_the_old_profile_alone(source, tmp_path):
    folder = import_profile(source, "h200", "vllm", None, tmp_path / "out")
    before = open_profile(folder).digest
    (source / "data/h200_sxm/gemm/vllm/0.24.0/gemm_perf.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="not a readable parquet"):
        import_profile(source, "h200", "vllm", None, tmp_path / "out")
    assert open_profile(folder).digest == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_unknown_names_get_suggestions(source, tmp_path):
    with pytest.raises(UnknownNameError, match="nearest: h200"):
        import_profile(source, "h20", "vllm", None, tmp_path)
    with pytest.raises(UnknownNameError, match="nearest: vllm"):
        import_profile(source, "h200", "vlm", None, tmp_path)
    with pytest.raises(UnknownNameError, match=r"0\.24\.0"):
        import_profile(source, "h200", "vllm", "0.24.1", tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        import_profile(tmp_path / "nowhere", "h200", "vllm", None, tmp_path)


def test_the_nearest_version_stands_in_with_a_note(h200):
    exact = load_profile(h200, EngineSpec(version="0.24.0"))
    near = load_profile(h200, EngineSpec(version="0.31.2"))
    assert exact.note is None
    assert near.digest == exact.digest
    assert "0.24.0" in near.note
    assert "0.31.2" in near.note


def test_a_device_without_profile_names_those_that_have_one(h200):
    with pytest.raises(UnmeasuredError, match=r"h200/vllm-0\.24\.0"):
        load_profile(h200.model_copy(update={"name": "tpu"}), EngineSpec())


def test_shipped_profiles_are_whole_and_attributed():
    found = [open_profile(path) for *_, path in entries()]
    assert {"h100/vllm-0.24.0", "h200/vllm-0.24.0"} <= {p.name for p in found}
    for profile in found:
        assert "Apache-2.0" in profile.environment.licence
        for operator, table in profile.environment.tables.items():
            columns = profile.columns(operator)
            assert len(columns["p50_s"]) == table.rows
            assert (columns["p50_s"] > 0).all()
            assert np.isfinite(columns["p50_s"]).all()


def test_a_damaged_profile_is_one_line(tmp_path, h200):
    *_, shipped = next(iter(entries()))
    copy = tmp_path / "h100" / shipped.name
    shutil.copytree(shipped, copy)
    (copy / "gemm.parquet").unlink()
    with pytest.raises(InputError, match=r"gemm\.parquet"):
        open_profile(copy)
    (copy / "environment.json").write_text("{}")
    with pytest.raises(InputError, match="not a profile environment"):
        open_profile(copy)


def test_the_commands_list_show_and_import(source, tmp_path):
    run = CliRunner().invoke
    listed = run(app, ["list"])
    assert listed.exit_code == 0
    assert "h200/vllm-0.24.0" in listed.stdout
    shown = run(app, ["show", "h200/vllm-0.24.0"])
    assert "left out" in shown.stdout
    made = run(app, ["import", str(source), "--device", "h200", "--out", str(tmp_path / "out")])
    assert made.exit_code == 0, made.output
    assert "gemm: 4 rows, 4 left out" in made.stdout
    assert "h200/vllm-0.24.0" in run(app, ["list", "--profiles", str(tmp_path / "out")]).stdout
