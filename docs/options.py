"""Prints docs/recipes.md from the stages' Config classes.

    python docs/options.py > docs/recipes.md

The sentence under each field is what the page says about it, so that the page cannot tell another
story than the code. `tests/test_docs.py` fails when the page is stale.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tercet.pipeline.steps import STEPS, Step

PACKAGE = Path(__file__).parents[1] / "src" / "tercet"

# Sentences for options that mean the same everywhere, where a class does not say it itself.
EVERYWHERE = {
    "seed": "Seed of this stage; `[run] seed` unless set.",
    "max_new_tokens": "Tokens in a reply at most.",
    "temperature": "Sampling temperature.",
    "weight_decay": "Decoupled weight decay.",
    "precision": "bf16 computes in bfloat16 with float32 weights; auto is bf16 on a GPU.",
    "labelers": "People who rank replies.",
    "missing_eos_penalty": "The penalty of `missing_eos`.",
    "kl_horizon": "Episodes over which beta adapts (Ziegler 2019: 10,000).",
    "beta_low": "Lower bound of an adapting beta.",
    "beta_high": "Upper bound of an adapting beta.",
    "whiten_advantages": "Whiten advantages over the valid tokens of all ranks' rollouts.",
    "whiten_rewards": "Scale rewards to unit variance before the advantages; the mean stays.",
    "adam_style": "Where eps stands: torch's form, or that of Ziegler 2019's code.",
    "adam_eps": "Adam's eps.",
    "betas": "Adam's betas.",
    "demonstrations": "Files of demonstrations: prompt, response.",
    "rankings": "Files of rankings: pairs, votes, or ranked replies.",
    "pretrain": "Files of text.",
    "lr_schedule": "After the warm-up: constant, or linearly to 0 at the last iteration.",
    "root": "Folder of all runs.",
    "tie_width": "Replies this close to the best of a tie group share its rank.",
}

INTRODUCTION = """\
# Recipes and options

This page is made by `python docs/options.py > docs/recipes.md`. Do not edit it.

A recipe is one TOML file. `[run]` names the run. One table a stage says what differs from the
defaults; a stage without a table does not run. The order is that of this page.

```toml
[run]
name = "mine"

[world]                # the embedded world; or [data] for your own files
[pretrain]
[sft]
epochs = 3
[rl_init]              # starts from the values of [sft]
pretrain_fraction = 0.1
[sample]
[label]
[rm]
[select]
[ppo]
beta = 0.05
[ppo_ptx]              # starts from the values of [ppo]
ptx_coef = 1.0
[eval]
```

| rule | |
| --- | --- |
| run all stages | `tercet run RECIPE`, also `--until STAGE`, `--name NAME`, `--seed N`, \
`--root`, `--device`, `--processes`, `--threads` |
| run one stage | `tercet STAGE RECIPE --option value`; the verbs are those of `tercet --help` |
| option on the command line | `--kebab-case value`; a switch is \
`--name` or `--no-name`; a nested option is `--clean.pii` |
| `none` | the text "none" unsets an optional value |
| a whole number | is accepted where a number is wanted |
| unknown table or option | refused with the nearest known name |
| what comes first | command line, then the stage's table, then the table it starts from, \
then the preset, then the paths of the run, then the defaults |
| `--seed N` without `--name` | the run's folder becomes `NAME-seedN` |
| a finished stage | is skipped while its configuration and the content of its inputs \
are the same |

"from the run" in the tables below: unless set, what earlier stages of the same run give. `RUN` is
`runs/NAME`. An optional path that no stage of the recipe makes stays unset. The tables show a
recipe with `[world]` and every other stage. Without `rl_init`, PPO starts from `RUN/sft/model`;
without `select`, the SFT arm is `RUN/sft/model`. With `[data]` in place of `[world]`:

| | |
| --- | --- |
| rankings | `RUN/data/rankings.jsonl`, unless there is a `[label]` table |
| `few_shot` | `RUN/data/demonstrations.jsonl` |
| `world` | unset; `[label]` then needs `mode = "people"` |
| `[eval] judge` | must be set, to "reward" or "rankings" |
"""

ABOUT = {
    "world": "Raw material from the embedded world. Everything of it is simulated and says so.",
    "data": "Your own files, or public ones, as records. `[[data.demonstrations]]`, "
    "`[[data.rankings]]`, `[[data.prompts]]` and `[[data.pretrain]]` name one file each.",
    "pretrain": "A small language model from plain text, or more text for an existing one.",
    "sft": "Step 1: supervised fine-tuning on demonstrations.",
    "rl_init": "The model that PPO starts from and measures its KL to: a second, shorter "
    "fine-tuning with pretraining text mixed in (InstructGPT C.3). Takes the options of `[sft]`, "
    "and its values where it does not set its own.",
    "sample": "K replies to each prompt, for labelers to rank.",
    "label": "Rankings, by the simulated labelers of the embedded world or by people "
    "([labeling.md](labeling.md)).",
    "rm": "Step 2: the reward model.",
    "select": "The epoch of `sft` that the reward model likes best: the SFT arm and baseline.",
    "ppo": "Step 3: PPO against the reward model.",
    "ppo_ptx": "Step 3 with the pretraining gradient. Takes the options of `[ppo]`, and its values "
    "where it does not set its own.",
    "eval": "Win rates of all arms, intervals, the alignment tax, the reward model's accuracy.",
}


@dataclass(frozen=True)
class Option:
    name: str
    type: str
    default: str | None
    """Python source; None where the option must be given."""
    said: str


def options(file: str, name: str) -> list[Option]:
    """The fields of a dataclass with the sentence under each, those of its base class first."""
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    found = []
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            said = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                said = " ".join(str(following.value.value).split())
            default = None if node.value is None else ast.unparse(node.value)
            found.append(Option(node.target.id, ast.unparse(node.annotation), default, said))
    return found


def readable_type(annotation: str) -> str:
    """Path | None -> "path or none", Literal['a', 'b'] -> "a, b"."""
    optional = annotation.endswith(" | None")
    annotation = annotation.removesuffix(" | None")
    if annotation.startswith(("Literal[", "Judge")):
        choices = re.findall(r"'([^']*)'", annotation) or [
            "person",
            "simulated",
            "reward",
            "llm",
            "gold",
        ]
        words = ", ".join(f'"{choice}"' for choice in choices)
    else:
        words = {
            "str": "text",
            "int": "whole number",
            "float": "number",
            "bool": "true or false",
            "Path": "path",
            "tuple[str, ...]": "list of texts",
            "tuple[float, ...]": "list of numbers",
            "tuple[float, float]": "two numbers",
            "tuple[Source, ...]": "tables, below",
            "CleanConfig": "table, below",
            "AugmentConfig": "table, below",
        }.get(annotation, "table")
    return words + (" or none" if optional else "")


def readable_default(default: str | None, type_: str, wired: Any) -> str:
    """The default as TOML would write it, or where the run takes it from."""
    if wired is not None:
        items = wired if isinstance(wired, tuple) else (wired,)
        shown = (f'"{i}"' if isinstance(i, str) and "=" not in i else str(i) for i in items)
        return "from the run: " + ", ".join(f"`{item}`" for item in shown)
    if default is None:
        return "required"
    if default.startswith("field("):
        return "see below" if "lambda" not in default else "a Llama of 2 layers, 4 heads, width 96"
    if path := re.fullmatch(r"Path\((.*)\)", default):
        default = path[1] or "'.'"
    value = ast.literal_eval(default)
    if isinstance(value, str):
        return '`"' + value.replace("\n", "\\n") + '"`'
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"`{json.dumps(value)}`" if value else "empty"
    return f"`{str(value).lower()}`"


def table(found: list[Option], wired: dict[str, Any]) -> Iterator[str]:
    yield "| option | type | default | |"
    yield "| --- | --- | --- | --- |"
    for option in found:
        said = option.said or EVERYWHERE.get(option.name, "")
        assert said, f"{option.name} has no sentence: write one under the field"
        if re.match(r"[a-z']+[ ,]", said) and not said.startswith("auto"):
            said = said[0].upper() + said[1:]
        said = said.replace("|", "\\|").strip()
        said = said if said.endswith("...") else said.removesuffix(".")
        default = readable_default(option.default, option.type, wired.get(option.name))
        yield f"| `{option.name}` | {readable_type(option.type)} | {default} | {said} |"
    yield ""


def wired_paths(step: Step) -> dict[str, Any]:
    """What the pipeline sets for a step of a recipe that has every table."""
    return dict(step.wire(Path("RUN"), {other.table for other in STEPS}))


def presets() -> Iterator[str]:
    """The presets of ppo as one table, option by option."""
    tree = ast.parse((PACKAGE / "stages" / "ppo.py").read_text(encoding="utf-8"))
    node = next(
        n for n in tree.body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "PRESETS"
    )
    assert node.value is not None
    known: dict[str, dict[str, Any]] = ast.literal_eval(node.value)
    yield "Presets set these; options that a preset does not name keep their defaults:"
    yield ""
    yield "| option | " + " | ".join(f"`{name}`" for name in known) + " |"
    yield "| --- |" + " --- |" * len(known)
    for option in dict.fromkeys(option for values in known.values() for option in values):
        cells = [str(values.get(option, "")).lower() for values in known.values()]
        yield f"| `{option}` | " + " | ".join(cells) + " |"
    yield ""


def page() -> str:
    """docs/recipes.md."""
    run = "\n".join(table(options("pipeline/recipe.py", "Run"), {}))
    lines = [INTRODUCTION, "## [run]", "", run.replace("required", "the recipe's file name")]
    seen: set[str] = set()
    for step in STEPS:
        name = step.table
        lines += [f"## [{name}]", "", ABOUT[name], ""]
        wired = wired_paths(step)
        if step.module in seen:
            first = next(other for other in STEPS if other.table == step.like)
            extra = [key for key in wired if key not in wired_paths(first)]
            lines += [f"- `{key}` is, from the run, `{wired[key]}`." for key in extra] + [""]
            continue
        seen.add(step.module)
        lines += table(options(f"stages/{step.module}.py", "Config"), wired)
        if name == "world":
            lines += ["`[world.settings]`:", ""]
            lines += table(options("world/world.py", "WorldSettings"), {})
        if name == "data":
            kinds = ("demonstrations", "rankings", "prompts", "pretrain")
            lines += ["Each " + ", ".join(f"`[[data.{kind}]]`" for kind in kinds) + ":", ""]
            lines += table(
                options("stages/data.py", "Source") + options("data/importers.py", "ImportConfig"),
                {},
            )
            lines += ["`[data.clean]`:", "", *table(options("data/clean.py", "CleanConfig"), {})]
            lines += [
                "`[data.augment]`:",
                "",
                *table(options("data/augment.py", "AugmentConfig"), {}),
            ]
        if name == "ppo":
            lines += presets()
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
