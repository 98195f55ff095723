"""Runs each engine of a benchmark in a process of its own and keeps what it measured.

A benchmark names its engines; each is a function that yields rows, one a workload. It runs in a
fresh process, so that its memory is free before and after and its crash takes nothing else down.
The parent never touches the GPU. Rows are merged into one JSON file by "workload/engine" as they
come: `runs` holds machine, versions and command of each run, a row says which run it is from.

    python -m benchmarks.rollout                             # all engines, on a CUDA device
    python -m benchmarks.rollout --small                     # the same at toy size, on the CPU
    python -m benchmarks.rollout --engines tercet,vllm --path vllm=/folder/with/vllm

An engine whose package is missing is a row that says so, as is one that failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import facts, machine

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Engine:
    """Something that does the work; `needs` is the package without which it is absent."""

    run: Callable[[argparse.Namespace], Iterator[Row]]
    needs: str | None = None
    usual: bool = True
    """whether it runs when no engines are named"""


@dataclass(frozen=True)
class Claim:
    """A number that was to be reached; `value` None when a row that it needs is missing."""

    text: str
    target: float
    value: float | None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    def line(self) -> str:
        verdict = {None: "not measured", True: "reached", False: "MISSED"}[self.met]
        value = "-" if self.value is None else f"{self.value:,.4g}"
        sign = "at most" if self.at_most else "at least"
        return f"{verdict:>12}  {self.text}: {value} (to reach: {sign} {self.target:,.4g})"


Rows = Mapping[str, Row]


@dataclass(frozen=True)
class Benchmark:
    """What is measured, how rows are completed, shown and judged."""

    name: str
    about: str
    engines: Mapping[str, Engine]
    columns: Sequence[tuple[str, str, str]]
    """heading, key of the row, format"""
    complete: Callable[[Row, Row], Row] = lambda row, machine: row
    """adds what follows from a row and the machine's limits"""
    claims: Callable[[Rows], list[Claim]] = lambda rows: []
    plot: Callable[[Rows, Row, Path], None] | None = None
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    packages: Sequence[str] = field(default=())


def main(benchmark: Benchmark, argv: Sequence[str] | None = None) -> int:
    options = parse(benchmark, argv)
    if options.child:
        return child(benchmark, options)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; add --small for a run on the CPU", file=sys.stderr)
        return 2
    rows = run(benchmark, options)
    print()
    print(table(rows.values(), benchmark.columns))
    for claim in [] if options.small else benchmark.claims(rows):
        print(claim.line())
    for row in rows.values():
        if row["status"] != "done":
            print(f"! {row['engine']} {row['status'].upper()}: {row['why']}")
    return 0 if any(row["status"] == "done" for row in rows.values()) else 1


def parse(benchmark: Benchmark, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"benchmarks.{benchmark.name}")
    parser.description = benchmark.about
    usual = [name for name, engine in benchmark.engines.items() if engine.usual]
    add = parser.add_argument
    add("--small", action="store_true", help="toy sizes, on the CPU unless --device says otherwise")
    add("--device", choices=("cuda", "cpu"))
    add("--engines", default=",".join(usual), help=f"of {', '.join(benchmark.engines)}")
    add("--repeats", type=int, default=3, help="timed runs of each engine")
    add("--budget", type=float, default=30.0, help="seconds for an engine's timed runs of a kind")
    add("--timeout", type=float, default=400.0, help="seconds after which an engine is ended")
    add("--out", type=Path, help="results are merged into this JSON file")
    add(
        "--path",
        action="append",
        default=[],
        help="PACKAGE=FOLDER that only engines which need the package see",
    )
    add("--commit", help="commit of this source where git is not there to ask")
    add("--verbose", action="store_true", help="show what the engines print")
    add("--child", help=argparse.SUPPRESS)
    add("--rows", type=Path, help=argparse.SUPPRESS)
    benchmark.options(parser)
    options = parser.parse_args(argv)
    options.device = options.device or ("cpu" if options.small else "cuda")
    options.engines = [name for name in options.engines.split(",") if name]
    if unknown := set(options.engines) - set(benchmark.engines):
        parser.error(f"no engine {', '.join(sorted(unknown))}; of {', '.join(benchmark.engines)}")
    name = f"{benchmark.name}_small" if options.small else benchmark.name
    options.out = options.out or RESULTS / f"{name}.json"
    return options


def device(options: argparse.Namespace) -> torch.device:
    return torch.device(options.device, 0 if options.device == "cuda" else None)


def dtype(options: argparse.Namespace) -> torch.dtype:
    """What the weights of a model for inference are: bf16 on a GPU."""
    return torch.bfloat16 if options.device == "cuda" else torch.float32


# --- in the parent --------------------------------------------------------------------------------


def run(benchmark: Benchmark, options: argparse.Namespace) -> dict[str, Row]:
    """Every engine in turn; all rows of this run by "workload/engine"."""
    about = facts(sys.argv, options.commit)
    began = about.pop("started")
    limits, _ = apart(benchmark, "machine", options)
    if not limits:
        raise SystemExit("the device's own limits could not be measured; see above")
    about["machine"] = limits[0]
    print(limits_line(limits[0]), flush=True)
    rows: dict[str, Row] = {}
    for name in options.engines:
        found, failure = apart(benchmark, name, options)
        for row in [*found, *([failure] if failure else [])]:
            row = {"engine": name, "workload": "", "status": "done", "run": began} | row
            if row["status"] == "done":
                row = benchmark.complete(row, limits[0])
            rows[f"{row['workload']}/{row['engine']}"] = row
        claims = [] if options.small else benchmark.claims(rows)
        merge(options.out, began, about | {"claims": [c.__dict__ | {"met": c.met} for c in claims]},
              rows)  # fmt: skip
    if benchmark.plot is not None and not options.small:
        try:
            benchmark.plot(rows, limits[0], options.out.with_suffix(""))
        except Exception:  # the numbers are on disk; a figure is no reason to call them failed
            traceback.print_exc()
    return rows


def apart(
    benchmark: Benchmark, name: str, options: argparse.Namespace
) -> tuple[list[Row], Row | None]:
    """(rows of an engine run in its own process, a row that says why there are no more)."""
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder, "rows.jsonl"), Path(folder, "log")
        rows.touch()
        words = sys.argv[1:]
        command = [sys.executable, "-m", f"benchmarks.{benchmark.name}", *words]
        command += ["--child", name, "--rows", str(rows)]
        print(f"{name} ...", end=" ", flush=True)
        began = time.monotonic()
        with log.open("w") as output:
            needs = benchmark.engines[name].needs if name in benchmark.engines else None
            code = wait(command, environment_of(needs, options), output, options)
        print(f"{time.monotonic() - began:.0f} s", flush=True)
        found = [json.loads(line) for line in rows.read_text().splitlines()]
        if code == 0:
            return found, None
        lines = [line.rstrip() for line in log.read_text(errors="replace").splitlines()]
        print("\n".join(["", *lines[-40:], ""]), file=sys.stderr, flush=True)
        why = f"no end within {options.timeout:.0f} s" if code is None else last_error(lines, code)
        return found, {"workload": "", "status": "failed", "why": why}


def wait(
    command: list[str], environment: dict[str, str], output: Any, options: argparse.Namespace
) -> int | None:
    """The exit code; None when the process and its children had to be ended."""
    stream = None if options.verbose else output
    process = subprocess.Popen(
        command, env=environment, stdout=stream, stderr=stream, start_new_session=True
    )
    try:
        return process.wait(options.timeout)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return None
        raise


def environment_of(package: str | None, options: argparse.Namespace) -> dict[str, str]:
    """The environment of an engine's process: this repository, then what its package needs."""
    wanted = [p.partition("=") for p in options.path]
    own = [folder for name, _, folder in wanted if name == package]
    root = str(Path(__file__).parents[1])
    inherited = os.environ.get("PYTHONPATH", "")
    folders = [root, *own, *([inherited] if inherited else [])]
    changed = {"PYTHONPATH": os.pathsep.join(folders)}
    if package == "trl":  # its tensors come in many sizes; without this it fits less
        changed["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    return os.environ | changed


def last_error(lines: Sequence[str], code: int) -> str:
    """The line that names the exception, for a file that shows no folders of this machine."""
    named = [line for line in lines if line and not line.startswith((" ", "[", "Traceback"))]
    errors = [line for line in named if "Error" in line or "Exception" in line]
    return f"exit code {code}: {(errors or named or ['it printed nothing'])[-1][:300]}"


def limits_line(limits: Row) -> str:
    return (
        f"{limits['device']}: {limits['matmul_flops'] / 1e12:,.3g} TFLOP/s "
        f"{limits['matmul_dtype']} at {limits['matmul_size']}^3, "
        f"copies {limits['copy_bytes'] / 1e12:,.3g} TB/s"
    )


def merge(path: Path, began: str, about: Row, rows: Rows) -> None:
    """Put this run's rows over older ones of the same key; forget runs that have no rows left."""
    kept: dict[str, Any] = {"runs": {}, "rows": {}}
    if path.exists():
        kept |= json.loads(path.read_text(encoding="utf-8"))
    kept["runs"][began] = about
    kept["rows"] |= rows
    used = {row["run"] for row in kept["rows"].values()}
    kept["runs"] = {key: kept["runs"][key] for key in sorted(used | {began})}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def table(rows: Any, columns: Sequence[tuple[str, str, str]]) -> str:
    """Aligned text; a row that was not measured shows its status."""
    heads = ["workload", "engine", *(head for head, _, _ in columns)]
    lines = [heads]
    for row in rows:
        cells = [row["workload"], row["engine"]]
        if row["status"] == "done":
            cells += [cell(row.get(key), form) for _, key, form in columns]
        else:
            cells += [row["status"].upper(), *[""] * (len(columns) - 1)]
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def cell(value: Any, form: str) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, str) else form.format(value)


# --- in the engine's process ----------------------------------------------------------------------


def child(benchmark: Benchmark, options: argparse.Namespace) -> int:
    """Run one engine and append its rows, each as soon as it is there."""
    if options.device == "cpu":
        torch.set_num_threads(1)  # toys; more threads only spin
    if options.child == "machine":
        emit(options.rows, machine(device(options), options.small))
        return 0
    engine = benchmark.engines[options.child]
    if engine.needs is not None and importlib.util.find_spec(engine.needs) is None:
        why = f"the package {engine.needs} is not installed here"
        emit(options.rows, {"status": "absent", "why": why})
        return 0
    for row in engine.run(options):
        emit(options.rows, row)
    return 0


def emit(path: Path, row: Row) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
