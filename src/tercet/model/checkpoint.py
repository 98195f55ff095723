"""Checkpoints from which a run goes on exactly: weights, optimizers, schedules, positions and every RNG."""

from __future__ import annotations

import hashlib
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from tercet.model.shard import Ranks


def rng_state() -> dict[str, Any]:
    """The state of every generator that training may draw from, as plain values and tensors."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [kind, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """The inverse of `rng_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


class Checkpoints:
    """The newest states of a stage, two of them, so that a kill while writing loses nothing.

    with Checkpoints(run.checkpoints, ranks, fingerprint) as checkpoints:
        state = checkpoints.load()                  # None at a fresh start
        for step in range(...):
            ...
            checkpoints.offer(step, lambda: {...})  # saves when a minute has passed or Ctrl-C was pressed

    `fingerprint` names configuration and inputs: a state made under others is not resumed.
    Ctrl-C sets a flag; the state is saved between two steps and KeyboardInterrupt is raised then, on all
    ranks together. A second Ctrl-C stops at once.
    """

    def __init__(self, folder: Path, ranks: Ranks, fingerprint: str, every_s: float = 60.0) -> None:
        self.folder = folder
        self.ranks = ranks
        digest = hashlib.sha256(f"{fingerprint} ranks={ranks.size}".encode()).hexdigest()[:16]
        self.prefix = f"{digest}-rank{ranks.rank}-"
        self.every_s = every_s
        self.saved = time.monotonic()
        self.interrupted = False
        self._previous: Any = None

    def __enter__(self) -> Checkpoints:
        def remember(signum: int, frame: FrameType | None) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        try:
            self._previous = signal.signal(signal.SIGINT, remember)
        except ValueError:  # not the main thread: the caller's own handling stays
            self._previous = None
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _steps(self) -> list[int]:
        names = (path.stem for path in self.folder.glob(f"{self.prefix}*.pt"))
        return sorted(int(name.removeprefix(self.prefix)) for name in names)

    def load(self) -> dict[str, Any] | None:
        """The newest state that every rank holds under this fingerprint, or None. Sets the generators."""
        common = set.intersection(*(set(steps) for steps in self.ranks.gather([self._steps()])))
        if not common:
            return None
        path = self.folder / f"{self.prefix}{max(common)}.pt"
        state = torch.load(path, map_location="cpu", weights_only=True)
        set_rng_state(state["rng"])
        return state

    def offer(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Save `state()` as what follows `step` finished steps, when it is time. Call between steps.

        Raises KeyboardInterrupt after saving when Ctrl-C was pressed on any rank.
        """
        due = time.monotonic() - self.saved > self.every_s
        flags = torch.tensor([float(self.interrupted), float(due)], device=self.ranks.device)
        stop, due = (bool(flag) for flag in self.ranks.sum(flags).tolist())
        if stop or due:
            self.save(step, state())
        if stop:
            raise KeyboardInterrupt

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state whole under a partial name, rename it, and drop all but the one before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.prefix}{step}.pt"
        partial = path.with_suffix(".partial")
        torch.save(state | {"step": step, "rng": rng_state()}, partial)
        partial.replace(path)
        for old in self._steps()[:-2]:
            (self.folder / f"{self.prefix}{old}.pt").unlink(missing_ok=True)
        self.saved = time.monotonic()

    def clear(self) -> None:
        """Forget the states of a finished stage, this rank's of any configuration included."""
        for path in self.folder.glob(f"*-rank{self.ranks.rank}-*"):
            path.unlink(missing_ok=True)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block under its own seed and give the generators back as they were."""
    state = rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_rng_state(state)
