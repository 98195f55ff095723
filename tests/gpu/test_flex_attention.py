"""FlexAttention on a GPU against the dense reference, forward and backward."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tercet.model.attention import tree_attention
from tercet.model.load import checkpoint_activations, load_policy
from tercet.model.tree import Document, TokenTree, logprobs, pack
from tests.model.architectures import saved, tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
]

TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-4}
SHAPES = {
    "llama": {"sliding_window": None, "softcap": None},
    "mistral": {"sliding_window": 200, "softcap": None},
    "gemma2": {"sliding_window": 200, "softcap": 1.0},
    "gemma2 full layer": {"sliding_window": None, "softcap": 1.0},
}


def ids(count: int, start: int) -> list[int]:
    return [(7 * i + start) % 61 for i in range(count)]


def long_tree(device: str = "cuda", row_length: int = 2048) -> TokenTree:
    """Replies of several blocks, documents of less than one, filler at the end."""
    documents = [
        Document(ids(300, 1), [ids(200, 2), ids(390, 3), ids(10, 4)]),
        Document(ids(5, 5), [ids(1, 6)] * 3),
        Document(ids(150, 7), [ids(270, 8)]),
        Document(ids(400, 9), prompt_weight=1.0),
    ]
    return pack(documents, row_length, rows="gpu", device=device)


def attend(
    tree: TokenTree, inputs: list[Tensor], options: dict[str, Any]
) -> tuple[Tensor, list[Tensor]]:
    """Output at real tokens and gradients of query, key and value."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    module = tiny("llama").model.layers[0].self_attn
    output, _ = tree_attention(module, *leaves, scaling=0.2, tree=tree, **options)
    output = output[tree.document >= 0]
    weight = torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)
    gradients = torch.autograd.grad((output.float() * weight).sum(), leaves)
    return output.detach(), list(gradients)


def assert_near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = max(1.0, float(expected.abs().max()))
    assert float((got.double() - expected.double()).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)])
def test_flex_equals_the_dense_reference(
    dtype: torch.dtype, shape: str, heads: tuple[int, int]
) -> None:
    tree = long_tree()
    torch.manual_seed(0)
    length = tree.tokens.shape[1]
    inputs = [
        torch.randn(1, h, length, 64, device="cuda", dtype=dtype)
        for h in (heads[0], *[heads[1]] * 2)
    ]
    output, gradients = attend(tree, inputs, SHAPES[shape])
    # float64 takes the dense path on a GPU too
    exact, exact_gradients = attend(tree, [x.double() for x in inputs], SHAPES[shape])
    assert_near(output, exact, TOLERANCE[dtype])
    for got, expected in zip(gradients, exact_gradients, strict=True):
        assert_near(got, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral", "qwen3", "gpt2"])
def test_logprobs_and_gradients_equal_float64_on_the_cpu(name: str, tmp_path: Any) -> None:
    path = saved(name, tmp_path, initializer_range=0.05, max_position_embeddings=1024)
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        policy = load_policy(path, device=device, dtype=dtype)
        tree = long_tree(device)
        values = logprobs(policy, tree)
        (values * tree.weight).sum().div(tree.weight.sum()).backward()
        results.append([values.detach().cpu(), *(p.grad.cpu() for p in policy.parameters())])
    for expected, got in zip(*results, strict=True):
        assert_near(got, expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_logprobs_are_near_float32(name: str, autocast: bool, tmp_path: Any) -> None:
    path = saved(name, tmp_path, initializer_range=0.02, max_position_embeddings=1024)
    tree = long_tree()
    with torch.no_grad():
        precise = logprobs(load_policy(path, device="cuda"), tree)
        dtype = torch.float32 if autocast else torch.bfloat16
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            rough = logprobs(load_policy(path, device="cuda", dtype=dtype), tree)
    assert float((precise - rough).abs().max()) <= TOLERANCE[torch.bfloat16]


def test_lengths_share_kernels_and_checkpointing_changes_little(tmp_path: Any) -> None:
    path = saved("gemma2", tmp_path, max_position_embeddings=1024)
    gradients = []
    for checkpointing in (False, True):
        policy = load_policy(path, device="cuda").train()
        if checkpointing:
            checkpoint_activations(policy)
        for length in (2048, 2560, 4096):
            tree = long_tree(row_length=length)
            (logprobs(policy, tree) * tree.weight).sum().div(tree.weight.sum()).backward()
        gradients.append([p.grad for p in policy.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert_near(a, b, TOLERANCE[torch.float32])


def test_one_long_row_needs_no_quadratic_memory() -> None:
    """65,536 tokens: a dense mask alone would take 4 GiB."""
    documents = [Document(ids(500, i), [ids(250, i + 1), ids(250, i + 2)]) for i in range(64)]
    tree = pack(documents, 65_536, rows="gpu", device="cuda")
    inputs = [torch.randn(1, 4, 65_536, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend(tree, inputs, SHAPES["llama"])
    assert torch.cuda.max_memory_allocated() - before < 2**30
