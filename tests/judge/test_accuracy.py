import math

import pytest

from tercet.judge.accuracy import decided_pairs, labeler_agreement, reward_report
from tests.judge.rankings_by_hand import ranking

THREE = ranking("p", ("one two three", 1), ("one two", 2), ("one", 3))


def test_scores_in_the_order_of_the_ranks_are_all_right() -> None:
    report = reward_report([[2.0, 1.0, 0.0]], [THREE])
    assert report["accuracy"] == report["pair_accuracy"] == 1.0
    # margins 1, 2, 1
    expected = (2 * math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 3
    assert report["log_loss"] == pytest.approx(expected)


def test_a_mean_over_prompts_differs_from_a_mean_over_pairs() -> None:
    wrong = ranking("q", ("a", 1), ("b", 2))
    report = reward_report([[2.0, 1.0, 0.0], [0.0, 1.0]], [THREE, wrong])
    assert report["accuracy"] == 0.5
    assert report["pair_accuracy"] == 0.75
    assert (report["low"], report["high"]) == (0.0, 1.0)


def test_equal_scores_count_half() -> None:
    assert reward_report([[1.0, 1.0, 1.0]], [THREE])["accuracy"] == 0.5


def test_tied_ranks_and_equal_texts_give_no_pair() -> None:
    shown = ranking("p", ("a", 1), ("b", 1), (" a", 2))
    pairs = decided_pairs([[3.0, 2.0, 1.0]], [shown])
    assert [(pair.winner.text, pair.loser.text) for pair in pairs] == [("b", " a")]


def test_rank_gap_counts_places_not_numbers() -> None:
    shown = ranking("p", ("a", 1), ("b", 5), ("c", 9))
    report = reward_report([[2.0, 1.0, 3.0]], [shown])
    assert report["by_rank_gap"] == {
        "1": {"accuracy": 0.5, "pairs": 2},
        "2": {"accuracy": 0.0, "pairs": 1},
    }


def test_length_baselines_mirror_each_other() -> None:
    shown = [THREE, ranking("q", ("short", 1), ("much longer reply", 2))]
    length = reward_report([[2.0, 1.0, 0.0], [1.0, 0.0]], shown)["length"]
    assert length["longer_wins"]["accuracy"] == 0.5  # right in p, wrong in q
    assert length["shorter_wins"]["accuracy"] == 0.5
    assert length["accuracy_where_longer_loses"]["accuracy"] == 1.0
    assert length["accuracy_where_longer_loses"]["pairs"] == 1


def test_accuracy_by_k() -> None:
    shown = [THREE, ranking("q", ("a", 1), ("b", 2))]
    by_k = reward_report([[2.0, 1.0, 0.0], [0.0, 1.0]], shown)["by_k"]
    assert by_k == {"2": {"accuracy": 0.0, "pairs": 1}, "3": {"accuracy": 1.0, "pairs": 3}}


def test_agreement_of_two_labelers_leaves_ties_out() -> None:
    # ann: a < b < c; bob: a < c, b tied with a. Both decide (a,c) and (b,c): both alike.
    ann = ranking("p", ("a", 1), ("b", 2), ("c", 3))
    bob = ranking("p", ("c", 2), ("b", 1), ("a", 1), labeler="bob")
    cy = ranking("q", ("a", 1), ("b", 2), labeler="cy")
    dee = ranking("q", ("a", 2), ("b", 1), labeler="dee")
    found = labeler_agreement([ann, bob, cy, dee])
    assert found is not None
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["pairs"] == 3


def test_without_a_second_labeler_there_is_no_agreement() -> None:
    report = reward_report([[2.0, 1.0, 0.0]], [THREE])
    assert report["labeler_agreement"] is None


def test_ceiling_is_the_accuracy_of_gold_on_the_same_rankings() -> None:
    report = reward_report([[2.0, 1.0, 0.0]], [THREE], [[2.0, 0.0, 1.0]])
    assert report["labeler_ceiling"] == pytest.approx(2 / 3)
    assert report["accuracy_against_gold"] == pytest.approx(2 / 3)
    assert reward_report([[2.0, 1.0, 0.0]], [THREE])["labeler_ceiling"] is None


def test_only_ties_give_no_accuracy() -> None:
    report = reward_report([[1.0, 2.0]], [ranking("p", ("a", 1), ("b", 1))])
    assert report["accuracy"] is None
    assert report["tie_rate"] == 1.0


def test_more_labelers_of_one_prompt_do_not_narrow_the_interval() -> None:
    shown = [ranking(str(i), ("a", 1), ("b", 2)) for i in range(20)]
    scores = [[1.0, 0.0] if i % 2 else [0.0, 1.0] for i in range(20)]
    once = reward_report(scores, shown)
    again = [
        ranking(str(i), ("a", 1), ("b", 2), labeler=name)
        for i in range(20)
        for name in ("ann", "bob", "cy")
    ]
    thrice = reward_report([score for score in scores for _ in range(3)], again)
    assert thrice["high"] - thrice["low"] == pytest.approx(once["high"] - once["low"], abs=0.05)
