"""The order of replies, and which prompts are read together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tercet.model.load import load_policy
from tercet.records import InputError
from tercet.rollout import Engine, engine, generate
from tercet.rollout.queue import (
    Reply,
    Request,
    check_requests,
    make_requests,
    pack_length,
    replies,
)
from tercet.rollout.sampling import stream
from tests.model.architectures import VOCABULARY, saved


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("policies")
    return load_policy(saved("llama", folder, initializer_range=0.1))


class FakeReader:
    """Notes what was read together; the number of the read stands for its keys and values."""

    def __init__(self) -> None:
        self.reads: list[tuple[list[list[int]], int]] = []

    def __call__(self, prompts: list[Sequence[int]], length: int) -> Any:
        self.reads.append(([list(prompt) for prompt in prompts], length))
        return len(self.reads) - 1


def requests(*lengths: int, samples: int = 1) -> list[Request]:
    """Prompt i is i, i, ...: 9 tokens at most each reply, key 100 + i."""
    return [Request([i] * length, samples, 9, 100 + i) for i, length in enumerate(lengths)]


def queued(found: list[Request], budget: int) -> tuple[list[Reply], FakeReader]:
    reader = FakeReader()
    return list(replies(found, 5, budget, reader)), reader


def test_the_longest_prompt_comes_first_and_equal_ones_keep_their_order() -> None:
    found, _ = queued(requests(3, 1, 6, 3), budget=16)
    assert [reply.prompt for reply in found] == [2, 0, 3, 1]


def test_a_prompt_is_read_once_whatever_its_samples() -> None:
    found, reader = queued(requests(3, 6, samples=3), budget=16)
    # 2 + 5 tokens fill a quarter of 16; the last token of a prompt is left to the first step.
    assert reader.reads == [([[1] * 5], 4), ([[0] * 2], 4)]
    assert [(r.prompt, r.sample, r.read, r.place) for r in found] == [
        *((1, sample, 0, 0) for sample in range(3)),
        *((0, sample, 1, 0) for sample in range(3)),
    ]


def test_prompts_of_one_pack_have_their_places() -> None:
    found, reader = queued(requests(3, 1, 6, 2), budget=8)
    # 5 + 2 + 1 tokens fill the budget; a prompt of one token is not read at all.
    assert reader.reads == [([[2] * 5, [0] * 2, [3]], 8)]
    assert [(r.prompt, r.read, r.place) for r in found[:3]] == [(2, 0, 0), (0, 0, 1), (3, 0, 2)]
    assert (found[3].prompt, found[3].read) == (1, None)


def test_a_pack_stays_within_its_length_unless_one_prompt_is_longer() -> None:
    _, reader = queued(requests(3, 1, 6, 2), budget=4)
    # 8 tokens left: length 4, and the first prompt alone is longer. 3 left: 2. 1 left: 1.
    assert reader.reads == [([[2] * 5], 4), ([[0] * 2], 2), ([[3]], 1)]


def test_prompts_of_one_token_are_never_read() -> None:
    found, reader = queued(requests(1, 1), budget=8)
    assert reader.reads == []
    assert [reply.state[:2] for reply in found] == [(0, 0), (1, 0)]


def test_a_prompt_without_samples_is_left_out() -> None:
    found, reader = queued([Request([7] * 5, 0, 9, 0), Request([8] * 3, 1, 9, 1)], budget=8)
    assert [reply.prompt for reply in found] == [1]
    assert reader.reads == [([[8, 8]], 2)]


def test_prompts_are_read_when_first_needed() -> None:
    reader = FakeReader()
    queue = replies(requests(6, 6), 5, 4, reader)
    assert len(reader.reads) == 0
    next(queue)
    assert len(reader.reads) == 1
    next(queue)
    assert len(reader.reads) == 2


def test_a_reply_starts_with_the_last_prompt_token_and_the_noise_of_its_key() -> None:
    found, _ = queued([Request([4, 5, 6], 2, 9, 100)], budget=8)
    assert [r.state for r in found] == [(6, 2, stream(5, 100, sample), 9) for sample in (0, 1)]


@pytest.mark.parametrize(
    ("tokens", "length"), [(99, 16), (16, 16), (15, 8), (8, 8), (7, 4), (4, 4), (1, 4), (0, 4)]
)
def test_a_pack_has_one_of_three_lengths(tokens: int, length: int) -> None:
    assert pack_length(tokens, 16) == length


def test_one_number_counts_for_all_prompts() -> None:
    found = make_requests([[5], [6]], 3, 8, None)
    assert found == [Request([5], 3, 8, 0), Request([6], 3, 8, 1)]


def test_numbers_may_be_given_for_each_prompt() -> None:
    found = make_requests([[5], [6]], [3, 0], [8, 9], [70, 71])
    assert found == [Request([5], 3, 8, 70), Request([6], 0, 9, 71)]


@pytest.mark.parametrize(
    ("samples", "limits", "keys", "words"),
    [
        ([1], 8, None, "2 prompts, but 1 samples, 2 max_new_tokens and 2 keys"),
        (1, [8, 8, 8], None, "2 prompts, but 2 samples, 3 max_new_tokens and 2 keys"),
        (1, 8, [1], "2 prompts, but 2 samples, 2 max_new_tokens and 1 keys"),
    ],
)
def test_one_number_a_prompt_is_asked_for(samples: Any, limits: Any, keys: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_requests([[5], [6]], samples, limits, keys)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (Request([5], -1, 4, 0), "samples is -1"),
        (Request([5], 1, 0, 0), "max_new_tokens is 0"),
        (Request([], 1, 4, 0), "prompt 1 has no tokens"),
        (Request([VOCABULARY], 1, 4, 0), "prompt 1 has token ids outside 0..60"),
        (Request([-1], 1, 4, 0), "prompt 1 has token ids outside 0..60"),
        # The context holds 64: 4 + 61 do not fit, though prompt 0 is the longer one.
        (Request([5] * 4, 1, 61, 0), "prompt 1 has 4 tokens and max_new_tokens is 61"),
    ],
)
def test_what_a_model_cannot_be_asked_is_refused(llama: Any, wrong: Request, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_requests(llama, [Request([5] * 30, 1, 4, 0), wrong])


def test_what_fits_is_not_refused(llama: Any) -> None:
    check_requests(llama, [])
    check_requests(llama, [Request([5] * 4, 1, 60, 0), Request([0, VOCABULARY - 1], 0, 1, 0)])


def test_every_prompt_has_a_limit_of_its_own(llama: Any) -> None:
    limits = [7, 1, 12, 4, 2, 12, 1, 5]
    prompts = [[5 + i] * (1 + i % 4) for i in range(8)]
    found = generate(llama, prompts, max_new_tokens=limits, stop_ids=[], slots=3)
    assert [len(r.tokens) for r in found] == limits
    # A reply under a lower limit is the beginning of the same reply.
    free = generate(llama, prompts, max_new_tokens=12, stop_ids=[], slots=3)
    assert [r.tokens for r in found] == [
        r.tokens[:limit] for r, limit in zip(free, limits, strict=True)
    ]


def test_replies_do_not_depend_on_how_prompts_are_packed(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[5 + i] * (1 + 3 * i % 11) for i in range(9)]
    options: dict[str, Any] = {"samples": 2, "max_new_tokens": 6, "stop_ids": [2], "slots": 4}
    expected = [r.tokens for r in Engine(llama).generate(prompts, **options)]
    for budget in (4, 12):
        monkeypatch.setitem(engine.READ_TOKENS, "cpu", budget)
        assert [r.tokens for r in Engine(llama).generate(prompts, **options)] == expected
