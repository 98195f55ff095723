"""Partial tuning and LoRA: what trains, what stays bit-identical, and what merging gives."""

from typing import Any

import pytest
import torch

from tercet.model.adapt import adapt, merge
from tercet.model.load import (
    load_policy,
    load_scalar,
    residual_dropout,
    save_model,
    scalar_head,
    unwrap,
)
from tercet.model.tree import Document, logprobs, pack, scalars
from tercet.records import InputError
from tests.model.architectures import saved

DOCUMENTS = [Document([3, 4, 5], [[6, 7, 2], [8, 2]])]


def trainable(model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def step(model: Any, values: Any) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (values() ** 2).sum().backward()
        optimizer.step()


MODES = [
    ("gpt2", "full", 28),
    ("gpt2", "last_n_layers:1", 12 + 2),
    ("gpt2", "bitfit", 13),
    ("gpt2", "norms", 10),
    ("gpt2", "embeddings", 2),
    ("gpt2", "head", 1),
    ("gpt2", r"regex:h\.0\.mlp", 4),
    ("llama", "last_n_layers:2", 2 * 9 + 1 + 1),
    ("llama", "norms", 5),
    ("llama", "head", 1),
]


@pytest.mark.parametrize(("name", "mode", "count"), MODES)
def test_a_mode_trains_its_parameters_and_no_bit_of_the_others(
    name: str, mode: str, count: int, tmp_path: Any
) -> None:
    policy = adapt(load_policy(saved(name, tmp_path)), mode)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    tree = pack(DOCUMENTS)
    step(policy, lambda: logprobs(policy, tree))
    changed = {n for n, p in policy.named_parameters() if not torch.equal(p, before[n])}
    assert len(trainable(policy)) == count
    assert changed == trainable(policy)


def test_tied_embedding_and_head_are_one_tensor_for_both_modes(tmp_path: Any) -> None:
    path = saved("gpt2", tmp_path)
    assert "transformer.wte.weight" in trainable(adapt(load_policy(path), "embeddings"))
    assert trainable(adapt(load_policy(path), "head")) == {"transformer.wte.weight"}
    assert trainable(adapt(load_policy(path), "regex:lm_head")) == {"transformer.wte.weight"}


@pytest.mark.parametrize("mode", ["norms", "bitfit", "head", "lora:2"])
def test_a_scalar_head_trains_in_every_mode(mode: str, tmp_path: Any) -> None:
    model = adapt(load_scalar(saved("gpt2", tmp_path), init="normal"), mode)
    assert all(p.requires_grad for p in scalar_head(model).parameters())
    assert not unwrap(model).transformer.wte.weight.requires_grad


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("bitfit", "selects no parameter of this llama model"),
        ("regex:nowhere", "selects no parameter"),
        ("regex:(", "not a regular expression"),
        ("last_n_layers:3", "from 1 to 2"),
        ("most", "is not one of full"),
        ("regex", "is not one of full"),
        ("norms:2", "is not one of full"),
        ("lora:x", "write it like lora:8"),
        ("lora:2,rank=3", 'no option "rank"'),
        ("lora:2,targets=o_project", "no linear layer .* down_proj"),
    ],
)
def test_wrong_modes_are_refused(mode: str, message: str, tmp_path: Any) -> None:
    with pytest.raises(InputError, match=message):
        adapt(load_policy(saved("llama", tmp_path)), mode)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt", "phi3"])
def test_lora_starts_as_the_identity_and_merges_to_the_same_model(name: str, tmp_path: Any) -> None:
    path = saved(name, tmp_path)
    tree = pack(DOCUMENTS)
    base = load_policy(path)
    policy = adapt(load_policy(path), "lora:4,alpha=32")
    with torch.no_grad():
        expected = logprobs(base, tree)
        assert torch.equal(logprobs(policy, tree), expected)
    step(policy, lambda: 0.01 * logprobs(policy, tree))
    with torch.no_grad():
        trained = logprobs(policy, tree)
        assert float((trained - expected).abs().max()) > 1e-3
        with policy.disable_adapter():
            assert torch.equal(logprobs(policy, tree), expected)
        merged = merge(policy)
        assert torch.allclose(logprobs(merged, tree), trained, rtol=1e-5, atol=1e-4)
        assert torch.equal(logprobs(policy, tree), trained)  # merging left it alone
    assert merged.tree_logprobs.__self__ is merged
    save_model(merged, None, tmp_path / "merged")
    with torch.no_grad():
        again = logprobs(load_policy(tmp_path / "merged"), tree)
    assert torch.equal(again, logprobs(merged, tree).detach())


def test_lora_of_a_scalar_model_keeps_its_trained_head(tmp_path: Any) -> None:
    model = adapt(load_scalar(saved("llama", tmp_path), init="normal"), "lora:2")
    tree = pack(DOCUMENTS)
    step(model, lambda: 0.01 * tree.at_last(scalars(model, tree)))
    with torch.no_grad():
        trained = tree.at_last(scalars(model, tree))
        assert torch.allclose(tree.at_last(scalars(merge(model), tree)), trained, atol=1e-4)
    assert torch.equal(scalar_head(merge(model)).weight, scalar_head(model).weight)


def test_lora_has_one_seed(tmp_path: Any) -> None:
    path = saved("llama", tmp_path)
    torch.manual_seed(1)
    first = dict(adapt(load_policy(path), "lora:2").named_parameters())
    torch.manual_seed(2)
    second = dict(adapt(load_policy(path), "lora:2").named_parameters())
    assert all(torch.equal(p, second[name]) for name, p in first.items())


def test_without_an_adapter_merge_gives_the_model_itself(tmp_path: Any) -> None:
    policy = load_policy(saved("llama", tmp_path))
    assert merge(policy) is policy


@pytest.mark.parametrize("mode", ["full", "lora:2"])
def test_residual_dropout_works_under_an_adapter(mode: str, tmp_path: Any) -> None:
    policy = adapt(load_policy(saved("llama", tmp_path)), mode).train()
    assert len(residual_dropout(policy, 0.2).hooks) == 4
