"""select: the SFT epoch that the reward model likes best; the SFT arm and win-rate baseline."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tercet.data.split import stable_key
from tercet.data.tokens import encode_prompt
from tercet.model.load import load_policy, load_scalar, load_tokenizer
from tercet.model.reward import check_probe, encode_replies, gather_scores
from tercet.model.shard import Ranks
from tercet.records import InputError, Prompt, prompt_text, read_records, writing
from tercet.rollout.engine import generate
from tercet.rundir import RunDir, progress


@dataclass(frozen=True, kw_only=True)
class Config:
    epochs: Path
    """Folder with one model folder an epoch, as `sft` leaves it."""
    reward: Path
    """Reward model folder; fixed, and never fed back into `sft` or `rm`."""
    prompts: Path
    """tercet.prompt/1 records."""
    split: str = "valid"
    """Use prompts of this split."""
    max_prompts: int = 200
    """The same prompts for every epoch."""
    max_new_tokens: int = 64
    temperature: float = 1.0
    token_budget: int = 16384
    """Tokens in one forward pass of one rank."""
    seed: int = 0


def main(config: Config, run: RunDir, ranks: Ranks) -> None:
    """Sample every epoch on the same prompts and seed, keep the best reward (InstructGPT 3.5)."""
    folders = sorted(path for path in config.epochs.glob("*") if (path / "config.json").exists())
    if not folders:
        raise InputError(
            f"{config.epochs}: no model folder of an epoch here; run `tercet sft` first"
        )
    prompts = [p for p in read_records(config.prompts, Prompt) if p.split == config.split]
    prompts = prompts[: config.max_prompts]
    if not prompts:
        raise InputError(f"{config.prompts}: no prompt has split {config.split!r}")
    reward, reward_tokenizer = (
        load_scalar(config.reward, device=ranks.device),
        load_tokenizer(config.reward),
    )
    check_probe(reward, reward_tokenizer, config.reward)
    mine = ranks.share(prompts)
    table = []
    with progress(len(folders), "select", "epoch", show=ranks.main) as bar:
        for folder in folders:
            policy, tokenizer = load_policy(folder, device=ranks.device), load_tokenizer(folder)
            rollouts = generate(
                policy,
                [encode_prompt(tokenizer, prompt_text(p)) for p in mine],
                max_new_tokens=config.max_new_tokens,
                stop_ids=[tokenizer.eos_token_id],
                temperature=config.temperature,
                seed=config.seed,
                keys=[stable_key(p.id) for p in mine],
            )
            replies = [
                (
                    tokenizer.decode(
                        r.tokens[: len(r.tokens) - r.stopped], skip_special_tokens=True
                    ),
                    r.stopped,
                )
                for r in rollouts
            ]
            documents = ranks.gather(
                [
                    encode_replies(reward_tokenizer, prompt_text(p), [text], [stopped])
                    for p, (text, stopped) in zip(mine, replies, strict=True)
                ]
            )
            scores = gather_scores(reward, documents, ranks, token_budget=config.token_budget)
            mean = sum(score for (score,) in scores) / len(scores)
            table.append({"epoch": folder.name, "reward": mean})
            bar.advance(1, reward=mean)
    best = max(table, key=lambda row: row["reward"])  # the first of equals: the earlier epoch
    if ranks.main:
        shutil.rmtree(run.model, ignore_errors=True)
        with writing(run.model):
            shutil.copytree(config.epochs / best["epoch"], run.model)
        run.finish({"epochs": table, "selected_epoch": best["epoch"], "prompts": len(prompts)})
