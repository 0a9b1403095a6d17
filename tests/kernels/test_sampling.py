"""What `sampling` promises beyond its reference: which tokens, how often, and that nothing else in a batch matters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fwopt_kernels.contract import Variant, variant
from fwopt_kernels.philox_torch import words_torch

from .conftest import run_apart

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

from fwopt_kernels.correctness import faults
from fwopt_kernels.sampling import SAMPLING, sampling
from fwopt_kernels.sampling_case import SamplingCase

ONE = variant(4, 1, BLOCK=1024, SPLITS=1)
PARTS = variant(4, 1, BLOCK=1024, SPLITS=4)
DRAWS = """
import torch
from fwopt_kernels.contract import FALLBACK, Variant
from fwopt_kernels.sampling import sampling
from fwopt_kernels.sampling_case import Parameters

def drawn(logits, rows, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=5, **options):
    'Tokens of `rows` equal rows at positions 0, 1, ...; kernels, slow when interpreted, draw the first few.'
    def draw(rows, variant):
        def same(value, dtype):
            return torch.full((rows,), value, dtype=dtype)
        parameters = Parameters(
            same(temperature, torch.float32), same(top_k, torch.int32), same(top_p, torch.float32),
            same(min_p, torch.float32), same(seed, torch.int64), torch.arange(rows),
        )
        out = torch.full((rows,), -2)
        sampling(torch.as_tensor(logits).expand(rows, -1), parameters, out, variant=variant, **options)
        return out.tolist()
    found = draw(rows, FALLBACK)
    if chosen is not None:
        assert draw(3, chosen) == found[:3], (temperature, top_k, top_p, min_p)
    return found
"""


def apart(code: str, chosen: Variant | None = None) -> None:
    run_apart(DRAWS + f"chosen = {chosen!r}\n" + code, interpret=chosen is not None)


def test_which_tokens_are_drawn() -> None:
    """Written out by hand. Top-p counts shares of what top-k left: 0.4 + 0.3 of 0.9 reach 0.75, of 1 they do not."""
    code = """
logits, rows = torch.tensor([0.1, 0.4, 0.2, 0.3]).log(), 64
for asked, wanted in (
    (dict(), {0, 1, 2, 3}),
    (dict(top_k=2), {1, 3}),
    (dict(top_k=3, top_p=0.75), {1, 3}),
    (dict(top_p=0.75), {1, 2, 3}),
    (dict(top_p=0.001), {1}),
    (dict(top_k=4, top_p=0.91), {0, 1, 2, 3}),
    (dict(top_k=9), {0, 1, 2, 3}),
    (dict(min_p=0.6), {1, 3}),
    (dict(min_p=0.6, top_p=0.5), {1}),
    (dict(min_p=1.0), {1}),
    (dict(temperature=0.0), {1}),
    (dict(temperature=1e-6, top_k=3), {1}),
    (dict(temperature=0.0, top_p=0.5, min_p=0.3), {1}),
):
    found = set(drawn(logits, rows, **asked))
    assert found == wanted, (asked, found)
ties = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0, -0.0])
assert set(drawn(ties, rows, top_k=2)) == {0, 1, 2, 3}
assert set(drawn(ties, rows, top_p=0.5)) == {0, 1, 2, 3}
assert set(drawn(ties, rows, top_k=5, temperature=2.0)) == {0, 1, 2, 3, 4, 5}
assert set(drawn(torch.tensor([1.0, 3.0, 3.0]), 4, temperature=0.0)) == {1}
"""
    apart(code, ONE)


def test_rows_with_nan_and_infinite_logits() -> None:
    """NaN is never drawn; a row of nothing else gets -1; infinite logits are drawn alone, and evenly."""
    code = """
inf, nan = float("inf"), float("nan")
for heat, k in ((0.0, 0), (1.0, 0), (1.0, 2)):
    asked = dict(temperature=heat, top_k=k)
    assert set(drawn([nan, -inf, nan], 3, **asked)) == {-1}
    assert set(drawn([nan, -2.0, nan, -inf], 3, **asked)) == {1}
    assert set(drawn([1.0, inf, nan, -inf, inf], 12, **asked)) == ({1, 4} if heat else {1})
    assert set(drawn([-1e38, 3e38, -3e38, nan], 3, **asked)) == {1}
"""
    apart(code, ONE)


def test_frequencies_fit_the_distribution() -> None:
    """Pearson's chi-square below its 99.9th percentile; the seed is fixed, so it always is or never. The kernel
    draws what torch draws."""
    code = """
import scipy.stats
from fwopt_kernels.sampling_case import kept
rows, logits = 4000, torch.randn(50, generator=torch.Generator().manual_seed(1))
for heat, k, p, options in ((1.0, 0, 1.0, dict(restricted=False)), (1.5, 30, 0.9, dict())):
    found = drawn(logits, rows, heat, k, p, **options)
    found = torch.bincount(torch.tensor(found), minlength=len(logits))
    shares = kept(logits[None].double() / heat, torch.tensor([k]), torch.tensor([p]))[0].softmax(0)
    seen = shares > 0
    assert int(found[~seen].sum()) == 0
    off = ((found[seen] - rows * shares[seen]) ** 2 / (rows * shares[seen])).sum()
    assert off < scipy.stats.chi2.ppf(0.999, int(seen.sum()) - 1), float(off)
"""
    apart(code, ONE)


def test_a_row_alone_is_the_row_in_a_batch_and_no_variant_changes_it() -> None:
    """Also with rows beside it that are greedy or hold NaN, and without the launches that it does not need."""
    code = f"""
import torch
from fwopt_kernels.contract import Variant
from fwopt_kernels.sampling import SAMPLING, sampling
for format in ("fp32", "bf16"):
    case = SAMPLING.case(format, dict(rows=8, vocabulary=2500), 5)
    tokens = []
    for chosen in ({ONE!r}, {PARTS!r}, {SAMPLING.space("fp32").default!r}):
        SAMPLING.run(case, chosen)
        tokens.append(case.out.tolist())
        assert tokens[0] == tokens[-1], chosen
    for i in range(8):
        out, one = torch.tensor([-2]), case.parameters.row(i)
        free = int(one.top_k) == 0 and float(one.top_p) == 1
        sampling(case.logits[i : i + 1], one, out, variant={PARTS!r}, drawn=float(one.temperature) > 0,
                 restricted=not free)
        assert out.tolist() == tokens[0][i : i + 1], (format, i)
    case.logits[:3], case.logits[4:] = float("nan"), 1.0
    SAMPLING.run(case, {PARTS!r})
    assert int(case.out[3]) == tokens[0][3]
"""
    run_apart(code, interpret=True)


def test_rows_that_keep_more_tokens_than_a_list_holds() -> None:
    """Flat ones: top-p close to one, and top-k in the ten thousands, ties at its end."""
    code = """
from fwopt_kernels.sampling import SAMPLING
from fwopt_kernels.sampling_case import SamplingCase
from fwopt_kernels.correctness import faults
for format, k, p in (("fp32", 0, 0.999), ("bf16", 11_000, 0.97)):
    case = SAMPLING.case(format, dict(rows=1, vocabulary=12_345), 3)
    case.parameters.temperature.fill_(3.0), case.parameters.top_k.fill_(k), case.parameters.top_p.fill_(p)
    SAMPLING.run(case, chosen)
    assert faults(case.results(), SAMPLING.reference(case)) == []
"""
    apart(code, PARTS)


def test_rows_more_than_two_to_the_31_elements_apart() -> None:
    """Untouched pages cost no memory: only three rows of the 4 GiB are ever written."""
    code = """
from dataclasses import replace
from fwopt_kernels.sampling import SAMPLING
from fwopt_kernels.correctness import faults
case = SAMPLING.case("bf16", dict(rows=3, vocabulary=100), 3)
far = torch.empty(2 * (2**30 + 64) + 100, dtype=torch.bfloat16).as_strided((3, 100), (2**30 + 64, 1))
far.copy_(case.logits)
case.parameters.top_k.fill_(7)
case = replace(case, logits=far)
SAMPLING.run(case, chosen)
assert faults(case.results(), SAMPLING.reference(case)) == []
"""
    apart(code, ONE)


@pytest.mark.parametrize("row", [0, 3, 4, 5, 7])
def test_a_token_that_may_not_be_drawn_is_seen(row: int) -> None:
    """The reference's own tolerance hides no token outside the rule, and no loser of the race."""
    case = SAMPLING.case("fp32", {"rows": 8, "vocabulary": 400}, 9)
    SAMPLING.fallback(case)
    wanted = SAMPLING.reference(case)
    assert faults(case.results(), wanted) == []
    for other in (
        int(case.logits[row].argmin()),
        int(case.logits[row].topk(2).indices[int(case.out[row] == case.logits[row].argmax())]),
    ):
        changed = replace(case, out=case.out.clone())
        changed.out[row] = other
        assert faults(changed.results(), wanted)


def test_the_random_words_are_philoxs() -> None:
    """Known answers of Random123 (kat_vectors, philox4x32 10), and kernels give torch's words."""
    assert [f"{w:08x}" for w in words_torch(torch.tensor([0]), torch.tensor([0]), 4)[0].tolist()] == [
        "6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8",
    ]  # fmt: skip
    run_apart(WORDS, interpret=True)


WORDS = """
import tempfile, importlib.util, torch
source = '''
import triton, triton.language as tl
from fwopt_kernels import philox
@triton.jit
def both(single, in_order, numbers, seed, position, first, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    key, place = tl.load(seed), tl.load(position)
    words = philox.words_in_order(key, place, first, COUNT)
    tl.store(single + at, philox.word(key, place, first + at).to(tl.int64))
    tl.store(in_order + at, words.to(tl.int64))
    tl.store(numbers + at, philox.exponential(words))
'''
with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
    file.write(source)
    file.flush()
    spec = importlib.util.spec_from_file_location("asked", file.name)
    asked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(asked)
    from fwopt_kernels.philox_torch import exponential_torch, words_torch
    for seed, position in ((5, 7), (-3, 2**40 + 9), (2**63 - 1, -1)):
        single, in_order, numbers = torch.zeros(256).long(), torch.zeros(256).long(), torch.zeros(256)
        one = torch.tensor([seed]), torch.tensor([position])
        asked.both[(1,)](single, in_order, numbers, *one, 64, COUNT=256)
        words = words_torch(*one, 320)[0, 64:]
        assert torch.equal(single, words) and torch.equal(in_order, words)
        exact = exponential_torch(words, torch.float64)
        assert bool(((numbers - exact).abs() <= 2**-19 * exact).all())
"""


def test_seeds_and_positions_draw_apart() -> None:
    """Words of neighbours have nothing in common: of 4,000 each, none is equal to its neighbour's."""
    seeds, positions = torch.tensor([1, 1, 2, 1 + 2**32]), torch.tensor([1, 2, 1, 1 + 2**32])
    words = words_torch(seeds, positions, 4000)
    assert len({int(w) for w in words.flatten()}) > 15_980
    assert not any(bool((words[i] == words[j]).any()) for i in range(4) for j in range(i))


def test_what_it_cannot_read_is_refused() -> None:
    """Before anything is launched, so no GPU and no interpreter is needed."""
    case = SAMPLING.case("fp32", {"rows": 2, "vocabulary": 8}, 0)

    def call(**changed: Any) -> None:
        parts = {"logits": case.logits, "parameters": case.parameters, "out": case.out} | changed
        sampling(parts["logits"], parts["parameters"], parts["out"])

    with pytest.raises(ValueError, match=r"logits: must be float32 or bfloat16, got torch\.float16"):
        call(logits=case.logits.half())
    with pytest.raises(ValueError, match="logits: the last dimension must have stride 1, got 2"):
        call(logits=torch.zeros(8, 2).T)
    with pytest.raises(ValueError, match="a vocabulary has 1 to 4,194,304 tokens, got 0"):
        call(logits=torch.zeros(2, 0))
    with pytest.raises(
        ValueError, match=r"top_k: must be 2 contiguous numbers of torch\.int32, got \(2,\) torch\.int64"
    ):
        call(parameters=replace(case.parameters, top_k=case.parameters.top_k.long()))
    with pytest.raises(ValueError, match=r"out: must be 2 contiguous numbers of torch\.int64, got \(3,\)"):
        call(out=torch.zeros(3, dtype=torch.int64))


def test_the_least_bytes_are_those_of_the_tensors() -> None:
    for format in SAMPLING.formats:
        shape = {"rows": 5, "vocabulary": 77}
        case: SamplingCase = SAMPLING.case(format, shape, 0)
        tensors = [case.logits, *case.parameters.parts(), case.out]
        assert SAMPLING.work(format, shape).bytes == sum(t.nbytes for t in tensors)


def test_logits_are_read_by_sixteen_bytes_and_nothing_is_added_by_chance() -> None:
    """Asked of the PTX: no atomics on floating-point numbers, and one Philox call gives four tokens their words."""
    code = (
        "from fwopt_kernels.compiler import compiled_kernel\n"
        "from fwopt_kernels.contract import ARCHITECTURES\n"
        "from fwopt_kernels.sampling import SAMPLING\n"
        "for format in SAMPLING.formats:\n"
        "    chosen = SAMPLING.space(format).default\n"
        "    for launch in SAMPLING.launches(format, chosen):\n"
        "        ptx = compiled_kernel(launch, ARCHITECTURES['sm_90']).asm['ptx']\n"
        "        assert 'atom.global' not in ptx and 'red.global' not in ptx, launch.label\n"
        "        if launch.label in ('peak', 'weigh', 'collect'):\n"
        "            assert 'ld.global.v4.b32' in ptx, (format, launch.label)\n"
        "            single = '.b16' if format == 'bf16' else '.f32'\n"
        "            assert not any('ld.global' in l and single in l for l in ptx.splitlines()), launch.label\n"
        "        if launch.label == 'collect':\n"
        "            a_thread = chosen['BLOCK'] // (32 * chosen.num_warps)\n"
        "            assert ptx.count('mul.hi.u32') <= 20 * a_thread // 4, format\n"
    )
    run_apart(code, interpret=False)
