"""label: rankings of candidate sets by the simulated labelers of the embedded world."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tercet.data.split import owner, split_of
from tercet.judge.accuracy import labeler_agreement
from tercet.model.shard import Ranks
from tercet.records import CandidateSet, Prompt, read_records, write_records
from tercet.rundir import RunDir, progress
from tercet.world import World


@dataclass(frozen=True, kw_only=True)
class Config:
    candidates: Path
    """tercet.candidates/1 records."""
    prompts: Path | None = None
    """The prompts' records: held-out prompts are chosen by user, so none is on both sides."""
    world: Path
    """world.json of the embedded world whose simulated labelers rank."""
    mode: Literal["simulated"] = "simulated"
    """Who ranks. Everything that comes from here says `judge: simulated`."""
    valid_fraction: float = 0.12
    """Share of prompts held out from reward-model training."""
    valid_labelers: int = 2
    """Labelers on each held-out prompt, so that agreement can be measured."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.valid_fraction < 1:
            raise ValueError("valid_fraction must be between 0 and 1")


def main(config: Config, run: RunDir, ranks: Ranks) -> None:
    """Split prompts, let one labeler rank each training prompt and several each held-out one."""
    sets = read_records(config.candidates, CandidateSet)
    world = World.load(config.world)
    if not ranks.main:
        return
    users = {p.id: owner(p) for p in read_records(config.prompts, Prompt)} if config.prompts else {}
    shares = {"valid": config.valid_fraction, "train": 1 - config.valid_fraction}
    rankings = []
    with progress(len(sets), "label", "prompt", show=ranks.main) as bar:
        for candidates in sets:
            split = split_of(owner(candidates, users), shares, f"label {config.seed}")
            people = config.valid_labelers if split == "valid" else 1
            rankings += world.label([candidates], people, split)
            bar.advance(1)
    write_records(run.path / "rankings.jsonl", rankings)
    valid = [r for r in rankings if r.split == "valid"]
    pairs = [pair for r in rankings for pair in rank_pairs([reply.rank for reply in r.replies])]
    run.finish(
        {
            "judge": "simulated",
            "rankings": len(rankings),
            "held_out_rankings": len(valid),
            "all_tied": sum(len({x.rank for x in r.replies}) == 1 for r in rankings),
            "tie_rate": sum(pairs) / len(pairs),
            "agreement": labeler_agreement(valid),
        }
    )


def rank_pairs(ranks: list[int]) -> list[bool]:
    """For each of the C(K,2) pairs: is it tied?"""
    return [a == b for i, a in enumerate(ranks) for b in ranks[i + 1 :]]
