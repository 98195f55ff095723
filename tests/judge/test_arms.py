from dataclasses import dataclass

import pytest

from tercet.judge.arms import Reply, baseline_arm, parse_arms, read_reply
from tercet.records import InputError
from tercet.rollout.engine import Rollout

EOS = 0
WORDS = {1: " yes", 2: " no", 3: "\n", 4: "Guest:"}


@dataclass
class Words:
    """A tokenizer with four words; id 0 is EOS."""

    eos_token_id: int = EOS
    name_or_path: str = "words"

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(WORDS[i] for i in ids)


def read(tokens: list[int], stopped: bool, stop_text: str = "") -> Reply:
    return read_reply(Rollout(0, 0, tokens, [0.0] * len(tokens), stopped), Words(), stop_text)


def test_prompted_and_best_of_borrow_models() -> None:
    arms = parse_arms(["gpt=base", "gpt-prompted", "sft=tuned", "bon:16"], [], 1.0)
    assert [(arm.name, arm.model, arm.samples) for arm in arms] == [
        ("gpt", "base", 1),
        ("gpt-prompted", "base", 1),
        ("sft", "tuned", 1),
        ("bon:16", "tuned", 16),
    ]
    assert [arm.prompted for arm in arms] == [False, True, False, False]


def test_sizes_borrow_from_their_own_size() -> None:
    arms = parse_arms(["gpt@1b=a", "gpt@7b=b", "gpt-prompted@7b"], [], 1.0)
    assert (arms[2].family, arms[2].model) == ("gpt-prompted", "b")


def test_temperatures_of_single_arms() -> None:
    arms = parse_arms(["gpt=a", "sft=b"], ["gpt=0.7"], 1.0)
    assert [arm.temperature for arm in arms] == [0.7, 1.0]


def test_the_baseline_takes_the_temperature_of_its_arm_unless_it_has_its_own() -> None:
    arms = parse_arms(["sft=b"], ["sft=0.5"], 1.0)
    assert baseline_arm("sft", arms, ["sft=0.5"]).temperature == 0.5
    assert baseline_arm("sft", arms, ["baseline=0.9"]).temperature == 0.9


@pytest.mark.parametrize(
    ("arms", "temperatures", "message"),
    [
        (["gpt=a", "gpt=b"], [], "name of its own"),
        (["ppo"], [], "'ppo' needs a model folder"),
        (["bon:x=a"], [], "number of samples"),
        (["gpt=a"], ["sft=1"], "no arm is called 'sft'"),
        (["gpt=a"], ["gpt=hot"], "arm=temperature"),
    ],
)
def test_wrong_arms_are_named(arms: list[str], temperatures: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_arms(arms, temperatures, 1.0)


def test_a_baseline_that_is_no_arm_is_refused() -> None:
    with pytest.raises(InputError, match="no arm is called 'sft'"):
        baseline_arm("sft", parse_arms(["gpt=a"], [], 1.0), [])


@pytest.mark.parametrize("name", ["gpt-prompted", "bon:4"])
def test_a_baseline_that_is_more_than_a_model_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' is not a model by itself"):
        baseline_arm(name, parse_arms(["gpt=a", "sft=b", name], [], 1.0), [])


def test_eos_ends_a_reply() -> None:
    assert read([1, 2, EOS], True) == Reply(" yes no", "eos", 3)


def test_a_reply_at_the_limit_is_cut() -> None:
    reply = read([1, 2], False)
    assert (reply.ended_by, reply.finish) == ("length", "length")


@pytest.mark.parametrize("tail", [[], [EOS]])
def test_the_stop_text_ends_any_reply_alike(tail: list[int]) -> None:
    reply = read([1, 3, 4, 2, *tail], bool(tail), "\nGuest:")
    assert (reply.text, reply.ended_by, reply.finish) == (" yes", "stop_text", "stop")


def test_a_stop_token_that_is_the_stop_text_is_not_kept() -> None:
    assert read([1, 3], True, "\n") == Reply(" yes", "stop_text", 2)
