"""The ranks of one program: who I am, what my share is, and sums over everybody.

Losses are sums divided by a *global* count, so gradients are added over ranks, never averaged, and
the result does not depend on how many ranks there are. One rank is the same program with nothing
to add.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from tercet.records import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """`rank` of `size` processes, each with one `device`.

    Ranks()                 # one process on the CPU
    Ranks.start("auto")     # what torchrun (or `tercet run` with processes > 1) set up
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @staticmethod
    def start(device: str = "auto") -> Ranks:
        """Join the process group that RANK and WORLD_SIZE describe; one rank needs none.

        device: "auto" (CUDA when there is one), "cpu", "cuda" or "cuda:1".
        Raises InputError when the asked device does not exist.
        """
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda"):
            if not torch.cuda.is_available():
                raise InputError(f'device {device!r}: no CUDA device here; use device = "cpu"')
            if device == "cuda":
                device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}"
            torch.cuda.set_device(device)
        elif device != "cpu":
            raise InputError(f"device {device!r} is not known; use auto, cpu, cuda or cuda:N")
        if size > 1 and not dist.is_initialized():
            backend = "nccl" if device.startswith("cuda") else "gloo"
            method = os.environ.get(
                "TERCET_RENDEZVOUS", "env://"
            )  # a file when `tercet run` forked us
            dist.init_process_group(
                backend,
                init_method=method,
                rank=rank,
                world_size=size,
                timeout=timedelta(minutes=30),
            )
        return Ranks(rank, size, torch.device(device))

    @property
    def main(self) -> bool:
        """True on the one rank that writes files and speaks to the person."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """My part of a batch: every size-th item. Parts differ in length by one at most."""
        return list(items[self.rank :: self.size])

    def gather(self, mine: Sequence[T]) -> list[T]:
        """The inverse of `share`, on every rank: all results in the order of the whole batch."""
        if self.size == 1:
            return list(mine)
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, list(mine))
        whole: list[Any] = [None] * sum(len(part) for part in parts)
        for rank, part in enumerate(parts):
            whole[rank :: self.size] = part
        return whole

    def broadcast(self, value: T) -> T:
        """The main rank's `value`, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def sum(self, value: Tensor) -> Tensor:
        """Sum of a tensor over ranks (a new tensor, detached from the graph)."""
        value = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """True everywhere when it is true anywhere."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add gradients over ranks in one message; a rank whose share was empty adds zeros."""
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        for p in trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in trained if p.grad is not None]
        flat = _flatten_dense_tensors(grads)
        dist.all_reduce(flat)
        for grad, summed in zip(grads, _unflatten_dense_tensors(flat, grads), strict=True):
            grad.copy_(summed)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
