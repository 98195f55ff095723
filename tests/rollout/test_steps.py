"""Steps and their graphs, the cache of slots, and what an engine keeps from call to call."""

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from tercet.model.load import load_policy
from tercet.records import RunFailed
from tercet.rollout import Engine, Rollout, generate
from tercet.rollout import engine as engines
from tercet.rollout.cache import Layers, SlotCache, attention_layers, read_prompts, stored_length
from tercet.rollout.engine import _affordable
from tercet.rollout.graphs import WARM_UP, Steps
from tests.model.architectures import ARCHITECTURES, VOCABULARY, saved, tiny

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policies")


@pytest.fixture
def llama(folder: Path) -> Any:
    return load_policy(saved("llama", folder, initializer_range=0.1))


class FakeSlots:
    """Notes every step and whether it ran while all slots were idle."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, Any, Any]] = []
        self.idle_steps = 0
        self._idle = False

    def step(self, rows: int, choice: Any, span: Any) -> None:
        self.steps.append((rows, choice, span))
        self.idle_steps += self._idle

    def idle(self) -> Callable[[], object]:
        self._idle = True
        return lambda: setattr(self, "_idle", False)


def steps(slots: int, captured: bool) -> tuple[Steps, FakeSlots]:
    fake = FakeSlots()
    return Steps(fake.step, fake.idle, slots, captured), fake


class FakeGraph:
    replays = 0

    def replay(self) -> None:
        self.replays += 1

    def pool(self) -> str:
        return "pool"


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A capture that runs the step; the pools that captures were given."""
    pools: list[Any] = []

    @contextmanager
    def capture(graph: FakeGraph, pool: Any) -> Iterator[None]:
        pools.append(pool)
        yield

    @contextmanager
    def stream(_: Any) -> Iterator[None]:
        yield

    streams = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: streams)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    mode: list[Any] = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode.append)
    return pools


@pytest.mark.parametrize("at", range(WARM_UP + 2))
def test_a_failed_step_before_a_capture_is_an_error(fake_cuda: list[Any], at: int) -> None:
    found, fake = steps(16, captured=True)
    runs: list[int] = []

    def step(rows: int, choice: Any, span: Any) -> None:
        runs.append(rows)
        if len(runs) > at:
            raise torch.OutOfMemoryError("no memory")

    found._step = step
    with pytest.raises(torch.OutOfMemoryError):
        found.run(2, 12, "greedy", (4, 9))
    assert not fake._idle and found.captured and not found._graphs
    assert torch.cuda.get_sync_debug_mode() == 0


def test_without_graphs_a_step_has_the_live_rows() -> None:
    found, _ = steps(256, captured=False)
    assert [found.rows(live) for live in (1, 17, 256)] == [1, 17, 256]


@pytest.mark.parametrize(
    ("slots", "sizes"),
    [
        (256, {16, 32, 64, 128, 192, 256}),
        (100, {8, 12, 25, 50, 75, 100}),
        (16, {8, 12, 16}),
        (8, {8}),
        (3, {3}),
        (1, {1}),
    ],
)
def test_graphs_have_few_sizes_that_hold_the_live_rows(slots: int, sizes: set[int]) -> None:
    found, _ = steps(slots, captured=True)
    rows = [found.rows(live) for live in range(1, slots + 1)]
    assert set(rows) == sizes
    assert rows == sorted(rows)
    assert all(size >= live for live, size in enumerate(rows, 1))
    assert all(found.rows(size) == size for size in sizes)


def test_without_graphs_the_span_moves_on_with_the_steps() -> None:
    found, fake = steps(4, captured=False)
    found.run(3, 2, "greedy", (4, 9))
    assert fake.steps == [(2, "greedy", (4, 9)), (2, "greedy", (5, 10)), (2, "greedy", (6, 11))]
    assert fake.idle_steps == 0


def test_a_graph_is_captured_once_for_rows_and_choice(fake_cuda: list[Any]) -> None:
    found, fake = steps(16, captured=True)
    found.run(5, 16, "greedy", (0, 3))
    found.run(2, 16, "greedy", (5, 8))
    # What is captured must not hang on a span, and runs while no slot is live.
    assert fake.steps == [(16, "greedy", None)] * (WARM_UP + 2)  # one looks for waits
    assert fake.idle_steps == WARM_UP + 2
    (graph,) = found._graphs.values()
    assert graph.replays == 7  # type: ignore[attr-defined]
    found.run(1, 8, "greedy", (0, 3))
    found.run(1, 8, "sampled", (0, 3))
    assert set(found._graphs) == {(16, "greedy"), (8, "greedy"), (8, "sampled")}
    assert fake_cuda == [None, "pool", "pool"]
    assert not fake._idle


def test_a_model_that_waits_for_the_device_is_run_step_by_step(fake_cuda: list[Any]) -> None:
    found, fake = steps(16, captured=True)
    plain = fake.step

    def step(rows: int, choice: Any, span: Any) -> None:
        if torch.cuda.get_sync_debug_mode() == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        if span is not None:
            plain(rows, choice, span)

    found._step = step
    with pytest.warns(UserWarning, match="decode step waits for the GPU"):
        found.run(2, 12, "greedy", (4, 9))
    assert fake.steps == [(12, "greedy", (4, 9)), (12, "greedy", (5, 10))]
    assert fake_cuda == []  # no capture was begun
    assert torch.cuda.get_sync_debug_mode() == 0
    assert not fake._idle
    assert not found.captured
    found.run(1, found.rows(3), "greedy", (6, 11))  # no second attempt, no second warning
    assert fake.steps[-1] == (3, "greedy", (6, 11))


def test_a_failed_capture_ends_the_run(
    fake_cuda: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def capture(graph: Any, pool: Any) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(torch.cuda, "graph", capture)
    found, fake = steps(16, captured=True)
    with pytest.raises(RunFailed, match=r"captured .* \(operation not permitted .* capturing\)"):
        found.run(2, 12, "greedy", (4, 9))
    assert not fake._idle and not found._graphs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prompt_in_its_slot_has_the_keys_and_values_of_transformers(
    name: str, folder: Path
) -> None:
    model = load_policy(saved(name, folder))
    layers = attention_layers(model)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15]]
    read = read_prompts(model, layers, prompts, 8)
    cache = SlotCache(layers, 4, 10, CPU)
    cache.fill([2, 0], read, [1, 0])
    for slot, prompt in ((2, prompts[1]), (0, prompts[0])):
        with torch.no_grad():
            past: Any = DynamicCache()
            ids = torch.tensor([prompt])
            tiny(name, torch.float32).base_model(ids, past_key_values=past, use_cache=True)
        for layer, stored in zip(past.layers, cache.storage[:, :, slot], strict=True):
            expected = torch.stack([layer.keys[0], layer.values[0]])
            torch.testing.assert_close(stored[:, :, : len(prompt)], expected, atol=1e-5, rtol=1e-5)
        assert not cache.storage[:, :, slot, :, len(prompt) :].any()
    assert not cache.storage[:, :, [1, 3]].any()
    assert not any(hasattr(module, "read_key") for module in model.modules())


def test_prompts_are_let_go_once_they_lie_in_slots(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a pack is read, at most the one before it is still there."""
    packs: list[Any] = []
    alive: list[int] = []

    def read(*arguments: Any) -> Any:
        alive.append(sum(pack() is not None for pack in packs))
        found = read_prompts(*arguments)
        packs.append(weakref.ref(found))
        return found

    monkeypatch.setattr(engines, "read_prompts", read)
    monkeypatch.setitem(engines.READ_TOKENS, "cpu", 32)
    generate(llama, [[5] * 9] * 32, samples=2, max_new_tokens=3, stop_ids=[], slots=64)
    assert len(packs) == 8 and max(alive) == 1
    generate(llama, [[5] * 9] * 32, samples=2, max_new_tokens=3, stop_ids=[], slots=3)
    assert max(alive) == 1
    assert not any(pack() for pack in packs)


def test_a_policy_cannot_sample_twice_at_once(llama: Any) -> None:
    engine = Engine(llama)
    with pytest.raises(AssertionError, match="sampling already"):
        engine.generate(PROMPTS, on_finish=lambda _: engine.generate(PROMPTS, **OPTIONS), **OPTIONS)
    assert len(engine.generate(PROMPTS, **OPTIONS)) == len(PROMPTS)


def layers_of(count: int = 2) -> Layers:
    """Two heads 16 wide: 512 bytes a token in two layers."""
    return Layers([nn.Linear(1, 1) for _ in range(count)], 2, 16, torch.float32)


def test_a_moved_slot_takes_its_positions_along() -> None:
    cache = SlotCache(layers_of(), 4, 10, CPU)
    cache.storage.copy_(torch.arange(cache.storage.numel()).view_as(cache.storage))
    before = cache.storage.clone()
    cache.move([3, 2], [0, 1], length=6)
    assert torch.equal(cache.storage[:, :, 0, :, :6], before[:, :, 3, :, :6])
    assert torch.equal(cache.storage[:, :, 1, :, :6], before[:, :, 2, :, :6])
    assert torch.equal(cache.storage[:, :, :2, :, 6:], before[:, :, :2, :, 6:])
    assert torch.equal(cache.storage[:, :, 2:], before[:, :, 2:])


def test_positions_are_stored_in_blocks_on_a_gpu() -> None:
    assert [stored_length(n, CUDA) for n in (1, 64, 65, 100)] == [64, 64, 128, 128]
    assert stored_length(65, CPU) == 65


def test_modules_have_their_storage_while_attached() -> None:
    layers = layers_of()
    cache = SlotCache(layers, 4, 10, CPU)
    cache.attach()
    for i, module in enumerate(layers.modules):
        assert module.slots.data_ptr() == cache.storage[i].data_ptr()  # type: ignore[operator]
    cache.detach()
    assert not any(hasattr(module, "slots") for module in layers.modules)


READ_AHEAD = 3 * 16384 * 512
ONE_SLOT = 128 * 512 + 12 * 20 + 8 * VOCABULARY  # 100 tokens are stored as 128, 20 of them new


@pytest.mark.parametrize(
    ("free", "slots"),
    [(READ_AHEAD + 5.5 * ONE_SLOT, 5), (READ_AHEAD + 1.01 * ONE_SLOT, 1), (1e12, 256)],
)
def test_a_gpu_with_little_memory_has_fewer_slots(
    free: float, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    # A tenth of what is free is spared.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free / 0.9) + 1, 0))
    assert _affordable(layers_of(), 256, 100, 20, VOCABULARY, CUDA) == slots


def test_a_gpu_that_cannot_hold_one_reply_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    free = (READ_AHEAD + 0.9 * ONE_SLOT) / 0.9
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), 0))
    with pytest.raises(RunFailed, match=r"one reply of 100 tokens takes .* a lower max_new_tokens"):
        _affordable(layers_of(), 256, 100, 20, VOCABULARY, CUDA)


OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "stop_ids": [2], "slots": 3}


def tokens(rollouts: list[Rollout]) -> list[list[int]]:
    return [rollout.tokens for rollout in rollouts]


def test_storage_is_kept_between_calls(llama: Any) -> None:
    engine = Engine(llama, length=20)
    first = engine.generate(PROMPTS, **OPTIONS)
    storage = engine._storage
    assert storage is not None and storage.cache.length == 20
    assert engine.generate(PROMPTS, **OPTIONS) == first
    engine.generate(PROMPTS[:2], max_new_tokens=2, stop_ids=[], slots=1)
    engine.generate([[5] * 14], **OPTIONS)
    assert engine._storage is storage


@pytest.mark.parametrize(
    ("prompts", "changes", "length", "new_tokens", "slots"),
    [
        ([[5] * 21], {}, 27, 6, 3),  # 20 tokens read ahead, 6 and one
        (PROMPTS, {"max_new_tokens": 9}, 20, 9, 3),
        (PROMPTS, {"slots": 4}, 20, 6, 4),
    ],
)
def test_storage_grows_where_it_must(
    llama: Any, prompts: Any, changes: Any, length: int, new_tokens: int, slots: int
) -> None:
    engine = Engine(llama, length=20)
    first = engine.generate(PROMPTS, **OPTIONS)
    options = OPTIONS | changes
    assert tokens(engine.generate(prompts, **options)) == tokens(
        generate(llama, prompts, **options)
    )
    storage = engine._storage
    assert storage is not None
    assert (storage.cache.length, storage.slots.new_tokens, storage.slots.size) == (
        length,
        new_tokens,
        slots,
    )
    assert tokens(engine.generate(PROMPTS, **OPTIONS)) == tokens(first)
    assert engine._storage is storage


def test_what_a_call_left_in_the_slots_does_not_reach_the_next(llama: Any) -> None:
    engine = Engine(llama, length=30)
    engine.generate([[7] * 20] * 3, max_new_tokens=10, stop_ids=[], slots=3)
    found = engine.generate(PROMPTS, samples=2, seed=4, **OPTIONS)
    assert tokens(found) == tokens(generate(llama, PROMPTS, samples=2, seed=4, **OPTIONS))


def test_a_released_engine_gives_the_same_tokens(llama: Any) -> None:
    engine = Engine(llama, length=20)
    assert engine.bytes == 0
    first = engine.generate(PROMPTS, **OPTIONS)
    # 3 slots of 20 positions, each 2 layers x 2 x 2 heads x 16 x 4 bytes; 7 tokens and log-probs.
    assert engine.bytes == 3 * 20 * 512 + 3 * 7 * (8 + 4)
    engine.release()
    assert engine.bytes == 0
    assert tokens(engine.generate(PROMPTS, **OPTIONS)) == tokens(first)


def test_new_weights_are_seen_by_the_next_call(llama: Any) -> None:
    engine = Engine(llama)
    first = engine.generate(PROMPTS, **OPTIONS)
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter += 0.05 * torch.ones_like(parameter).cumsum(-1).sin()
    second = engine.generate(PROMPTS, **OPTIONS)
    assert tokens(second) != tokens(first)
    assert second == generate(llama, PROMPTS, **OPTIONS)


def test_a_change_of_precision_makes_new_storage(llama: Any) -> None:
    engine = Engine(llama)
    first = engine.generate(PROMPTS, **OPTIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        engine.generate(PROMPTS, **OPTIONS)
        assert engine._storage is not None
        assert engine._storage.cache.storage.dtype == torch.bfloat16
    assert engine.generate(PROMPTS, **OPTIONS) == first


def test_a_policy_is_left_as_it_was(llama: Any) -> None:
    attributes = {name: set(vars(module)) for name, module in llama.named_modules()}
    engine = Engine(llama)
    first = engine.generate(PROMPTS, **OPTIONS)
    assert {name: set(vars(module)) for name, module in llama.named_modules()} == attributes
    # The engine lives on; a copy of its policy is a plain one.
    assert generate(copy.deepcopy(llama), PROMPTS, **OPTIONS) == first


def test_a_policy_is_left_as_it_was_after_an_error(llama: Any) -> None:
    attributes = {name: set(vars(module)) for name, module in llama.named_modules()}
    engine = Engine(llama)

    def stop(rollout: Rollout) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, on_finish=stop, **OPTIONS)
    assert {name: set(vars(module)) for name, module in llama.named_modules()} == attributes
    assert tokens(engine.generate(PROMPTS, **OPTIONS)) == tokens(
        generate(llama, PROMPTS, **OPTIONS)
    )
