"""Checkpoints from which a run goes on exactly: weights, optimizers, positions and every RNG."""

from __future__ import annotations

import hashlib
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from tercet.model.shard import Ranks
from tercet.records import writing


def rng_state() -> dict[str, Any]:
    """The state of every generator that training may draw from, as plain values and tensors."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
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


FORMAT = 2
"""Raised when what a stage keeps changes: a state of another format is not resumed."""


class Checkpoints:
    """The newest states of a stage, two of them, so that a kill while writing loses nothing.

    with Checkpoints(run.checkpoints, ranks, fingerprint, last=steps) as checkpoints:
        state = checkpoints.load()                      # None at a fresh start
        for step in range(...):
            ...
            checkpoints.offer(step + 1, lambda: {...})  # saves each minute, on Ctrl-C, at the end

    A state that takes long to write is written less often: saving costs a tenth of the time at
    most.

    `fingerprint` names configuration and inputs: a state made under others is not resumed, and
    goes when a stage starts afresh in its folder. What follows the `last` step, such as an
    evaluation, may fail too: the final state stays until the stage is known to be done.
    Ctrl-C sets a flag; the state is saved between two steps and KeyboardInterrupt is raised then,
    on all ranks together. A second Ctrl-C stops at once.
    """

    def __init__(
        self, folder: Path, ranks: Ranks, fingerprint: str, last: int, every_s: float = 60.0
    ) -> None:
        self.folder = folder
        self.last = last
        self.ranks = ranks
        made_under = f"{fingerprint} ranks={ranks.size} format={FORMAT}"
        digest = hashlib.sha256(made_under.encode()).hexdigest()[:16]
        self.prefix = f"{digest}-rank{ranks.rank}-"
        self.every_s = every_s
        self.saved = time.monotonic()
        self.writing_s = 0.0
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
        if self.interrupted and exception[0] is None:
            raise KeyboardInterrupt

    def _steps(self) -> list[int]:
        names = (path.stem for path in self.folder.glob(f"{self.prefix}*.pt"))
        return sorted(int(name.removeprefix(self.prefix)) for name in names)

    def load(self) -> dict[str, Any] | None:
        """The newest state that every rank holds under this fingerprint, or None.

        Sets the generators. This rank's other states are dropped: they belong to another timeline.
        """
        common = set.intersection(*(set(steps) for steps in self.ranks.gather([self._steps()])))
        newest = self.folder / f"{self.prefix}{max(common)}.pt" if common else None
        others = [p for p in self.folder.glob(f"*-rank{self.ranks.rank}-*") if p != newest]
        if others and newest is None and self.ranks.main:
            print(
                "checkpoints of other options, inputs or number of processes do not fit: from the "
                "beginning",
                file=sys.stderr,
            )
        for path in others:
            path.unlink()
        if newest is None:
            return None
        state = torch.load(newest, map_location="cpu", weights_only=True)
        set_rng_state(state["rng"])
        return state

    def offer(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Save `state()` as what follows `step` finished steps, when it is time.

        Raises KeyboardInterrupt after saving when Ctrl-C was pressed on any rank.
        """
        wait = max(self.every_s, 9 * self.writing_s)
        due = step == self.last or time.monotonic() - self.saved > wait
        flags = torch.tensor([float(self.interrupted), float(due)], device=self.ranks.device)
        stop, due = (bool(flag) for flag in self.ranks.sum(flags).tolist())
        if stop or due:
            self.save(step, state())
        if stop:
            raise KeyboardInterrupt

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state whole under a partial name, rename it, drop all but the one before."""
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.prefix}{step}.pt"
        partial = path.with_suffix(".partial")
        with writing(partial):
            torch.save(state | {"step": step, "rng": rng_state()}, partial)
        partial.replace(path)
        for old in self._steps()[:-2]:
            (self.folder / f"{self.prefix}{old}.pt").unlink(missing_ok=True)
        self.saved = time.monotonic()
        self.writing_s = self.saved - began


def seed_all(seed: int, rank: int = 0) -> None:
    """Seed every generator that training may draw from, each rank differently."""
    seed = (seed + 100_003 * rank) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
