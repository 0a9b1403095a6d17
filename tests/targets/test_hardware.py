"""GPUs: names, peak figures, prices that say where they come from, and this machine's own."""

import csv
import os
import statistics
import sys
from pathlib import Path

import pytest

import fwopt.targets.hardware as hardware
from fwopt.errors import InputError, UnknownNameError
from fwopt.targets import cpu, load_hardware, nvml

DATA = Path(hardware.__file__).parent / "data"


def test_a_list_of_gpus_is_refused_for_what_it_is():
    with pytest.raises(InputError, match="'h200:4,h100:4': one kind of GPU is planned for at a time"):
        load_hardware("h200:4,h100:4")


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [("h200:8", "h200", 8), ("H200", "h200", 1), ("h100_sxm:2", "h100", 2), ("H200-SXM-141GB:4", "h200", 4)],
)
def test_names_are_forgiving(text, name, count):
    found = load_hardware(text)
    assert (found.device.name, found.count, found.source) == (name, count, "catalogue")


@pytest.mark.parametrize("text", ["h200:0", "h200:", "h200:x", "h200:-1", "h200:1.5"])
def test_bad_counts_are_refused_with_an_example(text):
    with pytest.raises(InputError, match=r"--hardware h200:8"):
        load_hardware(text)


def test_unknown_gpu_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown GPU 'h20o'; nearest: .*h200"):
        load_hardware("h20o:8")


def test_memory_is_what_cuda_reports_not_the_marketing_figure():
    h200, h100 = load_hardware("h200").device, load_hardware("h100").device
    assert h200.memory_bytes / 2**30 == pytest.approx(139.8)
    assert h100.memory_bytes / 2**30 == pytest.approx(79.18)
    for short in hardware.NAMES:
        device, _ = hardware.device_and_price(short)
        with (DATA / "hw.csv").open(newline="") as stream:
            marketing = {row["gpu"]: float(row["mem_gb"]) for row in csv.DictReader(stream)}
        assert 0.9 < device.memory_bytes / (marketing[device.full_name] * 2**30) <= 1


def test_links_are_one_direction_and_pcie_where_there_is_no_nvlink():
    assert load_hardware("h200").device.link_bytes_per_s == 450e9
    assert load_hardware("l40s").device.link_bytes_per_s == 32e9
    assert load_hardware("h100-pcie").device.link_bytes_per_s == 64e9
    assert load_hardware("a100").device.fp8_flops is None


def test_price_is_the_median_of_the_dated_observations():
    with (DATA / "prices.csv").open(newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if r["kind"] == "on-demand" and "not A10G" not in r["provider"]]
    for short, row in hardware.NAMES.items():
        seen = [float(r["usd_per_gpu_hour"]) for r in rows if r["gpu"] == row]
        price = hardware.device_and_price(short)[1]
        assert (price is None) == (not seen)
        if price is not None:
            assert price.usd_per_gpu_hour == pytest.approx(statistics.median(seen), rel=0.02), short
            assert price.basis == "median on-demand"
            assert price.dates


def test_unverified_prices_say_so():
    assert "from memory, not verified: AWS g6e" in load_hardware("l40s").price.source
    assert "not verified" not in load_hardware("h200").price.source


def test_a_given_price_overrides_and_is_marked():
    price = load_hardware("h200:8", 2.5).price
    assert (price.usd_per_gpu_hour, price.basis) == (2.5, "given with --price")
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="--price"):
            load_hardware("h200", bad)


def test_this_machine_is_recognised(monkeypatch):
    monkeypatch.setattr(nvml, "_products", lambda: ["NVIDIA H200"] * 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = load_hardware(None)
    assert (found.device.name, found.count, found.source) == ("h200", 8, "nvml")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert load_hardware(None).count == 2


@pytest.mark.parametrize(
    ("products", "message"),
    [
        ([], "no GPU is visible"),
        (["NVIDIA H200", "NVIDIA L40S"], "different GPUs"),
        (["Tesla T4"], "'Tesla T4' is not in the catalogue"),
    ],
)
def test_what_cannot_be_known_names_the_flag_to_add(monkeypatch, products, message):
    monkeypatch.setattr(nvml, "_products", lambda: products)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(InputError, match=rf"{message}.*--hardware h200:8"):
        load_hardware(None)


def _nvml_answers(monkeypatch, code):
    import pynvml

    def fails():
        raise pynvml.NVMLError(code)

    monkeypatch.setattr(pynvml, "nvmlInit", fails)


@pytest.mark.skipif(sys.platform != "linux", reason="processors are described on Linux only")
def test_without_a_driver_this_machine_s_processor_is_planned_for(monkeypatch, tmp_path):
    import pynvml

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu.this_processor.cache_clear()
    _nvml_answers(monkeypatch, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    found = load_hardware(None)
    assert (found.device.kind, found.count, found.price, found.source) == ("cpu", 1, None, "this machine")
    assert found.device.name.startswith("cpu-")
    assert found.device.name.endswith(f"-{len(os.sched_getaffinity(0))}c")
    assert found.device.memory_bytes > 2**28
    assert found.device.bandwidth_bytes_per_s > 1e8
    assert load_hardware("cpu", 0.5).price.usd_per_gpu_hour == 0.5
    cpu.this_processor.cache_clear()
    assert load_hardware(found.device.name).device == found.device, "measured once, then kept"


def test_a_driver_that_does_not_answer_is_not_taken_for_none(monkeypatch):
    import pynvml

    _nvml_answers(monkeypatch, pynvml.NVML_ERROR_UNKNOWN)
    with pytest.raises(InputError, match=r"does not answer .* --hardware h200:8"):
        load_hardware(None)


@pytest.mark.parametrize(
    ("model_name", "name"),
    [
        ("Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz", "cpu-intel-xeon-platinum-8480c-8c"),
        ("AMD EPYC 9654 96-Core Processor", "cpu-amd-epyc-9654-96-core-processor-8c"),
        ("", "cpu-unknown-8c"),
    ],
)
def test_processors_of_one_type_have_one_name(model_name, name):
    assert cpu.device_name(model_name, 8) == name


@pytest.mark.parametrize(
    ("text", "words"), [("cpu:2", "one processor"), ("cpu-amd-epyc-1c", "only this machine's own processor")]
)
def test_only_this_machine_s_one_processor_can_be_named(text, words):
    with pytest.raises(InputError, match=words):
        load_hardware(text)


def test_every_nvml_product_is_in_the_catalogue():
    assert set(nvml.PRODUCTS.values()) <= set(hardware.NAMES)
