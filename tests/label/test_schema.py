import pytest

from tercet.label.errors import Refused
from tercet.label.schema import (
    DEFAULT,
    FLAG_KEYS,
    NOTE_LIMIT,
    TEXT_LIMIT,
    check_payload,
    unstorable,
)

ABC = ["a", "b", "c"]


def rank(candidates=ABC, tags=None, **payload):
    return check_payload("rank", payload, candidates, DEFAULT, tags)


def write(open_prompt=False, **payload):
    return check_payload("demonstration", payload, [], DEFAULT, None, open_prompt)


def problems(call, *args, **payload):
    """The (field, message) pairs of a refusal."""
    with pytest.raises(Refused) as refused:
        call(*args, **payload)
    assert (refused.value.status, refused.value.code) == (422, "incomplete")
    return [(e["field"], e["message"]) for e in refused.value.body["errors"]]


def test_an_order_with_a_tie_is_stored_as_it_was_given():
    stored = rank(bins=[["b"], ["c", "a"]], ratings={"a": 1, "b": 7, "c": None}, note="n")
    assert stored["bins"] == [["b"], ["c", "a"]]
    assert stored["ratings"] == {"a": 1, "b": 7, "c": None}
    assert stored["note"] == "n"


def test_three_answers_to_a_question():
    flags = {"a": {"fails_task": True, "sexual_content": False, "violent_content": None}}
    assert rank(bins=[["a", "b", "c"]], flags=flags)["flags"] == flags


def test_questions_that_do_not_apply_are_not_answered():
    flags = {"a": {"hallucination": True, "satisfies_constraint": False, "fails_task": False}}
    stored = rank(bins=[ABC], flags=flags, tags=["closed_domain"])
    assert stored["flags"]["a"] == {
        "hallucination": True,
        "satisfies_constraint": None,
        "fails_task": False,
    }
    assert rank(bins=[ABC], flags=flags, tags=["other"])["flags"]["a"]["hallucination"] is None


def test_a_prompt_without_tags_is_asked_everything():
    flags = {"a": {"hallucination": True, "satisfies_constraint": False}}
    assert rank(bins=[ABC], flags=flags)["flags"] == flags
    assert rank(bins=[ABC], flags=flags, tags=[])["flags"] == flags


@pytest.mark.parametrize(
    ("payload", "field", "message"),
    [
        ({"bins": [["a"], ["b"]]}, "bins", "1 of 3 replies are not ranked yet"),
        ({"bins": []}, "bins", "3 of 3 replies are not ranked yet"),
        ({"bins": [["a", "b"], ["c", "a"]]}, "bins", "a reply stands at two ranks"),
        ({"bins": [["a", "b", "c", "z"]]}, "bins", "names a reply that is not shown"),
        ({"bins": [ABC], "ratings": {"z": 1}}, "ratings", "names a reply that is not shown"),
        ({"bins": [ABC], "flags": {"z": {}}}, "flags", "names a reply that is not shown"),
        ({"bins": [ABC], "notes": {"z": ""}}, "notes", "names a reply that is not shown"),
        ({"bins": [ABC], "ratings": {"a": 0}}, "ratings", "a rating must be 1 to 7"),
        ({"bins": [ABC], "ratings": {"a": 8}}, "ratings", "a rating must be 1 to 7"),
        ({"bins": [ABC], "flags": {"a": {"x": True}}}, "flags", "there is no question 'x'"),
        ({"bins": [ABC], "prompt_flags": {"x": True}}, "prompt_flags", "there is no question 'x'"),
        ({"bins": [ABC], "both_bad": True}, "both_bad", "is for two replies that tie"),
        (
            {"bins": [ABC], "strength": "clearly"},
            "strength",
            "is for one of two replies that is better",
        ),
    ],
)
def test_what_does_not_answer_the_item_is_refused(payload, field, message):
    assert problems(rank, **payload) == [(field, message)]


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "bins"),
        ({"bins": [["a", "b", "c"], []]}, "bins.1"),
        ({"bins": [ABC], "ratings": {"a": 6.5}}, "ratings.a"),
        ({"bins": [ABC], "ratings": {"a": True}}, "ratings.a"),
        ({"bins": [ABC], "flags": {"a": {"fails_task": 1}}}, "flags.a.fails_task"),
        ({"bins": [ABC], "flags": {"a": {"fails_task": "yes"}}}, "flags.a.fails_task"),
        ({"bins": [ABC], "winner": "a"}, "winner"),
        ({"bins": [ABC], "strength": "very"}, "strength"),
    ],
)
def test_what_is_no_answer_at_all_is_refused_by_field(payload, field):
    assert [name for name, _ in problems(rank, **payload)] == [field]


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_a_payload_is_an_object(value):
    assert problems(check_payload, "rank", value, ABC, DEFAULT)


def test_both_bad_and_strength_are_for_two():
    two = ["a", "b"]
    assert rank(two, bins=[["a", "b"]], both_bad=True)["both_bad"] is True
    assert rank(two, bins=[["b"], ["a"]], strength="clearly")["strength"] == "clearly"
    assert problems(rank, two, bins=[["a"], ["b"]], both_bad=True)
    assert problems(rank, two, bins=[["a", "b"]], strength="clearly")


@pytest.mark.parametrize("field", ["note", "notes"])
def test_notes_have_a_limit_in_bytes(field):
    def noted(text):
        return {field: {"a": text} if field == "notes" else text}

    rank(bins=[ABC], **noted("é" * (NOTE_LIMIT // 2)))
    [(name, message)] = problems(rank, bins=[ABC], **noted("é" * (NOTE_LIMIT // 2) + "x"))
    assert name == field
    assert message == "is 4097 bytes long; at most 4096 are stored"


def test_a_demonstration():
    assert write(text=" Yes.\n") == {"text": " Yes.\n", "prompt_flags": {}, "note": ""}


def test_an_own_prompt():
    assert write(True, text="Yes.", prompt="Is it?")["prompt"] == "Is it?"
    assert problems(write, True, text="Yes.") == [("prompt", "the prompt is empty")]
    assert problems(write, True, text="Yes.", prompt=" \n") == [("prompt", "the prompt is empty")]
    assert problems(write, text="Yes.", prompt="Is it?") == [
        ("prompt", "the prompt of this task is given")
    ]


def test_an_empty_demonstration_is_refused():
    assert problems(write, text=" \n\t") == [("text", "the reply is empty")]


def test_a_demonstration_has_a_limit():
    assert len(write(text="x" * TEXT_LIMIT)["text"]) == 65536
    assert problems(write, text="x" * (TEXT_LIMIT + 1))[0][0] == "text"


@pytest.mark.parametrize("text", ["a\0b", "a\ud800", "\udfff"])
def test_what_no_database_stores_is_refused(text):
    assert unstorable(text)
    assert problems(write, text=text)[0][0] == "text"
    assert problems(rank, bins=[ABC], note=text)[0][0] == "note"


def test_emoji_and_control_characters_are_text():
    assert unstorable("👩‍👩‍👧 \x1b[31m \u202e") is None


def test_the_default_questions_are_the_papers():
    assert len(DEFAULT.reply_flags) == 11
    assert len(DEFAULT.prompt_flags) == 11
    assert [flag.key for flag in DEFAULT.reply_flags] == list(FLAG_KEYS)
