"""Run a function in several gloo processes that meet through a file of their own."""

import multiprocessing
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tercet.model.shard import Ranks

LINUX = platform.system() == "Linux"


def in_processes(
    work: Callable[..., Any], *arguments: Any, folder: Path, size: int = 2, limit_s: float = 60
) -> list[Any]:
    """[work(ranks, *arguments) of each rank]; what they return must be tensors or plain values."""
    context = multiprocessing.get_context("fork" if LINUX else "spawn")
    children = [
        context.Process(target=_child, args=(rank, size, folder, work, arguments))
        for rank in range(size)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(limit_s)
        if child.is_alive():
            child.terminate()
    assert [child.exitcode for child in children] == [0] * size
    return [torch.load(folder / f"result-{rank}.pt") for rank in range(size)]


def _child(rank: int, size: int, folder: Path, work: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "TERCET_RENDEZVOUS": f"file://{folder}/rendezvous",
        "GLOO_SOCKET_IFNAME": "lo" if LINUX else "lo0",
    }
    ranks = Ranks.start("cpu")
    result = work(ranks, *arguments)
    torch.save(result, folder / f"result-{rank}.pt")
    ranks.barrier()
    ranks.close()
