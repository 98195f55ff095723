"""label: rankings of candidate sets by people on the labeling page, or by the embedded world's
simulated labelers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tercet.data.split import owner, split_of
from tercet.judge.accuracy import labeler_agreement
from tercet.model.shard import Ranks
from tercet.records import (
    CandidateSet,
    InputError,
    Prompt,
    Ranking,
    read_lines,
    read_records,
    write_records,
)
from tercet.rundir import RunDir, progress
from tercet.world import World

STORE = "labels.sqlite"


@dataclass(frozen=True, kw_only=True)
class Config:
    candidates: Path
    """tercet.candidates/1 records."""
    prompts: Path | None = None
    """The prompts' records: held-out prompts are chosen by user, so none is on both sides."""
    mode: Literal["simulated", "people"] = "simulated"
    """Who ranks: the world's labelers, or people on the labeling page. With "people" the stage
    prints links and waits; what comes from simulated labelers says `judge: simulated`."""
    world: Path | None = None
    """world.json of the embedded world whose simulated labelers rank."""
    valid_fraction: float = 0.12
    """Share of prompts held out from reward-model training."""
    valid_labelers: int = 2
    """Labelers on each held-out prompt, so that agreement can be measured."""
    criterion: str | None = None
    """People: what replies are ranked by, shown on the page and kept in every ranking."""
    guidelines: Path | None = None
    """People: a Markdown file that labelers read first. Another text makes a new version."""
    labelers: tuple[str, ...] = ("labeler-1",)
    """People: aliases to print a link for; `tercet label invite` makes more."""
    held_out_labelers: tuple[str, ...] = ()
    """People: labelers who only get held-out prompts (InstructGPT's held-out labelers)."""
    enough: float = 1.0
    """People: go on when this share of the answers is there. What no labeler is left for is not
    waited for."""
    overlap_share: float = 0.15
    """People: share of training prompts that several labelers rank."""
    overlap_labelers: int = 3
    """People: labelers on each of those."""
    gold: Path | None = None
    """People: tercet.ranking/1 records with known answers, mixed in to measure labelers."""
    gold_share: float = 0.05
    """People: share of a labeler's items that are such."""
    rate: bool = True
    """People: ask for a rating and the flags of each reply before the order."""
    project: str = "Rank replies"
    """People: the project's name, which labelers see."""
    database: str | None = None
    """People: postgresql+psycopg://user@host/name; else labels.sqlite in the stage's folder."""
    serve: bool = True
    """People: false when `tercet label serve` of another process serves the store."""
    host: str = "127.0.0.1"
    """People: where to listen. Other machines reach it only with TLS or behind a proxy with TLS."""
    port: int = 8765
    """People: 0 takes any free port."""
    public_url: str | None = None
    """People: the address that labelers type, for the links and for the check of where requests
    come from."""
    behind_proxy: bool = False
    """People: a proxy with TLS stands in front; its X-Forwarded headers are believed."""
    tls_cert: Path | None = None
    """People: PEM file of the server's certificate."""
    tls_key: Path | None = None
    """People: PEM file of its key."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.valid_fraction < 1:
            raise ValueError("valid_fraction must be between 0 and 1")
        if self.mode == "simulated" and self.world is None:
            raise ValueError('mode = "simulated" needs world; mode = "people" needs none')
        if not 0 < self.enough <= 1:
            raise ValueError("enough must be above 0, and 1 at most")
        if not self.labelers:
            raise ValueError("labelers needs at least one name")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together")


def main(config: Config, run: RunDir, ranks: Ranks) -> None:
    """Writes rankings.jsonl: simulated at once, by people when enough of them are there."""
    if config.mode == "people":
        wait_for_people(config, run, ranks)
        return
    assert config.world is not None
    sets = read_records(config.candidates, CandidateSet)
    world = World.load(config.world)
    if not ranks.main:
        return
    users = {prompt.id: owner(prompt) for prompt in prompts(config)}
    shares = {"valid": config.valid_fraction, "train": 1 - config.valid_fraction}
    rankings = []
    with progress(len(sets), "label", "prompt", show=ranks.main) as bar:
        for candidates in sets:
            split = split_of(owner(candidates, users), shares, f"label {config.seed}")
            people = config.valid_labelers if split == "valid" else 1
            rankings += world.label([candidates], people, split)
            bar.advance(1)
    write_records(run.path / "rankings.jsonl", rankings)
    run.finish(summary(rankings))


def prompts(config: Config) -> list[Prompt]:
    """The prompts' records; none where the options name no file."""
    return read_records(config.prompts, Prompt) if config.prompts else []


def wait_for_people(config: Config, run: RunDir, ranks: Ranks) -> None:
    """Serves the labeling page until enough is ranked. Interrupted, the same command goes on:
    every answer is in the store as soon as the page says so."""
    if not ranks.main:
        # Answers may take days: a word every second keeps the ranks from giving each other up.
        while not ranks.broadcast(False):
            pass
        return
    from tercet.label.campaign import Campaign

    with Campaign.open(plan(config, run)) as campaign:
        count = campaign.count()
        with progress(count.done + count.open, "label", "answer") as bar:
            bar.resume(count.done)
            while count.share < config.enough:
                ranks.broadcast(False)
                began = time.monotonic()
                before, count = count.done, campaign.count()
                if count.done > before:
                    bar.advance(count.done - before, open=count.open)
                time.sleep(max(1.0, 20 * (time.monotonic() - began)))
        campaign.export(run.path)
    rankings = read_records(run.path / "rankings.jsonl", Ranking)
    if not rankings:
        raise InputError(f"{config.candidates}: nothing in it could be ranked; see the project's "
                         "held items on the admin page")  # fmt: skip
    run.finish(summary(rankings))
    ranks.broadcast(True)


def plan(config: Config, run: RunDir) -> Any:
    """The options as the labeling server takes them.

    Raises:
        InputError: an option that it refuses.
    """
    from tercet.label.campaign import Plan
    from tercet.label.errors import Refused
    from tercet.label.server import Address
    from tercet.label.settings import parse

    known = prompts(config)
    tls = (config.tls_cert, config.tls_key) if config.tls_cert and config.tls_key else None
    try:
        settings = parse(
            {
                "overlap_share": config.overlap_share,
                "overlap_need": config.overlap_labelers,
                "gold_share": config.gold_share if config.gold else 0.0,
                "valid_fraction": config.valid_fraction,
                "valid_need": config.valid_labelers,
                "rate": config.rate,
                "seed": config.seed,
            }
        )
    except Refused as refused:
        raise InputError(f"[label] {refused.message}") from None
    return Plan(
        store=config.database or run.path / STORE,
        sets=read_records(config.candidates, CandidateSet),
        users={prompt.id: owner(prompt) for prompt in known},
        tags={prompt.id: prompt.tags for prompt in known if prompt.tags},
        gold=read_records(config.gold, Ranking) if config.gold else (),
        project=config.project,
        settings=settings,
        criterion=config.criterion,
        guidelines=(
            "".join(line for _, line in read_lines(config.guidelines)) if config.guidelines else ""
        ),
        labelers=config.labelers,
        held_out_labelers=config.held_out_labelers,
        address=Address(config.host, config.port, tls, config.behind_proxy, config.public_url)
        if config.serve
        else None,
    )


def summary(rankings: Sequence[Ranking]) -> dict[str, Any]:
    """What done.json says of the rankings."""
    valid = [r for r in rankings if r.split == "valid"]
    pairs = [pair for r in rankings for pair in rank_pairs([reply.rank for reply in r.replies])]
    return {
        "judge": " and ".join(sorted({r.judge for r in rankings})),
        "rankings": len(rankings),
        "held_out_rankings": len(valid),
        "all_tied": sum(len({x.rank for x in r.replies}) == 1 for r in rankings),
        "tie_rate": sum(pairs) / len(pairs),
        "agreement": labeler_agreement(valid),
    }


def rank_pairs(ranks: list[int]) -> list[bool]:
    """For each of the C(K,2) pairs: is it tied?"""
    return [a == b for i, a in enumerate(ranks) for b in ranks[i + 1 :]]
