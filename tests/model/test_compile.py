"""Compiled layers: the plain model's numbers, and one graph a kind of layer whatever the batch.

The graphs are counted by a backend that runs them eagerly; tests/gpu runs the real compiler.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tercet.model import attention
from tercet.model.adapt import adapt, merge
from tercet.model.compile import compile_layers
from tercet.model.load import (
    checkpoint_activations,
    decoder_layers,
    load_policy,
    load_scalar,
    residual_dropout,
    save_model,
)
from tercet.model.tree import Document, TokenTree, logprobs, pack, scalars
from tercet.records import InputError
from tests.model.architectures import ARCHITECTURES, CONFIGS, saved

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # by dynamo


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def ids(count: int, start: int) -> list[int]:
    return [(7 * i + start) % 61 for i in range(count)]


def tree(start: int, length: int = 128) -> TokenTree:
    """A row of `length`; contents and branches depend on `start`."""
    replies = [ids(3 + k, start + k) for k in range(1 + start)]
    count = (length - 8) // (8 + sum(map(len, replies)))
    packed = pack([Document(ids(8, start + i), replies) for i in range(count)], rows="gpu")
    assert packed.tokens.shape == (1, length)
    return packed


def layer_kinds(name: str) -> int:
    return len(set(CONFIGS[name].get("layer_types", ["full_attention"])))


def results(model: Any, packed: TokenTree) -> list[Tensor]:
    """Log-probs and gradients."""
    model.zero_grad()
    torch.manual_seed(0)
    logp_RL = logprobs(model, packed)
    (logp_RL * packed.weight).sum().backward()
    return [logp_RL.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]


def compiled(model: Any, backend: str = "eager") -> tuple[Any, CompileCounterWithBackend]:
    """A plain copy of the model, whose own layers are compiled now, and the counter of graphs."""
    counter = CompileCounterWithBackend(backend)
    plain = copy.deepcopy(model)
    assert compile_layers(model, "on", counter)
    return plain, counter


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_the_plain_model_with_one_graph_a_layer_kind(name: str, tmp_path: Path) -> None:
    model = load_policy(saved(name, tmp_path)).train()
    plain, counter = compiled(model)
    for start in (1, 2, 3):
        for got, expected in zip(
            results(model, tree(start)), results(plain, tree(start)), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        assert counter.frame_count == layer_kinds(name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_find_all_masks_prepared(name: str, tmp_path: Path) -> None:
    model, packed = load_policy(saved(name, tmp_path)), tree(1)
    packed.layout.prepare(model)
    prepared = set(packed.layout.masks)
    logprobs(model, packed)
    assert set(packed.layout.masks) == prepared
    assert len(prepared) == layer_kinds(name)


def test_lengths_precision_and_scoring_each_add_one_graph(tmp_path: Path) -> None:
    model = load_policy(saved("llama", tmp_path)).train()
    plain, counter = compiled(model)
    counts = []
    for length in (128, 256, 512, 256, 128):
        results(model, tree(2, length))
        counts.append(counter.frame_count)
    assert counts == [1, 2, 3, 3, 3]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in (1, 2):
            assert torch.equal(logprobs(model, tree(start)), logprobs(plain, tree(start)))
    assert counter.frame_count == 4


def test_fused_attention_joins_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention inside the layer, interpreted on the CPU."""
    model = load_policy(saved("gemma2", tmp_path))
    plain, counter = compiled(model)
    for start in (1, 2, 3):
        with torch.no_grad():
            expected = logprobs(plain, tree(start))
            with monkeypatch.context() as patch:
                patch.setattr(attention, "fused", lambda device, dtype: True)
                got = logprobs(model, tree(start))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert counter.frame_count == 2


@pytest.mark.parametrize("mode", ["full", "lora:4,dropout=0.1"])
def test_works_with_adapters_dropout_and_checkpointing(mode: str, tmp_path: Path) -> None:
    model = adapt(load_policy(saved("llama", tmp_path)), mode).train()
    checkpoint_activations(model)
    plain, counter = compiled(model, "aot_eager")
    for each in (model, plain):
        residual_dropout(each, 0.1)
    for start in (1, 2):
        for got, expected in zip(
            results(model, tree(start)), results(plain, tree(start)), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert counter.frame_count == 1


def test_removed_dropout_is_gone(tmp_path: Path) -> None:
    model = load_policy(saved("llama", tmp_path)).train()
    plain, _ = compiled(model)
    dropout = residual_dropout(model, 0.5)
    dropped = logprobs(model, tree(1))
    dropout.remove()
    assert torch.equal(logprobs(model, tree(1)), logprobs(plain, tree(1)))
    assert not torch.allclose(dropped, logprobs(plain, tree(1)))


def test_scalar_models_compile(tmp_path: Path) -> None:
    model = load_scalar(saved("qwen3", tmp_path), init="normal").train()
    plain, counter = compiled(model)
    for start in (1, 2):
        torch.testing.assert_close(scalars(model, tree(start)), scalars(plain, tree(start)))
    assert counter.frame_count == 2


def test_names_and_copies_stay_plain(tmp_path: Path) -> None:
    model = load_policy(saved("llama", tmp_path))
    names = list(model.state_dict())
    compiled(model)
    assert list(model.state_dict()) == names
    save_model(model, None, tmp_path / "again")
    assert torch.equal(logprobs(load_policy(tmp_path / "again"), tree(1)), logprobs(model, tree(1)))
    adapted = adapt(model, "lora:2")
    for copied in (copy.deepcopy(adapted), merge(adapted)):
        assert all(layer._compiled_call_impl is None for layer in decoder_layers(copied))
    assert all(layer._compiled_call_impl is not None for layer in decoder_layers(adapted))


def test_auto_leaves_the_cpu_alone(tmp_path: Path) -> None:
    model = load_policy(saved("llama", tmp_path))
    assert not compile_layers(model)
    assert not compile_layers(model, "off")
    assert all(layer._compiled_call_impl is None for layer in decoder_layers(model))


def test_too_many_graphs_are_an_error(tmp_path: Path) -> None:
    model = load_policy(saved("llama", tmp_path))
    compile_layers(model, "on", "eager")
    with torch._dynamo.config.patch(recompile_limit=1):  # no monkeypatch: it deletes the option
        logprobs(model, tree(1))
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            logprobs(model, tree(1, 256))


def test_the_default_compiler_is_refused_on_a_cpu(tmp_path: Path) -> None:
    model = load_policy(saved("llama", tmp_path))
    with pytest.raises(InputError, match='compile = "on" needs a GPU'):
        compile_layers(model, "on")
    assert not compile_layers(model, "auto")
