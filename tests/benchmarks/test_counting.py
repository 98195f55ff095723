"""Counts that can be checked by hand."""

from benchmarks.counting import (
    Shape,
    causal_pairs,
    decoding,
    forward_flops,
    tree_pairs,
)

# Two layers of width 4; two query heads and one key-value head of width 2; MLP 8; 10 words.
TINY = Shape(layers=2, hidden=4, heads=2, kv_heads=1, head=2, intermediate=8, vocabulary=10)
REFERENCE = Shape(
    layers=16, hidden=2048, heads=32, kv_heads=8, head=64, intermediate=8192, vocabulary=128_256
)


def test_weights_of_a_tiny_model():
    # q 4x4, k and v 4x2 each, o 4x4: 48; gate, up, down 3 x 4x8: 96
    assert TINY.layer_weights == 2 * (48 + 96)
    assert TINY.head_weights == 40
    assert TINY.weights == 288 + 40
    assert TINY.kv_bytes() == 2 * 2 * 1 * 2 * 2


def test_the_reference_model_has_1_2_billion_weights():
    assert round(REFERENCE.layer_weights / 1e6) == 973
    assert round(REFERENCE.weights / 1e9, 2) == 1.24
    assert REFERENCE.kv_bytes() == 32_768


def test_pairs():
    assert causal_pairs(1) == 1
    assert causal_pairs(4) == 1 + 2 + 3 + 4
    assert causal_pairs(2, before=3) == 4 + 5
    # prompt of 2: 1 + 2; a reply of 1 sees 3; a reply of 2 sees 3 and 4
    assert tree_pairs(2, [1, 2]) == 3 + 3 + 7
    # one reply is the whole sequence
    assert tree_pairs(5, [3]) == causal_pairs(8)


def test_forward_flops():
    matrices = 2 * 288 * 3
    attention = 4 * 2 * 2 * 2 * 6
    assert forward_flops(TINY, tokens=3, pairs=6, scored=0) == matrices + attention
    assert forward_flops(TINY, tokens=3, pairs=6, scored=2) == matrices + attention + 2 * 40 * 2


def test_decoding_counts_every_token_that_is_fed_back():
    # prompts of 2 and 3, replies of 2 and 1: one token is fed back, at position 2, seeing 3 tokens
    counts = decoding(TINY, [2, 3], [2, 1], slots=2)
    assert counts.steps == 1
    assert counts.weight_bytes == 328 * 2
    assert counts.kv_bytes == 3 * 16
    assert counts.reply_flops == forward_flops(TINY, 1, 3, 1)
    assert counts.prompt_flops == forward_flops(TINY, 5, 3 + 6, 2)


def test_few_slots_need_more_steps():
    assert decoding(TINY, [1] * 4, [5] * 4, slots=2).steps == 9


def test_floor_takes_the_slower_limit():
    counts = decoding(TINY, [2, 3], [2, 1], slots=2)
    reading = (counts.weight_bytes + counts.kv_bytes) / 10
    assert counts.floor_seconds(1e30, 10) == reading
    everything = counts.prompt_flops + counts.reply_flops
    assert counts.floor_seconds(10, 1e30) == everything / 10
