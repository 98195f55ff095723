from pathlib import Path

import pytest

from tercet.judge.arms import Reply
from tercet.judge.replies import candidate_sets, read_replies, reply_rows, write_rows
from tercet.records import InputError, Prompt

PROMPTS = [Prompt(id="p", text="Hello"), Prompt(id="q", text="Bye")]
REPLIES = {
    "baseline": [Reply(" a", "eos", 2), Reply(" same", "eos", 2)],
    "sft": [Reply(" a", "eos", 2), Reply(" same", "eos", 2)],
    "ppo": [Reply(" b\u2028c", "length", 9), Reply(" same", "stop_text", 2)],
}


def test_replies_come_back_as_written(tmp_path: Path) -> None:
    rows = reply_rows(PROMPTS, REPLIES, {"gold": {arm: [1.0, 2.0] for arm in REPLIES}})
    write_rows(tmp_path / "replies.jsonl", rows)
    assert read_replies(tmp_path / "replies.jsonl", list(REPLIES), PROMPTS) == REPLIES
    assert rows[5]["scores"] == {"gold": 2.0}


def test_a_reply_to_another_text_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "replies.jsonl", reply_rows(PROMPTS, REPLIES, {}))
    changed = [Prompt(id="p", text="Hello there")]
    with pytest.raises(InputError, match="answers another text"):
        read_replies(tmp_path / "replies.jsonl", ["sft"], changed)
    with pytest.raises(InputError, match="'gpt' has no reply"):
        read_replies(tmp_path / "replies.jsonl", ["gpt"], PROMPTS)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "replies.jsonl").write_text('{"arm": "sft"}\n')
    with pytest.raises(InputError, match=r"replies\.jsonl:1: not a reply"):
        read_replies(tmp_path / "replies.jsonl", ["sft"], PROMPTS)


def test_people_see_equal_replies_once_and_no_order_of_arms() -> None:
    sets = candidate_sets(PROMPTS, REPLIES, dict.fromkeys(REPLIES, 1.0), seed=0)
    assert [shown.prompt_id for shown in sets] == ["p"]  # all arms say the same to q
    assert {c.text: c.policy for c in sets[0].candidates} == {
        " a": "baseline|sft",
        " b\u2028c": "ppo",
    }
    first = {
        candidate_sets(PROMPTS, REPLIES, dict.fromkeys(REPLIES, 1.0), seed)[0].candidates[0].text
        for seed in range(8)
    }
    assert len(first) == 2
