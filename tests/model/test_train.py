import math
import random
from types import SimpleNamespace

import pytest
import torch

from tercet.model.load import load_policy, new_policy
from tercet.model.shard import Ranks
from tercet.model.train import (
    batch_indices,
    held_out_nll,
    nll_backward,
    precision_context,
    read_windows,
    target_count,
    trees,
    window_documents,
)
from tercet.model.tree import Document
from tercet.records import InputError
from tests.model.architectures import saved
from tests.toy import LLAMA, distance, gradients, sentence

RANKS = Ranks()
SFT = [
    Document([3, 4, 5], [[6, 7, 2]]),
    Document([8, 9], [[10, 11, 12, 13, 2]]),
    Document([4], [[5, 2]]),
    Document([3, 3, 3, 3, 3, 7], [[9, 9, 2]]),
]
WINDOWS = window_documents([[3, 4, 5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """gpt2 in float64, which has no float32 inside."""
    folder = saved("gpt2", tmp_path_factory.mktemp("train"))
    return load_policy(folder, dtype=torch.float64)


def grads(model, documents, budget=10_000, **options):
    model.zero_grad()
    total = options.pop("total", None) or target_count(documents)
    loss = nll_backward(model, documents, total, RANKS, token_budget=budget, **options)
    return float(loss), gradients(model)


def reference_loss(model, documents):
    """Token mean by the model's own forward pass, one sequence at a time."""
    total, count = 0.0, 0.0
    model.set_attn_implementation("sdpa")
    for d in documents:
        ids = torch.tensor([[*d.prompt, *(d.replies[0] if d.replies else [])]])
        logp = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        weight = [d.prompt_weight] * len(d.prompt) + [d.reply_weight] * (
            ids.shape[1] - len(d.prompt)
        )
        for t in range(1, ids.shape[1]):
            total = total - weight[t] * logp[t - 1, ids[0, t]]
            count += weight[t]
    model.set_attn_implementation("tercet")
    return total / count


@pytest.mark.parametrize("documents", [SFT, WINDOWS, SFT + WINDOWS])
def test_loss_and_gradient_are_the_token_mean_of_the_models_own_pass(model, documents):
    loss, packed = grads(model, documents)
    model.zero_grad()
    expected = reference_loss(model, documents)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-10)
    assert distance(packed, gradients(model)) < 1e-10


@pytest.mark.parametrize("budget", [1, 9, 17])
def test_one_batch_equals_its_micro_batches(model, budget):
    """I8, I11: documents of unequal length, packed together or each by itself."""
    loss, whole = grads(model, SFT + WINDOWS)
    assert len(trees(SFT + WINDOWS, budget, torch.device("cpu"))) > 1
    parts_loss, parts = grads(model, SFT + WINDOWS, budget=budget)
    assert parts_loss == pytest.approx(loss, rel=1e-10)
    assert distance(whole, parts) < 1e-10


def test_prompt_tokens_are_context_and_no_targets(model):
    """I7: only the reply's own log-probs count, so a weight on the prompt changes the loss."""
    documents = [Document(d.prompt, d.replies) for d in SFT]
    with_prompt = [Document(d.prompt, d.replies, prompt_weight=1.0) for d in SFT]
    assert target_count(documents) == 3 + 5 + 2 + 3
    assert target_count(with_prompt) == 13 + 2 + 1 + 0 + 5
    assert grads(model, documents)[0] != pytest.approx(grads(model, with_prompt)[0], rel=1e-3)
    # The last prompt token predicts the first reply token: cut away, the loss lacks that term.
    assert reference_loss(model, documents).item() == pytest.approx(grads(model, documents)[0])


def test_uniform_logits_give_log_of_the_vocabulary(model, monkeypatch):
    """I9."""
    monkeypatch.setattr(model.lm_head.weight, "data", torch.zeros_like(model.lm_head.weight))
    assert grads(model, SFT)[0] == pytest.approx(math.log(model.config.vocab_size), rel=1e-12)


def test_the_coefficient_scales_the_gradient_and_not_the_reported_loss(model):
    loss, once = grads(model, SFT)
    scaled_loss, scaled = grads(model, SFT, coefficient=27.8)
    assert scaled_loss == loss
    assert distance({n: 27.8 * g for n, g in once.items()}, scaled) < 1e-12


def test_an_empty_share_adds_nothing(model):
    model.zero_grad()
    assert float(nll_backward(model, [], 10, RANKS, token_budget=100)) == 0
    assert all(p.grad is None for p in model.parameters())


def test_held_out_loss_is_the_training_loss_without_gradient(model):
    expected = grads(model, SFT + WINDOWS)[0]
    model.zero_grad()
    model.train()
    assert held_out_nll(model, SFT + WINDOWS, RANKS, token_budget=20) == pytest.approx(
        expected, rel=1e-6
    )
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_every_item_comes_once_an_epoch_and_the_order_changes():
    first = [i for step in range(3) for i in batch_indices(12, 4, step, seed=0)]
    second = [i for step in range(3, 6) for i in batch_indices(12, 4, step, seed=0)]
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert first != [i for step in range(3) for i in batch_indices(12, 4, step, seed=1)]


def test_the_last_partial_batch_of_an_epoch_is_dropped():
    batches = [batch_indices(10, 4, step, seed=0) for step in range(4)]
    assert [len(b) for b in batches] == [4, 4, 4, 4]
    assert len({*batches[0], *batches[1]}) == 8


def test_fewer_items_than_a_batch_are_all_taken():
    assert sorted(batch_indices(3, 8, 5, seed=0)) == [0, 1, 2]


def test_precision_is_bf16_only_when_asked_or_on_a_gpu():
    cpu, cuda = torch.device("cpu"), SimpleNamespace(type="cuda")
    with precision_context(cpu, "auto"):
        assert not torch.is_autocast_enabled("cpu")
    with precision_context(cpu, "bf16"):
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")
    assert isinstance(precision_context(cuda, "float32"), type(precision_context(cpu, "auto")))


def test_bf16_stays_near_float32(toy):
    """I6: weights and losses are float32, only the passes compute in bfloat16."""
    model = new_policy(LLAMA, toy.tokenizer, seed=0)
    source, prompt = random.Random(1), toy.tokenizer("say red blue:")["input_ids"]
    documents = [Document(prompt, [toy.tokenizer(sentence(source))["input_ids"]]) for _ in range(4)]
    exact, _ = grads(model, documents)
    near, bf16 = grads(model, documents, precision="bf16")
    assert near == pytest.approx(exact, rel=2e-2)
    assert all(g.dtype == torch.float32 for g in bf16.values())


def test_an_empty_text_names_its_file(toy, tmp_path):
    empty = tmp_path / "nothing.jsonl"
    empty.write_text('{"text": ""}\n')
    with pytest.raises(InputError, match=r"nothing\.jsonl"):
        read_windows(empty, toy.tokenizer, 8)
    assert read_windows(None, toy.tokenizer, 8) == []
