"""Device state of the replies in the making: tokens are appended, rows end, idle rows stay."""

import torch

from tercet.rollout.sampling import uniforms
from tercet.rollout.slots import Slots

CPU = torch.device("cpu")
VOCABULARY = 10


def three(limits: tuple[int, int, int] = (4, 4, 4)) -> Slots:
    """Three replies of at most four tokens, whose prompts end in 5, 6 and 7; 9 stops them."""
    slots = Slots(3, 4, VOCABULARY, CPU)
    slots.start([9])
    a, b, c = limits
    slots.place([0, 1, 2], [(5, 2, 77, a), (6, 0, 78, b), (7, 3, 79, c)])
    return slots


def step(slots: Slots, *tokens: int) -> None:
    new = torch.tensor(tokens)
    slots.advance(new, -new.float())


def taken(slots: Slots, *which: int) -> list[tuple[list[int], list[float]]]:
    return [(row.tolist(), logp.tolist()) for row, logp in slots.take(list(which)).read()]


def everything(slots: Slots) -> list[torch.Tensor]:
    """All that a reply may notice; the last column is where idle rows write."""
    parts = (slots.whole, slots.live, slots.tokens[:, :-1], slots.logprobs[:, :-1])
    return [part.clone() for part in parts]


def equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_placed_reply_begins_with_the_last_prompt_token() -> None:
    slots = three()
    assert slots.token.tolist() == [5, 6, 7]
    assert slots.position.tolist() == [2, 0, 3]
    assert slots.stream.tolist() == [77, 78, 79]
    assert slots.count.tolist() == [0, 0, 0]
    assert slots.dead(3) == []


def test_a_live_row_appends_and_feeds_its_token_next() -> None:
    slots = three()
    step(slots, 3, 4, 8)
    step(slots, 1, 2, 0)
    assert slots.token.tolist() == [1, 2, 0]
    assert slots.position.tolist() == [4, 2, 5]
    assert taken(slots, 0, 2) == [([3, 1], [-3.0, -1.0]), ([8, 0], [-8.0, 0.0])]


def test_a_row_ends_with_a_stop_token_or_at_its_limit() -> None:
    slots = three(limits=(2, 1, 4))
    step(slots, 3, 4, 9)
    assert slots.dead(3) == [1, 2]
    step(slots, 9, 1, 1)  # the stop token comes as the last one allowed
    assert slots.dead(3) == [0, 1, 2]
    assert [tokens for tokens, _ in taken(slots, 0, 1, 2)] == [[3, 9], [4], [9]]


def test_an_idle_row_stays_as_it_is() -> None:
    slots = three(limits=(4, 1, 4))
    step(slots, 3, 4, 9)
    before = everything(slots)
    step(slots, 1, 1, 1)
    after = everything(slots)
    assert slots.count.tolist() == [2, 1, 1]
    assert slots.token.tolist() == [1, 4, 9]
    assert slots.position.tolist() == [4, 1, 4]
    for old, new in zip(before[1:], after[1:], strict=True):
        assert torch.equal(old[1:], new[1:])


def test_a_full_reply_survives_while_its_slot_idles() -> None:
    """Idle rows write somewhere: to a column of their own, not over the last token."""
    slots = three()
    for token in (1, 2, 3, 4):
        step(slots, token, token, token)
    step(slots, 8, 8, 8)
    assert taken(slots, 1) == [([1, 2, 3, 4], [-1.0, -2.0, -3.0, -4.0])]


def test_steps_on_idle_slots_change_nothing() -> None:
    """The runs before a capture once overwrote the first token that a placed reply feeds."""
    slots = three(limits=(4, 1, 4))
    step(slots, 3, 4, 8)
    before = everything(slots)
    undo = slots.idle()
    assert slots.dead(3) == [0, 1, 2]
    step(slots, 1, 2, 9)
    step(slots, 6, 6, 6)
    undo()
    assert equal(everything(slots), before)
    assert slots.dead(3) == [1]


def test_a_step_of_some_rows_leaves_the_others() -> None:
    slots = three()
    step(slots, 1, 2)
    assert slots.count.tolist() == [1, 1, 0]
    assert slots.token.tolist() == [1, 2, 7]
    assert slots.dead(2) == []


def test_a_placed_slot_starts_anew() -> None:
    slots = three(limits=(1, 4, 4))
    step(slots, 3, 4, 8)
    slots.place([0], [(2, 6, 80, 3)])
    assert slots.whole[:, 0].tolist() == [2, 6, 80, 0, 3]
    step(slots, 1, 1, 1)
    assert [tokens for tokens, _ in taken(slots, 0, 1)] == [[1], [4, 1]]


def test_a_moved_reply_goes_on_in_its_new_slot() -> None:
    slots = three(limits=(1, 4, 4))
    step(slots, 3, 4, 8)
    slots.move([2], [0])
    assert slots.dead(3) == [2]
    assert slots.whole[:, 0].tolist() == [8, 4, 79, 1, 4]
    step(slots, 1, 2)
    assert taken(slots, 0, 1) == [([8, 1], [-8.0, -1.0]), ([4, 2], [-4.0, -2.0])]


def test_what_was_taken_stays_when_the_slot_is_used_again() -> None:
    slots = three(limits=(1, 4, 4))
    step(slots, 3, 4, 8)
    kept = slots.take([0])
    slots.place([0], [(2, 6, 80, 3)])
    step(slots, 1, 1, 1)
    assert kept.read()[0][0].tolist() == [3]


def test_stop_ids_outside_the_vocabulary_are_ignored() -> None:
    slots = three()
    slots.start([-1, 3, VOCABULARY])
    assert slots.is_stop.nonzero().flatten().tolist() == [3]
    slots.start([])
    assert not slots.is_stop.any()


def test_a_call_begins_with_idle_slots() -> None:
    slots = three()
    slots.start([])
    assert slots.dead(3) == [0, 1, 2]


def test_noise_is_that_of_the_stream_and_the_position() -> None:
    slots = three()
    expected = uniforms(torch.tensor([77, 78]), torch.tensor([2, 0]))
    assert torch.equal(slots.noise(2), expected)
    step(slots, 1, 1)
    expected = uniforms(torch.tensor([77, 78, 79]), torch.tensor([3, 1, 3]))
    assert torch.equal(slots.noise(3), expected)
