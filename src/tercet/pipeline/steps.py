"""The stages of a run, in order, and where each finds what the ones before it wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    own: Mapping[str, Any] = field(default_factory=dict)
    """What makes this step another than the one it is like; the recipe's own table goes first."""

    @property
    def table(self) -> str:
        """The recipe table of this step."""
        return "world" if self.module == "world" else self.name.replace("-", "_")


def _rankings(run: Path, tables: set[str]) -> Path:
    return run / ("label" if "label" in tables else "data") / "rankings.jsonl"


def _label(run: Path, tables: set[str]) -> dict[str, Any]:
    wired: dict[str, Any] = {
        "candidates": run / "sample" / "candidates.jsonl",
        "prompts": run / "data" / "prompts.jsonl",
    }
    return wired | ({"world": run / "data" / "world.json"} if "world" in tables else {})


def _ppo(run: Path, tables: set[str]) -> dict[str, Any]:
    start = "rl-init" if "rl_init" in tables else "sft"
    wired: dict[str, Any] = {
        "policy": run / start / "model",
        "reward": run / "rm" / "model",
        "prompts": run / "data" / "prompts.jsonl",
        "split": "ppo",
        "ptx_text": run / "data" / "pretrain.jsonl",
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
        return wired | {
            "judge": "gold",
            "world": run / "data" / "world.json",
            "few_shot": run / "data" / "prefixes.jsonl",
        }
    return wired | {
        "judge": "reward",
        "held_out_split": "valid" if "label" in tables else "test",
        "few_shot": run / "data" / "demonstrations.jsonl",
    }


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
        own={"epochs": 2, "pretrain_fraction": 0.1},
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
        _label,
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
    Step("ppo-ptx", "ppo", _ppo, like="ppo", own={"ptx_coef": 27.8}),
    Step("eval", "evaluate", _eval),
)
"""Every stage in the order of a whole run. `[world]` and `[data]` both fill the folder `data`."""
