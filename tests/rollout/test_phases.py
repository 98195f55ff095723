"""Seconds of phases by name, and whether an engine keeps its memory while models train."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tercet.rollout import phases
from tercet.rollout.phases import Phases, Room


def test_phases_add_up_by_name_and_are_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.5, 20.0, 20.25, 30.0, 34.0])
    monkeypatch.setattr(phases, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    timed = Phases(torch.device("cpu"))
    with timed("rollout"):
        pass
    with timed("score"):
        pass
    with timed("rollout"):
        pass
    assert timed.take() == {"seconds/rollout": 5.5, "seconds/score": 0.25}
    assert timed.take() == {}


class FakeEngine:
    """Holds some bytes until released."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.bytes = 0
        self.released = 0

    def release(self) -> None:
        self.bytes = 0
        self.released += 1


class FakeGPU:
    """100 bytes for us, 60 of them free; `peak` is the most that was taken since the last reset."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.peak = 0
        self.resets = 0
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (60, 1000))
        patch.setattr(torch.cuda, "memory_reserved", lambda device: 40)
        patch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: self._reset())
        patch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)

    def _reset(self) -> None:
        self.resets += 1


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGPU:
    return FakeGPU(monkeypatch)


def kept(gpu: FakeGPU, *iterations: tuple[int, int]) -> list[bool]:
    """Whether the engine was kept, by iteration: (bytes it holds, peak of all in training)."""
    engine = FakeEngine("cuda")
    room = make(engine)
    found = []
    for held, peak in iterations:
        engine.bytes, released = held, engine.released
        room.make()
        gpu.peak = peak
        room.remember()
        found.append(engine.released == released)
    return found


def make(engine: FakeEngine) -> Room:
    fake: Any = engine
    return Room(fake)


def test_the_first_time_an_engine_is_released(gpu: FakeGPU) -> None:
    assert kept(gpu, (1, 1)) == [False]
    assert gpu.resets == 1


def test_an_engine_stays_when_training_fits_beside_it(gpu: FakeGPU) -> None:
    """A share of 0.9 may be reached: 60 + 30 bytes fit into 100, 60 + 31 do not."""
    assert kept(gpu, (30, 60), (30, 90), (30, 90), (31, 60)) == [False, True, True, False]


def test_the_engines_own_bytes_are_no_part_of_the_peak(gpu: FakeGPU) -> None:
    """85 with the engine's 30 are 55 of training: 35 more would fit."""
    assert kept(gpu, (30, 50), (30, 85), (35, 60)) == [False, True, True]


def test_the_highest_peak_of_all_iterations_decides(gpu: FakeGPU) -> None:
    assert kept(gpu, (30, 80), (30, 10), (30, 10)) == [False, False, False]


def test_on_a_cpu_an_engine_is_kept() -> None:
    engine = FakeEngine("cpu")
    room = make(engine)
    room.make()
    room.remember()
    assert engine.released == 0
