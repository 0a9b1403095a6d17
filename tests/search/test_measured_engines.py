"""Planning for an engine whose own steps were measured: what was measured is searched, and nothing else."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from fwopt.errors import InputError, UnmeasuredError
from fwopt.perf.costs import costs_of
from fwopt.perf.environment import Measured
from fwopt.perf.memory import kv_capacity
from fwopt.perf.steps import SUBJECT, StepKey, StepProfile
from fwopt.perf.store import load_profile, newest_version
from fwopt.perf.write import NewTable, add_measurements
from fwopt.search.defaults import engine_defaults
from fwopt.search.job import prepare
from fwopt.search.measured import measured_space
from fwopt.search.settings import ObjectiveSettings, Settings, resolve_engine
from fwopt.search.space import SpaceOverrides
from fwopt.search.traffic import load_traffic
from fwopt.spec.candidate import Batching, Bf16, Candidate, Fp8, Gguf, Parallelism
from fwopt.spec.engine import EngineSpec
from fwopt.spec.outcome import Evaluation, Rejected
from fwopt.targets import load_hardware, load_model

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152, "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}  # fmt: skip
MEASURED = Measured(what="steps", date="today", fwopt_version="0", machine={}, load="none", command="none")


@pytest.fixture(scope="module")
def law_of():
    spec = importlib.util.spec_from_file_location(
        "step_service", Path(__file__).parents[1] / "perf" / "step_service.py"
    )
    sys.modules.setdefault("step_service", module := importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module.Law


@pytest.fixture(scope="module")
def store(law_of, tmp_path_factory):
    """vLLM in bf16; llama.cpp in F16, fast when busy, and in Q8_0, fast when idle."""
    root = tmp_path_factory.mktemp("store")
    (root / "config.json").write_text(json.dumps(CONFIG))
    model, device = load_model(str(root / "config.json")), load_hardware("cpu").device

    def put(engine, version, scheme, law, **asked):
        rows = law.rows(**asked)
        subject = dict(zip(SUBJECT, (model.config_digest, scheme, "bf16", 1), strict=True))
        found = [
            subject
            | {name: getattr(rows, name)[i].item() for name in ("phase", "batch", "context", "past", "tokens")}
            | {name: float(rows.p50_s[i]) for name in ("p20_s", "p50_s", "p80_s")}
            | {"samples": 3}
            for i in range(len(rows))
        ]
        table = NewTable(found, SUBJECT, (engine,))
        add_measurements(root, device.name, device.full_name, engine, version, {"steps": table}, MEASURED)

    put("vllm", "0.31.0", "bf16", law_of(), beside=(20.0,))
    put("vllm", "0.32.0", "bf16", law_of())
    put("llamacpp", "0.6.0-dev", "gguf-f16", law_of(fixed_s=9e-3, sequence_s=1e-4, token_s=1e-4))
    put("llamacpp", "0.6.0-dev", "gguf-q8_0", law_of(fixed_s=3e-3, sequence_s=4e-3, token_s=1e-4))
    return root


@pytest.fixture(scope="module")
def model(store):
    return load_model(str(store / "config.json"))


@pytest.fixture(scope="module")
def cpu():
    return load_hardware("cpu")


def steps_of(store, model, cpu, engine):
    spec = resolve_engine(engine, cpu.device, store)
    found = costs_of(model, cpu.device, spec, load_profile(cpu.device, spec, store))
    assert isinstance(found, StepProfile)
    return found


def test_the_newest_measured_version_is_planned_for_unless_another_is_named(store, cpu):
    assert newest_version(cpu.device, "vllm", store) == "0.32.0"
    assert resolve_engine(None, cpu.device, store) == EngineSpec(name="vllm", version="0.32.0")
    assert resolve_engine("vllm==0.31.0", cpu.device, store).version == "0.31.0"
    assert resolve_engine("llamacpp", cpu.device, store).version == "0.6.0-dev"
    h200 = load_hardware("h200").device
    assert resolve_engine("vllm", h200, store) == EngineSpec(), "measured elsewhere"


def test_only_what_was_measured_is_searched(store, model, cpu):
    space = measured_space(steps_of(store, model, cpu, "llamacpp"), cpu, SpaceOverrides())
    assert space.quantizations == (Gguf(type="F16"), Gguf(type="Q8_0"))
    assert (space.kv_dtypes, space.gpus) == (("bf16",), 1)
    assert space.max_num_seqs == (1, 2, 4, 8, 16), "nobody saw more than 16 sequences"
    assert max(space.max_num_batched_tokens) == 2048, "the longest prompt measured"
    vllm = measured_space(steps_of(store, model, cpu, "vllm"), cpu, SpaceOverrides(max_num_seqs=(8,)))
    assert (vllm.quantizations, vllm.max_num_seqs, vllm.block_size) == ((Bf16(),), (8,), 128)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"quantizations": ("gguf-q4_0",)}, "no step times of it .* only of gguf-f16, gguf-q8_0.*fwopt profile"),
        ({"tp": (2,)}, r"search.tp \[2\]: .* tp \[1\]"),
        ({"max_model_len": 9000}, "exceeds the model's 8192"),
    ],
)
def test_what_was_not_measured_is_refused_in_one_line(store, model, cpu, asked, words):
    with pytest.raises(InputError, match=words):
        measured_space(steps_of(store, model, cpu, "llamacpp"), cpu, SpaceOverrides(**asked))


def test_a_scheme_a_layout_or_a_model_without_rows_is_unmeasured(store, model, cpu, tmp_path):
    steps = steps_of(store, model, cpu, "vllm")
    with pytest.raises(UnmeasuredError, match=r"no step times of .* in fp8 kv-bf16 tp1; there is bf16"):
        steps.grid(Candidate(quantization=Fp8()))
    with pytest.raises(UnmeasuredError, match="pp=2"):
        steps.grid(Candidate(parallelism=Parallelism(pp=2)))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 12}))
    other = load_model(str(tmp_path / "config.json"))
    with pytest.raises(UnmeasuredError, match=r"step times of other models .*fwopt profile --engine vllm"):
        costs_of(other, cpu.device, steps.engine, steps.profile)


def test_without_any_profile_of_the_processor_the_way_to_one_is_named(cpu, tmp_path):
    with pytest.raises(UnmeasuredError, match=r"fwopt profile --engine vllm.*--hardware"):
        load_profile(cpu.device, EngineSpec(), tmp_path)


def test_engine_defaults_on_a_processor(cpu):
    vllm = engine_defaults(cpu.device, 2048)
    assert (vllm.max_num_seqs, vllm.max_num_batched_tokens, vllm.block_size) == (128, 2048, 128)
    assert engine_defaults(cpu.device, None, "llamacpp").max_num_seqs == 4


@pytest.mark.parametrize("engine", ["vllm", "fwopt", "llamacpp"])
def test_defaults_leave_the_rest_of_the_machine_its_memory(cpu, engine):
    """vLLM's own 0.92 of a machine is refused where other programs hold more than 8 %."""
    assert engine_defaults(cpu.device, 2048, engine).gpu_memory_utilization <= 0.5


def test_memory_of_a_processor_is_its_share_less_the_worker(model, cpu):
    device = cpu.device.model_copy(update={"memory_bytes": 16 * 2**30})
    batching = Batching(block_size=128, gpu_memory_utilization=0.5, max_model_len=2048)
    found = kv_capacity(model, device, Candidate(batching=batching), EngineSpec(version="0.32.0"))
    assert not isinstance(found, Rejected)
    assert found.bytes_per_token == 30 * 2 * 3 * 64 * 2
    assert 6 * 2**30 < found.kv_bytes_per_gpu < 7 * 2**30
    assert found.blocks == pytest.approx(found.kv_bytes_per_gpu / 128 / found.bytes_per_token, abs=2)
    tiny = device.model_copy(update={"memory_bytes": 2**30})
    assert isinstance(kv_capacity(model, tiny, Candidate(batching=batching), EngineSpec()), Rejected)


def test_llama_cpp_holds_every_slot_s_context_from_the_start(model, cpu):
    engine = EngineSpec(name="llamacpp", version="1")
    device = cpu.device.model_copy(update={"memory_bytes": 2 * 2**30})
    few, many = (
        kv_capacity(
            model, device, Candidate(quantization=Gguf(), batching=Batching(max_num_seqs=n, max_model_len=8192)), engine
        )
        for n in (4, 64)
    )
    assert not isinstance(few, Rejected)
    assert few.tokens == 4 * 8192
    assert isinstance(many, Rejected)
    assert "context of every slot" in many.reason


def prepared(store, model, tmp_path, gap_s, engine):
    trace = tmp_path / "trace.jsonl"
    lines = [{"arrival_s": i * gap_s, "prompt_tokens": 40, "output_tokens": 60} for i in range(200)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    traffic = load_traffic(trace, format=None, skip_bad=False, only_model=None, rate_scale=1.0)
    settings = Settings(engine=engine, hardware="cpu", objective=ObjectiveSettings(minimize=("e2e:mean",)))
    return prepare(trace, settings, traffic, model, profiles=store)


@pytest.mark.parametrize(("gap_s", "best"), [(2.0, "Q8_0"), (0.08, "F16")])
def test_the_best_format_follows_the_load(store, model, tmp_path, gap_s, best):
    """What real llama.cpp does on processors: 8-bit weights are read faster, 16-bit ones are multiplied faster."""
    job = prepared(store, model, tmp_path, gap_s, "llamacpp")
    batching = engine_defaults(job.inputs.hardware.device, 2048, "llamacpp").model_copy(update={"max_num_seqs": 16})
    found = {}
    for name in ("F16", "Q8_0"):
        outcome = job.evaluator.evaluate(Candidate(quantization=Gguf(type=name), batching=batching))
        assert isinstance(outcome, Evaluation)
        assert outcome.provenance.assumed == 0
        found[name] = outcome.metrics.e2e.mean_s
    assert min(found, key=found.get) == best


def test_cost_needs_a_price_and_other_goals_do_not(store, model, tmp_path):
    job = prepared(store, model, tmp_path, 1.0, "vllm")
    assert job.inputs.hardware.price is None
    assert job.inputs.intervals == (), "intervals of operator tables say nothing about measured steps"
    assert job.baseline is not None
    assert len(job.screens) == 1, "no roofline where the engine itself was measured"
    settings = Settings(engine="vllm", hardware="cpu", objective=ObjectiveSettings(minimize=("cost",)))
    with pytest.raises(InputError, match="price"):
        prepare(tmp_path / "trace.jsonl", settings, job.traffic, model, profiles=store)


@pytest.mark.parametrize(("version", "said"), [("0.31.0", 1), ("0.32.0", 0)])
def test_a_profile_that_never_saw_long_contexts_beside_a_prompt_says_so(store, model, tmp_path, version, said):
    """As a quick one, or one from before that was asked."""
    job = prepared(store, model, tmp_path, 1.0, f"vllm=={version}")
    assert sum("beside long contexts was not measured (bf16)" in note for note in job.notes) == said


def test_keys_name_what_was_measured(store, model, cpu):
    assert steps_of(store, model, cpu, "llamacpp").keys == (
        StepKey("gguf-f16", "bf16", 1),
        StepKey("gguf-q8_0", "bf16", 1),
    )
