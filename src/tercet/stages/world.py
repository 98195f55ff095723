"""world: web text, demonstrations and prompts from the embedded world. All of it is simulated."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tercet.config import build
from tercet.model.shard import Ranks
from tercet.records import Prompt, write_records
from tercet.rundir import RunDir
from tercet.world import World, WorldSettings


@dataclass(frozen=True, kw_only=True)
class Config:
    documents: int = 20_000
    """Web pages to pretrain on."""
    held_out_documents: int = 400
    """Pages that only measure."""
    demonstrations: int = 900
    """Demonstrations to train on."""
    valid_demonstrations: int = 100
    """Demonstrations that choose the epoch."""
    rm_prompts: int = 1400
    """Prompts whose replies are ranked."""
    ppo_prompts: int = 1400
    """Prompts that PPO trains on."""
    valid_prompts: int = 200
    """Prompts for `select` and for choosing the few-shot prefix."""
    test_prompts: int = 400
    """Prompts of the evaluation; nothing is ever chosen on them."""
    new_place_prompts: int = 80
    """Prompts about the place that no training prompt mentions."""
    prefixes: int = 12
    """Candidate few-shot prefixes for the prompted base model."""
    settings: dict[str, Any] | None = None
    """Settings of the world itself (world/world.py), e.g. {noise = 1.1}."""
    seed: int = 0


def main(config: Config, run: RunDir, ranks: Ranks) -> None:
    """Write the world, its web text, demonstrations, prompts and candidate few-shot prefixes."""
    if not ranks.main:
        return
    world = World(config.seed, build(WorldSettings, config.settings or {}, "[world] settings"))
    run.path.mkdir(parents=True, exist_ok=True)
    world.save(run.path / "world.json")
    texts = {
        "pretrain.jsonl": world.documents(config.documents),
        "held_out.jsonl": world.documents(config.held_out_documents, stream="held-out"),
    }
    for name, pages in texts.items():
        lines = (json.dumps({"text": page}, ensure_ascii=False) + "\n" for page in pages)
        (run.path / name).write_text("".join(lines), encoding="utf-8")
    demonstrations = world.demonstrations(config.demonstrations + config.valid_demonstrations)
    guests = {record.user_id for record in demonstrations[config.demonstrations :]}
    demonstrations = [
        record.model_copy(update={"split": "valid" if record.user_id in guests else "train"})
        for record in demonstrations
    ]
    write_records(run.path / "demonstrations.jsonl", demonstrations)
    wanted = {
        "rm": config.rm_prompts,
        "ppo": config.ppo_prompts,
        "valid": config.valid_prompts,
        "test": config.test_prompts,
        "test-new-place": config.new_place_prompts,
    }
    prompts: list[Prompt] = [p for split, n in wanted.items() for p in world.prompts(split, n)]
    write_records(run.path / "prompts.jsonl", prompts)
    prefixes = world.few_shot_prefixes(config.prefixes)
    write_records(
        run.path / "prefixes.jsonl",
        [Prompt(id=f"prefix-{i}", text=text) for i, text in enumerate(prefixes)],
    )
    run.finish({"simulated": True, "demonstrations": len(demonstrations), "prompts": wanted})
