"""rm: a reward model from rankings: all pairs of a prompt in one step, then demonstrations at score 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tercet.data.rankings import (
    as_pairs,
    batches,
    distinct_replies,
    has_pairs,
    labeler_group,
    pair_count,
)
from tercet.judge.accuracy import reward_report
from tercet.model.adapt import adapt, merge
from tercet.model.checkpoint import Checkpoints
from tercet.model.load import (
    check_context,
    fingerprint,
    load_scalar,
    load_tokenizer,
    save_model,
    scalar_head,
    set_bias,
)
from tercet.model.optim import StepGuard, adam, clip_gradients, cosine, set_lr
from tercet.model.reward import encode_replies, gather_scores, write_probe
from tercet.model.shard import Ranks
from tercet.model.train import precision_context, trees
from tercet.model.tree import Document, scalars
from tercet.objectives import ranking_loss
from tercet.records import Demonstration, InputError, Ranking, prompt_text, read_records
from tercet.rundir import RunDir, progress


@dataclass(frozen=True, kw_only=True)
class Config:
    model: Path
    """Model folder to start from (the SFT model); its unembedding is replaced by a scalar head."""
    rankings: Path
    """tercet.ranking/1 records; split "train" (or none) trains, "valid" and "test" are held out."""
    demonstrations: Path
    """Demonstrations whose mean score becomes 0 (split "train")."""
    criterion: str | None = None
    """Use only rankings of this criterion."""
    lr: float = 3e-5
    """Peak learning rate; cosine to 10%."""
    warmup: int = 0
    """Steps of linear warm-up."""
    batch: int = 64
    """Prompts in one optimizer step, each with all its replies, over all ranks."""
    epochs: int = 1
    """Passes over the rankings; a second one overfits (InstructGPT C.2)."""
    denominator: Literal["pairs", "combinations"] = "pairs"
    """Divide a prompt's loss by its untied pairs, or by C(K,2) as Eq. 1 is printed."""
    weighting: Literal["prompt", "pair"] = "prompt"
    """Every prompt counts the same, or every pair."""
    pair_shuffled: bool = False
    """Ablation: single pairs shuffled over the whole epoch, as InstructGPT's footnote 5 warns against."""
    head_init: Literal["normal", "zero"] = "normal"
    """Scalar head: N(0, 1/(d+1)) as in Ziegler 2019, or zeros."""
    adapt: str = "full"
    """Which parameters train: full, last_n_layers:N, bitfit, norms, embeddings, lora:R, regex:PATTERN."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's betas."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Bound on the global gradient norm."""
    normalise_on: int = 1000
    """Demonstrations used to set the bias."""
    max_tokens: int = 2000
    """Rankings with a longer prompt + reply are dropped and counted."""
    hold_out_group: int | None = None
    """Leave out this one of `labeler_groups` groups of labelers, and report accuracy on it."""
    labeler_groups: int = 5
    """Groups for the held-out-labeler test."""
    token_budget: int = 16384
    """Tokens in one forward pass of one rank."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """bf16 computes in bfloat16 with float32 weights; auto is bf16 on a GPU."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.epochs < 1:
            raise ValueError("batch and epochs must be at least 1")
        if self.hold_out_group is not None and not 0 <= self.hold_out_group < self.labeler_groups:
            raise ValueError("hold_out_group must be below labeler_groups")


def main(config: Config, run: RunDir, ranks: Ranks) -> None:
    """Train on the rankings, normalise on demonstrations, measure on held-out prompts, store a probe."""
    tokenizer = load_tokenizer(config.model)
    records = read_records(config.rankings, Ranking)
    if config.criterion is not None:
        records = [r for r in records if r.criterion == config.criterion]
    cleaned = distinct_replies(records)
    encoded = {r.id: document(r, tokenizer) for r in cleaned.rankings}
    fits = [r for r in cleaned.rankings if longest(encoded[r.id]) <= config.max_tokens]
    train, valid, held_out_people = divide(fits, config)
    if not train:
        raise InputError(
            f"{config.rankings}: no ranking with split train holds two replies of different rank "
            f"({len(records)} rankings, {cleaned.all_tied} all tied); nothing to learn a preference from"
        )
    model = load_scalar(config.model, device=ranks.device, init=config.head_init, seed=config.seed)
    check_context(model, max(longest(encoded[r.id]) for r in train + valid))
    model = adapt(model, config.adapt)
    # The loss does not depend on the head's bias; Adam would still carry rounding noise into it.
    scalar_head(model).bias.requires_grad_(False)

    elements = [pair for r in train for pair in as_pairs(r)] if config.pair_shuffled else train
    size = config.batch
    if config.pair_shuffled:
        size = max(1, round(config.batch * len(elements) / len(train)))
        encoded |= {pair.id: document(pair, tokenizer) for pair in elements}
    epochs = [
        batches(elements, size, config.seed + epoch, distinct=not config.pair_shuffled)
        for epoch in range(config.epochs)
    ]
    plan = [batch for epoch in epochs for batch in epoch]
    optimizer = adam(
        [p for p in model.parameters() if p.requires_grad],
        config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    guard = StepGuard()

    model.train()
    with (
        Checkpoints(run.checkpoints, ranks, run.fingerprint) as checkpoints,
        progress(len(plan), "rm", "step", show=ranks.main) as bar,
    ):
        start = 0
        if state := checkpoints.load():
            start = state["step"]
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            run.rewind(start - 1)
            bar.advance(start)
        for step in range(start, len(plan)):
            batch = [elements[i] for i in plan[step]]
            set_lr(optimizer, config.lr * cosine(step, len(plan), warmup=config.warmup))
            optimizer.zero_grad()
            sums = backward(model, batch, encoded, ranks, config)
            ranks.sum_gradients(model.parameters())
            norm = clip_gradients(model.parameters(), config.clip)
            loss, right, pairs = ranks.sum(sums).tolist()
            guard.step(optimizer, loss, norm)
            accuracy = right / max(pairs, 1)
            run.log(
                step,
                {"loss": loss, "accuracy": accuracy, "grad_norm": norm, "lr": optimizer.param_groups[0]["lr"]},
            )  # fmt: skip
            bar.advance(1, loss=loss, accuracy=accuracy)
            checkpoints.offer(
                step + 1, lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            )
        checkpoints.clear()

    model = merge(model)
    model.eval()
    mean, deviation = normalise(model, tokenizer, config, ranks)
    summary: dict[str, Any] = {
        "trained_rankings": len(train),
        "trained_pairs": sum(pair_count(r) for r in train),
        "all_tied": cleaned.all_tied,
        "duplicate_replies": cleaned.duplicate_replies,
        "contradictions": cleaned.contradictions,
        "dropped_long": len(cleaned.rankings) - len(fits),
        "demonstration_mean": mean,
        "demonstration_std": deviation,
        "skipped_steps": guard.skipped,
        "tokenizer": fingerprint(tokenizer),
    }
    for name, held_out in (("valid", valid), ("held_out_labelers", held_out_people)):
        if any(has_pairs(r) for r in held_out):
            documents = [encoded[r.id] for r in held_out]
            scores = gather_scores(model, documents, ranks, token_budget=config.token_budget)
            summary[name] = reward_report(scores, held_out)
    if ranks.main:
        save_model(model, tokenizer, run.model)
        probe = [(r.prompt, r.replies[0].text) for r in (valid or train)[:8]]
        write_probe(model, tokenizer, probe, run.model)
        run.finish(summary)


def document(ranking: Ranking, tokenizer: Any) -> Document:
    """A prompt with all its replies; a reply without a finish reason counts as ended."""
    replies = ranking.replies
    stopped = [reply.finish != "length" for reply in replies]
    return encode_replies(tokenizer, ranking.prompt, [reply.text for reply in replies], stopped)


def longest(document: Document) -> int:
    """Tokens of the prompt with its longest reply."""
    return len(document.prompt) + max(len(reply) for reply in document.replies)


def divide(
    rankings: Sequence[Ranking], config: Config
) -> tuple[list[Ranking], list[Ranking], list[Ranking]]:
    """(train, valid, rankings of held-out labelers). Training takes only rankings that hold a pair.

    A held-out prompt never trains, whoever ranked it: the split is the record's, checked here by prompt.
    """
    train, valid, people = [], [], []
    for ranking in rankings:
        group = labeler_group(ranking.labeler, config.labeler_groups)
        if (ranking.split or "train") != "train":
            valid.append(ranking)
        elif config.hold_out_group is not None and group == config.hold_out_group:
            people.append(ranking)
        elif has_pairs(ranking):
            train.append(ranking)
    leaked = {r.prompt_id for r in train} & {r.prompt_id for r in valid}
    if leaked:
        raise InputError(
            f"{config.rankings}: {len(leaked)} prompts are both in split train and held out, e.g. "
            f"{sorted(leaked)[0]!r}; split by prompt, never by record"
        )
    return train, valid, people


def backward(
    model: Any, batch: Sequence[Ranking], encoded: dict[str, Document], ranks: Ranks, config: Config
) -> torch.Tensor:
    """Gradients of the K-wise loss over my share of the batch; (loss, right pairs, pairs) of that share."""
    total = len(batch) if config.weighting == "prompt" else sum(pair_count(r) for r in batch)
    mine = ranks.share(batch)
    sums = torch.zeros(3, device=ranks.device)
    for group, tree in trees([encoded[r.id] for r in mine], config.token_budget, ranks.device):
        with precision_context(ranks.device, config.precision):
            values_RL = scalars(model, tree)
        scores_N = tree.at_last(values_RL.float())
        prompt_N = torch.tensor(
            [i for i, g in enumerate(group) for _ in mine[g].replies], device=ranks.device
        )
        rank_N = torch.tensor(
            [reply.rank for g in group for reply in mine[g].replies], device=ranks.device
        )
        loss = ranking_loss(
            scores_N,
            prompt_N,
            rank_N,
            denominator=config.denominator,
            weighting=config.weighting,
            total=total,
        )
        loss.backward()
        with torch.no_grad():
            same = prompt_N[:, None] == prompt_N[None, :]
            preferred = same & (rank_N[:, None] < rank_N[None, :])
            right = preferred & (scores_N[:, None] > scores_N[None, :])
            sums += torch.stack([loss.detach(), right.sum().float(), preferred.sum().float()])
    return sums


def normalise(model: Any, tokenizer: Any, config: Config, ranks: Ranks) -> tuple[float, float]:
    """Set the head's bias so that demonstrations score 0 on average (InstructGPT 3.5); (mean, std) before.

    Idempotent: the mean is taken with the present bias and subtracted from it.
    """
    records = [
        d
        for d in read_records(config.demonstrations, Demonstration)
        if (d.split or "train") == "train"
    ][: config.normalise_on]
    documents = [encode_replies(tokenizer, prompt_text(d), [d.response], [True]) for d in records]
    documents = [d for d in documents if longest(d) <= config.max_tokens]
    if not documents:
        raise InputError(
            f"{config.demonstrations}: no training demonstration fits; the reward's zero cannot be set"
        )
    scores = torch.tensor(
        gather_scores(model, documents, ranks, token_budget=config.token_budget),
        dtype=torch.float64,
    )
    mean, deviation = float(scores.mean()), float(scores.std(correction=0))
    set_bias(model, float(scalar_head(model).bias) - mean)
    return mean, deviation
