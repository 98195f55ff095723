"""From a recipe and the command line to the frozen Config of every stage."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from tercet.config import build, suggest
from tercet.pipeline.steps import STEPS, Step
from tercet.records import InputError
from tercet.rundir import RunDir


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


def preset_of(argv: Sequence[str]) -> str:
    """The value of `--preset` on a command line, "" without."""
    for i, argument in enumerate(argv):
        option, equals, value = argument.partition("=")
        if option == "--preset":
            return value if equals else "".join(argv[i + 1 : i + 2])
    return ""


def read_run(tables: Mapping[str, Any], recipe: Path) -> Run:
    """The `[run]` table; a table that no stage has is an error."""
    known = {"run", *(step.table for step in STEPS)}
    for table in tables:
        if table not in known:
            raise InputError(
                f"{recipe}: table [{table}] is not known" + suggest(table, sorted(known))
            )
    return build(Run, {"name": recipe.stem} | dict(tables.get("run", {})), f"{recipe} [run]")


def with_overrides(
    tables: Mapping[str, Any], argv: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """`--table.option value` put into the recipe's tables; what is left of argv.

    --ppo.beta 0.1  --data.root my/files  --world.settings '{noise = 1.2}'
    """
    changed = {name: dict(table) for name, table in tables.items()}
    rest: list[str] = []
    queue = list(argv)
    while queue:
        option = queue.pop(0)
        name, equals, value = option.partition("=")
        table, dot, key = name.removeprefix("--").partition(".")
        table = table.replace("-", "_")
        if not (name.startswith("--") and dot and table in {"run", *(s.table for s in STEPS)}):
            rest.append(option)
            continue
        if not equals:
            if not queue:
                raise InputError(f"option {option} needs a value")
            value = queue.pop(0)
        changed.setdefault(table, {})[key.replace("-", "_")] = literal(value)
    return changed, rest


def literal(text: str) -> Any:
    """A value as TOML reads it, such as 0.1, true or [1, 2]; the text itself where that fails."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def plan(
    recipe: Path, tables: Mapping[str, Any], argv: Sequence[str]
) -> tuple[Run, list[Step], dict[str, Any]]:
    """The run, the steps that have a table, and the tables, all with the command line's overrides.

    `--seed N` also renames the run, so that seeds lie beside each other, unless `--name` is given.
    """
    short = {f"--{field.name}" for field in fields(Run)}
    until = None
    spelled: list[str] = []
    queue = list(argv)
    while queue:
        option = queue.pop(0)
        name, equals, value = option.partition("=")
        if name == "--until":
            until = value if equals else "".join(queue[:1])
            del queue[: 0 if equals else 1]
        else:
            spelled.append(f"--run.{option[2:]}" if name in short else option)
    tables, rest = with_overrides(tables, spelled)
    if rest:
        raise InputError(
            f"option {rest[0]} is not known to `tercet run`; an option of a stage is written "
            "--STAGE.OPTION, such as --ppo.beta 0.1"
        )
    run = read_run(tables, recipe)
    given = {option.partition("=")[0] for option in argv}
    if "--seed" in given and run.seed and "--name" not in given:
        run = replace(run, name=f"{run.name}-seed{run.seed}")
    steps = [step for step in STEPS if step.table in tables]
    if until is not None:
        names = [step.name for step in steps]
        if until not in names:
            raise InputError(f"--until {until}: not a stage of {recipe}" + suggest(until, names))
        steps = steps[: names.index(until) + 1]
    return run, steps, tables


def configure(step: Step, tables: Mapping[str, Any], run: Run, recipe: Path) -> Any:
    """A stage's frozen Config: wired inputs, then its preset, then the recipe's tables."""
    module = import_module(f"tercet.stages.{step.module}")
    folder = run.root / run.name
    given = dict(tables.get(step.like, {})) | dict(step.own) | dict(tables.get(step.table, {}))
    known = {field.name: field for field in fields(module.Config)}
    made = {other.name for other in STEPS if other.table in tables}

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
    return build(module.Config, values, f"{recipe} [{step.table}]")
