"""data: your own files, or public ones, as a run's demonstrations, rankings, prompts and text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path

from tercet.data import importers
from tercet.data.augment import AugmentConfig, augment
from tercet.data.clean import CleanConfig, by_split, clean
from tercet.data.importers import ImportConfig
from tercet.data.split import split_of
from tercet.model.shard import Ranks
from tercet.records import Demonstration, InputError, Prompt, Ranking, prompt_text, write_records
from tercet.rundir import Meter, RunDir, progress


@dataclass(frozen=True, kw_only=True)
class Source(ImportConfig):
    """One file and how its rows become records."""

    path: Path
    """the file; relative to `root`"""
    limit: int | None = None
    """take only the first so many rows that pass the filters"""
    max_chars: int | None = None
    """leave out rows whose prompt and longest reply together have more characters"""
    best_replies: bool = False
    """under `demonstrations`: the file holds rankings; first-ranked replies are demonstrations"""


@dataclass(frozen=True, kw_only=True)
class Config:
    root: Path = Path()
    """Folder that the sources' paths are relative to."""
    demonstrations: tuple[Source, ...] = ()
    rankings: tuple[Source, ...] = ()
    prompts: tuple[Source, ...] = ()
    """More prompts, besides those of demonstrations and rankings."""
    pretrain: tuple[Source, ...] = ()
    clean: CleanConfig = field(default_factory=CleanConfig)
    """PII, duplicates, cap per user, split (InstructGPT A.2); a split in the file is kept."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """More training demonstrations from the same ones; off unless asked for."""
    held_out_texts: int = 200
    """Documents of the pretraining text that only measure."""
    max_texts: int | None = None
    """Training documents at most."""
    test_fraction: float = 0.1
    """Share of users whose prompts become the test split, when no record is marked "test"."""
    ppo_fraction: float = 0.9
    """Share of training prompts that PPO uses; the rest are validation prompts."""
    test_prompts: int | None = None
    """Test prompts at most."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.demonstrations or not self.pretrain:
            raise ValueError("demonstrations and pretrain need at least one source each")
        if not (0 < self.ppo_fraction < 1 and 0 <= self.test_fraction < 1):
            raise ValueError(
                "ppo_fraction must be between 0 and 1, test_fraction from 0 to below 1"
            )


def main(config: Config, run: RunDir, ranks: Ranks) -> None:
    """Import every source, clean, split, and write the four files that the other stages read.

    A record marked split "test" is never trained on anywhere, nor is any record of the same prompt.
    """
    if not ranks.main:
        return
    sources = len(config.demonstrations) + len(config.rankings) + len(config.pretrain)
    with progress(sources, "data", "source", show=True) as bar:
        demonstrations: list[Demonstration] = []
        for source in config.demonstrations:
            demonstrations += read_demonstrations(located(source, config))
            bar.advance(1)
        rankings: list[Ranking] = []
        for source in config.rankings:
            rankings += read_rankings(located(source, config))
            bar.advance(1)
        texts, held_out = read_pretraining(config, bar)

    asked = more_prompts(config)
    test = {r.prompt_id for r in [*demonstrations, *rankings] if r.split == "test"}
    test |= {p.id for p in asked if p.split == "test"}
    chosen = set() if test else drawn_test(demonstrations, rankings, asked, config)
    test |= chosen
    judged = {r.prompt_id for r in rankings if r.split == "valid"}
    judged |= {p.id for p in asked if p.split == "valid"}
    # Words, not tokens: there is no tokenizer yet; sft, rm and ppo count tokens themselves.
    # A file's "train" is divided again by user, because files seldom hold a validation split.
    demonstrations = [
        d.model_copy(update={"split": "test"}) if d.prompt_id in chosen else d
        for d in demonstrations
    ]
    undivided = [
        d.model_copy(update={"split": "valid" if d.prompt_id in judged else None})
        if d.split in (None, "train")
        else d
        for d in demonstrations
    ]
    cleaned = clean(undivided, config.clean, count_tokens=lambda text: len(text.split()))
    kept = [d for d in cleaned.records if d.split == "test" or d.prompt_id not in test]
    kept = augment([d for d in kept if d.split == "train"], config.augment) + [
        d for d in kept if d.split != "train"
    ]
    valid = {d.prompt_id for d in kept if d.split == "valid"} | judged
    ranked = [r.model_copy(update={"split": ranking_split(r, test, valid)}) for r in rankings]
    prompts = split_prompts([*kept, *ranked], asked, test, config)

    run.path.mkdir(parents=True, exist_ok=True)
    write_records(run.path / "demonstrations.jsonl", kept)
    write_records(run.path / "rankings.jsonl", ranked)
    write_records(run.path / "prompts.jsonl", prompts)
    for name, documents in (("pretrain.jsonl", texts), ("held_out.jsonl", held_out)):
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
        (run.path / name).write_text("".join(lines), encoding="utf-8")
    run.finish(
        {
            "demonstrations": dict(by_split(kept)),
            "dropped": cleaned.dropped,
            "rankings": {s: sum(r.split == s for r in ranked) for s in ("train", "valid", "test")},
            "prompts": dict(by_split(prompts)),
            "pretraining_documents": len(texts),
            "held_out_documents": len(held_out),
        }
    )


def drawn_test(
    demonstrations: Sequence[Demonstration],
    rankings: Sequence[Ranking],
    prompts: Sequence[Prompt],
    config: Config,
) -> set[str]:
    """Prompt ids of a share of users, or of prompts where no user is known, by a hash."""
    users = {p.id: p.user_id or p.id for p in prompts}
    users |= {d.prompt_id: d.user_id or d.prompt_id for d in demonstrations}
    shares = {"test": config.test_fraction, "train": 1 - config.test_fraction}
    ids = {*users, *(r.prompt_id for r in rankings)}
    return {i for i in ids if split_of(users.get(i, i), shares, f"test {config.seed}") == "test"}


def ranking_split(ranking: Ranking, test: set[str], valid: set[str]) -> str:
    """A prompt held out anywhere is held out here too."""
    if ranking.prompt_id in test:
        return "test"
    return "valid" if ranking.prompt_id in valid else ranking.split or "train"


def located(source: Source, config: Config) -> Source:
    """The source with its paths below `root`."""
    contexts = config.root / source.contexts if source.contexts else None
    return replace(source, path=config.root / source.path, contexts=contexts)


def read_demonstrations(source: Source) -> list[Demonstration]:
    """Demonstrations of one file, or the best replies of a file of rankings."""
    if source.best_replies:
        return importers.best_replies(read_rankings(source))
    found = importers.demonstrations(source.path, source)
    return [d for d in found if short(prompt_text(d), [d.response], source)][: source.limit]


def read_rankings(source: Source) -> list[Ranking]:
    """Rankings of one file."""
    found = importers.rankings(source.path, source)
    return [r for r in found if short(r.prompt, [reply.text for reply in r.replies], source)][
        : source.limit
    ]


def short(prompt: str, replies: Sequence[str], source: Source) -> bool:
    """True when the prompt and its longest reply fit into `max_chars`."""
    longest = len(prompt) + max(len(reply) for reply in replies)
    return source.max_chars is None or longest <= source.max_chars


def read_pretraining(config: Config, bar: Meter) -> tuple[list[str], list[str]]:
    """(training documents, held-out ones), from the sources in turn; never parts of a document."""
    sources = []
    for source in config.pretrain:
        found = list(islice(importers.texts(config.root / source.path, source), source.limit))
        sources.append(found)
        bar.advance(1)
    texts = [t for turn in zip_longest(*sources) for t in turn if t is not None]
    train = [text.text for text in texts if text.split == "train"]
    held_out = [text.text for text in texts if text.split != "train"]
    if not train or not held_out:
        raise InputError(
            f"{config.pretrain[0].path}: {len(train)} training and {len(held_out)} held-out "
            "documents; give a text of more documents, so that some can be held out"
        )
    return train[: config.max_texts], held_out[: config.held_out_texts]


def more_prompts(config: Config) -> list[Prompt]:
    """Prompts of files that are given for their prompts alone."""
    return [
        prompt
        for source in config.prompts
        for prompt in importers.prompts(config.root / source.path, located(source, config))[
            : source.limit
        ]
    ]


def split_prompts(
    records: Sequence[Demonstration | Ranking],
    prompts: Sequence[Prompt],
    test: set[str],
    config: Config,
) -> list[Prompt]:
    """Every prompt once, as "ppo", "valid" or "test"; where a record is "valid", its prompt is,
    and every prompt of its user."""
    held_out = [r for r in [*records, *prompts] if r.split == "valid"]
    valid = {r.id if isinstance(r, Prompt) else r.prompt_id for r in held_out}
    people = {r.user_id for r in held_out if not isinstance(r, Ranking) and r.user_id}
    shares = {"ppo": config.ppo_fraction, "valid": 1 - config.ppo_fraction}
    found: dict[str, Prompt] = {p.id: p for p in prompts}
    for record in records:
        user = record.user_id if isinstance(record, Demonstration) else None
        prompt = Prompt(
            id=record.prompt_id, text=prompt_text(record), user_id=user, source=record.source
        )
        found.setdefault(prompt.id, prompt)
    result = []
    for prompt in found.values():
        if prompt.id in test:
            split = "test"
        elif prompt.id in valid or prompt.user_id in people:
            split = "valid"
        else:
            split = split_of(prompt.user_id or prompt.id, shares, f"prompts {config.seed}")
        result.append(prompt.model_copy(update={"split": split}))
    tests = [p for p in result if p.split == "test"][: config.test_prompts]
    return tests + [p for p in result if p.split != "test"]
