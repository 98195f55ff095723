"""The attention "tercet" against each architecture's own attention on separate sequences."""

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from tercet.model import attention
from tercet.model.blocks import BLOCK, block_kinds, block_mask
from tercet.model.load import checkpoint_activations, load_policy, load_scalar, scalar_head
from tercet.model.tree import Document, TokenTree, logprobs, pack, scalars
from tercet.records import InputError
from tests.model.architectures import (
    ARCHITECTURES,
    CONFIGS,
    REFERENCE,
    VOCABULARY,
    WINDOW,
    WINDOWED,
    saved,
    tiny,
)

GENERATOR = torch.Generator().manual_seed(3)


def ids(count: int) -> list[int]:
    return torch.randint(0, VOCABULARY, (count,), generator=GENERATOR).tolist()


DOCUMENTS = [
    Document(ids(9), [ids(5), ids(8), ids(1)]),
    Document(ids(1), [ids(7)]),
    Document(ids(14), prompt_weight=1.0),
]


def tolerance(name: str) -> float:
    return 1e-5 if name in REFERENCE else 1e-10


def gradient_tolerance(name: str, largest: float) -> float:
    """RMS norms and soft-capped softmax compute their backward in float32 inside."""
    return 1e-10 if name in ("gpt2", "gpt_neox") else 1e-5 * max(largest, 1e-6)


def separate_logprobs(model: Any, document: Document) -> list[Tensor]:
    """Log-probs of each whole sequence prompt + reply (without its first token)."""
    rows = []
    for reply in document.replies or [[]]:
        sequence = torch.tensor([[*document.prompt, *reply]])
        logits = model(input_ids=sequence, use_cache=False).logits[0, :-1]
        rows.append(logits.log_softmax(-1).gather(-1, sequence[0, 1:, None]).squeeze(-1))
    return rows


def packed_logprobs(values: Tensor, tree: TokenTree, document: int, branch: int) -> Tensor:
    """The same layout from a tree: prompt tokens, then the tokens of one branch."""
    here = (tree.document == document) & ((tree.branch == 0) | (tree.branch == branch))
    return values[here & (tree.previous >= 0)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_logprobs_equal_separate_sequences(name: str, tmp_path: Any) -> None:
    reference = tiny(name)
    policy = load_policy(saved(name, tmp_path), dtype=torch.float64)
    tree = pack(DOCUMENTS)
    values = logprobs(policy, tree)
    assert values.dtype == torch.float64
    for i, document in enumerate(DOCUMENTS):
        for k, expected in enumerate(separate_logprobs(reference, document)):
            got = packed_logprobs(values, tree, i, k + 1)
            assert torch.allclose(got, expected, rtol=0, atol=tolerance(name))


def test_documents_share_rows_so_that_mixing_would_show() -> None:
    tree = pack(DOCUMENTS)
    assert tree.tokens.shape[0] < len(DOCUMENTS)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_head_applies_what_the_models_forward_applies(name: str, tmp_path: Any) -> None:
    reference = tiny(name)
    policy = load_policy(saved(name, tmp_path), dtype=torch.float64)
    tree = pack([Document(ids(12), prompt_weight=1.0)])
    logits = reference(input_ids=tree.tokens, use_cache=False).logits[0, :-1].double()
    values, entropies = logprobs(policy, tree, temperature=0.7, entropy=True)
    expected = torch.distributions.Categorical(logits=logits / 0.7)
    assert torch.allclose(values[0, 1:], expected.log_prob(tree.tokens[0, 1:]), atol=1e-5)
    assert torch.allclose(entropies[0, 1:], expected.entropy(), atol=1e-5)


def ranking_loss(scores: list[Tensor]) -> Tensor:
    """Mean over all pairs, better ones first."""
    pairs = [
        torch.nn.functional.softplus(scores[b] - scores[a])
        for a, b in combinations(range(len(scores)), 2)
    ]
    return torch.stack(pairs).mean()


def separate_score(model: Any, prompt: Any, reply: Any) -> Tensor:
    sequence = torch.tensor([[*prompt, *reply]])
    return model(input_ids=sequence, use_cache=False).logits[0, -1, 0]


def scalar_pair(name: str, folder: Any) -> tuple[Any, Any]:
    """The scalar model as tercet loads it, and the same weights with the reference attention."""
    path = saved(name, folder)
    ours = load_scalar(path, dtype=torch.float64, init="normal", seed=1)
    theirs = load_scalar(path, dtype=torch.float64, init="normal", seed=1)
    theirs.set_attn_implementation(REFERENCE.get(name, "sdpa"))
    return ours, theirs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ranking_gradients_equal_separate_sequences(name: str, tmp_path: Any) -> None:
    ours, theirs = scalar_pair(name, tmp_path)
    document = DOCUMENTS[0]
    tree = pack([DOCUMENTS[1], document])
    ranking_loss(list(tree.at_last(scalars(ours, tree))[1:])).backward()
    ranking_loss([separate_score(theirs, document.prompt, r) for r in document.replies]).backward()
    for (label, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        expected = torch.zeros_like(b) if b.grad is None else b.grad
        got = torch.zeros_like(a) if a.grad is None else a.grad
        atol = gradient_tolerance(name, float(expected.abs().max()))
        assert torch.allclose(got, expected, rtol=0, atol=atol), label


def test_k_forwards_equal_two_forwards_a_pair(tmp_path: Any) -> None:
    ours, theirs = scalar_pair("gpt2", tmp_path)
    document = Document(ids(6), [ids(n) for n in (3, 5, 2, 4)])
    tree = pack([document])
    ranking_loss(list(tree.at_last(scalars(ours, tree)))).backward()
    pairs = list(combinations(document.replies, 2))
    for better, worse in pairs:
        gap = separate_score(theirs, document.prompt, better)
        gap = gap - separate_score(theirs, document.prompt, worse)
        (torch.nn.functional.softplus(-gap) / len(pairs)).backward()
    for (label, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if label != "classifier.bias":
            assert a.grad is not None and b.grad is not None
            assert torch.allclose(a.grad, b.grad, rtol=0, atol=1e-10), label
    assert float(scalar_head(ours).bias.grad.abs()) < 1e-12


@pytest.mark.parametrize("name", WINDOWED)
def test_ignoring_the_window_would_show(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(saved(name, tmp_path), dtype=torch.float64)
    with torch.no_grad():
        right = logprobs(policy, pack(DOCUMENTS))
        dense = attention.Layout.dense_mask
        monkeypatch.setattr(attention.Layout, "dense_mask", lambda self, window: dense(self, None))
        wrong = logprobs(policy, pack(DOCUMENTS))
    assert float((right - wrong).abs().max()) > 1e-3


def test_ignoring_the_soft_cap_would_show(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(saved("gemma2", tmp_path), dtype=torch.float64)
    capped = attention._capped
    with torch.no_grad():
        right = logprobs(policy, pack(DOCUMENTS))
        monkeypatch.setattr(attention, "_capped", lambda *a: capped(*a[:-1], 1e6))
        wrong = logprobs(policy, pack(DOCUMENTS))
    assert float((right - wrong).abs().max()) > 1e-3


def test_window_counts_positions_not_places_in_the_row() -> None:
    """Second reply: its first token sits 6 places after the prompt's end, but 1 position."""
    tree = pack([Document([1, 2, 3], [[4] * 5, [5, 6]])])
    mask = tree.layout.dense_mask(WINDOW)[0, 0]
    assert mask[8].tolist() == [True] * 3 + [False] * 5 + [True, False]
    assert mask[9].tolist() == [False, True, True] + [False] * 5 + [True, True]


def test_masks_are_built_once_a_tree_and_window(tmp_path: Any) -> None:
    policy = load_policy(saved("gemma3_text", tmp_path))
    tree = pack(DOCUMENTS)
    with torch.no_grad():
        logprobs(policy, tree)
        masks = dict(tree.layout.masks)
        logprobs(policy, tree)
    assert set(masks) == {("dense", None), ("dense", WINDOW)}
    assert all(tree.layout.masks[key] is mask for key, mask in masks.items())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt"])
def test_gradient_checkpointing_changes_nothing(name: str, tmp_path: Any) -> None:
    path = saved(name, tmp_path)
    gradients = []
    for checkpointing in (False, True):
        policy = load_policy(path, dtype=torch.float64).train()
        if checkpointing:
            checkpoint_activations(policy)
        tree = pack(DOCUMENTS)
        (logprobs(policy, tree) * tree.weight).sum().backward()
        gradients.append([p.grad for p in policy.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_without_tree_or_cache_view_the_attention_refuses(tmp_path: Any) -> None:
    policy = load_policy(saved("llama", tmp_path))
    with pytest.raises(InputError, match="tree= or cache_view="):
        policy(input_ids=torch.tensor([[1, 2]]), use_cache=False)


def test_cache_view_takes_over_attention(tmp_path: Any) -> None:
    policy = load_policy(saved("gemma2", tmp_path))
    calls = []

    class View:
        def attend(
            self, module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any
        ) -> Tensor:
            calls.append((module.layer_idx, tuple(query.shape), tuple(key.shape), rest))
            return torch.zeros_like(query).transpose(1, 2)

    with torch.no_grad():
        policy(
            input_ids=torch.tensor([[1, 2, 3]]),
            position_ids=torch.tensor([[0, 1, 2]]),
            cache_view=View(),
            use_cache=False,
        )
    query, key = (1, 4, 3, 16), (1, 2, 3, 16)
    assert calls == [(0, query, key, (0.25, WINDOW, 1.0)), (1, query, key, (0.25, None, 1.0))]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"attention_mask": torch.zeros(1, 1, 2, 2)}, "attention_mask"),
        ({"dropout": 0.1}, "dropout"),
        ({"is_causal": False}, "not causal"),
    ],
)
def test_what_it_cannot_honour_is_refused_by_name(extra: dict[str, Any], message: str) -> None:
    module = tiny("llama").model.layers[0].self_attn
    x = torch.zeros(1, 4, 2, 16)
    tree = pack([Document([1, 2])])
    with pytest.raises(InputError, match=f'"llama".*{message}'):
        attention.tree_attention(module, x, x, x, tree=tree, **extra)


def long_tree() -> TokenTree:
    documents = [
        Document(ids(300), [ids(200), ids(390), ids(10)]),
        Document(ids(5), [ids(1)] * 3),
        Document(ids(150), [ids(270)]),
    ]
    return pack(documents, row_length=1536, rows="gpu")


@pytest.mark.parametrize("window", [None, 4, 200])
def test_block_kinds_cover_the_dense_mask(window: int | None) -> None:
    tree = long_tree()
    assert tree.tokens.shape == (1, 1536)
    dense = tree.layout.dense_mask(window)[:, 0]
    blocks = dense.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).transpose(2, 3)
    visible, full = block_kinds(tree.document, tree.branch, tree.position, window)
    some, every = blocks.flatten(3).any(-1), blocks.flatten(3).all(-1)
    assert not (some & ~visible).any() and not (full & ~every).any()
    assert int(visible.sum()) <= (1.6 if window == 4 else 1.3) * int(some.sum())
    if window is None:
        assert int(full.sum()) >= 0.6 * int(every.sum()) > 0


@pytest.mark.parametrize("window", [None, 4, 200])
def test_block_mask_gives_the_dense_mask(window: int | None) -> None:
    tree = pack([Document(ids(40), [ids(70), ids(60)]), Document(ids(33))], rows="gpu")
    length = tree.tokens.shape[1]
    mask = block_mask(tree.document, tree.branch, tree.position, window, branches=3)
    place = torch.arange(length)
    zero = torch.zeros((), dtype=torch.long)
    dense = mask.mask_mod(zero, zero, place[:, None], place[None, :])
    assert torch.equal(dense, tree.layout.dense_mask(window)[0, 0])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("options", [{}, {"window": 4}, {"softcap": 1.0}])
def test_flex_path_equals_dense_path(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlexAttention interpreted on the CPU; tests/gpu compiles it."""
    monkeypatch.setattr(attention, "_compiled_flex", lambda: flex_attention)
    tree = pack([Document(ids(40), [ids(70), ids(60)]), Document(ids(33))], rows="gpu")
    window, softcap = options.get("window"), options.get("softcap")
    torch.manual_seed(0)
    shapes = [(1, heads, tree.tokens.shape[1], 16) for heads in (4, 2, 2)]
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    module = tiny("llama").model.layers[0].self_attn
    got = attention._flex(*inputs, tree.layout.block_mask(window), 0.25, softcap).transpose(1, 2)
    expected, _ = attention.tree_attention(
        module, *inputs, scaling=0.25, tree=tree, sliding_window=window, softcap=softcap
    )
    assert torch.allclose(got, expected, atol=1e-10)


def test_every_architecture_of_the_readme_is_tested() -> None:
    from tercet.model.support import VERIFIED

    assert set(CONFIGS) == set(VERIFIED)
