import math
import time

import numpy as np
import pytest

from tercet.label.agreement import (
    alpha,
    among,
    beside_known,
    beside_the_others,
    compare,
    flag_agreement,
    kendall,
    matrix,
    overlapping,
    pairwise,
    rating_alpha,
)
from tercet.label.answers import Answer, columns, pairs_of
from tercet.label.bias import bias, longer_wins, shown_first_wins, time_outliers, times
from tercet.label.collect import Collected
from tercet.label.labelers import Person, Tally
from tercet.label.quality import measure
from tercet.label.sequential import Hypotheses, check
from tercet.statistics import clustered_wilson, pair_outcomes, wilson
from tests.label.simulate import rankings

INFINITE = math.inf


def measured(answers, **fields):
    names = list(dict.fromkeys(answer.labeler for answer in answers))
    people = [Person(name, name) for name in names]
    return measure(Collected(people=people, plain=answers, **fields))


def compared(*answers):
    table = columns(answers)
    return compare(table, pairs_of(table))


def row_of(quality, name):
    return next(row for row in quality.labelers if row.person.name == name)


# --- columns ------------------------------------------------------------------------------------


def test_pairs_are_those_of_each_ranking():
    table = columns([Answer("i", "ann", [1, 2, 2]), Answer("j", "bob", [2, 1])])
    pairs = pairs_of(table)
    for number, ranks in enumerate(([1, 2, 2], [2, 1])):
        assert pairs.outcome[pairs.answer == number].tolist() == pair_outcomes(ranks).tolist()


def test_screen_order_lengths_and_ratings_are_seen_from_the_first_reply_of_a_pair():
    answer = Answer(
        "i", "ann", [1, 2], ratings=[3, 5], shown=[1, 0], lengths=[30, 10], seconds=4.0, at=7
    )
    pairs = pairs_of(columns([answer]))
    assert (pairs.shown[0], pairs.longer[0], pairs.rated[0], pairs.ratio[0]) == (-1, 1, -1, 3.0)


def test_a_missing_rating_decides_no_pair():
    assert pairs_of(columns([Answer("i", "ann", [1, 2], ratings=[None, 5])])).rated.tolist() == [0]


def test_demonstrations_have_no_pairs():
    table = columns([Answer("i", "ann", seconds=9.0)])
    assert len(pairs_of(table).answer) == 0
    assert table.seconds.tolist() == [9.0]


# --- agreement ----------------------------------------------------------------------------------


def test_three_conventions_on_four_pairs():
    # (+,+) agree, (+,-) differ, (0,+) one tie, (0,0) both tie.
    comparisons = compared(
        *[Answer(n, "ann", ranks) for n, ranks in enumerate([[1, 2], [1, 2], [1, 1], [1, 1]])],
        *[Answer(n, "bob", ranks) for n, ranks in enumerate([[1, 2], [2, 1], [1, 2], [1, 1]])],
    )
    rates = {name: (found.rate, found.pairs) for name, found in pairwise(comparisons).items()}
    assert rates == {"excluded": (0.5, 2), "half": (0.625, 4), "exact": (0.5, 4)}


def test_three_labelers_are_compared_two_by_two():
    comparisons = compared(*[Answer("i", name, [1, 2]) for name in ("ann", "bob", "cyd")])
    couples = sorted(zip(comparisons.first.tolist(), comparisons.second.tolist(), strict=True))
    assert couples == [(0, 1), (0, 2), (1, 2)]


def test_single_answers_never_enter_agreement():
    answers = [Answer("i", "ann", [1, 2]), Answer("i", "bob", [2, 1])]
    answers += [Answer(f"single {n}", "ann", [1, 2]) for n in range(50)]
    quality = measured(answers)
    assert quality.agreement["exact"].rate == 0
    assert (quality.items, quality.overlap_items) == (51, 1)


def test_no_overlap_gives_no_agreement():
    quality = measured([Answer("i", "ann", [1, 2]), Answer("j", "bob", [1, 2])])
    assert quality.agreement["excluded"].rate is None
    assert quality.alphas.ranks is None
    assert quality.kendall.tau_b is None
    assert quality.labelers[0].agreement is None


def test_an_empty_project_is_measured():
    quality = measure(Collected(people=[Person("a", "ann")]))
    assert (quality.answers, quality.gold, quality.times.median) == (0, None, None)
    assert quality.matrix == [[None]]
    assert quality.labelers[0].check.verdict == "open"


def test_perfect_agreement_is_one_everywhere():
    answers = rankings(40, 5, dict.fromkeys("abc"), each=3, noise=0)
    quality = measured(answers)
    assert quality.agreement["excluded"].rate == 1
    assert quality.agreement["excluded"].low > 0.9  # 40 items, not 1,200 pairs
    assert quality.agreement["excluded"].low < 0.95
    assert quality.kendall.tau_b == pytest.approx(1)
    assert quality.kendall.w == pytest.approx(1)
    assert quality.alphas.ranks == quality.alphas.ranks_ordinal == 1
    assert all(row.agreement.estimate == 1 for row in quality.labelers)


def test_random_answers_agree_by_chance():
    answers = rankings(400, 4, dict.fromkeys("abc", INFINITE), each=3, seed=1)
    quality = measured(answers)
    assert quality.agreement["excluded"].low < 0.5 < quality.agreement["excluded"].high
    assert abs(quality.alphas.ranks) < 0.05
    assert abs(quality.kendall.tau_b) < 0.05
    assert quality.kendall.w == pytest.approx(1 / 3, abs=0.05)


def test_labelers_who_turn_a_known_share_of_pairs_round_agree_as_often_as_that_says():
    generator = np.random.default_rng(0)
    flips = {"ann": 0.1, "bob": 0.3}
    answers = [
        Answer(item, name, [2, 1] if generator.random() < wrong else [1, 2])
        for item in range(4000)
        for name, wrong in flips.items()
    ]
    expected = 0.9 * 0.7 + 0.1 * 0.3  # both right or both wrong: 0.66
    found = measured(answers).agreement["exact"]
    assert found.low < expected < found.high
    assert found.high - found.low < 0.03


def test_intervals_clustered_by_item_hold_the_truth_19_times_in_20():
    def agreement(items, seed):
        table = columns(rankings(items, 3, dict.fromkeys("ab"), each=2, seed=seed))
        return pairwise(compare(table, pairs_of(table)))["excluded"]

    truth = agreement(6000, seed=999).rate
    found = [agreement(50, seed) for seed in range(200)]
    inside = sum(one.low <= truth <= one.high for one in found)
    assert 0.91 <= inside / 200 <= 0.985


def test_clustered_wilson_is_wilson_for_one_judgement_a_cluster():
    found = clustered_wilson([1] * 60 + [0] * 40)
    assert (found.low, found.high) == pytest.approx(wilson(60, 100))


def test_clustered_wilson_counts_clusters_whose_members_repeat_each_other():
    values = np.repeat([1] * 60 + [0] * 40, 36)
    found = clustered_wilson(values, np.repeat(np.arange(100), 36))
    assert (found.low, found.high) == pytest.approx(wilson(60, 100), abs=1e-3)
    assert found.clusters == 100


def test_clustered_wilson_refuses_numbers_beyond_one():
    with pytest.raises(ValueError, match="between 0 and 1"):
        clustered_wilson([0.5, 1.5])


def test_agreement_matrix_by_hand():
    comparisons = compared(
        Answer("i", "ann", [1, 2, 3]),
        Answer("i", "bob", [1, 2, 3]),
        Answer("i", "cyd", [1, 3, 2]),
    )
    rates, pairs = matrix(comparisons, 3)
    assert rates[0, 1] == 1
    assert rates[0, 2] == rates[2, 0] == pytest.approx(2 / 3)
    assert np.isnan(rates[0, 0])
    assert pairs.tolist() == [[0, 3, 3], [3, 0, 3], [3, 3, 0]]


def test_agreement_inside_a_group_leaves_the_others_out():
    comparisons = compared(
        Answer("i", "ann", [1, 2]), Answer("i", "bob", [1, 2]), Answer("i", "held-out", [2, 1])
    )
    assert pairwise(comparisons)["exact"].rate == pytest.approx(1 / 3)
    assert pairwise(among(comparisons, [True, True, False]))["exact"].rate == 1


def test_kendall_tau_b_of_two_rankings_with_a_tie():
    # Pairs of (1,2,3) and (1,2,2): +,+,+ beside +,+,0: 2 / sqrt(3 * 2).
    answers = columns([Answer("i", "ann", [1, 2, 3]), Answer("i", "bob", [1, 2, 2])])
    pairs = pairs_of(answers)
    assert kendall(answers, pairs, compare(answers, pairs)).tau_b == pytest.approx(2 / math.sqrt(6))


def test_kendall_w_of_the_textbook_form():
    # Ranks (1,2,3), (1,2,3), (2,1,3): sums 4, 5, 9; S = 14; W = 12 * 14 / (9 * 24).
    given = {"ann": [1, 2, 3], "bob": [1, 2, 3], "cyd": [2, 1, 3]}
    answers = columns([Answer("i", name, ranks) for name, ranks in given.items()])
    pairs = pairs_of(answers)
    assert kendall(answers, pairs, compare(answers, pairs)).w == pytest.approx(12 * 14 / 216)


def test_kendall_w_with_ties():
    # Mean ranks (1.5, 1.5, 3) and (1, 2, 3): S = 2.5^2 ... sums 2.5, 3.5, 6 about 4: 6.5;
    # W = 12 * 6.5 / (4 * 24 - 2 * (2^3 - 2)).
    answers = columns([Answer("i", "ann", [1, 1, 2]), Answer("i", "bob", [1, 2, 3])])
    pairs = pairs_of(answers)
    assert kendall(answers, pairs, compare(answers, pairs)).w == pytest.approx(12 * 6.5 / 84)


def test_alpha_of_units_with_different_raters():
    unit = np.array([0, 0, 1, 1, 1, 2])
    value = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 1.0])  # the last unit has one answer: left out
    # Coincidences: unit 0 gives 2 of (1,1); unit 1 gives (0,0) 1, (0,1) and (1,0) 1 each.
    # Observed 2/5; expected 2 * 3 * 2 / (5 * 4) = 0.6.
    assert alpha(unit, value, "nominal") == pytest.approx(1 - 0.4 / 0.6)


def test_rating_alpha_ignores_replies_without_a_rating():
    answers = columns(
        [Answer("i", "ann", [1, 2], [7, None]), Answer("i", "bob", [1, 2], [7, 1])]
        + [Answer("j", name, [1, 2], [2, 3]) for name in ("ann", "bob")]
    )
    assert rating_alpha(answers) == 1


def test_a_flag_that_is_not_answered_is_no_answer():
    yes, no, silent = {"harm": True}, {"harm": False}, {"harm": None}
    found = flag_agreement(
        [
            Answer("i", "ann", [1, 2], flags=[yes, silent]),
            Answer("i", "bob", [1, 2], flags=[yes, no]),
            Answer("j", "ann", [1, 2], flags=[no, no]),
            Answer("j", "bob", [1, 2], flags=[no, no]),
        ],
        ["harm", "never asked"],
    )
    assert (found[0].alpha, found[0].answered, found[0].yes_rate) == (1, 7, pytest.approx(2 / 7))
    assert (found[1].alpha, found[1].answered, found[1].yes_rate) == (None, 0, None)


def test_leave_one_out_compares_with_the_majority_of_the_others():
    answers = columns(
        [Answer("i", "ann", [2, 1]), Answer("i", "bob", [1, 2]), Answer("i", "cyd", [1, 2])]
    )
    others = beside_the_others(answers, pairs_of(answers))
    # For bob and cyd the two others are split: nothing to compare with.
    assert others.labeler.tolist() == [0]
    assert others.share.tolist() == [0.0]


def test_a_tie_where_the_others_decide_counts_half():
    answers = columns([Answer("i", "ann", [1, 1]), Answer("i", "bob", [1, 2])])
    others = beside_the_others(answers, pairs_of(answers))
    assert (others.labeler.tolist(), others.share.tolist()) == ([0], [0.5])


def test_overlapping_keeps_ranked_items_with_two_answers():
    answers = columns(
        [Answer("i", "ann", [1, 2]), Answer("i", "bob", [1, 2]), Answer("j", "ann", [1, 2])]
        + [Answer("text", name) for name in ("ann", "bob")]
    )
    shared = overlapping(answers)
    assert {shared.items[index] for index in shared.item} == {"i"}


# --- gold, repeats ------------------------------------------------------------------------------


def test_gold_accuracy_of_pairs_has_wilsons_interval():
    right, wrong = [1, 2], [2, 1]
    gold = [Answer(f"g{n}", "ann", right if n < 8 else wrong) for n in range(10)]
    quality = measure(
        Collected(
            people=[Person("ann", "ann")],
            gold=gold,
            gold_ranks={f"g{n}": right for n in range(10)},
        )
    )
    assert quality.gold.estimate == 0.8
    assert (quality.gold.low, quality.gold.high) == pytest.approx(wilson(8, 10))
    assert row_of(quality, "ann").gold == quality.gold
    assert quality.answers == 0  # gold items are no work of the project


def test_a_pair_that_gold_ties_is_not_asked():
    table = columns([Answer("g", "ann", [1, 3, 2])])
    found = beside_known(table, {"g": [1, 2, 2]})
    assert (found.pairs.tolist(), found.share.tolist()) == ([2], [1.0])


def test_repeats_are_compared_with_the_first_answer_of_the_same_person():
    quality = measure(
        Collected(
            people=[Person("ann", "ann")],
            plain=[Answer("i", "ann", [1, 2, 3])],
            repeats=[Answer("i again", "ann", [1, 3, 2])],
            first_ranks={"i again": [1, 2, 3]},
        )
    )
    assert quality.repeats.estimate == pytest.approx(2 / 3)
    assert (quality.answers, quality.overlap_items) == (1, 0)
    assert quality.agreement["exact"].rate is None


# --- position, length, time ---------------------------------------------------------------------


def test_position_preference_by_hand():
    answers = columns(
        [
            Answer(0, "ann", [1, 2], shown=[0, 1]),  # the first shown wins
            Answer(1, "ann", [2, 1], shown=[1, 0]),  # wins again, standing second in the item
            Answer(2, "ann", [1, 2], shown=[1, 0]),  # loses
            Answer(3, "ann", [1, 1], shown=[0, 1]),  # a tie says nothing
        ]
    )
    found = shown_first_wins(answers, pairs_of(answers))
    assert (found.estimate, found.clusters) == (pytest.approx(2 / 3), 3)


def test_length_preference_by_hand():
    answers = columns(
        [
            Answer(0, "ann", [1, 2], lengths=[90, 10]),
            Answer(1, "ann", [1, 2], lengths=[10, 90]),
            Answer(2, "ann", [2, 1], lengths=[10, 90]),
            Answer(3, "ann", [2, 1], lengths=[50, 50]),  # equally long
        ]
    )
    assert longer_wins(answers, pairs_of(answers)).estimate == pytest.approx(2 / 3)


def test_a_planted_preference_is_found_and_an_absent_one_is_not():
    names = dict.fromkeys("abcdef")
    fair = measured(rankings(300, 4, names, each=2)).bias
    first = measured(rankings(300, 4, names, each=2, position=1.5)).bias
    long = measured(rankings(300, 4, names, each=2, length=1.5)).bias
    assert fair.shown_first.low < 0.5 < fair.shown_first.high
    assert fair.longer.low < 0.5 < fair.longer.high
    assert first.shown_first.low > 0.55
    assert long.longer.low > 0.55
    wins = [bar.share.estimate for bar in first.places]
    assert wins == sorted(wins, reverse=True)
    assert [bar.label for bar in first.places] == list("ABCD")


def test_length_steps_hold_their_pairs():
    answers = columns(
        [
            Answer(0, "ann", [1, 2], lengths=[11, 10]),
            Answer(1, "ann", [1, 2], lengths=[10, 30]),
            Answer(2, "ann", [1, 2], lengths=[90, 10]),
        ]
    )
    found = bias(answers, pairs_of(answers)).ratios
    shares = {bar.label: bar.share and bar.share.estimate for bar in found}
    assert shares == {
        "up to 1.25": 1, "1.25 to 1.5": None, "1.5 to 2": None, "2 to 4": 0, "over 4": 1
    }  # fmt: skip


def test_times_fall_into_doubling_steps():
    found = times(np.array([4.9, 5.0, 30.0, 700.0]))
    assert [(b.low, b.high) for b in found.bins if b.answers] == [
        (0, 5), (5, 10), (20, 40), (640, None)
    ]  # fmt: skip
    assert sum(b.answers for b in found.bins) == 4
    assert found.median == 17.5


def test_time_outliers_lie_far_from_all_the_others():
    seconds = np.array([*np.linspace(40, 80, 50), 1.0, 4000.0])
    found = time_outliers(seconds)
    assert found[-2:].tolist() == [-1, 1]
    assert not found[:-2].any()
    assert not time_outliers(np.full(5, 30.0)).any()


# --- sequential check ---------------------------------------------------------------------------


def flagged_rate(mean, replies, runs=400, items=400):
    """Labelers who agree on each pair with that probability, pairs of one item alike."""
    generator = np.random.default_rng(1)
    found = []
    for _ in range(runs):
        # Beta with a wide spread: items are hard or easy, pairs of one item are not independent.
        shares = generator.beta(2 * mean, 2 * (1 - mean), size=items)
        if replies == 2:
            shares = (generator.random(items) < mean).astype(float)
        found.append(check(shares, np.full(items, replies)).verdict)
    return found


@pytest.mark.parametrize("replies", [2, 4, 9])
def test_acceptable_labelers_are_flagged_at_most_as_often_as_promised(replies):
    verdicts = flagged_rate(0.65, replies)
    # alpha = 0.01: of 400 at the very edge at most 4 are expected; 10 would be 3 sd more.
    assert verdicts.count("flagged") <= 10


@pytest.mark.parametrize("replies", [2, 4, 9])
def test_answers_at_random_are_seldom_called_clear_and_mostly_flagged(replies):
    verdicts = flagged_rate(0.5, replies)
    assert verdicts.count("clear") <= 0.05 * 400 + 13  # beta = 0.05 and 3 sd
    assert verdicts.count("flagged") >= 0.9 * 400


def test_the_check_of_pairs_is_walds_likelihood_ratio():
    h = Hypotheses()
    stake = 0.15 / (0.25 + 0.15**2)
    q = h.good - stake * h.good * (1 - h.good)
    expected = math.log((1 - q) / (1 - h.good)) * 3  # three disagreements
    assert check([0, 0, 0], [2, 2, 2]).evidence == pytest.approx(expected)


def test_one_bad_item_flags_nobody():
    assert check([0.0], [9]).verdict == "open"
    assert check([], []) == check(np.array([]), np.array([]))


def test_a_labeler_who_ranks_at_random_among_good_ones_is_flagged_alone():
    names = dict.fromkeys(f"labeler {n}" for n in range(8))
    answers = rankings(200, 4, {**names, "noise": INFINITE}, each=3)
    quality = measured(answers)
    assert [row.person.name for row in quality.labelers if row.check.verdict == "flagged"] == [
        "noise"
    ]
    assert any(c.labeler == "noise" and "sequential" in c.text for c in quality.concerns)
    assert row_of(quality, "noise").agreement.high < 0.6


def test_more_noise_is_less_agreement():
    noises = {"steady": 0.2, "usual": 0.6, "noisy": 2.0, "d": 0.3, "e": 0.3}
    quality = measured(rankings(600, 4, noises, each=3))
    rates = [row_of(quality, name).agreement.estimate for name in ("steady", "usual", "noisy")]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] - rates[2] > 0.15


# --- the table of labelers ----------------------------------------------------------------------


def test_ties_contradictions_and_ratings_by_hand():
    quality = measured(
        [
            Answer(0, "ann", [1, 2, 2], ratings=[3, 5, 1], seconds=10.0),
            Answer(1, "ann", [1, 2, 3], ratings=[4, 4, 4], seconds=30.0),
        ]
    )
    row = quality.labelers[0]
    assert (row.ties.count, row.ties.of) == (1, 6)
    # Only 3 beside 5 is against the order; 3 beside 1 is with it; 5 beside 1 is a tie.
    assert (row.contradictions.count, row.contradictions.of) == (1, 2)
    # Ratings 4, 4, 4, 1, 3, 5: half, and three sixths.
    assert row.rating_entropy == pytest.approx(0.5 * 1 + 3 * math.log2(6) / 6)
    assert row.median_seconds == 20.0


def test_assignments_without_an_answer_are_counted_beside_it():
    quality = measured([Answer(0, "ann", [1, 2])], tallies={"ann": Tally(1, 2, 3)})
    row = quality.labelers[0]
    assert (row.answers, row.extra, row.skipped, row.reported) == (1, 1, 2, 3)


def test_a_hurried_labeler_is_named():
    usual = [Answer(n, "abc"[n % 3], [1, 1], seconds=60.0) for n in range(60)]
    hurried = [Answer(n, "dan", [1, 1], seconds=4.0) for n in range(100, 120)]
    texts = {c.labeler: c.text for c in measured([*usual, *hurried]).concerns}
    assert texts == {"dan": "takes 4 s for an item; the usual labeler 60 s"}


def test_good_labelers_raise_no_concern():
    answers = rankings(200, 4, dict.fromkeys("abcdef"), each=3, noise=0.4)
    assert measured(answers).concerns == []


def test_ten_thousand_answers_are_measured_in_a_second():
    answers = rankings(2000, 4, dict.fromkeys(f"labeler {n}" for n in range(20)), each=5)
    assert len(answers) == 10_000
    start = time.process_time()  # other processes do not count
    measured(answers)
    assert time.process_time() - start < 1.0  # 0.2 s on a quiet machine


def test_alpha_of_pairs_does_not_ask_which_reply_is_listed_first():
    # One policy always listed first and nearly always best: agreement is still agreement.
    answers = [Answer(n, name, [1, 2]) for n in range(20) for name in ("ann", "bob")]
    answers += [Answer("split", "ann", [1, 2]), Answer("split", "bob", [2, 1])]
    turned = [
        Answer(a.item, a.labeler, a.ranks[::-1] if a.item in range(10) else a.ranks)
        for a in answers
    ]
    assert measured(answers).alphas.ranks == pytest.approx(measured(turned).alphas.ranks)
    assert measured(answers).alphas.ranks > 0.85
