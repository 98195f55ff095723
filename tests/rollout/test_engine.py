"""The rollout engine against transformers' own generation and tercet's own log-probs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tercet.model.load import load_policy
from tercet.model.tree import Document, logprobs, pack
from tercet.records import InputError, RunFailed
from tercet.rollout import Rollout, generate
from tests.model.architectures import ARCHITECTURES, VOCABULARY, saved, tiny

GENERATOR = torch.Generator().manual_seed(5)
PROMPTS = [
    torch.randint(3, VOCABULARY, (length,), generator=GENERATOR).tolist()
    for length in (7, 1, 12, 4, 2, 12)
]
MANY = [torch.randint(3, VOCABULARY, (1 + i % 9,), generator=GENERATOR).tolist() for i in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policies")


@pytest.fixture(scope="module")
def llama(folder: Path) -> Any:
    return load_policy(saved("llama", folder, initializer_range=0.1))


def policy(name: str, folder: Path, **changes: Any) -> Any:
    return load_policy(saved(name, folder, **changes))


def reference(model: Any, prompt: list[int], count: int, stop: int) -> list[int]:
    """Greedy reply of transformers, one prompt at a time, so without any padding."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=stop,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def replies(rollouts: list[Rollout]) -> dict[tuple[int, int], list[int]]:
    return {(rollout.prompt, rollout.sample): rollout.tokens for rollout in rollouts}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_transformers(name: str, folder: Path) -> None:
    # Tied embeddings make a random model repeat its last token for ever.
    model = policy(name, folder, tie_word_embeddings=False)
    other = tiny(name, torch.float32, tie_word_embeddings=False)
    free = [reference(other, prompt, 14, stop=VOCABULARY) for prompt in PROMPTS]
    assert len({token for reply in free for token in reply}) > 10
    stop = free[0][4]
    expected = [reference(other, prompt, 14, stop) for prompt in PROMPTS]
    # Three slots for six prompts: refilled, then shrunk, at different lengths.
    found = generate(model, PROMPTS, max_new_tokens=14, stop_ids=[stop], greedy=True, slots=3)
    assert [rollout.tokens for rollout in found] == expected
    assert [rollout.stopped for rollout in found] == [reply[-1] == stop for reply in expected]
    assert found[0].stopped


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logprobs_equal_the_training_forward(name: str, folder: Path) -> None:
    model = policy(name, folder, initializer_range=0.15)
    found = generate(
        model, PROMPTS, samples=2, max_new_tokens=10, stop_ids=[2], temperature=0.7, slots=5
    )
    documents = [
        Document(prompt, [found[2 * i].tokens, found[2 * i + 1].tokens])
        for i, prompt in enumerate(PROMPTS)
    ]
    tree = pack(documents)
    with torch.no_grad():
        logp_BT = tree.replies(logprobs(model, tree, temperature=0.7))
    for rollout, row in zip(found, logp_BT, strict=True):
        expected = row[: len(rollout.tokens)]
        torch.testing.assert_close(torch.tensor(rollout.logprobs), expected, atol=1e-5, rtol=0)


def test_tokens_do_not_depend_on_slots_or_prompt_order(llama: Any) -> None:
    keys = list(range(100, 124))
    options: dict[str, Any] = {"samples": 2, "max_new_tokens": 12, "stop_ids": range(6), "seed": 7}
    expected = replies(generate(llama, MANY, keys=keys, slots=48, **options))
    assert len({len(tokens) for tokens in expected.values()}) > 5
    for slots in (1, 5, 17):
        assert replies(generate(llama, MANY, keys=keys, slots=slots, **options)) == expected
    order = torch.randperm(24, generator=GENERATOR).tolist()
    moved = generate(
        llama, [MANY[i] for i in order], keys=[keys[i] for i in order], slots=7, **options
    )
    assert {(order[r.prompt], r.sample): r.tokens for r in moved} == expected


def test_the_seed_and_the_key_change_the_tokens(llama: Any) -> None:
    def sampled(seed: int, key: int) -> list[int]:
        found = generate(llama, [[5, 6]], max_new_tokens=20, stop_ids=[], seed=seed, keys=[key])
        return found[0].tokens

    assert sampled(0, 0) == sampled(0, 0)
    assert len({tuple(sampled(seed, key)) for seed in (0, 1) for key in (0, 1)}) == 4


def test_samples_of_a_prompt_differ(llama: Any) -> None:
    found = generate(llama, [[5, 6], [7]], samples=[6, 2], max_new_tokens=20, stop_ids=[])
    assert [(r.prompt, r.sample) for r in found] == [*((0, s) for s in range(6)), (1, 0), (1, 1)]
    assert len({tuple(r.tokens) for r in found}) == 8


def test_first_tokens_follow_the_models_distribution(llama: Any) -> None:
    """Chi-square over 4,000 samples of one prompt; 60 degrees of freedom, p = 0.001 at 99.6."""
    found = generate(
        llama, [[5, 6, 7]], samples=4000, max_new_tokens=1, stop_ids=[], temperature=1.5, slots=512
    )
    with torch.no_grad():
        tree = pack([Document([5, 6, 7], [[token] for token in range(VOCABULARY)])])
        expected = logprobs(llama, tree, temperature=1.5).flatten()[tree.last].exp() * 4000
    counts = torch.bincount(torch.tensor([r.tokens[0] for r in found]), minlength=VOCABULARY)
    assert expected.min() > 3
    assert ((counts - expected) ** 2 / expected).sum() < 99.6


def test_second_tokens_follow_the_models_distribution(llama: Any) -> None:
    """The noise of position 2 must be independent of that of position 1: condition on token 1."""
    found = generate(
        llama, [[5, 6, 7]], samples=4000, max_new_tokens=2, stop_ids=[], temperature=3.0, slots=512
    )
    with torch.no_grad():
        nexts = [[token] for token in range(VOCABULARY)]
        tree = pack([Document([5, 6, 7, first], nexts) for first in range(VOCABULARY)])
        second = logprobs(llama, tree, temperature=3.0).flatten()[tree.last].exp()
    first = torch.tensor([r.tokens[0] for r in found])
    expected = second.view(VOCABULARY, VOCABULARY)[first].sum(0)
    counts = torch.bincount(torch.tensor([r.tokens[1] for r in found]), minlength=VOCABULARY)
    assert ((counts - expected) ** 2 / expected).sum() < 99.6


def test_a_stop_token_at_once_gives_a_reply_of_one_token(llama: Any) -> None:
    found = generate(llama, MANY, max_new_tokens=9, stop_ids=range(VOCABULARY), slots=5)
    assert all(len(r.tokens) == len(r.logprobs) == 1 and r.stopped for r in found)


def test_without_a_stop_token_a_reply_has_max_new_tokens(llama: Any) -> None:
    found = generate(llama, PROMPTS, max_new_tokens=9, stop_ids=[])
    assert all(len(r.tokens) == len(r.logprobs) == 9 and not r.stopped for r in found)


def test_stop_tokens_inside_the_prompt_do_nothing(llama: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 9, "keys": [3], "greedy": True}
    free = generate(llama, [[2, 9, 2, 2]], stop_ids=[], **options)
    assert 2 not in free[0].tokens
    assert generate(llama, [[2, 9, 2, 2]], stop_ids=[2], **options)[0].tokens == free[0].tokens


def test_top_k_of_one_is_greedy_with_logprob_zero(llama: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 9, "stop_ids": [2]}
    filtered = generate(llama, PROMPTS, top_k=1, **options)
    assert replies(filtered) == replies(generate(llama, PROMPTS, greedy=True, **options))
    assert {logprob for r in filtered for logprob in r.logprobs} == {0.0}


def test_on_finish_gets_every_rollout_once(llama: Any) -> None:
    seen: list[Rollout] = []
    found = generate(
        llama, MANY, max_new_tokens=9, stop_ids=range(6), slots=5, on_finish=seen.append
    )
    assert seen != found
    assert sorted(seen, key=lambda r: r.prompt) == found


def test_no_prompts_and_no_samples_give_nothing(llama: Any) -> None:
    assert generate(llama, [], max_new_tokens=3, stop_ids=[]) == []
    assert generate(llama, [[5]], samples=0, max_new_tokens=3, stop_ids=[]) == []


def test_the_models_mode_and_gradients_come_back(llama: Any) -> None:
    llama.train()
    generate(llama, [[5]], max_new_tokens=2, stop_ids=[])
    assert llama.training and torch.is_grad_enabled()
    llama.eval()


@pytest.mark.parametrize(
    ("prompts", "changes", "words"),
    [
        ([[5], []], {}, "prompt 1 has no tokens"),
        ([[5], [5, VOCABULARY]], {}, "prompt 1 has token ids outside 0..60"),
        ([[5], [5, -1]], {}, "prompt 1 has token ids outside 0..60"),
        ([[5], [5] * 61], {}, "prompt 1 has 61 tokens"),
        ([[5]], {"temperature": 0.0}, "temperature"),
        ([[5]], {"max_new_tokens": 0}, "max_new_tokens"),
        ([[5]], {"top_p": 0.0}, "top_p"),
        ([[5]], {"top_k": -1}, "top_k"),
        ([[5]], {"slots": 0}, "slots"),
        ([[5]], {"samples": -1}, "samples"),
        ([[5]], {"keys": [1, 2]}, "1 prompts, but 1 samples, 1 max_new_tokens and 2 keys"),
    ],
)
def test_wrong_input_is_refused(llama: Any, prompts: Any, changes: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        generate(llama, prompts, **({"max_new_tokens": 4, "stop_ids": [2]} | changes))


def test_the_context_may_be_filled_to_the_last_position(llama: Any) -> None:
    found = generate(llama, [[5] * 60], max_new_tokens=4, stop_ids=[])
    assert len(found[0].tokens) == 4


def test_diverged_weights_are_reported(folder: Path) -> None:
    model = policy("llama", folder)
    model.lm_head.weight.data[:] = torch.nan
    with pytest.raises(RunFailed, match="prompt 0"):
        generate(model, [[5]], max_new_tokens=2, stop_ids=[])


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of torch
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bf16_on_a_gpu_agrees_with_float32_on_the_cpu(name: str, folder: Path) -> None:
    path = saved(name, folder, initializer_range=0.15)
    model = load_policy(path, device="cuda", dtype=torch.bfloat16)
    found = generate(model, MANY, samples=2, max_new_tokens=12, stop_ids=range(4), slots=11)
    exact = load_policy(path)
    documents = [
        Document(prompt, [found[2 * i].tokens, found[2 * i + 1].tokens])
        for i, prompt in enumerate(MANY)
    ]
    tree = pack(documents)
    with torch.no_grad():
        logp_BT = tree.replies(logprobs(exact, tree))
    gaps = [
        abs(logprob - float(row[t]))
        for rollout, row in zip(found, logp_BT, strict=True)
        for t, logprob in enumerate(rollout.logprobs)
    ]
    assert sum(gaps) / len(gaps) < 0.1


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of torch
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float32_on_a_gpu_gives_the_cpus_greedy_tokens(name: str, folder: Path) -> None:
    path = saved(name, folder)
    options: dict[str, Any] = {"max_new_tokens": 14, "stop_ids": [2], "greedy": True, "slots": 5}
    on_gpu = generate(load_policy(path, device="cuda"), MANY, **options)
    assert replies(on_gpu) == replies(generate(load_policy(path), MANY, **options))


def test_autocast_samples_from_float32_weights(folder: Path) -> None:
    """PPO on a GPU samples its float32 policy under bf16 autocast; the CPU's autocast is alike."""
    model = load_policy(saved("llama", folder))
    options: dict[str, Any] = {"max_new_tokens": 8, "stop_ids": [2], "greedy": True, "slots": 3}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = generate(model, MANY, **options)
    exact = generate(model, MANY, **options)
    first = [abs(a.logprobs[0] - b.logprobs[0]) for a, b in zip(low, exact, strict=True)]
    assert 0 < max(first) < 0.1
