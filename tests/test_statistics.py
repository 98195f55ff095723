"""Win rates, intervals and reward-model statistics. I-numbers: docs/algorithm.md."""

import math
from typing import Any

import numpy as np
import pytest

from tercet.objectives import ranking_pairs
from tercet.statistics import (
    best_of_n_kl,
    bootstrap,
    both_orders,
    brier,
    calibration_bins,
    expected_calibration_error,
    fit_temperature,
    pair_accuracy,
    pair_margins,
    paired_difference,
    spearman,
    wilson,
    win_rate,
)

FORTY_FIVE_TWENTY_THIRTY_FIVE = [1.0] * 45 + [0.5] * 20 + [0.0] * 35


# --- win rate -----------------------------------------------------------------------------------


def test_win_rate_worked_example() -> None:
    result = win_rate(FORTY_FIVE_TWENTY_THIRTY_FIVE)
    assert (result.rate, result.strict, result.decided) == (0.55, 0.45, 0.5625)
    assert (result.wins, result.ties, result.losses) == (45, 20, 35)


def test_swapped_arms_add_up_to_one_I47() -> None:
    swapped = [1 - w for w in FORTY_FIVE_TWENTY_THIRTY_FIVE]
    assert win_rate(FORTY_FIVE_TWENTY_THIRTY_FIVE).rate + win_rate(swapped).rate == 1


def test_an_arm_against_itself_is_one_half_I48() -> None:
    result = win_rate([0.5] * 7)
    assert (result.rate, result.strict, result.decided, result.ties) == (0.5, 0.0, None, 7)


def test_order_of_prompts_changes_nothing_I49() -> None:
    outcomes = np.array([1, 0.5, 0, 1, 1, 0, 0.5, 1, 0])
    prompts = np.array([0, 0, 1, 1, 2, 3, 3, 4, 5])
    order = np.random.default_rng(0).permutation(9)
    assert win_rate(outcomes) == win_rate(outcomes[order])
    interval = bootstrap(outcomes, prompts)
    assert interval == bootstrap(outcomes[order], prompts[order])
    assert interval == bootstrap(outcomes, [f"prompt {9 - p}" for p in prompts])


@pytest.mark.parametrize("outcomes", [[], [1.0, math.nan], [2.0], [[1.0]]])
def test_win_rate_refuses_what_is_no_list_of_outcomes(outcomes: Any) -> None:
    with pytest.raises(ValueError, match="outcomes"):
        win_rate(outcomes)


def test_pure_position_bias_averages_to_one_half_I51() -> None:
    always_first = both_orders(shown_first=[1, 1, 1], shown_second=[0, 0, 0])
    assert win_rate(always_first.outcomes).rate == 0.5
    assert always_first.flip_rate == 1 and always_first.first_position_rate == 1


def test_both_orders_by_hand() -> None:
    result = both_orders(shown_first=[1, 1, 0.5, 0], shown_second=[1, 0, 0, 0])
    assert result.outcomes.tolist() == [1, 0.5, 0.25, 0]
    assert result.flip_rate == 0.5
    assert result.first_position_rate == (0.5 + 1 + 0.75 + 0.5) / 4
    with pytest.raises(ValueError, match="2 verdicts beside 1"):
        both_orders([1, 0], [1])


# --- intervals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"),
    [(60, 100, 0.5020, 0.6906), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson_worked_numbers_I50(wins: int, n: int, low: float, high: float) -> None:
    assert wilson(wins, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_wider_at_a_higher_level() -> None:
    assert wilson(60, 100, level=0.99) == pytest.approx((0.4714, 0.7161), abs=5e-5)
    with pytest.raises(ValueError, match="11 wins of 10"):
        wilson(11, 10)


def test_bootstrap_is_fixed_by_its_seed_I50() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_all_wins_give_the_interval_one_to_one_I50() -> None:
    interval = bootstrap([1.0] * 10)
    assert (interval.estimate, interval.low, interval.high, interval.clusters) == (1, 1, 1, 10)


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    values = [1.0] * 240 + [0.0] * 160
    half = 1.96 * math.sqrt(0.6 * 0.4 / 400)
    interval = bootstrap(values)
    assert interval.low == pytest.approx(0.6 - half, abs=0.005)
    assert interval.high == pytest.approx(0.6 + half, abs=0.005)
    narrower = bootstrap(values, level=0.68)
    assert narrower.high - narrower.low == pytest.approx(2 * half / 1.96, abs=0.005)


def test_copies_of_a_verdict_do_not_narrow_a_clustered_interval() -> None:
    verdicts = [1.0] * 60 + [0.0] * 40
    once = bootstrap(verdicts, range(100))
    four_times = bootstrap(verdicts * 4, list(range(100)) * 4)
    assert (four_times.low, four_times.high) == (once.low, once.high)
    independent = bootstrap(verdicts * 4)
    assert independent.high - independent.low < 0.6 * (once.high - once.low)


def test_clusters_of_unequal_size_keep_the_mean_of_the_judgements() -> None:
    # Prompt a has three wins, prompt b one loss: the only resamples are aa, ab, bb.
    interval = bootstrap([1, 1, 1, 0], ["a", "a", "a", "b"], level=0.4)
    assert interval.estimate == 0.75
    assert (interval.low, interval.high) == (0.75, 0.75)


def test_bootstrap_refuses_wrong_labels() -> None:
    with pytest.raises(ValueError, match="1 labels for 2 values"):
        bootstrap([1, 0], ["a"])


def test_paired_difference_uses_common_prompts_only() -> None:
    interval = paired_difference([1, 1, 0, 1], ["a", "a", "b", "x"], [0.5, 0, 1], ["b", "a", "y"])
    # a: 1 - 0, b: 0 - 0.5
    assert interval.estimate == 0.25 and interval.clusters == 2
    assert (interval.low, interval.high) == (-0.5, 1.0)


def test_a_constant_difference_has_no_width() -> None:
    first = np.random.default_rng(0).random(30)
    interval = paired_difference(first + 0.25, range(30), first, range(30))
    assert (interval.low, interval.high) == pytest.approx((0.25, 0.25), abs=1e-12)
    with pytest.raises(ValueError, match="no prompt in common"):
        paired_difference([1], ["a"], [1], ["b"])


@pytest.mark.parametrize(
    ("n", "kl"), [(1, 0), (2, 0.1931), (4, 0.6363), (16, 1.8351), (64, 3.1745)]
)
def test_best_of_n_kl_worked_numbers(n: int, kl: float) -> None:
    assert best_of_n_kl(n) == pytest.approx(kl, abs=5e-5)


# --- reward model -------------------------------------------------------------------------------

SCORES, RANKS, PROMPTS = [3.0, 1.0, 2.0, 5.0, 5.0, 9.0], [1, 2, 3, 1, 2, 1], [0, 0, 0, 1, 1, 2]


def test_pair_margins_by_hand() -> None:
    margins, prompt = pair_margins(SCORES, RANKS, PROMPTS)
    assert margins.tolist() == [2, 1, -1, 0] and prompt.tolist() == [0, 0, 0, 1]


def test_margins_are_those_of_the_training_pairs() -> None:
    ranks, scores = [2, 1, 2, 3], [0.1, 0.4, -0.2, 0.9]
    margins, _ = pair_margins(scores, ranks, [0] * 4)
    assert margins.tolist() == [scores[a] - scores[b] for a, b in ranking_pairs(ranks)]


def test_margins_do_not_depend_on_how_prompts_are_interleaved() -> None:
    order = [5, 3, 0, 4, 1, 2]
    margins, _ = pair_margins(
        [SCORES[i] for i in order], [RANKS[i] for i in order], ["abc"[PROMPTS[i]] for i in order]
    )
    assert margins.tolist() == [2, 1, -1, 0]


def test_pair_accuracy_gives_half_credit_for_equal_scores() -> None:
    assert pair_accuracy(SCORES, RANKS, PROMPTS) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert pair_accuracy(SCORES, RANKS, PROMPTS, weighting="pair") == pytest.approx(2.5 / 4)


def test_pair_accuracy_ignores_ties_and_monotone_changes_I24() -> None:
    assert pair_accuracy([1.0, 9.0], [1, 1], [0, 0]) is None
    shifted = [math.exp(s) - 7 for s in SCORES]
    assert pair_accuracy(shifted, RANKS, PROMPTS) == pair_accuracy(SCORES, RANKS, PROMPTS)


def test_calibration_by_hand() -> None:
    # Confidence 0.6 four times, right three times; confidence 0.9 once, wrong.
    margins = [math.log(1.5)] * 3 + [-math.log(1.5), -math.log(9)]
    low, high = calibration_bins(margins, bins=2)
    assert (low.low, low.high, high.low, high.high) == (0.5, 0.75, 0.75, 1.0)
    assert (low.pairs, low.accuracy, high.pairs, high.accuracy) == (4, 0.75, 1, 0)
    assert (low.confidence, high.confidence) == pytest.approx((0.6, 0.9))


def test_expected_calibration_error_by_hand() -> None:
    # Confidence 0.78 four times, right three times; confidence 0.97 once, wrong; bins .05 wide.
    a, b = math.log(0.78 / 0.22), math.log(0.97 / 0.03)
    margins = [a, a, a, -a, -b]
    expected = 4 / 5 * abs(0.75 - 0.78) + 1 / 5 * abs(0 - 0.97)
    assert expected_calibration_error(margins) == pytest.approx(expected)
    assert brier(margins) == pytest.approx((3 * 0.22**2 + 0.78**2 + 0.97**2) / 5)


def test_knowing_nothing_is_calibrated_and_has_brier_one_quarter() -> None:
    assert expected_calibration_error([0.0, 0.0]) == 0
    assert brier([0.0, 0.0]) == 0.25


def test_ten_bins_of_equal_width_on_half_to_one() -> None:
    confidence = [0.525 + 0.05 * k for k in range(10)] + [1.0]
    margins = [math.log(q / (1 - q)) if q < 1 else 800.0 for q in confidence]
    bins = calibration_bins(margins)
    assert [b.pairs for b in bins] == [1] * 9 + [2]
    assert [round(b.low, 2) for b in bins] == [round(0.5 + 0.05 * k, 2) for k in range(10)]


def test_temperature_undoes_a_known_overconfidence() -> None:
    # sigma(margin / T) must equal the share of right pairs: margin ln 9, right 3 of 4 -> T = 2.
    margins = [math.log(9)] * 3 + [-math.log(9)]
    assert fit_temperature(margins) == pytest.approx(2.0, abs=1e-9)


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 99]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, -7]) == pytest.approx(-1)
    # ranks (1, 2.5, 2.5, 4) against (1, 2, 3, 4): 4.5 / sqrt(4.5 * 5)
    assert spearman([0, 5, 5, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([1, 1, 1], [1, 2, 3]) is None
