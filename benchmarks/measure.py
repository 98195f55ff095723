"""What a benchmark needs of its machine: facts, measured limits, a clock that waits for the GPU."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from tercet.rundir import environment

GIB = 2**30
# Options whose values say where this machine keeps things, which nobody else needs.
PRIVATE = ("--out", "--path", "--child", "--rows")


def facts(argv: Sequence[str], commit: str | None) -> dict[str, Any]:
    """Command, commit, versions and hardware, without the machine's name and folders."""
    found = environment(None, public_command(argv), 1, {})
    found["hardware"].pop("host")
    return found | {"commit": commit or found["commit"]}


def public_command(argv: Sequence[str]) -> list[str]:
    """The command line without values of private options.

    >>> public_command(["/home/me/benchmarks/rollout.py", "--small", "--out", "/tmp/x.json"])
    ['python', '-m', 'benchmarks.rollout', '--small']
    """
    program = argv[0].replace("\\", "/").rpartition("/")[2].removesuffix(".py")
    kept: list[str] = []
    skip = False
    for word in argv[1:]:
        private = word.split("=")[0] in PRIVATE
        if not (skip or private):
            kept.append(word)
        skip = private and "=" not in word
    return ["python", "-m", f"benchmarks.{program}", *kept]


def versions(*packages: str) -> dict[str, str]:
    """Installed versions, those of packages that are not here left out."""
    found = {"python": sys.version.split()[0]}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def synchronize() -> None:
    """Wait until the GPU has done what it was given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def clock() -> float:
    """Seconds, after the GPU has caught up."""
    synchronize()
    return time.perf_counter()


def timed(run: Callable[[int], Any], repeats: int, budget: float = 60.0) -> list[float]:
    """Seconds of `run(0)`, `run(1)`, ...; fewer than `repeats` when they would pass `budget`."""
    seconds: list[float] = []
    for repeat in range(repeats):
        if seconds and sum(seconds) + seconds[-1] > budget:
            break
        began = clock()
        run(repeat)
        seconds.append(clock() - began)
    return seconds


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Every run and the median, as a row holds them."""
    return {
        "seconds": [round(s, 5) for s in seconds],
        "median_seconds": round(statistics.median(seconds), 5),
    }


def free_memory() -> None:
    """Give unused memory back, so that the next measurement starts from little."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    """Most memory that tensors took since `reset_peak`; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    return round(torch.cuda.max_memory_allocated() / GIB, 2)


def machine(device: torch.device, small: bool) -> dict[str, Any]:
    """Name and measured limits of the device: matrix products and copies on random data."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    size = 1024 if small else 8192
    name = torch.cuda.get_device_name(device) if cuda else "CPU"
    return {
        "device": name,
        "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / GIB, 1)
        if cuda
        else None,
        "matmul_dtype": str(dtype).removeprefix("torch."),
        "matmul_size": size,
        "matmul_flops": matmul_rate(device, dtype, size),
        "copy_bytes": copy_rate(device, 2**24 if small else 2**32),
    }


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int, runs: int = 20) -> float:
    """Operations a second of a square matrix product on random data, the median of `runs`."""
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = _median(lambda: torch.mm(a, b, out=out), runs)
    return 2 * size**3 / seconds


def copy_rate(device: torch.device, size: int, runs: int = 20) -> float:
    """Bytes a second read and written by a copy of `size` bytes, the median of `runs`."""
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _median(lambda: target.copy_(source), runs)
    return 2 * size / seconds


def _median(run: Callable[[], Any], runs: int) -> float:
    timed(lambda _: run(), 3)
    return statistics.median(timed(lambda _: run(), runs))
