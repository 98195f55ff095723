"""Decode steps as CUDA graphs: one launch a step instead of some hundred.

A graph is captured for a few numbers of rows and replayed as long as the storage that it was
captured on lives. On a CPU, or where a model's step waits for the device, a step is simply run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from tercet.records import RunFailed

WARM_UP = 2
"""Runs before a capture: compilation and library handles must not fall into it."""
FEWEST = 8
"""Rows of the smallest graph; one row alone would be compiled as a case of its own."""

Span = tuple[int, int]
Step = Callable[[int, Any, Span | None], None]


class Steps:
    """Runs `step(rows, choice, span)`, captured once for each (rows, choice) where possible.

    `idle()` makes every slot idle and returns what undoes that, so that the runs before a capture
    change nothing.
    """

    def __init__(
        self, step: Step, idle: Callable[[], Callable[[], object]], slots: int, captured: bool
    ) -> None:
        self._step, self._idle, self.captured = step, idle, captured
        sizes = (slots, slots * 3 // 4, slots // 2, slots // 4, slots // 8, slots // 16)
        self._sizes = sorted({max(size, min(FEWEST, slots)) for size in sizes})
        self._graphs: dict[tuple[int, Any], torch.cuda.CUDAGraph] = {}
        self._pool: Any = None

    def rows(self, live: int) -> int:
        """Rows of a step that serves `live` replies: all of them, or the next size captured."""
        if not self.captured:
            return live
        return next(size for size in self._sizes if size >= live)

    def run(self, count: int, rows: int, choice: Any, span: Span) -> None:
        """`count` steps of the first `rows` slots, whose positions lie within `span` at first."""
        graph = self._graphs.get((rows, choice))
        if graph is None and self.captured:
            graph = self._capture(rows, choice)
        for i in range(count):
            if graph is not None:
                graph.replay()
            else:
                self._step(rows, choice, (span[0] + i, span[1] + i))

    def _capture(self, rows: int, choice: Any) -> torch.cuda.CUDAGraph | None:
        undo = self._idle()
        side = torch.cuda.Stream()
        try:
            side.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(side):
                    for _ in range(WARM_UP):
                        self._step(rows, choice, None)
                    waits = self._waits(rows, choice)
            finally:
                torch.cuda.current_stream().wait_stream(side)
            if waits:
                self.captured = False
                warnings.warn(
                    "this model's decode step waits for the GPU, which a CUDA graph cannot hold, "
                    "so rollouts will be several times slower",
                    stacklevel=2,
                )
                return None
            graph = self._captured(rows, choice)
        finally:
            undo()
        self._pool = self._pool or graph.pool()
        self._graphs[rows, choice] = graph
        return graph

    def _captured(self, rows: int, choice: Any) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                self._step(rows, choice, None)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RunFailed(
                "this model's decode step cannot be captured as a CUDA graph "
                f"({str(error).splitlines()[0]}); run the stage on a CPU (--device cpu)"
            ) from error
        return graph

    def _waits(self, rows: int, choice: Any) -> bool:
        """Whether a step asks the device something, such as how long the longest row is.

        Found out beforehand: up to torch 2.11 a capture that fails leaves the allocator unusable.
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls its debug mode a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            self._step(rows, choice, None)
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            return True
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return False
