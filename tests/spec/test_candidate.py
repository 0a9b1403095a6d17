"""A candidate is its content."""

from __future__ import annotations

from fwopt.spec.candidate import Candidate, Fp8


def test_a_changed_copy_has_another_id():
    """pydantic copies cached properties along: the copy once kept the id of the content it no longer had."""
    first = Candidate()
    assert first.id
    copy = first.model_copy(update={"quantization": Fp8()})
    assert copy.id != first.id
    assert copy.id == Candidate(quantization=Fp8()).id
    assert first.model_copy().id == first.id
