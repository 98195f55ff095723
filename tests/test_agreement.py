"""Agreement between labelers and Bradley-Terry ratings. I-numbers: docs/algorithm.md."""

import math

import numpy as np
import pytest

from tercet.statistics import (
    TieConvention,
    bradley_terry,
    krippendorff_alpha,
    pair_outcomes,
    pairwise_agreement,
)

NAN = math.nan


def test_pair_outcomes_of_a_ranking_with_a_tie() -> None:
    # pairs (0,1) (0,2) (1,2)
    assert pair_outcomes([1, 3, 3]).tolist() == [1, 1, 0]
    assert pair_outcomes([2, 1, 3]).tolist() == [-1, 1, 1]


@pytest.mark.parametrize("ties", ["excluded", "half", "exact"])
def test_a_labeler_agrees_with_itself_I52(ties: TieConvention) -> None:
    outcomes = pair_outcomes([1, 2, 2, 4, 3])
    assert pairwise_agreement(outcomes, outcomes, ties=ties).rate == 1


def test_coin_flips_agree_half_the_time_I52() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.choice([-1, 1], (2, 4000))
    agreement = pairwise_agreement(first, second)
    assert agreement.rate == pytest.approx(0.5, abs=0.03)
    assert agreement.low is not None and agreement.high is not None
    assert agreement.low < 0.5 < agreement.high


@pytest.mark.parametrize(
    ("ties", "rate", "pairs"),
    [("excluded", 2 / 3, 3), ("half", (2 + 1 + 0.5) / 5, 5), ("exact", 3 / 5, 5)],
)
def test_the_three_tie_conventions(ties: TieConvention, rate: float, pairs: int) -> None:
    first, second = [1, -1, 1, 0, 0], [1, -1, -1, 0, 1]
    agreement = pairwise_agreement(first, second, ties=ties)
    assert agreement.rate == pytest.approx(rate) and agreement.pairs == pairs
    assert agreement.tie_rate == pytest.approx(3 / 10)


def test_agreement_resamples_prompts_not_pairs() -> None:
    first = [1] * 40
    second = ([1] * 4 + [-1] * 4) * 5
    prompts = [k // 4 for k in range(40)]
    clustered = pairwise_agreement(first, second, prompts)
    single = pairwise_agreement(first, second)
    assert clustered.low is not None and single.low is not None
    assert clustered.rate == single.rate == 0.5 and clustered.low < single.low


def test_agreement_of_only_ties_is_not_estimable() -> None:
    agreement = pairwise_agreement([0, 0], [1, 0])
    assert (agreement.rate, agreement.pairs, agreement.tie_rate) == (None, 0, 0.75)


# The example of Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), C and D.
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_of_the_published_example(level: str, alpha: float) -> None:
    got = krippendorff_alpha(KRIPPENDORFF, level)  # type: ignore[arg-type]
    assert got == pytest.approx(alpha, abs=5e-4)


def test_alpha_is_one_for_perfect_and_below_zero_for_opposite_raters() -> None:
    assert krippendorff_alpha([[1, 2, 3], [1, 2, 3]]) == 1
    opposite = krippendorff_alpha([[1, 2], [2, 1]])
    assert opposite is not None and opposite < 0


def test_alpha_without_variation_or_overlap_is_not_estimable() -> None:
    assert krippendorff_alpha([[0, 0], [0, 0]]) is None
    assert krippendorff_alpha([[1, NAN], [NAN, 2]]) is None


def test_two_arms_three_wins_to_one() -> None:
    fit = bradley_terry([[0, 3], [1, 0]])
    assert fit.strengths[0] - fit.strengths[1] == pytest.approx(math.log(3), abs=1e-8)
    assert fit.tie == 0
    assert fit.probability(0, 1) == pytest.approx((0.75, 0, 0.25), abs=1e-8)


def test_davidson_reproduces_the_shares_of_two_arms() -> None:
    # Two arms and two free parameters: fitted shares are the observed 4 : 3 : 1.
    fit = bradley_terry([[0, 4], [1, 0]], [[0, 3], [3, 0]])
    assert fit.probability(0, 1) == pytest.approx((4 / 8, 3 / 8, 1 / 8), abs=1e-8)
    # nu = P(tie) / sqrt(P(win) P(loss))
    assert fit.tie == pytest.approx(3 / 2, abs=1e-8)


def test_expected_wins_equal_observed_wins() -> None:
    """The likelihood equations: each arm's wins plus half its ties are met exactly."""
    wins = np.array([[0, 7, 4], [2, 0, 5], [3, 6, 0]])
    ties = np.array([[0, 1, 2], [1, 0, 0], [2, 0, 0]])
    fit = bradley_terry(wins, ties)
    expected_ties = 0.0
    for a in range(3):
        expected = 0.0
        for b in {0, 1, 2} - {a}:
            games = wins[a, b] + wins[b, a] + ties[a, b]
            win, tie, _ = fit.probability(a, b)
            expected += games * (win + tie / 2)
            expected_ties += games * tie / 2
        assert expected == pytest.approx(wins[a].sum() + ties[a].sum() / 2, abs=1e-6)
    assert expected_ties == pytest.approx(3, abs=1e-6)
    assert fit.strengths.sum() == pytest.approx(0, abs=1e-12)


def test_known_strengths_are_recovered_from_exact_shares() -> None:
    strengths = np.array([1.0, 0.0, -0.5, -0.5])
    wins = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    np.fill_diagonal(wins, 0)
    assert bradley_terry(wins).strengths == pytest.approx(strengths, abs=1e-6)


def test_unconnected_arms_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="arm 2 never beats arm 0"):
        bradley_terry([[0, 1, 1], [1, 0, 1], [0, 0, 0]])


def test_a_chain_of_wins_connects() -> None:
    cycle = bradley_terry(np.roll(np.eye(7), 1, axis=1))
    assert cycle.strengths == pytest.approx(np.zeros(7), abs=1e-8)


def test_a_separated_fit_is_refused() -> None:
    # One win and one tie: the likelihood rises for ever with the distance.
    with pytest.raises(ValueError, match="no finite estimate"):
        bradley_terry([[0, 1], [0, 0]], [[0, 1], [1, 0]])
