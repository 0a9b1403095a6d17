"""What the user writes: one grammar for file and flags, and one clear line for every mistake."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwopt.errors import FwoptError, InputError, RunFolderError
from fwopt.search.derive import derive_space
from fwopt.search.params import distributions, from_params, to_params
from fwopt.search.quality import estimate
from fwopt.search.run_folder import RunFolder, read_inputs, read_plan
from fwopt.search.schemes import needs_checkpoint
from fwopt.search.settings import Settings, load_settings, parse_engine, parse_objective, parse_settings
from fwopt.search.space import SpaceOverrides
from fwopt.search.traffic import load_traffic
from fwopt.spec.candidate import W4A16, Bf16, Candidate, Fp8, Int8
from fwopt.spec.objective import Goal, QualityLimit, Slo
from fwopt.targets import load_hardware, load_model


@pytest.mark.parametrize(
    ("text", "metric", "statistic", "limit_s"),
    [
        ("ttft:p99<2s", "ttft", 0.99, 2.0),
        ("tpot:p95<50ms", "tpot", 0.95, 0.05),
        ("e2e:mean<30s", "e2e", "mean", 30.0),
        (" itl : p99.9 <= 800us ", "itl", 0.999, 0.0008),
        ("queue:p50<1e-1s", "queue", 0.5, 0.1),
    ],
)
def test_a_limit_reads_as_written_and_prints_back(text, metric, statistic, limit_s):
    slo = Slo.parse(text)
    assert (slo.metric, slo.statistic, slo.limit_s) == (metric, statistic, pytest.approx(limit_s))
    assert str(Slo.parse(str(slo))) == str(slo)


@pytest.mark.parametrize(
    "text", ["ttft<2s", "ttft:p99<2", "ttft:p99>2s", "ttft:p0<2s", "ttft:p100<2s", "speed:p99<2s", "ttft:p99<0s", ""]
)
def test_a_bad_limit_is_refused_with_an_example(text):
    with pytest.raises(InputError, match=r"statistic must be|for example"):
        Slo.parse(text)


@pytest.mark.parametrize(
    ("direction", "text", "fine"),
    [
        ("minimize", "cost", True),
        ("minimize", "gpus", True),
        ("minimize", "ttft:p99", True),
        ("maximize", "throughput", True),
        ("maximize", "goodput", True),
        ("maximize", "cost", False),
        ("minimize", "throughput", False),
        ("minimize", "ttft", False),
        ("minimize", "cost:p99", False),
        ("minimize", "beauty", False),
    ],
)
def test_goals(direction, text, fine):
    if fine:
        assert str(Goal.parse(direction, text)) == f"{direction} {text}"
    else:
        with pytest.raises(InputError):
            Goal.parse(direction, text)


def test_file_and_flags_share_one_grammar(toy, tmp_path):
    (tmp_path / "fwopt.yaml").write_text(
        "model: Qwen/Qwen3-8B\nhardware: h200:8\n"
        "objective:\n  slos: ['ttft:p99<2s']\n  minimize: cost\n  max_quality_drop: kl<0.01\n"
        "search:\n  tp: [1, 2]\n  quantizations: [bf16]\n"
    )
    loaded = load_settings(tmp_path / "fwopt.yaml")
    objective, note = parse_objective(loaded.objective, toy.HARDWARE)
    assert str(objective) == "minimize cost; subject to ttft:p99<2s; quality kl<0.01"
    assert note is None
    assert loaded.search.tp == (1, 2)


def test_nothing_said_means_a_stated_default(toy):
    objective, note = parse_objective(Settings().objective, toy.HARDWARE)
    assert len(objective.slos) == 2
    assert "no objective given" in note
    assert str(objective.slos[0]) in note
    unpriced, _ = parse_objective(Settings().objective, toy.HARDWARE.model_copy(update={"price": None}))
    assert unpriced.goals[0].metric == "gpus"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"modle": "x"}, "'modle'; nearest: model"),
        ({"trials": 0}, "trials: .*greater than 0"),
        ({"search": {"tp": []}}, "tp must list at least one"),
        ({"search": {"kv_dtypes": ["fp7"]}}, "search.kv_dtypes"),
        ({"objective": {"slos": 3}}, "objective.slos"),
    ],
)
def test_a_bad_setting_names_its_key(content, words):
    with pytest.raises(InputError, match=words):
        parse_settings(content, "fwopt.yaml")


def test_broken_yaml_is_one_line(tmp_path):
    (tmp_path / "bad.yaml").write_text("model: [\n")
    with pytest.raises(InputError, match=r"bad\.yaml: is not YAML") as error:
        load_settings(tmp_path / "bad.yaml")
    assert "\n" not in str(error.value)


def test_a_key_given_twice_is_an_error(tmp_path):
    (tmp_path / "bad.yaml").write_text("model: m\nhardware: h100:1\nhardware: h200:8\n")
    with pytest.raises(
        InputError, match=r"bad\.yaml: is not YAML: key 'hardware' is given twice in .* line 3"
    ) as error:
        load_settings(tmp_path / "bad.yaml")
    assert "\n" not in str(error.value)
    (tmp_path / "bad.yaml").write_text("objective: {slos: ['ttft:p99<2s'], slos: []}\n")
    with pytest.raises(InputError, match="key 'slos' is given twice"):
        load_settings(tmp_path / "bad.yaml")


def test_requests_left_out_name_another_model_or_none(tmp_path):
    row = '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 2%s}\n'
    (tmp_path / "t.jsonl").write_text("".join(row % name for name in (', "model": "a"', ', "model": "b"', "")))
    traffic = load_traffic(tmp_path / "t.jsonl", format=None, skip_bad=False, only_model="a", rate_scale=1.0)
    assert len(traffic.workload) == 1
    assert traffic.notes[0] == "2 of 3 requests name another model or none and are left out (--only-model a)"


def test_engines():
    assert parse_engine("vllm==0.30.1").version == "0.30.1"
    with pytest.raises(InputError, match="vllm==0"):
        parse_engine("ollama")


def test_the_default_space_holds_only_what_the_engine_accepts(toy):
    space = derive_space(toy.MODEL, toy.HARDWARE)
    assert {layout.tp for layout in space.layouts} == {1, 2, 4, 8}
    assert sum(1 for _ in space.enumerate()) == space.size == len({c.id for c in space.enumerate()})
    assert all(c.parallelism.gpus <= 8 for c in space.enumerate())
    quantized = toy.MODEL.model_copy(update={"checkpoint_quantization": "fp8_block"})
    assert derive_space(quantized, toy.HARDWARE).quantizations == (Fp8(scale="block"),)
    grouped = toy.MODEL.model_copy(update={"checkpoint_quantization": "int4_group", "checkpoint_group_size": 64})
    named = derive_space(grouped, toy.HARDWARE, SpaceOverrides(quantizations=("w4a16",)))
    assert named.quantizations == (W4A16(group_size=64),), "the checkpoint's own group size"
    blind = derive_space(toy.MODEL, toy.HARDWARE, shares_prefixes=False)
    assert blind.prefix_caching == (True,)
    assert "cache_aware" not in blind.router


def test_a_router_follows_prefixes_only_where_they_are_cached(toy):
    """Without a prefix cache, as with one replica, such candidates would be others' equals."""
    following = [c for c in derive_space(toy.MODEL, toy.HARDWARE).enumerate() if c.router == "cache_aware"]
    assert following
    assert all(c.batching.prefix_caching and c.parallelism.replicas > 1 for c in following)
    with pytest.raises(
        InputError, match=r"router \[cache_aware\] follows prefixes, so it needs prefix_caching \[true\]"
    ):
        derive_space(toy.MODEL, toy.HARDWARE, SpaceOverrides(router=("cache_aware",), prefix_caching=(True, False)))
    alone = derive_space(toy.MODEL, toy.HARDWARE, SpaceOverrides(router=("cache_aware",)))
    assert {(c.router, c.batching.prefix_caching) for c in alone.enumerate()} == {("cache_aware", True)}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"quantizations": ("int3",)}, "unknown quantization"),
        ({"quantizations": ("mxfp4",)}, "no MXFP4"),
        ({"quantizations": ("w4a16-experts",)}, "no 4-bit experts"),
        ({"max_num_seqs": (4096,), "max_num_batched_tokens": (2048,)}, "max_num_batched_tokens >= max_num_seqs"),
        ({"tp": (3,)}, "no parallel layout"),
        ({"replicas": (9,)}, "can run on 8 GPUs"),
        ({"max_model_len": 10**6}, "exceeds the model's"),
    ],
)
def test_an_impossible_space_is_refused_before_any_work(toy, overrides, words):
    with pytest.raises(FwoptError, match=words):
        derive_space(toy.MODEL, toy.HARDWARE, SpaceOverrides(**overrides))


@settings(deadline=None)
@given(data=st.data())
def test_candidates_and_parameters_translate_both_ways(toy, data):
    candidate = data.draw(st.sampled_from(list(toy.LARGE.enumerate())))
    params = to_params(toy.LARGE, candidate)
    assert from_params(toy.LARGE, params) == candidate
    found = distributions(toy.LARGE, params)
    assert set(found) == set(params) - ({"router"} - set(found))
    assert all(d._contains(d.to_internal_repr(params[name])) for name, d in found.items())


def test_what_lies_outside_the_space_has_no_parameters(toy):
    assert to_params(toy.SMALL, Candidate(kv_dtype="fp8")) is None
    assert to_params(toy.SMALL, Candidate(quantization=W4A16())) is None


def test_quality_is_assumed_and_ordered(toy):
    kl = [estimate(Candidate(quantization=q), toy.MODEL).kl for q in (Bf16(), Fp8(), Int8(), W4A16())]
    assert kl[0] == 0
    assert kl == sorted(kl)
    found = estimate(Candidate(kv_dtype="fp8"), toy.MODEL)
    assert found.known == "assumed"
    assert found.kl > 0
    assert 0.9 < found.top1 < 1
    native = toy.MODEL.model_copy(update={"checkpoint_quantization": "fp8_block"})
    assert estimate(Candidate(quantization=Fp8(scale="block")), native).kl == 0


def test_only_what_vllm_cannot_make_on_load_needs_a_checkpoint(toy):
    schemes = (Bf16(), Fp8(), Fp8(scale="block"), Int8(), W4A16())
    assert [q.kind for q in schemes if needs_checkpoint(q, toy.MODEL)] == ["int8", "w4a16"]


def test_a_quality_limit_rejects_before_simulation(toy):
    from fwopt.search.quality import QualityScreen

    screen = QualityScreen(toy.MODEL, (QualityLimit.parse("top1>99%"),))
    assert screen.check(Candidate()) is None
    rejected = screen.check(Candidate(quantization=W4A16()))
    assert rejected.rung == "quality"
    assert rejected.have < rejected.need


def test_a_run_folder_is_never_mixed_up(toy, tmp_path):
    run = toy.inputs()
    RunFolder.create(tmp_path / "run", run)
    assert read_inputs(tmp_path / "run") == run
    with pytest.raises(RunFolderError, match="--resume"):
        RunFolder.create(tmp_path / "run", run)
    RunFolder.create(tmp_path / "run", run, force=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="holds no run"):
        RunFolder.create(tmp_path / "other", run, force=True)
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"
    with pytest.raises(RunFolderError, match="has finished"):
        read_plan(tmp_path / "run")


def test_a_newer_schema_is_refused(toy, tmp_path):
    folder = RunFolder.create(tmp_path / "run", toy.inputs())
    text = folder.inputs_path.read_text().replace('"schema_version": 1', '"schema_version": 99')
    folder.inputs_path.write_text(text)
    with pytest.raises(RunFolderError, match="upgrade fwopt"):
        read_inputs(folder.path)


def _trace(path, models):
    lines = [
        f'{{"arrival_s": {i}, "prompt_tokens": {10 + i}, "output_tokens": 5, "model": "{name}"}}'
        for i, name in enumerate(models)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_trace_of_several_models_must_say_which(tmp_path):
    trace = _trace(tmp_path / "two.jsonl", ["a/one", "b/two", "a/one", "a/one"])

    def read(only):
        return load_traffic(trace, format=None, skip_bad=False, only_model=only, rate_scale=1.0)

    with pytest.raises(InputError, match=r"a/one \(3 requests\).*--only-model a/one"):
        read(None)
    with pytest.raises(InputError, match="unknown model in the trace"):
        read("c/three")
    kept = read("b/two")
    assert np.array_equal(kept.workload.prompt_tokens, [11])
    assert any("3 of 4 requests" in note for note in kept.notes)


def test_latent_attention_over_an_fp8_cache_takes_flashmlas_blocks(toy):
    """A stated block size of 16 rules FlashMLA out in vLLM, and leaves a kernel that nobody timed."""
    latent = load_model("deepseek-ai/DeepSeek-V3")
    hardware = toy.HARDWARE.model_copy(update={"device": load_hardware("h200:8").device})
    space = derive_space(latent, hardware)
    blocks = {(c.kv_dtype, c.batching.block_size) for c in itertools.islice(space.enumerate(), 0, None, 97)}
    assert blocks == {("bf16", 16), ("fp8", 64)}
    for candidate in itertools.islice(space.enumerate(), 0, None, 971):
        assert from_params(space, to_params(space, candidate)) == space.canonical(candidate)
    dense = derive_space(toy.MODEL, toy.HARDWARE)
    assert {c.batching.block_size for c in itertools.islice(dense.enumerate(), 0, None, 97)} == {16}
