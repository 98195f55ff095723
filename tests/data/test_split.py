from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.data.split import assign, split_of, stable_key
from tercet.records import Demonstration, Prompt, RankedReply, Ranking

THREE = {"train": 0.8, "valid": 0.1, "test": 0.1}


def demonstration(number, **fields):
    given = {"id": f"d{number}", "prompt_id": f"p{number}", "prompt": "?", "response": "!"}
    return Demonstration(**given, **fields)


def test_a_split_never_changes():
    # printf 'tercet\0user-0' | sha256sum: b18e..., f69c..., 09f0..., dd28..., d0cd..., as fractions
    # of 2^16 .69 .96 .04 .86 .82 .17 .51 .16
    assert [split_of(f"user-{i}", THREE) for i in range(8)] == [
        "train", "test", "train", "valid", "valid", "train", "train", "train",
    ]  # fmt: skip


def test_shares_are_as_asked():
    counts = Counter(split_of(str(i), THREE) for i in range(5000))
    assert abs(counts["train"] - 4000) < 120  # 4 standard deviations: 4 * sqrt(5000 * .8 * .2)
    assert abs(counts["valid"] - 500) < 85
    assert abs(counts["test"] - 500) < 85


def test_the_salt_makes_another_split():
    other = [split_of(str(i), THREE, salt="b") for i in range(100)]
    assert other != [split_of(str(i), THREE) for i in range(100)]


@settings(max_examples=50)
@given(st.text(), st.floats(0, 1))
def test_every_key_has_a_split(key, share):
    assert split_of(key, {"train": 1 - share, "valid": share}) in ("train", "valid")


def test_all_of_a_user_is_on_one_side():
    records = assign([demonstration(i, user_id=f"u{i % 5}") for i in range(100)])
    for user in range(5):
        assert len({r.split for r in records if r.user_id == f"u{user}"}) == 1


def test_without_a_user_the_prompt_decides_in_every_kind_of_record():
    reply = [RankedReply(id=str(i), text="x", rank=1) for i in range(2)]
    for number in range(20):
        p = f"p{number}"
        ranking = Ranking(id="r", prompt_id=p, prompt="?", replies=reply, judge="person")
        (a,) = assign([demonstration(number)])
        (b,) = assign([ranking])
        (c,) = assign([Prompt(id=p, text="?")])
        assert a.split == b.split == c.split


def test_a_ranking_follows_its_prompts_user():
    reply = [RankedReply(id=str(i), text="x", rank=1) for i in range(2)]
    users = {f"p{i}": "one-person" for i in range(20)}
    rankings = [
        Ranking(id="r", prompt_id=p, prompt="?", replies=reply, judge="person") for p in users
    ]
    assert {r.split for r in assign(rankings, users=users)} == {split_of("one-person")}


def test_a_given_split_is_kept():
    (record,) = assign([demonstration(0, split="test")])
    assert record.split == "test"


def test_a_stable_key_depends_on_the_name_alone():
    assert stable_key("abc") == 0xBA7816BF8F01CFEA >> 2  # sha256("abc"), FIPS 180-2 appendix B.1
