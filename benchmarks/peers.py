"""TRL's trainers as their documentation sets them for speed, with a clock around every step.

bf16 autocast over float32 weights (TRL's default when models are loaded as it loads them), the
fused AdamW, no gradient checkpointing (it trades speed for memory), Liger kernels where that
package is installed, the largest micro-batch of a list that fits.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TrainerCallback

from benchmarks.measure import clock, free_memory, reset_peak

T = TypeVar("T")


class StepClock(TrainerCallback):
    """Seconds of every optimizer step of a transformers Trainer."""

    def __init__(self) -> None:
        self.began = 0.0
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(clock() - self.began)


def liger() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def training_arguments(folder: str | Path, cuda: bool, steps: int) -> dict[str, Any]:
    """Options that all of TRL's trainers share; nothing is saved, reported or evaluated."""
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "bf16": cuda,
        "use_cpu": not cuda,
        "gradient_checkpointing": False,
        "use_liger_kernel": cuda and liger(),
        "optim": "adamw_torch_fused" if cuda else "adamw_torch",
        "adam_beta2": 0.95,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }


def largest_that_fits(sizes: Sequence[int], attempt: Callable[[int], T]) -> tuple[int, T]:
    """(size, result) of the first size that does not run out of GPU memory."""
    for size in sizes:
        reset_peak()
        try:
            return size, attempt(size)
        except torch.cuda.OutOfMemoryError:
            print(f"micro-batch {size} does not fit", file=sys.stderr, flush=True)
        free_memory()  # outside the handler: the traceback holds the model
    raise MemoryError(f"out of memory with every micro-batch of {list(sizes)}")
