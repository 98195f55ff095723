"""The language-model head in chunks, against plain log-softmax in float64."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from tercet.model import head
from tercet.model.head import head_logprobs
from tercet.model.load import checkpoint_activations, load_policy
from tercet.model.tree import Document, logprobs, pack
from tests.model.architectures import saved


class Head(nn.Module):
    """The parts of a causal model that the head reads."""

    def __init__(self, width: int, vocabulary: int, bias: bool, **config: Any) -> None:
        super().__init__()
        self.head = nn.Linear(width, vocabulary, bias=bias, dtype=torch.float64)
        self.config = SimpleNamespace(**config)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


def plain(model: Head, hidden: Tensor, target: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    logits = model.head(hidden) * getattr(model.config, "logit_scale", 1.0)
    if (cap := getattr(model.config, "final_logit_softcapping", None)) is not None:
        logits = cap * torch.tanh(logits / cap)
    distribution = torch.distributions.Categorical(logits=logits / tau)
    return distribution.log_prob(target), distribution.entropy()


@pytest.mark.parametrize("kept", [0, 10**9])
@pytest.mark.parametrize("chunk", [10**9, 64, 21])
@pytest.mark.parametrize(
    ("bias", "config"),
    [(True, {}), (False, {"final_logit_softcapping": 2.0, "logit_scale": 0.5})],
)
def test_chunked_head_equals_plain_log_softmax(
    chunk: int, kept: int, bias: bool, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = 0 if chunk < 10**9 else 10**9
    monkeypatch.setattr(head, "CPU", head.Sizes(whole, chunk, kept))
    torch.manual_seed(0)
    model = Head(6, 21, bias, **config)
    hidden = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 21, (10,))
    inputs = [hidden, *model.parameters()]
    weights = torch.randn(2, 10, dtype=torch.float64)
    got = head_logprobs(model, hidden, target, 0.7, entropy=True)
    expected = plain(model, hidden, target, 0.7)
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    ours = torch.autograd.grad((torch.stack(got) * weights).sum(), inputs)
    theirs = torch.autograd.grad((torch.stack(expected) * weights).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize(("recomputes", "products"), [(False, 3), (True, 6)])
def test_logits_are_computed_again_only_where_layers_are(
    recomputes: bool, products: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three chunks forward; with recomputed layers three more in the backward pass."""
    policy = load_policy(saved("llama", tmp_path))
    if recomputes:
        checkpoint_activations(policy)
    words = policy.config.vocab_size
    monkeypatch.setattr(head, "CPU", head.Sizes(0, 128 * words, 10**9))
    linear, seen = nn.functional.linear, []

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if len(weight) == words:
            seen.append(len(x))
        return linear(x, weight, bias)

    monkeypatch.setattr(head.nn.functional, "linear", counted)
    tree = pack([Document([1], [[5] * 300])], rows="gpu")
    logprobs(policy, tree).sum().backward()
    assert len(seen) == products and max(seen) == 128


def test_a_frozen_head_still_passes_gradients_to_the_backbone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head, "CPU", head.Sizes(0, 64, 0))
    model = Head(6, 21, bias=True).requires_grad_(False)
    hidden = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 21, (10,))
    ours = torch.autograd.grad(head_logprobs(model, hidden, target, 1.0, False)[0].sum(), hidden)
    theirs = torch.autograd.grad(plain(model, hidden, target, 1.0)[0].sum(), hidden)
    assert torch.allclose(ours[0], theirs[0], atol=1e-12)


def test_the_head_runs_in_bfloat16_under_autocast_both_ways(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(saved("llama", tmp_path, initializer_range=0.05))
    tree = pack([Document([5] * 9, prompt_weight=1.0)])
    gradients = []
    for whole in (0, 10**9):
        monkeypatch.setattr(head, "CPU", head.Sizes(whole, 2**27, 0))
        policy.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            values = logprobs(policy, tree)
        values.sum().backward()
        gradients.append(policy.lm_head.weight.grad.clone())
    assert values.dtype == torch.float32
    assert torch.allclose(*gradients, rtol=2e-2, atol=2e-2)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # by dynamo
@pytest.mark.parametrize("entropy", [False, True])
def test_compiled_chunks_equal_plain_ones_whatever_their_number(
    entropy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled once each for forward and backward, however many tokens a batch holds."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    whole = torch.compile(head._reduced, backend=counter, fullgraph=True)
    back = torch.compile(head._gradient, backend=counter, fullgraph=True)
    compiled = {head._reduced: whole, head._gradient: back}
    monkeypatch.setattr(head, "_compiled", compiled.__getitem__)
    monkeypatch.setattr(head, "CPU", head.Sizes(0, 200 * 21, 0))
    model = Head(6, 21, False, final_logit_softcapping=2.0)
    for count in (450, 700, 203, 130, 2):
        results = []
        for fuse in (False, True):
            monkeypatch.setattr(head, "fuses", lambda device, fuse=fuse: fuse)
            torch.manual_seed(count)
            hidden = torch.randn(count, 6, dtype=torch.float64, requires_grad=True)
            target = torch.randint(0, 21, (count,))
            logp, h = head_logprobs(model, hidden, target, 0.7, entropy)
            loss = logp.square().sum() + (h.square().sum() if h is not None else 0)
            results.append([logp, *torch.autograd.grad(loss, [hidden, model.head.weight])])
        for a, b in zip(*results, strict=True):
            assert torch.allclose(a, b, atol=1e-12)
    assert counter.frame_count == 2
    torch._dynamo.reset()


def test_chunks_are_even() -> None:
    assert head._chunk(5000, 4186) == 2560
    assert head._chunk(4000, 4186) == 4096
    assert head._chunk(10, 3) == 3
