"""Processes of one machine: `tercet run` starts them on the CPU as torchrun would on GPUs."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from tercet.records import InputError, RunFailed

INTERRUPTED = 130


def launch(work: Callable[[], None], device: str, processes: int, threads: int) -> None:
    """Run `work` here, or in `processes` CPU processes that find each other through a file."""
    import torch

    alone = processes == 1 or "RANK" in os.environ
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if alone or on_gpu:
        if not on_gpu:
            torch.set_num_threads(threads)
        work()
        return
    # fork keeps the imported libraries; macOS frameworks do not survive it.
    context: Any = multiprocessing.get_context("fork" if platform.system() == "Linux" else "spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/rendezvous"
        failures = context.SimpleQueue()
        children = [
            context.Process(target=_child, args=(rank, processes, threads, meeting, work, failures))
            for rank in range(processes)
        ]
        for child in children:
            child.start()
        code = _wait(children)
        if not failures.empty():
            raise failures.get()
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code < 0:
        raise RunFailed(
            f"a process was ended by {signal.Signals(-code).name}, as the system does when memory "
            "runs out; the same command goes on from the last checkpoint"
        )
    if code:
        raise RunFailed("a process failed; its traceback is above")


def _child(
    rank: int, processes: int, threads: int, meeting: str, work: Callable[[], None], failures: Any
) -> None:
    """One rank. What the person must mend goes to the parent, which says it once."""
    import torch

    loopback = "lo" if platform.system() == "Linux" else "lo0"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "TERCET_RENDEZVOUS": meeting,
    }
    torch.set_num_threads(threads)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        work()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (InputError, RunFailed, OSError) as error:
        failures.put(error)
        sys.exit(1)
    except Exception:
        time.sleep(0.5)
        if failures.empty():
            raise
        sys.exit(1)  # this rank only lost its peer, which has said why


def _leave_with_parent() -> None:
    """A parent that was killed tells nobody. What it leaves behind would keep the run's folder,
    and the labeling page's port, from the same command that goes on."""
    parent = multiprocessing.parent_process()
    while parent is not None and os.getppid() == parent.pid:
        time.sleep(0.5)
    # A shell script has what it starts in the background ignore Ctrl-C.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGTERM if ignored else signal.SIGINT)


def _wait(children: Sequence[Any]) -> int:
    """Wait for all and return the first exit code that is not 0; when one fails, stop the others.

    Ctrl-C reaches the children too: they finish their step, save and leave, however long it takes.
    A second one ends them at once.
    """
    code, interrupted = 0, False
    while any(child.is_alive() for child in children):
        try:
            for child in children:
                child.join(timeout=0.2)
                if child.exitcode and not code:
                    code = child.exitcode
            if code not in (0, INTERRUPTED):
                deadline = time.monotonic() + 2
                for child in children:
                    child.join(timeout=max(0.0, deadline - time.monotonic()))
                    if child.is_alive():
                        child.terminate()
        except KeyboardInterrupt:
            if interrupted:
                for child in children:
                    child.terminate()
            code, interrupted = INTERRUPTED, True
    return code or next((child.exitcode for child in children if child.exitcode), 0)
