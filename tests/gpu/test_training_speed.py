"""What makes training fast on a GPU changes no number, compiles once, and waits for nothing."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tercet.model import compile as compiling
from tercet.model import head
from tercet.model.compile import compile_layers
from tercet.model.frozen import Parked, halve
from tercet.model.head import head_logprobs
from tercet.model.load import checkpoint_activations, load_policy, load_scalar, residual_dropout
from tercet.model.shard import Ranks
from tercet.model.train import nll_backward, trees
from tercet.model.tree import Document, TokenTree, logprobs, pack, scalars
from tests.model.architectures import saved

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

CUDA = torch.device("cuda", 0)
LIMIT = 2048
SHAPE = {"initializer_range": 0.03, "max_position_embeddings": 2048, "num_hidden_layers": 4}


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def ids(count: int, start: int) -> list[int]:
    return [(7 * i + start) % 61 for i in range(count)]


def documents(start: int) -> list[Document]:
    """Some 1,900 tokens: contents, lengths and branches depend on `start`."""
    replies = [ids(60 + 9 * k, start + k) for k in range(1 + start % 3)]
    used = 200 + sum(map(len, replies))
    rest = Document(ids(1700 + 11 * start - used, start), prompt_weight=1.0)
    return [Document(ids(200, start), replies), rest]


def tree(start: int) -> TokenTree:
    packed = pack(documents(start), LIMIT, rows="gpu", device=CUDA)
    assert packed.tokens.shape == (1, LIMIT)
    return packed


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def results(model: Any, packed: TokenTree, bf16: bool) -> list[Tensor]:
    """Log-probs and gradients of the token mean."""
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        logp_RL = logprobs(model, packed)
    (logp_RL * packed.weight).sum().div(packed.weight.sum()).backward()
    return [logp_RL.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def assert_near(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(got, expected, strict=True):
        assert float((a - b).norm()) <= tolerance * max(float(b.norm()), 1e-6)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Any operation that makes the CPU wait for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("name", "bf16", "tolerance"),
    [("llama", False, 1e-3), ("llama", True, 5e-2), ("gemma2", True, 5e-2)],
)
def test_compiled_layers_equal_plain_ones_and_compile_once(
    name: str, bf16: bool, tolerance: float, tmp_path: Path
) -> None:
    kinds = {"layer_types": ["sliding_attention", "full_attention"] * 2}
    shape = SHAPE | (kinds if name == "gemma2" else {})
    model = load_policy(saved(name, tmp_path, **shape), device=CUDA).train()
    plain = copy.deepcopy(model)
    assert compile_layers(model, "on")
    seen = []
    for start in (1, 2, 3, 4, 5):
        expected = results(plain, tree(start), bf16)
        before = graphs()
        assert_near(results(model, tree(start), bf16), expected, tolerance)
        seen.append(graphs() - before)
    assert seen[0] > 0 and seen[1:] == [0] * 4


def test_scoring_compiles_once_too(tmp_path: Path) -> None:
    model = load_scalar(saved("llama", tmp_path, **SHAPE), init="normal", device=CUDA)
    plain = copy.deepcopy(model)
    compile_layers(model, "on")
    seen = []
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        for start in (1, 2, 3):
            expected = scalars(plain, tree(start))
            before = graphs()
            assert_near([scalars(model, tree(start))], [expected], 5e-2)
            seen.append(graphs() - before)
    assert seen[0] > 0 and seen[1:] == [0, 0]


def test_compiled_layers_recompute_their_activations(tmp_path: Path) -> None:
    model = load_policy(saved("llama", tmp_path, **SHAPE), device=CUDA).train()
    plain = copy.deepcopy(model)
    checkpoint_activations(model)
    compile_layers(model, "on")
    for start in (1, 2):
        expected = results(plain, tree(start), True)
        assert_near(results(model, tree(start), True), expected, 5e-2)


def test_dropout_is_part_of_the_graph(tmp_path: Path) -> None:
    model = load_policy(saved("llama", tmp_path, **SHAPE), device=CUDA).train()
    plain = copy.deepcopy(model)
    checkpoint_activations(model)
    compile_layers(model, "on")
    residual_dropout(model, 0.2)  # before the first call
    first, again = results(model, tree(1), True)[0], results(model, tree(1), True)[0]
    expected = results(plain, tree(1), True)[0]
    assert not torch.equal(first, again) and not torch.allclose(first, expected, atol=1e-3)
    before = graphs()
    assert all(x.isfinite().all() for x in results(model, tree(2), True))
    assert graphs() == before


def test_auto_compiles_what_is_worth_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_policy(saved("llama", tmp_path, **SHAPE), device=CUDA)
    assert not compile_layers(model)
    monkeypatch.setattr(compiling, "WORTH", 1000)
    assert compile_layers(model)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_waits_for_nothing(compiled: bool, tmp_path: Path) -> None:
    model = load_policy(saved("llama", tmp_path, **SHAPE), device=CUDA).train()
    if compiled:
        compile_layers(model, "on")
    ranks = Ranks(device=CUDA)

    def step(start: int) -> Tensor:
        batch = documents(start) + documents(start + 1)
        return nll_backward(model, batch, 100.0, ranks, token_budget=LIMIT)

    for start in (1, 2, 3):
        step(start)
    torch.cuda.synchronize()
    with no_waiting():
        loss = step(4)
        for _, packed in trees(documents(5), LIMIT, CUDA):
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
                logprobs(model, packed, entropy=True, where="replies")
            packed.at_last(packed.at_previous(packed.weight))
            packed.replies(packed.weight)
    assert float(loss) > 0


class Head(nn.Module):
    """The parts of a causal model that the head reads."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.head = nn.Linear(64, 5003, device=CUDA)
        self.config = type("Config", (), config)()

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


@pytest.mark.parametrize("kept", [0, 2**32])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("config", [{}, {"final_logit_softcapping": 2.0, "logit_scale": 0.5}])
def test_the_compiled_head_equals_the_exact_one(
    kept: int, bf16: bool, config: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "GPU", head.Sizes(0, 300 * 5003, kept))
    torch.manual_seed(0)
    model = Head(**config)
    exact = copy.deepcopy(model).double()
    seen = []
    for entropy, count in ((False, 700), (False, 450), (True, 1001), (True, 301), (False, 90)):
        leaf = torch.randn(count, 64, device=CUDA, requires_grad=True)
        target = torch.randint(0, 5003, (count,), device=CUDA)
        weight = torch.randn(2, count, device=CUDA)
        both = []
        before = graphs()
        for each in (model, exact):
            x = leaf if each is model else leaf.detach().double().requires_grad_()
            if each is exact:
                monkeypatch.setattr(head, "fuses", lambda device: False)
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16 and each is model):
                logp, h = head_logprobs(each, x, target, 0.7, entropy)
            loss = (logp * weight[0]).sum() + (0 if h is None else (h * weight[1]).sum())
            grads = torch.autograd.grad(loss, [x, *each.parameters()])
            both.append([logp, *([] if h is None else [h]), *grads])
            if each is model:
                seen.append(graphs() - before)
            monkeypatch.setattr(head, "fuses", lambda device: device.type == "cuda")
        assert_near([x.double() for x in both[0]], both[1], 3e-2 if bf16 else 1e-4)
    assert seen[1] == seen[3] == seen[4] == 0  # only the first of each kind may compile


def test_the_logits_of_a_batch_never_exist_twice() -> None:
    """16,384 tokens of 128,256 words: 4.2 GB of logits kept in bf16, and a chunk at work."""
    model = Head()
    model.head = nn.Linear(64, 128_256, bias=False, device=CUDA)
    hidden = torch.randn(16_384, 64, device=CUDA, requires_grad=True)
    target = torch.randint(0, 128_256, (16_384,), device=CUDA)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16):
        logp, _ = head_logprobs(model, hidden, target, 1.0, False)
    logp.sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 6.5 * 2**30


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_a_halved_model_gives_the_bits_of_autocast(name: str, tmp_path: Path) -> None:
    path = saved(name, tmp_path, **SHAPE)
    plain, halved = load_policy(path, device=CUDA), halve(load_policy(path, device=CUDA))
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(logprobs(halved, tree(1)), logprobs(plain, tree(1)))


def test_a_parked_model_comes_and_goes(tmp_path: Path) -> None:
    path = saved("llama", tmp_path, **SHAPE)
    packed = tree(1)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        expected = logprobs(halve(load_policy(path, device=CUDA)), packed)
        parked = Parked(halve(load_policy(path, device=CUDA)))
        compile_layers(parked.model, "on")
        assert all(p.is_pinned() for p in parked.model.parameters())
        before, got = torch.cuda.memory_allocated(), []
        with parked.on(CUDA):
            assert torch.cuda.memory_allocated() > before
        assert torch.cuda.memory_allocated() == before
        for _ in range(3):
            with parked.on(CUDA) as model:
                count = graphs()
                got.append(logprobs(model, packed))
                again = graphs() - count
    assert again == 0  # other addresses are no other graph
    assert torch.equal(got[0], got[2])
    assert_near([got[0]], [expected], 5e-2)
    with pytest.raises(RuntimeError, match="no such"), parked.on(CUDA):
        raise RuntimeError("no such luck")
    assert all(p.device.type == "cpu" for p in parked.model.parameters())
