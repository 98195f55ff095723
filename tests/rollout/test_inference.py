"""The copy that rollouts run on computes what the policy computes under autocast."""

import weakref
from collections.abc import Iterator
from functools import cache, partialmethod
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers.pytorch_utils import Conv1D

from tercet.model.adapt import adapt, merge
from tercet.model.load import decoder_layers, load_policy
from tercet.model.tree import Document, TokenTree, pack
from tercet.rollout import Engine, Rollout, generate, inference, operators
from tercet.rollout import cache as caches
from tercet.rollout import engine as engines
from tercet.rollout.cache import SlotCache
from tercet.rollout.inference import InferenceCopy
from tests.model.architectures import ARCHITECTURES, VOCABULARY, saved
from tests.rollout.reference import attention_reference

BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policies")


def policy(name: str, folder: Path, **changes: Any) -> Any:
    return load_policy(saved(name, folder, **changes))


def tree() -> TokenTree:
    return pack([Document([5, 6, 7, 8], [[3, 4, 5], [9]]), Document([10, 11, 12])])


def logits(model: Any) -> Tensor:
    """As the engine asks: bf16 products, no cast weights kept by autocast."""
    with torch.no_grad(), torch.autocast("cpu", BF16, cache_enabled=False):
        return model(**tree().inputs).logits


def train_a_bit(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def linear_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module) in (nn.Linear, Conv1D)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_copy_has_the_policys_logits_before_and_after_a_refresh(name: str, folder: Path) -> None:
    model = policy(name, folder)
    copied = InferenceCopy(model, BF16)
    before = logits(model)
    assert torch.equal(logits(copied.model), before)
    train_a_bit(model)
    after = logits(model)
    assert not torch.equal(after, before)
    assert not torch.equal(logits(copied.model), after)
    copied.refresh()
    assert torch.equal(logits(copied.model), after)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_copy_has_the_adapter_merged(name: str, folder: Path) -> None:
    model = adapt(policy(name, folder), "lora:4").eval()
    copied = InferenceCopy(model, BF16)
    plain = logits(merge(model))
    assert torch.equal(logits(copied.model), plain)
    train_a_bit(model)  # an adapter starts as the identity: now B is not 0
    merged = logits(merge(model))
    assert not torch.equal(merged, plain)
    copied.refresh()
    assert torch.equal(logits(copied.model), merged)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_only_linear_weights_are_copied(name: str, folder: Path) -> None:
    model = policy(name, folder)
    copied = InferenceCopy(model, BF16)
    weights = {id(p) for layer in linear_layers(model) for p in layer.parameters()}
    embedding = model.get_input_embeddings().weight
    present = {id(p): p for p in copied.model.parameters()}
    for own in model.parameters():
        # A tied head is a linear layer, too; the embedding that it shares stays the policy's.
        assert (id(own) in present) == (id(own) not in weights or own is embedding)
    numbers = sum(p.numel() for layer in linear_layers(model) for p in layer.parameters())
    assert copied.bytes == 2 * numbers
    assert {p.dtype for key, p in present.items() if key not in map(id, model.parameters())} == {
        BF16
    }


@pytest.mark.parametrize("mode", ["full", "lora:4", "last_n_layers:1"])
def test_the_policy_stays_as_it_is(mode: str, folder: Path) -> None:
    model = adapt(policy("llama", folder), mode).train()
    modules = [(name, id(module)) for name, module in model.named_modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    parameters = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    copied = InferenceCopy(model, BF16)
    copied.refresh()
    assert [(name, id(module)) for name, module in model.named_modules()] == modules
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert [(name, id(p), p.requires_grad) for name, p in model.named_parameters()] == parameters
    assert list(model.state_dict()) == list(values)
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert model.training and not copied.model.training


@pytest.mark.parametrize("bias", [False, True])
def test_layers_of_the_same_input_are_slices_of_one_product(bias: bool, folder: Path) -> None:
    model = policy("llama", folder, attention_bias=bias)
    layer = decoder_layers(InferenceCopy(model, BF16).model)[1]
    own = decoder_layers(model)[1]
    # 4 query heads and twice 2 key/value heads, 16 wide; gate and up are 96 wide each.
    for block, names, edges in (
        ("self_attn", ("q_proj", "k_proj", "v_proj"), (0, 64, 96, 128)),
        ("mlp", ("gate_proj", "up_proj"), (0, 96, 192)),
    ):
        parts = [getattr(getattr(layer, block), name) for name in names]
        assert len({id(part.stack) for part in parts}) == 1
        assert [(p.start, p.end) for p in parts] == list(pairwise(edges))
        weights = [getattr(getattr(own, block), name).weight for name in names]
        assert torch.equal(parts[0].stack.weight, torch.cat(weights).to(BF16))
        if bias and block == "self_attn":
            biases = [getattr(getattr(own, block), name).bias for name in names]
            assert torch.equal(parts[0].stack.bias, torch.cat(biases).to(BF16))


def test_a_stack_holds_its_product_no_longer_than_its_layers(folder: Path) -> None:
    copied = InferenceCopy(policy("llama", folder), BF16)
    logits(copied.model)
    stacks = [module.stack for module in copied.model.modules() if hasattr(module, "stack")]
    assert len(stacks) == 2 * 5
    assert all(stack.output is None for stack in stacks)


def test_a_plain_copy_ends_with_its_last_reference(folder: Path) -> None:
    """Not with the next collection of garbage: it is as large as the policy."""
    copied = InferenceCopy(policy("llama", folder), BF16)
    parts = [weakref.ref(module) for module in copied.model.modules()]
    del copied
    assert not any(part() for part in parts)


def test_a_tied_head_has_a_weight_of_its_own(folder: Path) -> None:
    model = policy("llama", folder, tie_word_embeddings=True)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    copied = InferenceCopy(model, BF16).model
    assert copied.get_input_embeddings().weight is model.get_input_embeddings().weight
    assert copied.lm_head.weight is not model.lm_head.weight
    assert torch.equal(copied.lm_head.weight, model.lm_head.weight.to(BF16))


def test_long_products_with_a_smaller_output_are_split(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 to 32 and 96 to 32 wide are long here; on a CPU they are still computed whole."""
    monkeypatch.setattr(inference, "LONG", 64)
    model = policy("llama", folder, hidden_size=32)
    copied = InferenceCopy(model, BF16)
    split = {name for name, m in copied.model.named_modules() if type(m) is inference._Split}
    long = ("self_attn.o_proj", "mlp.down_proj")
    assert split == {f"model.layers.{i}.{name}" for i in (0, 1) for name in long}
    assert torch.equal(logits(copied.model), logits(model))


@pytest.mark.parametrize(
    ("name", "layers", "groups"),
    [("llama", 4, [2, 2]), ("llama", 3, [2, 1]), ("gpt2", 3, [1, 1, 1]), ("gemma2", 2, [1, 1])],
)
def test_alike_layers_are_grouped(
    name: str, layers: int, groups: list[int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "GROUP", 2)
    model = policy(name, folder, num_hidden_layers=layers)
    found = inference._groups(model)
    assert [len(group) for group in found] == groups
    assert [layer for group in found for layer in group] == list(decoder_layers(model))


@cache
def _register_reference() -> None:
    """Once a process; nothing asks for the operator on a CPU unless a cache is told it is fused."""
    operators.slot_attention.register_kernel("cpu")(attention_reference)


class FusedCache(SlotCache):
    """The cache of a GPU: attention by the operator, which looks at the positions alone."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.fused = True


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Layers go through the compiler's front end, and slots through the fused attention."""
    _register_reference()

    def compile(function: Any, **options: Any) -> Any:
        return torch.compile(function, fullgraph=True, backend="aot_eager", **options)

    step = cache(lambda: compile(inference._step_layers))
    reading = cache(lambda: compile(inference._read_layers, dynamic=False))
    monkeypatch.setattr(inference, "_compiled_step", step)
    monkeypatch.setattr(inference, "_compiled_reading", reading)
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    monkeypatch.setattr(engines, "SlotCache", FusedCache)
    monkeypatch.setattr(inference, "SlotCache", FusedCache)
    monkeypatch.setattr(inference, "GROUP", 2)
    # Packs of one length, as on a GPU.
    monkeypatch.setitem(engines.READ_TOKENS, "cpu", 64)
    monkeypatch.setattr(caches, "pack", lambda documents, length, _: pack(documents, length, "gpu"))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


def on_its_copy(model: Any, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine that runs as on a GPU, in float32, so that its tokens can be compared."""
    copied = InferenceCopy(model, torch.float32, compiled=True)
    engine = Engine(model, length=40, compile="off")
    monkeypatch.setattr(engine, "_model", lambda: copied.model)
    return engine


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def ids(count: int, start: int) -> list[int]:
    return [3 + (7 * i + start) % (VOCABULARY - 3) for i in range(count)]


FIRST = [ids(length, length) for length in (7, 1, 12, 4, 2, 12, 3, 9)]
SECOND = [ids(length, length + 5) for length in (11, 2, 1, 8, 5, 10, 6)]
OPTIONS: dict[str, Any] = {"stop_ids": [2], "greedy": True, "slots": 4}


def limits(prompts: list[list[int]]) -> list[int]:
    """All different, so that the batch shrinks from four rows to one."""
    return [4 + i for i, _ in enumerate(prompts)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "most"),
    [
        ("llama", {"num_hidden_layers": 4}, 10),
        ("gemma2", {}, 14),
        ("gpt2", {"tie_word_embeddings": False}, 4),
    ],
)
def test_compiled_layers_sample_what_the_model_samples(
    name: str,
    changes: Any,
    most: int,
    folder: Path,
    compiled: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = policy(name, folder, initializer_range=0.15, **changes)
    with monkeypatch.context() as plain:
        plain.setattr(engines, "SlotCache", SlotCache)
        expected = [
            generate(model, prompts, max_new_tokens=limits(prompts), **OPTIONS)
            for prompts in (FIRST, SECOND)
        ]
    engine = on_its_copy(model, monkeypatch)
    found = engine.generate(FIRST, max_new_tokens=limits(FIRST), **OPTIONS)
    same(found, expected[0])
    once = graphs()
    found = engine.generate(SECOND, max_new_tokens=limits(SECOND), **OPTIONS)
    same(found, expected[1])
    assert 0 < once <= most
    assert graphs() == once


def same(found: list[Rollout], expected: list[Rollout]) -> None:
    assert [rollout.tokens for rollout in found] == [rollout.tokens for rollout in expected]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(
            torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-5, rtol=0
        )
