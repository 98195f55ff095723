"""A run's folder: what was asked, on what machine, every number on the way, and what came out.

run = RunDir(Path("runs/demo/sft"), main=ranks.main)
run.start(config, [demonstrations], sys.argv, ranks.size)
run.log(step, {"loss": 2.31, "lr": 5e-5})
run.finish({"loss": 2.31})
"""

import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tercet.config import to_toml
from tercet.records import InputError, write_atomically

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

PACKAGES = ("tercet", "torch", "transformers", "tokenizers", "safetensors", "peft", "numpy")
PLAIN_SECONDS = 10.0


class RunDir:
    """One stage's folder. Every method that writes does nothing unless `main`, so that all ranks
    of a distributed run can call the same lines."""

    def __init__(self, path: Path, main: bool = True) -> None:
        self.path = path
        self.main = main
        self.model = path / "model"
        self.checkpoints = path / "checkpoints"
        self.fingerprint = ""  # of configuration and inputs; the pipeline sets it on every rank
        self._board: EventFileWriter | None = None

    def start(
        self,
        config: Any,
        inputs: Iterable[Path],
        argv: Sequence[str],
        ranks_size: int = 1,
        table: str = "",
        run: Any = None,
    ) -> None:
        """Writes config.toml, `config` as `[table]` below `run` as `[run]`, and environment.json.

        With both given the file is a recipe that can be run as is. A done.json of an earlier run
        goes away, metrics and checkpoints stay for resuming.

        Raises:
            InputError: an input does not exist.
        """
        if not self.main:
            return
        hashes = {str(path): content_hash(path) for path in inputs}
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "done.json").unlink(missing_ok=True)
        text = (to_toml(run, "run") + "\n" if run is not None else "") + to_toml(config, table)
        write_atomically(self.path / "config.toml", text.encode())
        _write_json(self.path / "environment.json", environment(config, argv, ranks_size, hashes))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one object to metrics.jsonl and mirrors it to TensorBoard. NaN and infinity,
        which JSON lacks, are written as null."""
        if not self.main:
            return
        numbers = {name: float(value) for name, value in values.items()}
        row = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3), **row}) + "\n")
        self._mirror(step, numbers)

    def _mirror(self, step: int, numbers: Mapping[str, float]) -> None:
        # tensorboard's own writer: torch.utils.tensorboard would pull in torch.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._board is None:
            self._board = EventFileWriter(str(self.path / "tensorboard"))
        summary = summary_pb2.Summary()  # pyright: ignore[reportAttributeAccessIssue]
        for tag, number in numbers.items():
            summary.value.add(tag=tag, simple_value=number)
        event = event_pb2.Event(  # pyright: ignore[reportAttributeAccessIssue]
            wall_time=time.time(), step=step, summary=summary
        )
        self._board.add_event(event)

    def metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl so far."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def rewind(self, step: int) -> None:
        """Drops the metrics after `step`, before resuming from a checkpoint made at `step`.

        -1 is a fresh start: the samples and TensorBoard files of an earlier run go too."""
        if not self.main:
            return
        if step < 0:
            shutil.rmtree(self.path / "samples", ignore_errors=True)
            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
        kept = [json.dumps(row) + "\n" for row in self.metrics() if row["step"] <= step]
        write_atomically(self.path / "metrics.jsonl", "".join(kept).encode())

    def samples(self, name: str, text: str) -> None:
        """Writes samples/<name>.txt: texts for a person to read."""
        if not self.main:
            return
        folder = self.path / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{name}.txt", text.encode())

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes done.json, the last thing a stage does."""
        if not self.main:
            return
        if self._board is not None:
            self._board.close()
            self._board = None
        _write_json(self.path / "done.json", dict(summary))

    def done(self) -> dict[str, Any] | None:
        """What `finish` wrote, or None while the stage is not complete."""
        file = self.path / "done.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    write_atomically(path, text.encode())


def environment(
    config: Any, argv: Sequence[str], ranks_size: int, inputs: Mapping[str, str]
) -> dict[str, Any]:
    """What is needed to repeat a run: command, commit, versions, hardware, seeds, input hashes."""
    options = asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}
    return {
        "argv": list(argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": _hardware(),
        "world_size": ranks_size,
        "seeds": {name: value for name, value in options.items() if "seed" in name},
        "inputs": dict(inputs),
    }


def _commit() -> str | None:
    """The source tree's commit, "+changes" if it was edited; None when installed from a wheel."""
    folder = Path(__file__).parent
    git = ["git", "-C", str(folder)]
    try:
        # Tracked only: an installed copy may lie in a folder of somebody else's repository.
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", __file__], check=True, capture_output=True
        )
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
        )
        status = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {
        "platform": platform.platform(),
        "cores": cores,
        "host": platform.node(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts["memory_gib"] = round(memory / 2**30, 1)
    torch = sys.modules.get("torch")  # ask only a stage that already loaded it
    if torch is not None and torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts


def content_hash(path: Path) -> str:
    """sha256 of a file, or of a folder's relative names and contents in sorted order.

    Raises:
        InputError: nothing there.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise InputError(
            f"{path}: no such file or folder; run the stage that makes it, or mend the path"
        )
    total = hashlib.sha256()
    for name in sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()):
        total.update(f"{name}\0{content_hash(path / name)}\n".encode())
    return total.hexdigest()


class Meter:
    """What `progress` hands out: call `advance` after each piece of work."""

    def __init__(self, total: float | None, description: str, unit: str) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.count = 0.0
        self._before = 0.0
        self.fields: dict[str, Any] = {}
        self._started = self._spoke = time.monotonic()
        self._bar: tuple[Progress, TaskID] | None = None
        self._plain = False

    def advance(self, n: float = 1, **fields: Any) -> None:
        """Counts `n` units done; `fields` (loss=2.31) stay shown until replaced."""
        self.count += n
        self.fields.update(fields)
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=self.count, rate=self.rate(), metrics=self.metrics())
        elif self._plain and time.monotonic() - self._spoke >= PLAIN_SECONDS:
            self.say(self.remaining())

    def resume(self, n: float) -> None:
        """Counts `n` units that an earlier process did: they say nothing about this one's rate."""
        self.count += n
        self._before += n
        if self._bar is not None:
            bar, task = self._bar
            bar.reset(task, start=True, completed=int(self.count))

    def rate(self) -> str:
        """Units a second, or seconds a unit when that is slow: "3.1 steps/s", "12 s/step"."""
        seconds = time.monotonic() - self._started
        done = self.count - self._before
        if not done or seconds <= 0:
            return ""
        speed = done / seconds
        return (
            f"{_short(speed)} {self.unit}s/s"
            if speed >= 1
            else f"{_short(1 / speed)} s/{self.unit}"
        )

    def remaining(self) -> str:
        """Time left at the mean rate so far, "" when unknown."""
        done = self.count - self._before
        if not self.total or not done:
            return ""
        seconds = time.monotonic() - self._started
        return f"{_duration(seconds * max(0.0, self.total - self.count) / done)} left"

    def metrics(self) -> str:
        """The fields as "loss 2.31  kl 0.02"."""
        return "  ".join(f"{name} {_short(value)}" for name, value in self.fields.items())

    def say(self, time_part: str) -> None:
        """One plain line on stderr, for logs."""
        self._spoke = time.monotonic()
        share = f"/{_short(self.total)} ({self.count / self.total:.0%})" if self.total else ""
        count = f"{_short(self.count)}{share} {self.unit}s"
        parts = [self.description, count, self.rate(), time_part, self.metrics()]
        print("  ".join(part for part in parts if part), file=sys.stderr, flush=True)

    def elapsed(self) -> str:
        return f"{_duration(time.monotonic() - self._started)} in all"


def _short(value: Any) -> str:
    if not isinstance(value, int | float):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


@contextmanager
def progress(
    total: float | None, description: str, unit: str = "step", show: bool = True
) -> Iterator[Meter]:
    """A progress display on stderr with rate, remaining time and short metrics.

        with progress(500, "ppo", "iteration") as meter:
            for _ in range(500):
                meter.advance(1, reward=0.31, kl=2.2)

    `unit` is singular. On a terminal a bar; elsewhere a plain line every ten seconds and one at
    the end. Pass `show=ranks.main` in distributed runs.
    """
    meter = Meter(total, description, unit)
    if not show:
        yield meter
    elif sys.stderr.isatty():
        with _rich_bar() as bar:
            meter._bar = (
                bar,
                bar.add_task(description, total=total, unit=unit, rate="", metrics=""),
            )
            yield meter
    else:
        meter._plain = True
        yield meter
        meter.say(meter.elapsed())


def _rich_bar() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[cyan]{task.fields[metrics]}"),
        console=Console(stderr=True),
    )
