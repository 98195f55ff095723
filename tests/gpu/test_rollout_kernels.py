"""Kernels of a decode step against plain computations, and the engine with its graphs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tercet.model.load import load_policy
from tercet.rollout import Engine, Rollout, operators
from tercet.rollout import engine as engines
from tercet.rollout.operators import choose_token, copy_tokens, slot_attention
from tercet.rollout.sampling import choose
from tests.model.architectures import VOCABULARY, saved
from tests.rollout.reference import attention_reference

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

SLOTS, LENGTH = 9, 256
PLACES = [0, 200, -1, 63, 64, 130]
"""Where the new tokens stand: alone, across blocks of 64, at their edges; -1 is an idle slot."""
SCALE = 0.3


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to("cuda", dtype)


def check_attention(
    heads: int, shared: int, width: int, window: int, softcap: float, dtype: torch.dtype
) -> None:
    rows = len(PLACES)
    # As a model gives them: (rows, 1, heads, width) seen from the other side.
    query = normal(rows, 1, heads, width, dtype=dtype, seed=1).transpose(1, 2)
    key = normal(rows, 1, shared, width, dtype=dtype, seed=2).transpose(1, 2)
    value = normal(rows, 1, shared, width, dtype=dtype, seed=3).transpose(1, 2)
    storage = normal(2, SLOTS, shared, LENGTH, width, dtype=dtype, seed=4)
    expected_storage = storage.clone()
    place = torch.tensor(PLACES, device="cuda")
    expected = attention_reference(
        query.double(), key, value, expected_storage, place, SCALE, window, softcap
    )
    found = slot_attention(query, key, value, storage, place, SCALE, window, softcap)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    # The new tokens, and nothing else: neither idle slots nor those beyond the rows.
    assert torch.equal(storage, expected_storage)


@pytest.fixture(params=[1, 1024], ids=["whole", "in parts"])
def programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One program a head, or its positions split over many."""
    monkeypatch.setattr(operators, "PROGRAMS", request.param)


DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "float32"])


@DTYPES
@pytest.mark.parametrize("width", [16, 24, 64, 80, 128, 256])
@pytest.mark.parametrize(("heads", "shared"), [(8, 2), (4, 4), (20, 1), (32, 8)])
def test_attention_over_slots(
    programs: None, heads: int, shared: int, width: int, dtype: torch.dtype
) -> None:
    check_attention(heads, shared, width, 0, 0.0, dtype)


@DTYPES
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("window", [0, 1, 3, 64, 100, 300])
def test_attention_with_a_window_and_a_soft_cap(
    programs: None, window: int, softcap: float, dtype: torch.dtype
) -> None:
    check_attention(8, 2, 32, window, softcap, dtype)


def test_a_soft_cap_of_large_scores(programs: None) -> None:
    """Scores of some hundreds: exp must not overflow on its way to tanh."""
    query = normal(1, 2, 1, 16, seed=1) * 1000
    storage = normal(2, 1, 1, LENGTH, 16, seed=4)
    new = normal(1, 1, 1, 16, seed=2)
    place = torch.tensor([100], device="cuda")
    found = slot_attention(query, new, new, storage, place, 1.0, 0, 30.0)
    keys, values = storage[:, 0, 0, :101].double()
    score = 30.0 * torch.tanh(query[0, :, 0].double() @ keys.T / 30.0)
    expected = score.softmax(-1) @ values
    torch.testing.assert_close(found[0, 0].double(), expected, atol=1e-4, rtol=1e-4)


def test_only_idle_slots_give_zeros_and_write_nothing(programs: None) -> None:
    storage = normal(2, 3, 2, LENGTH, 16)
    before = storage.clone()
    new = normal(3, 2, 1, 16, seed=1)
    idle = torch.full((3,), -1, device="cuda")
    found = slot_attention(normal(3, 8, 1, 16, seed=2), new, new, storage, idle, SCALE, 0, 0.0)
    assert not found.any()
    assert torch.equal(storage, before)


def uniform(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, dtype=torch.float64, generator=generator).cuda()


@DTYPES
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("vocabulary", [61, 5000, 128256])
def test_a_chosen_token_is_that_of_the_cpu(
    vocabulary: int, temperature: float, dtype: torch.dtype
) -> None:
    """But where a draw is so near the edge of two tokens that float32 sums may take either."""
    rows = 1000
    logits = normal(rows, vocabulary, dtype=dtype) * 3
    logits[: rows // 4, : vocabulary // 2] = -math.inf
    logits[rows // 4 : rows // 2, vocabulary // 3 :] = -math.inf
    draws = uniform(rows, seed=vocabulary)
    draws[::50] = 0.0
    draws[1::50] = 1 - 2**-53
    token, logprob = choose_token(logits, draws, temperature)
    expected, expected_logprob = choose(logits.cpu(), draws.cpu(), temperature)
    token, logprob = token.cpu(), logprob.cpu()
    inner = torch.arange(rows) % 50 != 1
    edges = (logits.cpu().double() / temperature).softmax(-1).cumsum(-1)
    above = edges.gather(1, token[:, None])[:, 0]
    below = edges.gather(1, (token - 1).clamp(min=0)[:, None])[:, 0].where(token > 0, 0.0)
    drawn = draws.cpu()
    assert ((below - 1e-5 <= drawn) & (drawn <= above + 1e-5))[inner].all()
    same = token == expected
    assert same[inner].sum() > 0.98 * inner.sum()
    torch.testing.assert_close(logprob[same], expected_logprob[same], atol=1e-4, rtol=1e-4)
    # At 1 - 2^-53 what float32 can tell apart decides: a token that may come, near the end.
    chosen = logits.cpu().gather(1, token[:, None])[:, 0]
    assert chosen.isfinite().all()
    assert logprob.isfinite().all()


def test_the_first_and_the_last_possible_token_can_come() -> None:
    """Equal logits of tokens 10, 11, 12 and 2500: the edges of the noise give the outer ones."""
    logits = torch.full((3, 5000), -math.inf, device="cuda")
    logits[:, [10, 11, 12, 2500]] = 1.0
    draws = torch.tensor([0.0, 0.3, 1 - 2**-53], dtype=torch.float64, device="cuda")
    token, logprob = choose_token(logits, draws, 1.0)
    assert token.tolist() == [10, 11, 2500]
    expected = torch.full((3,), math.log(0.25), device="cuda")
    torch.testing.assert_close(logprob, expected)


def test_logits_may_be_rows_of_a_larger_tensor() -> None:
    logits = normal(64, 5000)
    draws = uniform(64, seed=1)
    whole = choose_token(logits[:, :4000].contiguous(), draws, 1.0)
    part = choose_token(logits[:, :4000], draws, 1.0)
    assert torch.equal(part[0], whole[0])
    torch.testing.assert_close(part[1], whole[1])  # sums in another order


@pytest.mark.parametrize("where", [slice(None), slice(0, 1), slice(4999, 5000)])
def test_nan_logits_give_a_nan_logprob(where: slice) -> None:
    """By which the engine finds a diverged model, wherever in the row it shows."""
    logits = normal(3, 5000)
    logits[1, where] = math.nan
    _, logprob = choose_token(logits, uniform(3, seed=1), 1.0)
    assert logprob.isnan().tolist() == [False, True, False]


def test_chosen_tokens_follow_their_probabilities() -> None:
    """Chi-square over 20,000 draws of 61 tokens; 60 degrees of freedom, p = 0.001 at 99.6."""
    logits = normal(VOCABULARY, seed=7)
    draws = 20000
    token, _ = choose_token(logits.expand(draws, -1), uniform(draws, seed=8), 1.0)
    counts = torch.bincount(token, minlength=VOCABULARY)
    expected = logits.double().softmax(-1) * draws
    assert expected.min() > 5
    assert ((counts - expected) ** 2 / expected).sum() < 99.6


@DTYPES
@pytest.mark.parametrize(("heads", "width"), [(2, 16), (1, 80), (3, 24), (8, 128)])
def test_copied_tokens_are_those_of_indexing(heads: int, width: int, dtype: torch.dtype) -> None:
    entries = normal(3, 2, 2, heads, 40, width, dtype=dtype)
    storage = normal(3, 2, 5, heads, 64, width, dtype=dtype, seed=1)
    expected = storage.clone()
    # 21 tokens (no multiple of the 8 of a program): row 1 of the pack into slots 4 and 0.
    slot = [4] * 9 + [0] * 12
    place = [*range(9), *range(12)]
    row = [1] * 9 + [0] * 12
    column = [*range(30, 39), *range(12)]
    index = torch.tensor([slot, place, row, column], device="cuda")
    expected[:, :, index[0], :, index[1]] = entries[:, :, index[2], :, index[3]]
    copy_tokens(storage, entries, index)
    assert torch.equal(storage, expected)


PROMPTS = [[3 + (7 * i + n) % 58 for i in range(1 + n % 11)] for n in range(24)]
OPTIONS: dict[str, Any] = {"max_new_tokens": 14, "stop_ids": [2], "slots": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policies")


def llama(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    path = saved("llama", folder, initializer_range=0.15, num_hidden_layers=4)
    return load_policy(path, device="cuda", dtype=dtype)


def tokens(rollouts: list[Rollout]) -> list[list[int]]:
    return [rollout.tokens for rollout in rollouts]


def graphs(engine: Engine) -> int:
    assert engine._storage is not None
    return len(engine._storage.steps._graphs)


def test_a_compiled_engine_has_the_tokens_of_a_plain_one(folder: Path) -> None:
    """In float32 the bookkeeping is compiled; layers are where there is a copy."""
    model = llama(folder)
    found = [
        Engine(model, compile=when).generate(PROMPTS, greedy=True, **OPTIONS)
        for when in ("on", "off")
    ]
    assert tokens(found[0]) == tokens(found[1])


def test_compiled_layers_of_a_copy_agree_with_plain_ones(folder: Path) -> None:
    """In bf16 the last bits differ: the first tokens' log-probs are close, on average."""
    model = llama(folder, torch.bfloat16)
    on, off = (
        Engine(model, compile=when).generate(PROMPTS, greedy=True, **OPTIONS)
        for when in ("on", "off")
    )
    gaps = [abs(a.logprobs[0] - b.logprobs[0]) for a, b in zip(on, off, strict=True)]
    assert sum(gaps) / len(gaps) < 0.05


@pytest.mark.parametrize("when", ["on", "off"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_graphs_are_captured_once_and_the_capture_disturbs_nothing(
    dtype: torch.dtype, when: Any, folder: Path
) -> None:
    engine = Engine(llama(folder, dtype), length=40, compile=when)
    first = engine.generate(PROMPTS, seed=5, **OPTIONS)
    captured = graphs(engine)
    assert 0 < captured <= 3  # 8, 12 and 16 rows
    second = engine.generate(PROMPTS, seed=5, **OPTIONS)
    assert graphs(engine) == captured
    assert tokens(second) == tokens(first)
    engine.generate(PROMPTS, seed=5, temperature=0.5, **OPTIONS)
    assert graphs(engine) > captured


def test_a_step_that_waits_for_the_gpu_runs_without_graphs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama(folder)
    expected = Engine(model, compile="off").generate(PROMPTS, greedy=True, **OPTIONS)

    def waiting(logits: Tensor, *arguments: Any, **options: Any) -> Any:
        logits.sum().item()
        return choose(logits, *arguments, **options)

    monkeypatch.setattr(engines, "choose", waiting)
    engine = Engine(model, compile="off")
    with pytest.warns(UserWarning, match="waits for the GPU"):
        found = engine.generate(PROMPTS, greedy=True, **OPTIONS)
    assert graphs(engine) == 0
    assert tokens(found) == tokens(expected)
    engine.release()  # the allocator still works
    assert tokens(engine.generate(PROMPTS, greedy=True, **OPTIONS)) == tokens(expected)


def test_a_released_engine_captures_anew_and_gives_the_same_tokens(folder: Path) -> None:
    engine = Engine(llama(folder), length=40, compile="off")
    first = engine.generate(PROMPTS, seed=5, **OPTIONS)
    engine.release()
    assert engine.bytes == 0
    assert tokens(engine.generate(PROMPTS, seed=5, **OPTIONS)) == tokens(first)


def test_graphs_replay_on_new_weights(folder: Path) -> None:
    """Under autocast the copy is brought up to date in place: the graph sees it."""
    model = llama(folder)
    engine = Engine(model, length=40, compile="off")
    with torch.autocast("cuda", torch.bfloat16):
        before = engine.generate(PROMPTS, greedy=True, **OPTIONS)
        captured = graphs(engine)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * normal(*parameter.shape, seed=9)
        after = engine.generate(PROMPTS, greedy=True, **OPTIONS)
        assert graphs(engine) == captured
        anew = Engine(model, length=40, compile="off").generate(PROMPTS, greedy=True, **OPTIONS)
    assert tokens(after) != tokens(before)
    assert tokens(after) == tokens(anew)
