"""Verdicts on paired scores: known values, coverage, and how often they err."""

from __future__ import annotations

import numpy as np
import pytest

from fwopt.evals.statistics import mcnemar, more_items, paired, tango


def test_tango_agrees_with_published_values():
    """Newcombe, Statistics in Medicine 17 (1998) 2635: 12 gained, 2 lost of 50; Tango (1998) 0.0611 to 0.3447."""
    found = tango(12, 2, 50)
    assert (found.value, round(found.low, 4), round(found.high, 4)) == (0.2, 0.0611, 0.3447)


def test_without_a_difference_the_interval_is_that_of_no_event():
    """Score interval: z squared / (n + z squared)."""
    assert tango(0, 0, 100).low == pytest.approx(-3.8415 / 103.8415, abs=1e-4)
    assert tango(0, 0, 100).high == pytest.approx(3.8415 / 103.8415, abs=1e-4)


@pytest.mark.parametrize(
    ("gains", "losses", "items"), [(0, 0, 1), (1, 0, 1), (0, 1, 1), (7, 0, 7), (0, 7, 7), (3, 5, 9)]
)
def test_the_interval_holds_the_value_and_mirrors(gains, losses, items):
    found, mirrored = tango(gains, losses, items), tango(losses, gains, items)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-6)


def test_mcnemar_is_the_sign_test_of_the_discordant_items():
    assert mcnemar(0, 0) == 1
    assert mcnemar(12, 2) == pytest.approx(2 * (1 + 14 + 91) / 2**14)


def test_a_bare_equality_of_few_items_proves_nothing():
    found = paired([1] * 50, [1] * 50, margin=0.01)
    assert found.verdict == "undecided"
    assert found.more_items == pytest.approx(3.8415 * 99 - 50, abs=8)


def test_more_items_of_the_same_kind_decide():
    found = paired([1] * 6 + [0] * 4 + [1] * 190, [0] * 6 + [1] * 4 + [1] * 190, margin=0.02)
    assert found.verdict == "undecided"
    assert found.more_items is not None
    times = 1 + found.more_items / 200
    decided = tango(4 * times, 6 * times, 200 * times)
    assert decided.low >= -0.02 or decided.high < 0
    less = 1 + found.more_items * 0.9 / 200
    assert tango(4 * less, 6 * less, 200 * less).low < -0.02


def test_a_difference_at_the_margin_says_how_many_prove_it_worse():
    assert more_items(0, 2, 100, 0.02) is not None


def test_scores_between_right_and_wrong_are_drawn_again():
    generator = np.random.default_rng(0)
    reference = generator.random(200)
    found = paired(reference, np.clip(reference - 0.1, 0, 1), margin=0.02)
    assert (found.method, found.verdict) == ("bootstrap", "worse")
    assert -0.1 < found.difference.low < found.difference.value < found.difference.high < -0.09
    assert paired([0.5] * 5, [0.4] * 5, margin=0.02).verdict == "undecided"


def draws(items: int, lost: float, gained: float, margin: float, repeats: int = 200):
    """Verdicts over sets drawn anew: `lost` and `gained` are the chances that an item is."""
    generator = np.random.default_rng(20261124)
    for _ in range(repeats):
        chance = generator.random(items)
        before = (generator.random(items) < 0.7).astype(float)
        after = np.where(chance < lost, 0.0, np.where(chance > 1 - gained, 1.0, before))
        yield paired(before, after, margin=margin)


def test_a_harmless_change_is_not_flagged():
    """Answers change both ways, as other batches make them: at most 5 % of 200 draws may be called worse."""
    wrong = sum(found.verdict == "worse" for found in draws(400, lost=0.03, gained=0.07, margin=0.01))
    assert wrong <= 10  # 0.03 * 0.7 are lost, 0.07 * 0.3 gained


def test_a_planted_damage_never_passes():
    """5 points are lost with a margin of 2: at most 5 % may pass, and it is called worse at least 95 % of the time."""
    verdicts = [found.verdict for found in draws(800, lost=0.10, gained=0.05, margin=0.02)]
    assert verdicts.count("not worse") == 0
    assert verdicts.count("worse") >= 190


def test_a_drop_of_just_the_margin_passes_at_most_in_five_of_a_hundred():
    passed = sum(found.verdict == "not worse" for found in draws(600, lost=0.05, gained=0.05, margin=0.02))
    assert passed <= 10  # 0.05 * 0.7 lost, 0.05 * 0.3 gained: 2 points less


def test_the_interval_covers():
    inside = sum(found.difference.low <= -0.02 <= found.difference.high for found in draws(150, 0.05, 0.05, 0.02))
    assert inside >= 182  # 95 % of 200 less two standard deviations
