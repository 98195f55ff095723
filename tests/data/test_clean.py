import random

import pytest

from tercet.data.clean import CleanConfig, clean, contains_pii
from tercet.records import Demonstration, Prompt

OFF = {"pii": False, "dedupe_prefix": 0, "max_per_user": 0, "valid_fraction": 0.0}


def prompt(number, text=None, **fields):
    return Prompt(id=f"p{number:03}", text=text or f"question {number}", **fields)


def words(text):
    return len(text.split())


def ids(records, words=words, **options):
    return [r.id for r in clean(records, CleanConfig(**{**OFF, **options}), words).records]


@pytest.mark.parametrize(
    "text",
    [
        "write to jane.doe+x@mail.example.org please",
        "call +44 20 7946 0958",
        "call (555) 010-4477 now",
        "call 555-010-4477 now",
        "call 555.010.4477",
        "card 4111 1111 1111 1111",  # the usual test number, with a valid check digit
        "card 4111111111111111.",
    ],
)
def test_personal_data_is_seen(text):
    assert contains_pii(text)


@pytest.mark.parametrize(
    "text",
    [
        "the years 1914-1918 and 1939-1945",
        "2 + 3000000 = 3000002",
        "card 4111 1111 1111 1112",  # wrong check digit
        "version 10.2.555.4477",
        "5+12345678-3",
        "100 200 300 400",
        "@home a.b at c",
        "3.14159265358979323846",
    ],
)
def test_ordinary_numbers_are_not_personal(text):
    assert not contains_pii(text)


def test_personal_data_is_dropped_from_training_only():
    records = [
        prompt(0, "mail a@b.com", split="train"),
        prompt(1, "mail a@b.com again", split="valid"),
        prompt(2, "no mail", split="train"),
    ]
    assert ids(records, pii=True) == ["p001", "p002"]


def test_personal_data_in_a_response_counts():
    record = Demonstration(id="d", prompt_id="p", prompt="mail?", response="a@b.com")
    result = clean([record], CleanConfig(valid_fraction=0.0), words)
    assert result.records == [] and result.dropped["pii"] == 1


def test_another_test_for_personal_data_can_be_given():
    records = [prompt(0, "secret plan"), prompt(1, "open plan")]
    config = CleanConfig(valid_fraction=0.0)
    kept = clean(records, config, words, is_private=lambda text: "secret" in text).records
    assert [r.id for r in kept] == ["p001"]


def test_of_a_common_prefix_the_first_prompt_id_stays():
    start = "Write a long story about a dog. "
    records = [prompt(2, start + "b"), prompt(1, start + "c"), prompt(3, start[:-3])]
    assert ids(records, dedupe_prefix=20) == ["p001"]
    assert ids(records, dedupe_prefix=200) == ["p001", "p002", "p003"]


def test_a_short_prompt_is_no_duplicate_of_a_longer_one():
    assert ids([prompt(0, "Write"), prompt(1, "Write a poem")], dedupe_prefix=200) == [
        "p000",
        "p001",
    ]


def test_white_space_and_unicode_form_do_not_hide_a_duplicate():
    records = [prompt(0, "caf\u00e9  now\n"), prompt(1, "cafe\u0301 now")]
    assert ids(records, dedupe_prefix=200) == ["p000"]


def test_two_demonstrations_of_one_prompt_both_stay():
    records = [
        Demonstration(id=i, prompt_id="p", prompt="Where?", response=i) for i in ("d1", "d2")
    ]
    assert ids(records, dedupe_prefix=200) == ["d1", "d2"]


def test_a_user_keeps_only_so_many_prompts():
    records = [prompt(i, user_id="ann") for i in range(5)]
    records += [prompt(5, user_id="bob"), prompt(6), prompt(7)]
    assert ids(records, max_per_user=2) == ["p000", "p001", "p005", "p006", "p007"]


def test_long_prompts_are_dropped_not_cut():
    records = [prompt(0, "a b c"), prompt(1, "a b c d")]
    result = clean(records, CleanConfig(**{**OFF, "max_prompt_tokens": 3}), words)
    assert [r.text for r in result.records] == ["a b c"]
    assert result.dropped == {"pii": 0, "duplicate": 0, "per_user": 0, "too_long": 1}


def test_the_rules_run_in_the_papers_order():
    # The private prompt goes first, so its harmless copy is no duplicate; the duplicate goes
    # before the cap, so it uses up no place; the cap runs before the length.
    records = [
        prompt(0, "same start a@b.com", user_id="u"),
        prompt(1, "same start", user_id="u"),
        prompt(2, "same start", user_id="u"),
        prompt(3, "far too long a text for this", user_id="u"),
        prompt(4, "late", user_id="u"),
    ]
    config = CleanConfig(dedupe_prefix=10, max_per_user=2, max_prompt_tokens=3, valid_fraction=0.0)
    result = clean(records, config, words)
    assert [r.id for r in result.records] == ["p001"]
    assert result.dropped == {"pii": 1, "duplicate": 1, "per_user": 1, "too_long": 1}


def test_the_order_of_the_file_does_not_matter():
    records = [prompt(i, f"start {i % 7} x", user_id=f"u{i % 3}") for i in range(40)]
    config = CleanConfig(max_per_user=2, dedupe_prefix=100)
    expected = clean(records, config, words)
    shuffled = random.Random(0).sample(records, len(records))
    assert clean(shuffled, config, words) == expected
    assert 0 < len(expected.records) < 10


def test_users_are_split_whole_and_given_splits_stay():
    records = [prompt(i, user_id=f"u{i % 10}") for i in range(60)] + [prompt(99, split="test")]
    result = clean(records, CleanConfig(valid_fraction=0.5), words).records
    by_user = {(r.user_id, r.split) for r in result if r.user_id}
    assert len(by_user) == 10
    assert {split for _, split in by_user} == {"train", "valid"}
    assert result[-1].split == "test"


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"valid_fraction is 1\.0"):
        CleanConfig(valid_fraction=1.0)
