"""Time and memory of the phases of an iteration: rollout, score, update."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tercet.rollout.engine import Engine

SPARE = 0.9
"""Share of a GPU's memory that a phase may reach beside the engine's storage."""


class Phases:
    """Seconds of each phase; waits for the device at both ends, so that each bears its own work.

    with phases("score"):
        ...
    metrics |= phases.take()      # {"seconds/score": 1.3}
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = self._now()
        yield
        passed = self._now() - began
        self._seconds[name] = self._seconds.get(name, 0.0) + passed

    def take(self) -> dict[str, float]:
        """What was measured since the last call, as metrics."""
        seconds = {f"seconds/{name}": value for name, value in self._seconds.items()}
        self._seconds = {}
        return seconds

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Room:
    """Whether an engine keeps its storage and graphs while models train on the same GPU.

    The first time it gives them back; from then on the peak that training reached decides.

    room.make()          # after a rollout
    room.remember()      # when the training of this iteration is over
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._peak: int | None = None
        self._kept = 0

    def make(self) -> None:
        """Release the engine unless training fits beside it."""
        device = self._engine.device
        if device.type != "cuda":
            return
        # What this process holds or may still take; others may use the same GPU.
        ours = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        if self._peak is None or self._peak + self._engine.bytes > SPARE * ours:
            self._engine.release()
        self._kept = self._engine.bytes
        torch.cuda.reset_peak_memory_stats(device)

    def remember(self) -> None:
        """Note how much training took at most, the engine's own share left out."""
        if self._engine.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._engine.device) - self._kept
            self._peak = max(peak, self._peak or 0)
