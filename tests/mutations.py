"""Do the tests notice faults? Applies each fault of `mutation_table` to a copy of the source tree.

    python tests/mutations.py [--list] [--jobs 2] [--only TEXT]

Writes docs/mutations.md (not with --only). Exit code 1 when a fault goes unnoticed, breaks the
import instead of a test, or no longer applies because its text does not occur exactly once.
"""

import argparse
import importlib
import importlib.util
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mutation_table import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("src", "tests", "recipes", "pyproject.toml")
TIME_LIMIT_S = 300
# Loading these takes longer than most tests: they are loaded once, and each run is a fork of that.
PRELOADED = ("torch", "torch._dynamo", "torch.distributed.tensor", "numpy", "hypothesis", "pytest")


@dataclass(frozen=True)
class Outcome:
    mutation: Mutation
    failed: str | None  # the first test that failed; None: no test did
    problem: str | None
    seconds: float


def stale(mutations: Sequence[Mutation]) -> list[str]:
    """Why a mutation cannot be applied, one line each."""
    lines = []
    for mutation in mutations:
        found = (ROOT / mutation.file).read_text().count(mutation.old)
        if found != 1:
            lines.append(
                f"{mutation.name}: its text occurs {found} times in {mutation.file}, not once"
            )
    return lines


def copy_tree(target: Path) -> Path:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target / name, ignore=ignored)
        elif source.exists():
            shutil.copy(source, target / name)
    return target


def start_tests(tree: Path, tests: str) -> int:
    """Forks a process that runs pytest on the copy in `tree`; its id."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        with (tree / "output.txt").open("w") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        signal.alarm(TIME_LIMIT_S)  # ends the process
        os.chdir(tree)
        sys.path.insert(0, str(tree / "src"))
        os.environ["PYTHONPATH"] = str(tree / "src")  # for tests that start processes
        found = importlib.util.find_spec("tercet")
        assert found and found.origin and Path(found.origin).is_relative_to(tree), "not the copy"
        options = ["-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # loaded before the fork
        code = int(importlib.import_module("pytest").main([*options, *tests.split()]))
        sys.stdout.flush()
    finally:
        os._exit(code)


def outcome_of(mutation: Mutation, status: int, output: str, seconds: float) -> Outcome:
    if os.WIFSIGNALED(status):
        ended = f"(ended by {signal.Signals(os.WTERMSIG(status)).name})"
        return Outcome(mutation, ended, None, seconds)
    code = os.WEXITSTATUS(status)
    first = re.search(r"^FAILED (.+?)(?: - |$)", output, re.MULTILINE)
    if code == 1 and first:
        return Outcome(mutation, first.group(1), None, seconds)
    problem = "survived" if code == 0 else f"pytest exit code {code}: {output.strip()[-300:]}"
    return Outcome(mutation, None, problem, seconds)


def run_all(mutations: Sequence[Mutation], jobs: int, folder: Path) -> list[Outcome]:
    free = [copy_tree(folder / str(job)) for job in range(jobs)]
    tests = sorted({path for mutation in mutations for path in mutation.tests.split()})
    _, status = os.waitpid(start_tests(free[0], " ".join(tests)), 0)
    if status:
        output = (free[0] / "output.txt").read_text()
        sys.exit(f"the tests fail without any mutation:\n{output[-2000:]}")
    waiting = list(mutations)
    running: dict[int, tuple[Mutation, Path, str, float]] = {}
    outcomes: dict[Mutation, Outcome] = {}
    while waiting or running:
        while waiting and free:
            mutation, tree = waiting.pop(0), free.pop()
            original = (tree / mutation.file).read_text()
            (tree / mutation.file).write_text(original.replace(mutation.old, mutation.new))
            process = start_tests(tree, mutation.tests)
            running[process] = (mutation, tree, original, time.perf_counter())
        process, status = os.wait()
        mutation, tree, original, started = running.pop(process)
        (tree / mutation.file).write_text(original)
        free.append(tree)
        output = (tree / "output.txt").read_text()
        outcome = outcome_of(mutation, status, output, time.perf_counter() - started)
        outcomes[mutation] = outcome
        # Flushed: a fork would print what is left over once more.
        line = f"{outcome.seconds:6.1f} s  {mutation.name}: {outcome.failed or outcome.problem}"
        print(line, flush=True)
    return [outcomes[mutation] for mutation in mutations]


def table(outcomes: Sequence[Outcome]) -> str:
    noticed = sum(outcome.failed is not None for outcome in outcomes)
    lines = [
        "# Faults that the tests notice",
        "",
        f"{noticed} of {len(outcomes)} deliberate faults make a test fail. "
        "Written by `python tests/mutations.py`; the faults are in `tests/mutation_table.py`.",
        "",
        "| fault | in | first test that fails | seconds |",
        "| --- | --- | --- | --- |",
    ]
    for outcome in outcomes:
        file = outcome.mutation.file.removeprefix("src/tercet/")
        test = (outcome.failed or f"**{outcome.problem}**").replace("|", "\\|").replace("\n", " ")
        lines.append(
            f"| {outcome.mutation.name} | `{file}` | {test.removeprefix('tests/')} "
            f"| {outcome.seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="names and files, nothing is run")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tested at once")
    parser.add_argument(
        "--only", default="", help="only mutations whose name or file has this text"
    )
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if options.only in m.name or options.only in m.file]
    problems = stale(chosen)
    if options.list:
        print(*(f"{m.file}: {m.name}" for m in chosen), sep="\n")
    if options.list or problems or not chosen:
        print(*problems, sep="\n", file=sys.stderr)
        return 1 if problems or not chosen else 0
    # No bytecode: two mutants of one second and one size would share a stale .pyc file.
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    for module in PRELOADED:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run_all(chosen, options.jobs, Path(folder))
    if not options.only:
        (ROOT / "docs").mkdir(exist_ok=True)
        (ROOT / "docs" / "mutations.md").write_text(table(outcomes))
    unnoticed = [outcome for outcome in outcomes if outcome.failed is None]
    print(f"{len(outcomes) - len(unnoticed)} of {len(outcomes)} faults noticed")
    print(*(f"{o.mutation.name}: {o.problem}" for o in unnoticed), sep="\n")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
