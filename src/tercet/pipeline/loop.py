"""The loop that a whole run is: configure, skip what is unchanged, run, go on."""

from __future__ import annotations

import errno
import hashlib
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from tercet import __version__
from tercet.config import load_recipe, override, suggest, to_toml
from tercet.pipeline.processes import launch
from tercet.pipeline.recipe import Run, configure, plan, preset_of, read_run, with_overrides
from tercet.pipeline.steps import STEPS, Step
from tercet.records import InputError
from tercet.report.report_json import add_seconds
from tercet.rundir import RunDir, content_hash


def run_recipe(recipe: Path, argv: Sequence[str]) -> None:
    """`tercet run RECIPE [--seed N] [--until STAGE] [--STAGE.OPTION VALUE]`: every stage."""
    run, steps, tables = plan(recipe, load_recipe(recipe), argv)
    configs = {step.name: configure(step, tables, run, recipe) for step in steps}
    _launch(steps, configs, run, recipe)


def run_stage(verb: str, recipe: Path, argv: Sequence[str]) -> None:
    """`tercet VERB RECIPE [--option value]`: one stage, the recipe's table under these options."""
    tables, argv = with_overrides(load_recipe(recipe), argv)
    run = read_run(tables, recipe)
    found = [s for s in STEPS if s.name == verb and (verb != "data" or s.table in tables)]
    if not found:
        raise InputError(
            f"{recipe}: no stage {verb!r} here" + suggest(verb, [s.name for s in STEPS])
        )
    step = found[0]
    if preset := preset_of(argv):  # its values must be in place before the other options apply
        tables[step.table] = tables.get(step.table, {}) | {"preset": preset}
    config = override(configure(step, tables, run, recipe), list(argv), f"tercet {verb} {recipe}")
    _launch([step], {step.name: config}, run, recipe)


def _launch(steps: Sequence[Step], configs: Mapping[str, Any], run: Run, recipe: Path) -> None:
    places = [STEPS.index(step) for step in steps]
    work = partial(_stages, places, configs, run, recipe)
    launch(work, run.device, run.processes, run.threads)


def _stages(chosen: Sequence[int], configs: Mapping[str, Any], run: Run, recipe: Path) -> None:
    """The loop that a whole run is: skip or run, go on. `chosen` are places in STEPS."""
    from tercet.model.shard import Ranks

    ranks = Ranks.start(run.device)
    folder = run.root / run.name
    lock = None
    try:
        if ranks.main:
            lock = _lock(folder)
        ranks.barrier()
        for step in (STEPS[place] for place in chosen):
            config = configs[step.name]
            out = RunDir(folder / step.name, ranks.main)
            inputs = ranks.broadcast(_inputs(config, folder, recipe) if ranks.main else [])
            out.fingerprint = ranks.broadcast(
                _fingerprint(step, config, inputs) if ranks.main else ""
            )
            if ranks.broadcast(_is_done(out)):
                _say(ranks.main, f"{step.name:<9} unchanged, skipped")
                continue
            began = time.monotonic()
            out.start(config, inputs, sys.argv, ranks.size, step.table, run)
            import_module(f"tercet.stages.{step.module}").main(config, out, ranks)
            ranks.barrier()
            if ranks.main:
                _stamp(out, time.monotonic() - began)
                _say(True, f"{step.name:<9} done in {time.monotonic() - began:.0f} s -> {out.path}")
            ranks.barrier()  # checkpoints go only once the stage is known to be done
            shutil.rmtree(out.checkpoints, ignore_errors=True)
        if ranks.main and STEPS[chosen[-1]].name == "eval":
            _report(folder)
    finally:
        ranks.close()
        if lock is not None:
            lock.close()


def _lock(folder: Path) -> TextIO | None:
    """Keep the run's folder to this process until it ends, however it ends.

    Raises InputError when another process has it. None where the system has no such locks.
    """
    try:
        import fcntl
    except ImportError:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return None  # a file system without locks
        raise InputError(
            f"{folder}: another tercet is working in this run; wait for it, or give this one "
            "another --name"
        ) from None
    return file


def _inputs(config: Any, folder: Path, recipe: Path) -> list[Path]:
    """Existing files and folders that a Config names, also inside "name=path" strings.

    Raises InputError when one of them belongs to a stage of this run that has not finished.
    """
    stages = {step.name for step in STEPS}
    found: set[Path] = set()
    for path in _paths(config, getattr(config, "root", Path())):
        stage = path.relative_to(folder).parts[0] if folder in path.parents else ""
        if stage in stages and RunDir(folder / stage).done() is None:
            raise InputError(
                f"{path}: stage {stage} of this run has not finished; run "
                f"`tercet {stage} {recipe}` first, or name another path in the recipe"
            )
        if _there(path):
            found.add(path)
    return sorted(found)


def _paths(value: Any, root: Path) -> Iterator[Path]:
    """Every path inside a Config, nested tables and lists included; relative ones below `root`."""
    if isinstance(value, Path):
        yield root / value
    elif isinstance(value, str):
        path = value.partition("=")[2]
        if path or _there(Path(value, "config.json")):  # "name=path", or a bare model folder
            yield Path(path or value)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _paths(item, root)
    elif is_dataclass(value):
        for field in fields(value):
            if field.name != "root":
                yield from _paths(getattr(value, field.name), root)


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a long text, such as a prompt template, is no path
        return False


def _fingerprint(step: Step, config: Any, inputs: Sequence[Path]) -> str:
    """What a stage's result depends on: tercet's version, its configuration, its inputs."""
    parts = [__version__, step.module, to_toml(config)] + [content_hash(path) for path in inputs]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _stamp(out: RunDir, seconds: float) -> None:
    """Add to done.json what the next run needs to know that nothing has changed."""
    done = out.done() or {}
    done |= {"fingerprint": out.fingerprint, "seconds": round(seconds, 1)}
    out.finish(done)


def _is_done(out: RunDir) -> bool:
    return (out.done() or {}).get("fingerprint") == out.fingerprint


def _say(show: bool, line: str) -> None:
    if show:
        print(line, file=sys.stderr, flush=True)


def _report(folder: Path) -> None:
    """report.json of the whole run: the evaluation's, with every finished stage's seconds."""
    path = folder / "eval" / "report.json"
    if not path.exists():
        return
    shutil.copyfile(path, folder / "report.json")
    done = {name: RunDir(folder / name).done() for name in dict.fromkeys(s.name for s in STEPS)}
    seconds = {name: row["seconds"] for name, row in done.items() if row and "seconds" in row}
    add_seconds(folder / "report.json", seconds)
    _say(True, f"report    {folder / 'report.json'}   all stages: {sum(seconds.values()):.0f} s")
