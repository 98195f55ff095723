"""A recipe's stages in order, each skipped when its configuration and inputs have not changed.

A recipe is one TOML file: `[run]` names the run, and one table a stage says what differs from the
defaults. Stages meet only on disk: each gets, unless the recipe says otherwise, the paths that the
ones before it wrote under `runs/NAME/`.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tercet.config import build, load_recipe, override, suggest, to_toml
from tercet.records import InputError, RunFailed, write_atomically
from tercet.rundir import RunDir, content_hash


@dataclass(frozen=True, kw_only=True)
class Run:
    """The recipe's `[run]` table: what all stages share."""

    name: str
    """The run's folder under `root`."""
    root: Path = Path("runs")
    seed: int = 0
    """Seed of every stage that does not set its own."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    processes: int = 1
    """Processes on the CPU, as `torchrun` would start them; ignored on a GPU and under torchrun."""
    threads: int = 1
    """Threads of one process."""

    def __post_init__(self) -> None:
        if self.processes < 1 or self.threads < 1:
            raise ValueError("processes and threads must be at least 1")


Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One stage of a run: its folder and recipe table, its module, and where its inputs are."""

    name: str
    module: str
    wire: Callable[[Path, set[str]], Inputs]
    """(the run's folder, the recipe's tables) -> default values of the stage's path fields."""
    like: str = ""
    """Table whose values come first: [ppo_ptx] starts from [ppo]."""

    @property
    def table(self) -> str:
        return self.name.replace("-", "_")


def _rankings(run: Path, tables: set[str]) -> Path:
    return run / ("label" if "label" in tables else "data") / "rankings.jsonl"


def _ppo(run: Path, tables: set[str]) -> dict[str, Any]:
    start = "rl-init" if "rl_init" in tables else "sft"
    wired: dict[str, Any] = {
        "policy": run / start / "model",
        "reward": run / "rm" / "model",
        "prompts": run / "data" / "prompts.jsonl",
        "split": "ppo",
        "held_out_text": run / "data" / "held_out.jsonl",
    }
    return wired | ({"world": run / "data" / "world.json"} if "world" in tables else {})


def _eval(run: Path, tables: set[str]) -> dict[str, Any]:
    base = run / "pretrain" / "model"
    sft = run / ("select" if "select" in tables else "sft") / "model"
    trained = [arm for arm in ("ppo", "ppo-ptx") if arm.replace("-", "_") in tables]
    arms = {"gpt": base, "gpt-prompted": base, "sft": sft}
    arms |= {arm: run / arm / "model" for arm in trained}
    wired: dict[str, Any] = {
        "arms": tuple(f"{arm}={path}" for arm, path in arms.items()),
        "prompts": run / "data" / "prompts.jsonl",
        "reward": run / "rm" / "model",
        "held_out_rankings": _rankings(run, tables),
        "pretrain_held_out": run / "data" / "held_out.jsonl",
        "curves": tuple(f"{arm}={run / arm}" for arm in trained),
    }
    if "world" in tables:
        wired |= {"judge": "gold", "world": run / "data" / "world.json"}
    prefixes = "prefixes.jsonl" if "world" in tables else "demonstrations.jsonl"
    return wired | {"few_shot": run / "data" / prefixes}


STEPS: tuple[Step, ...] = (
    Step("data", "world", lambda run, _: {}),
    Step("data", "data", lambda run, _: {}),
    Step(
        "pretrain",
        "pretrain",
        lambda run, _: {
            "text": run / "data" / "pretrain.jsonl",
            "held_out": run / "data" / "held_out.jsonl",
        },
    ),
    Step(
        "sft",
        "sft",
        lambda run, _: {
            "model": run / "pretrain" / "model",
            "demonstrations": run / "data" / "demonstrations.jsonl",
        },
    ),
    Step(
        "rl-init",
        "sft",
        lambda run, _: {
            "model": run / "pretrain" / "model",
            "demonstrations": run / "data" / "demonstrations.jsonl",
            "pretrain_text": run / "data" / "pretrain.jsonl",
            "pretrain_held_out": run / "data" / "held_out.jsonl",
        },
        like="sft",
    ),
    Step(
        "sample",
        "sample",
        lambda run, _: {
            "policies": (f"sft={run / 'sft' / 'model'}",),
            "prompts": run / "data" / "prompts.jsonl",
            "split": "rm",
        },
    ),
    Step(
        "label",
        "label",
        lambda run, _: {
            "candidates": run / "sample" / "candidates.jsonl",
            "world": run / "data" / "world.json",
        },
    ),
    Step(
        "rm",
        "rm",
        lambda run, tables: {
            "model": run / "sft" / "model",
            "rankings": _rankings(run, tables),
            "demonstrations": run / "data" / "demonstrations.jsonl",
        },
    ),
    Step(
        "select",
        "select",
        lambda run, _: {
            "epochs": run / "sft" / "epochs",
            "reward": run / "rm" / "model",
            "prompts": run / "data" / "prompts.jsonl",
        },
    ),
    Step("ppo", "ppo", _ppo),
    Step(
        "ppo-ptx",
        "ppo",
        lambda run, tables: _ppo(run, tables) | {"ptx_text": run / "data" / "pretrain.jsonl"},
        like="ppo",
    ),
    Step("eval", "evaluate", _eval),
)
"""Every stage in the order of a whole run. `[world]` and `[data]` both fill the folder `data`."""

INTERRUPTED = 130


def step_table(step: Step) -> str:
    """The recipe table of a step."""
    return "world" if step.module == "world" else step.table


def run_recipe(recipe: Path, argv: Sequence[str]) -> None:
    """`tercet run RECIPE [--seed N] [--name NAME] [--until STAGE]`: every stage with a table."""
    tables = load_recipe(recipe)
    run, steps, argv = _plan(recipe, tables, list(argv))
    configs = {step.name: _configure(step, tables, run, recipe) for step in steps}
    if argv:
        raise InputError(
            f"option {argv[0]} is not known to `tercet run`; set it in a copy of {recipe}"
        )
    _launch(run, partial(_stages, [STEPS.index(step) for step in steps], configs, run, recipe))


def run_stage(verb: str, recipe: Path, argv: Sequence[str]) -> None:
    """`tercet VERB RECIPE [--option value]`: one stage, the recipe's table under these options."""
    tables = load_recipe(recipe)
    run = _run(tables, recipe)
    found = [s for s in STEPS if s.name == verb and (verb != "data" or step_table(s) in tables)]
    if not found:
        raise InputError(
            f"{recipe}: no stage {verb!r} here" + suggest(verb, [s.name for s in STEPS])
        )
    step = found[0]
    if preset := _preset(argv):  # its values must be in place before the other options apply
        given = dict(tables.get(step_table(step), {})) | {"preset": preset}
        tables = {**tables, step_table(step): given}
    config = override(_configure(step, tables, run, recipe), list(argv), f"tercet {verb} {recipe}")
    _launch(run, partial(_stages, [STEPS.index(step)], {step.name: config}, run, recipe))


def _preset(argv: Sequence[str]) -> str:
    """The value of `--preset` on a command line, "" without."""
    for i, argument in enumerate(argv):
        option, equals, value = argument.partition("=")
        if option == "--preset":
            return value if equals else "".join(argv[i + 1 : i + 2])
    return ""


def _run(tables: Mapping[str, Any], recipe: Path) -> Run:
    known = {"run", *(step_table(step) for step in STEPS)}
    for table in tables:
        if table not in known:
            raise InputError(
                f"{recipe}: table [{table}] is not known" + suggest(table, sorted(known))
            )
    return build(Run, {"name": recipe.stem} | dict(tables.get("run", {})), f"{recipe} [run]")


def _plan(
    recipe: Path, tables: Mapping[str, Any], argv: list[str]
) -> tuple[Run, list[Step], list[str]]:
    """The run with its overrides, the steps that have a table, and what is left of argv."""
    run = _run(tables, recipe)
    until = None
    named = any(argument.partition("=")[0] == "--name" for argument in argv)
    rest: list[str] = []
    types = {field.name: field for field in fields(Run)}
    while argv:
        option, equals, value = argv.pop(0).partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or (name not in types and name != "until"):
            rest.append(option)
            continue
        if not equals:
            if not argv:
                raise InputError(f"option {option} needs a value")
            value = argv.pop(0)
        if name == "until":
            until = value
            continue
        typed: Any = value
        if name in ("seed", "processes", "threads"):
            try:
                typed = int(value)
            except ValueError:
                raise InputError(f"option {option} must be a whole number, not {value!r}") from None
        try:
            run = replace(run, **{name: Path(value) if name == "root" else typed})
        except ValueError as error:
            raise InputError(f"option {option} {value}: {error}") from None
        if name == "seed" and typed and not named:
            run = replace(run, name=f"{run.name}-seed{typed}")
    steps = [step for step in STEPS if step_table(step) in tables]
    if until is not None:
        names = [step.name for step in steps]
        if until not in names:
            raise InputError(f"--until {until}: not a stage of {recipe}" + suggest(until, names))
        steps = steps[: names.index(until) + 1]
    return run, steps, rest


def _configure(step: Step, tables: Mapping[str, Any], run: Run, recipe: Path) -> Any:
    """A stage's frozen Config: wired inputs, then its preset, then the recipe's tables."""
    module = import_module(f"tercet.stages.{step.module}")
    folder = run.root / run.name
    given = dict(tables.get(step.like, {})) | dict(tables.get(step_table(step), {}))
    known = {field.name: field for field in fields(module.Config)}
    made = {other.name for other in STEPS if step_table(other) in tables}

    def absent(name: str, path: Any) -> bool:
        """An optional input that no stage of this recipe makes, nor made before."""
        field = known.get(name)
        if field is None or field.default is MISSING or not isinstance(path, Path):
            return False
        stage = path.relative_to(folder).parts[0]
        return stage not in made and RunDir(folder / stage).done() is None

    wired = dict(step.wire(folder, set(tables)))
    values: dict[str, Any] = {"seed": run.seed}
    values |= {name: value for name, value in wired.items() if not absent(name, value)}
    if preset := given.get("preset"):
        values |= module.PRESETS.get(preset, {})
    values = {name: value for name, value in values.items() if name in known} | given
    return build(module.Config, values, f"{recipe} [{step_table(step)}]")


def _launch(run: Run, work: Callable[[], None]) -> None:
    """Run `work` here, or in `processes` CPU processes that find each other through a file."""
    import torch

    alone = run.processes == 1 or "RANK" in os.environ
    on_gpu = run.device.startswith("cuda") or (run.device == "auto" and torch.cuda.is_available())
    if alone or on_gpu:
        if not on_gpu:
            torch.set_num_threads(run.threads)
        work()
        return
    # fork keeps the imported libraries; macOS frameworks do not survive it.
    context = multiprocessing.get_context("fork" if platform.system() == "Linux" else "spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/rendezvous"
        failures = context.SimpleQueue()
        children = [
            context.Process(target=_child, args=(rank, run, meeting, work, failures))
            for rank in range(run.processes)
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


def _child(rank: int, run: Run, meeting: str, work: Callable[[], None], failures: Any) -> None:
    """One rank. What the person must mend goes to the parent, which says it once."""
    import torch

    loopback = "lo" if platform.system() == "Linux" else "lo0"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(run.processes),
        "TERCET_RENDEZVOUS": meeting,
    }
    torch.set_num_threads(run.threads)
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


def _stages(chosen: Sequence[int], configs: Mapping[str, Any], run: Run, recipe: Path) -> None:
    """The loop that a whole run is: skip or run, go on. `chosen` are places in STEPS."""
    from tercet.model.shard import Ranks

    ranks = Ranks.start(run.device)
    try:
        folder = run.root / run.name
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
            out.start(config, inputs, sys.argv, ranks.size, step_table(step))
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
        if path.exists():
            found.add(path)
    return sorted(found)


def _paths(value: Any, root: Path) -> Iterator[Path]:
    """Every path inside a Config, nested tables and lists included; relative ones below `root`."""
    if isinstance(value, Path):
        yield root / value
    elif isinstance(value, str):
        path = value.partition("=")[2]
        if path or Path(value, "config.json").is_file():  # "name=path", or a bare model folder
            yield Path(path or value)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _paths(item, root)
    elif is_dataclass(value):
        for field in fields(value):
            if field.name != "root":
                yield from _paths(getattr(value, field.name), root)


def _fingerprint(step: Step, config: Any, inputs: Sequence[Path]) -> str:
    """What a stage's result depends on: its configuration and the content of its inputs."""
    parts = [step.module, to_toml(config)] + [content_hash(path) for path in inputs]
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
    report = json.loads(path.read_text(encoding="utf-8"))
    done = {name: RunDir(folder / name).done() for name in dict.fromkeys(s.name for s in STEPS)}
    report["stages"] = {name: {"seconds": d.get("seconds")} for name, d in done.items() if d}
    write_atomically(folder / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    seconds = sum(stage["seconds"] or 0 for stage in report["stages"].values())
    _say(True, f"report    {folder / 'report.json'}   all stages: {seconds:.0f} s")
