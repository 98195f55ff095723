"""Packing by hand, and the chunked head against plain log-softmax."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.model.load import load_policy, load_scalar
from tercet.model.tree import (
    Document,
    logprobs,
    pack,
    scalars,
)
from tercet.records import InputError
from tests.model.architectures import saved

TWO_REPLIES = Document([7, 8, 9], [[1, 2], [3]])


def test_two_replies_by_hand() -> None:
    tree = pack([TWO_REPLIES])
    assert tree.tokens.tolist() == [[7, 8, 9, 1, 2, 3]]
    assert tree.position.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert tree.branch.tolist() == [[0, 0, 0, 1, 1, 2]]
    assert tree.previous.tolist() == [[-1, 0, 1, 2, 3, 2]]
    assert tree.weight.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert tree.reply.tolist() == [[-1, -1, -1, 0, 0, 1]]
    assert tree.offset.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert tree.last.tolist() == [4, 5]
    assert tree.lengths.tolist() == [2, 1]


def test_pretraining_window_weighs_every_token_but_the_first() -> None:
    tree = pack([Document([5, 6, 7], prompt_weight=0.5)])
    assert tree.weight.tolist() == [[0, 0.5, 0.5]]
    assert tree.last.numel() == 0 and tree.mask_BT.shape == (0, 0)


def test_replies_are_gathered_in_order_and_padded() -> None:
    tree = pack([Document([4], [[5]]), TWO_REPLIES])
    values = torch.arange(tree.tokens.numel()).view_as(tree.tokens) * 1.0
    assert tree.tokens.tolist() == [[4, 5, 7, 8, 9, 1, 2, 3]]
    assert tree.replies(values, fill=-1.0).tolist() == [[1, -1], [5, 6], [7, -1]]
    assert tree.mask_BT.tolist() == [[True, False], [True, True], [True, False]]
    assert tree.at_last(values).tolist() == [1, 6, 7]
    assert tree.replies(tree.at_previous(values)).tolist() == [[0, 0], [4, 5], [4, 0]]


def test_nan_outside_the_replies_reaches_neither_value_nor_gradient() -> None:
    tree = pack([Document([4, 4], [[5], [6, 7]]), Document([1] * 5)], row_length=5)
    values = torch.full(tree.tokens.shape, float("nan"))
    values[tree.reply >= 0] = 2.0
    values.requires_grad_()
    total = tree.replies(values).sum()
    total.backward()
    assert float(total.detach()) == 6.0
    assert torch.equal(values.grad, (tree.reply >= 0).float())


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(1, 6), max_size=3)),
        min_size=1,
        max_size=12,
    ),
    st.one_of(st.none(), st.integers(1, 60)),
    st.sampled_from(["cpu", "gpu"]),
)
def test_every_token_is_packed_once_in_its_place(
    shapes: list[tuple[int, list[int]]], row_length: int | None, rows: Any
) -> None:
    names = iter(range(10_000))
    documents = [
        Document(
            [next(names) for _ in range(p)], [[next(names) for _ in range(n)] for n in replies]
        )
        for p, replies in shapes
    ]
    tree = pack(documents, row_length, rows)
    real = tree.document >= 0
    assert sorted(tree.tokens[real].tolist()) == list(range(sum(map(len, documents))))
    flat = tree.tokens.flatten()
    for row in range(tree.tokens.shape[0]):
        kept = tree.document[row][real[row]]
        assert (kept.diff() >= 0).all()  # the block mask relies on ascending documents
        assert real[row].long().diff().le(0).all()  # filler only at the end
    for i, document in enumerate(documents):
        for k, reply in enumerate(document.replies or [[]]):
            here = (tree.document == i) & ((tree.branch == 0) | (tree.branch == k + 1))
            sequence = [*document.prompt, *reply]
            assert tree.tokens[here].tolist() == sequence
            assert tree.position[here].tolist() == list(range(len(sequence)))
            previous = tree.previous[here]
            assert previous[0] == -1 and flat[previous[1:]].tolist() == sequence[:-1]
    count = sum(len(d.replies) for d in documents)
    assert flat[tree.last].tolist() == [r[-1] for d in documents for r in d.replies]
    assert tree.last.numel() == tree.lengths.numel() == count


def test_filler_sees_only_filler_and_is_predicted_by_nothing() -> None:
    tree = pack([Document([1] * 5), Document([2] * 4)], row_length=5)
    filler = tree.document == -1
    assert filler.tolist() == [[False] * 5, [False] * 4 + [True]]
    mask = tree.layout.dense_mask(None)[1, 0]
    assert mask[4].tolist() == [False] * 4 + [True]
    assert not mask[:4, 4].any()
    assert (tree.previous[filler] == -1).all() and (tree.weight[filler] == 0).all()


@pytest.mark.parametrize(
    ("lengths", "shape"),
    [
        ([10] * 100, (100, 10)),  # equal documents: a row each, no filler
        ([10] + [7] * 99, (51, 14)),  # two 7s a row: 714 places for 703 tokens
        ([10, 3], (1, 13)),
    ],
)
def test_cpu_rows_are_short_and_nearly_full(lengths: list[int], shape: tuple[int, int]) -> None:
    assert pack([Document([1] * n) for n in lengths]).tokens.shape == shape


@pytest.mark.parametrize(("total", "length"), [(200, 256), (300, 512), (600, 1024), (1000, 1024)])
def test_gpu_rows_have_one_of_three_lengths(total: int, length: int) -> None:
    documents = [Document([1] * (total // 10)) for _ in range(10)]
    assert pack(documents, row_length=1024, rows="gpu").tokens.shape == (1, length)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([Document([1]), Document([])], "document 1 has an empty prompt"),
        ([Document([1], [[2], []])], "reply 1 of document 0 is empty"),
        ([], "nothing to pack"),
    ],
)
def test_impossible_documents_are_refused(documents: list[Document], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pack(documents)


def test_a_tree_counts_its_filler() -> None:
    tree = pack([Document([1] * 100, [[2] * 20])], rows="gpu")
    assert tree.filled == 120 and tree.filler == pytest.approx(8 / 128)
    assert pack([TWO_REPLIES]).filler == 0.0


def test_chosen_tokens_by_hand() -> None:
    tree = pack([TWO_REPLIES, Document([4, 5], prompt_weight=1.0)], row_length=8)
    assert tree.select("all").tolist() == [1, 2, 3, 4, 5, 7]
    assert tree.select("replies").tolist() == [3, 4, 5]
    assert tree.select("weighted").tolist() == [3, 4, 5, 7]


def test_packed_loss_and_gradient_equal_one_document_at_a_time(tmp_path: Any) -> None:
    policy = load_policy(saved("llama", tmp_path))
    documents = [Document([3, 4], [[5, 6, 2]]), Document([7], [[8, 2]]), Document([9] * 6)]
    gradients = []
    for batches in ([documents], [[document] for document in documents]):
        policy.zero_grad()
        for batch in batches:
            tree = pack(batch)
            (-(tree.weight * logprobs(policy, tree, where="weighted")).sum()).backward()
        gradients.append([p.grad for p in policy.parameters()])
    for packed, alone in zip(*gradients, strict=True):
        assert torch.allclose(packed, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row_length", [12, 29, 64])
def test_neighbours_and_filler_change_nothing(row_length: int, tmp_path: Any) -> None:
    model = load_scalar(saved("qwen2", tmp_path), init="normal")
    document = Document([3, 4, 5, 6], [[7, 8], [9, 10, 11]])
    with torch.no_grad():
        alone_tree = pack([document])
        alone = alone_tree.replies(scalars(model, alone_tree))
        tree = pack([Document([1] * 12), document, Document([2] * 5)], row_length=row_length)
        packed = tree.replies(scalars(model, tree))
    assert torch.allclose(alone, packed, atol=1e-5)


def test_bfloat16_stays_near_float32(tmp_path: Any) -> None:
    path = saved("llama", tmp_path, initializer_range=0.05)
    tree = pack([TWO_REPLIES, Document([5] * 9, prompt_weight=1.0)])
    with torch.no_grad():
        precise = logprobs(load_policy(path), tree)
        rough = logprobs(load_policy(path, dtype=torch.bfloat16), tree)
    assert rough.dtype == torch.float32
    assert torch.allclose(precise, rough, atol=2e-2)


def test_a_reward_is_read_at_the_last_token_and_not_after(tmp_path: Any) -> None:
    """I25: tokens after EOS belong to nobody; EOS itself decides."""
    model = load_scalar(saved("llama", tmp_path), init="normal")
    scores = []
    for eos, after in ((2, 50), (2, 51), (3, 50)):
        tree = pack([Document([7, 8], [[9, eos]]), Document([after] * 3)])
        with torch.no_grad():
            scores.append(float(tree.at_last(scalars(model, tree))[0]))
    assert scores[0] == scores[1] != scores[2]


def test_where_limits_what_is_computed(tmp_path: Any) -> None:
    policy = load_policy(saved("gpt2", tmp_path))
    tree = pack([TWO_REPLIES, Document([5] * 4, prompt_weight=1.0)])
    with torch.no_grad():
        everything = logprobs(policy, tree)
        weighted = logprobs(policy, tree, where="weighted")
        replies = logprobs(policy, tree, where="replies")
    zero = torch.zeros(())
    assert torch.allclose(weighted, torch.where(tree.weight > 0, everything, zero), atol=1e-5)
    assert torch.allclose(replies, torch.where(tree.reply >= 0, everything, zero), atol=1e-5)
    assert torch.equal(everything != 0, tree.previous >= 0)


def test_probabilities_over_the_vocabulary_sum_to_one(tmp_path: Any) -> None:
    """I1, I9: one reply a vocabulary entry."""
    policy = load_policy(saved("gpt2", tmp_path))
    tree = pack([Document([3, 4], [[v] for v in range(policy.config.vocab_size)])])
    with torch.no_grad():
        logp = logprobs(policy, tree, where="replies")
    assert float(tree.at_last(logp).exp().sum()) == pytest.approx(1.0, abs=1e-5)
