import pytest

from tercet.judge.rankings import check_texts, judge_name, verdicts
from tercet.records import InputError
from tests.judge.rankings_by_hand import ranking

SHOWN = ranking("p", ("good", 1), ("fair", 2), ("poor", 2), policies=("ppo", "baseline|sft", "gpt"))


@pytest.mark.parametrize(("arm", "outcome"), [("ppo", 1.0), ("sft", 0.5), ("gpt", 0.5)])
def test_an_arm_wins_when_ranked_above_the_baseline(arm: str, outcome: float) -> None:
    assert [verdict.outcome for verdict in verdicts([SHOWN], arm, "baseline")] == [outcome]


def test_each_person_gives_a_verdict() -> None:
    other = ranking("p", ("good", 3), ("fair", 2), policies=("ppo", "baseline"), labeler="bob")
    found = verdicts([SHOWN, other], "ppo", "baseline")
    assert [(v.outcome, v.labeler) for v in found] == [(1.0, "ann"), (0.0, "bob")]


def test_rankings_without_the_arm_are_skipped() -> None:
    assert verdicts([SHOWN], "ppo-ptx", "baseline") == []


def test_a_ranking_of_other_replies_is_refused() -> None:
    check_texts([SHOWN], {("ppo", "p"): "good"}, "file")
    with pytest.raises(InputError, match="another reply of 'ppo'"):
        check_texts([SHOWN], {("ppo", "p"): "better"}, "file")


def test_simulated_rankings_are_called_simulated() -> None:
    simulated = ranking("p", ("a", 1), ("b", 2), judge="simulated")
    assert judge_name([simulated]) == "simulated labelers"
    assert judge_name([SHOWN]) == "people (1)"
