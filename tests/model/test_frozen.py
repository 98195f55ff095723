"""Frozen models: the numbers stay the same."""

from pathlib import Path

import pytest
import torch

from tercet.model.frozen import Parked, halve
from tercet.model.load import load_policy, load_scalar, parameter_hash, scalar_head
from tercet.model.tree import Document, logprobs, pack, scalars
from tests.model.architectures import ARCHITECTURES, saved

TREE = pack([Document([3, 4, 5], [[6, 7], [8, 9, 10]]), Document([11] * 9, prompt_weight=1.0)])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_halved_policy_gives_the_bits_of_autocast(name: str, tmp_path: Path) -> None:
    path = saved(name, tmp_path, initializer_range=0.05)
    plain, halved = load_policy(path), halve(load_policy(path))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logprobs(halved, TREE), logprobs(plain, TREE))
    blocks = [m for m in halved.modules() if type(m).__name__ in ("Linear", "Conv1D")]
    tied = halved.get_input_embeddings().weight
    assert all(
        p.dtype == (torch.float32 if p is tied else torch.bfloat16)
        for m in blocks
        for p in m.parameters()
    )
    assert not any(p.requires_grad for p in halved.parameters())


def test_a_halved_scalar_model_keeps_its_head(tmp_path: Path) -> None:
    path = saved("qwen3", tmp_path, initializer_range=0.05)
    plain, halved = (load_scalar(path, init="normal") for _ in range(2))
    halve(halved)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scalars(halved, TREE), scalars(plain, TREE))
    assert scalar_head(halved).weight.dtype == torch.float32
    norms = [m for m in halved.modules() if "Norm" in type(m).__name__]
    assert norms and all(m.weight.dtype == torch.float32 for m in norms)


@pytest.mark.parametrize("tied", [False, True])
def test_a_parked_model_is_itself_inside_and_outside(tied: bool, tmp_path: Path) -> None:
    model = halve(load_policy(saved("llama", tmp_path, tie_word_embeddings=tied)))
    before = parameter_hash(model)
    parked = Parked(model)
    assert parameter_hash(model) == before
    with parked.on("cpu") as inside:
        assert inside is model and parameter_hash(model) == before
    parked.buffer.zero_()
    with parked.on("cpu"):  # the one buffer holds every weight
        assert not any(t.any() for t in (*model.parameters(), *model.buffers()))
    same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert same == tied
