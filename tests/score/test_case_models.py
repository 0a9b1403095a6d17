"""Models whose weights the table names in its own way."""

from __future__ import annotations

from pathlib import Path

from fwopt.score.case import Case, Unscored, read_case
from fwopt.score.table import Row, read_table, records
from fwopt.spec.candidate import W4A16, Fp8

SHIPPED = Path(__file__).parents[2] / "benchmarks/data/h100-h200-serving.csv.gz"


def _rows(model: str) -> list[Row]:
    table = read_table(SHIPPED)
    return records(table[table["model"] == model])


def test_kimi_rows_are_served_from_their_own_checkpoint():
    cases = [read_case(row) for row in _rows("moonshotai/Kimi-K2.5")]
    assert len(cases) == 45
    for case in cases:
        assert isinstance(case, Case)
        assert case.candidate.quantization == W4A16(group_size=32, scope="experts")
        assert case.candidate.parallelism.tp == 8


def test_qwen3_5_rows_are_read_where_the_gpus_can_be_counted():
    """A third of the rows states 64 GPUs for the same figures."""
    cases = [read_case(row) for row in _rows("Qwen/Qwen3.5-397B-A17B")]
    scored = [case for case in cases if isinstance(case, Case)]
    assert (len(cases), len(scored)) == (45, 30)
    assert {case.candidate.quantization for case in scored} == {Fp8(scale="block")}
    assert all(case.candidate.parallelism.ep for case in scored)
    assert {case.reason for case in cases if isinstance(case, Unscored)} == {"more than 8 GPUs"}
