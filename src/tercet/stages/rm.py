"""rm: a reward model from rankings, all pairs of a prompt in one step; demonstrations score 0."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from tercet.model.checkpoint import Checkpoints, seed_all
from tercet.model.compile import compile_layers
from tercet.model.load import (
    check_context,
    checkpoint_activations,
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
from tercet.model.train import Packed, filler, fitted_budget, precision_context, trees
from tercet.model.transfer import together
from tercet.model.tree import Document, scalars
from tercet.objectives import ranking_loss, ranking_total, reward_gain_bias
from tercet.records import Demonstration, InputError, Ranking, about, prompt_text, read_records
from tercet.rundir import RunDir, progress

TRAIN_SAMPLE = 500
"""Rankings whose accuracy after training is compared with the held-out ones'."""
OVERFIT = 0.08
"""The difference that is called overfitting."""


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
    """Ablation: single pairs shuffled over the epoch; InstructGPT's footnote 5 warns of it."""
    head_init: Literal["normal", "zero"] = "normal"
    """Scalar head: N(0, 1/(d+1)) as in Ziegler 2019, or zeros."""
    adapt: str = "full"
    """Which parameters train: full, last_n_layers:N, bitfit, norms, embeddings, lora:R,
    regex:PATTERN."""
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
    """Tokens in one forward pass of one rank, at most: a GPU fits it to the first batches."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """bf16 computes in bfloat16 with float32 weights; auto is bf16 on a GPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the layers: auto on a GPU for models worth it; on, off."""
    checkpoint_activations: bool = False
    """Recompute each layer in the backward pass: slower, far less memory."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.epochs < 1:
            raise ValueError("batch and epochs must be at least 1")
        if self.hold_out_group is not None and not 0 <= self.hold_out_group < self.labeler_groups:
            raise ValueError("hold_out_group must be below labeler_groups")


def main(config: Config, run: RunDir, ranks: Ranks) -> None:
    """Train on rankings, normalise on demonstrations, measure on held-out prompts."""
    seed_all(config.seed, ranks.rank)
    tokenizer = load_tokenizer(config.model)
    records = read_records(config.rankings, Ranking)
    if config.criterion is not None:
        records = [r for r in records if r.criterion == config.criterion]
    cleaned = distinct_replies(records)
    examples = [(r, document(r, tokenizer, config.rankings)) for r in cleaned.rankings]
    fits = [(r, d) for r, d in examples if longest(d) <= config.max_tokens]
    train, held_out = divide(fits, config)
    if not train:
        raise InputError(
            f"{config.rankings}: no ranking with split train holds two replies of different rank "
            f"({len(records)} rankings, {cleaned.all_tied} all tied, {len(examples) - len(fits)} "
            "above max_tokens), so there is no preference to learn; give rankings that decide"
        )
    model = load_scalar(config.model, device=ranks.device, init=config.head_init, seed=config.seed)
    check_context(model, max(longest(d) for _, d in fits))
    model = adapt(model, config.adapt, config.seed)
    # The loss does not depend on the head's bias; Adam would still carry rounding noise into it.
    scalar_head(model).bias.requires_grad_(False)
    if config.checkpoint_activations:
        checkpoint_activations(model)
    compile_layers(model, config.compile)

    elements, size = train, config.batch
    if config.pair_shuffled:
        pairs = [pair for r, _ in train for pair in as_pairs(r)]
        elements = [(pair, document(pair, tokenizer, config.rankings)) for pair in pairs]
        size = max(1, round(config.batch * len(pairs) / len(train)))
    shuffled = [r for r, _ in elements]
    epochs = [
        batches(shuffled, size, config.seed + epoch, distinct=not config.pair_shuffled)
        for epoch in range(config.epochs)
    ]
    plan = [batch for epoch in epochs for batch in epoch]
    first = ([elements[i][1] for i in batch] for batch in plan[:4])
    most = max(len(d) for _, d in elements)
    budget = fitted_budget(first, config.token_budget, most, ranks)
    config = replace(config, token_budget=budget)
    optimizer = adam(
        [p for p in model.parameters() if p.requires_grad],
        config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    guard = StepGuard()

    model.train()
    with (
        Checkpoints(run.checkpoints, ranks, run.fingerprint, len(plan)) as checkpoints,
        progress(len(plan), "rm", "step", show=ranks.main) as bar,
    ):
        start = 0
        if state := checkpoints.load():
            start = state["step"]
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            guard.skipped, guard.in_a_row = state["guard"]
        run.rewind(start - 1)
        bar.resume(start)
        for step in range(start, len(plan)):
            batch = [elements[i] for i in plan[step]]
            set_lr(optimizer, config.lr * cosine(step, len(plan), warmup=config.warmup))
            optimizer.zero_grad()
            packed = packs(batch, ranks, config)
            sums = packed_backward(model, batch, packed, ranks, config)
            ranks.sum_gradients(model.parameters())
            norm = clip_gradients(model.parameters(), config.clip)
            loss, right, decided = ranks.sum(sums).tolist()
            guard.step(optimizer, loss, norm)
            accuracy = right / max(decided, 1)
            lr = optimizer.param_groups[0]["lr"]
            numbers = {"loss": loss, "accuracy": accuracy, "grad_norm": norm, "lr": lr}
            run.log(step, numbers | {"filler": filler(packed)})
            bar.advance(1, loss=loss, accuracy=accuracy)
            checkpoints.offer(
                step + 1,
                lambda: {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "guard": (guard.skipped, guard.in_a_row),
                },
            )

    model = merge(model)
    model.eval()
    mean, deviation = normalise(model, tokenizer, config, ranks)
    summary: dict[str, Any] = {
        "trained_rankings": len(train),
        "trained_pairs": sum(pair_count(r) for r, _ in train),
        "all_tied": cleaned.all_tied,
        "duplicate_replies": cleaned.duplicate_replies,
        "contradictions": cleaned.contradictions,
        "dropped_one_text": len(records) - len(examples),
        "dropped_long": len(examples) - len(fits),
        "demonstration_mean": mean,
        "demonstration_std": deviation,
        "skipped_steps": guard.skipped,
        "tokenizer": fingerprint(tokenizer),
    }
    for name, part in {"train_sample": train[:TRAIN_SAMPLE], **held_out}.items():
        if any(has_pairs(r) for r, _ in part):
            scores = gather_scores(
                model,
                [d for _, d in part],
                ranks,
                token_budget=config.token_budget,
                precision=config.precision,
            )
            summary[name] = reward_report(scores, [r for r, _ in part])
    if ranks.main:
        for line in overfit(summary, list(held_out)):
            print(f"! {line}", file=sys.stderr, flush=True)
        save_model(model, tokenizer, run.model)
        probe = [(r.prompt, r.replies[0].text) for r, _ in (held_out.get("valid") or train)[:8]]
        write_probe(model, tokenizer, probe, run.model)
        run.finish(summary)


def overfit(summary: Mapping[str, Any], held_out: Sequence[str]) -> list[str]:
    """What to say when rankings that trained are decided far better than held-out ones."""
    seen = summary["train_sample"]["accuracy"]
    return [
        f"the reward model overfits: accuracy {seen:.3f} on rankings that trained it, "
        f"{summary[name]['accuracy']:.3f} on {name}; use fewer epochs or a lower lr"
        for name in held_out
        if name in summary and seen - summary[name]["accuracy"] > OVERFIT
    ]


Example = tuple[Ranking, Document]


def document(ranking: Ranking, tokenizer: Any, source: Path) -> Document:
    """A prompt with all its replies as ids; `source` names the file in errors."""
    texts = [reply.text for reply in ranking.replies]
    stopped = [reply.finish == "stop" for reply in ranking.replies]
    with about(f"{source}: ranking {ranking.id!r}"):
        return encode_replies(tokenizer, ranking.prompt, texts, stopped)


def longest(document: Document) -> int:
    """Tokens of the prompt with its longest reply."""
    return len(document.prompt) + max(len(reply) for reply in document.replies)


def divide(
    examples: Sequence[Example], config: Config
) -> tuple[list[Example], dict[str, list[Example]]]:
    """(training examples that hold a pair, held-out ones by split, "held_out_labelers" included).

    A held-out prompt never trains, whoever ranked it: the split is the record's, checked by prompt.
    """
    train: list[Example] = []
    held_out: dict[str, list[Example]] = {}
    groups: set[int] = set()
    for ranking, ids in examples:
        split = ranking.split or "train"
        if split == "train" and config.hold_out_group is not None and ranking.labeler:
            group = labeler_group(ranking.labeler, config.labeler_groups)
            groups.add(group)
            if group == config.hold_out_group:
                split = "held_out_labelers"
        if split != "train":
            held_out.setdefault(split, []).append((ranking, ids))
        elif has_pairs(ranking):
            train.append((ranking, ids))
    if config.hold_out_group is not None and "held_out_labelers" not in held_out:
        raise InputError(
            f"{config.rankings}: no labeler of the training rankings falls into group "
            f"{config.hold_out_group} of {config.labeler_groups}; groups with labelers: "
            f"{', '.join(map(str, sorted(groups))) or 'none'}; choose one of these as "
            "hold_out_group, or another labeler_groups"
        )
    trained = {r.prompt_id for r, _ in train}
    leaked = sorted(
        r.prompt_id
        for split, part in held_out.items()
        for r, _ in part
        if split != "held_out_labelers" and r.prompt_id in trained
    )
    if leaked:
        raise InputError(
            f"{config.rankings}: {len(set(leaked))} prompts are both in split train and held out, "
            f"e.g. {leaked[0]!r}; split by prompt, never by record"
        )
    return train, held_out


def backward(model: Any, batch: Sequence[Example], ranks: Ranks, config: Config) -> torch.Tensor:
    """Gradients of the K-wise loss over my share; (loss, right pairs, pairs) of that share."""
    return packed_backward(model, batch, packs(batch, ranks, config), ranks, config)


def packs(batch: Sequence[Example], ranks: Ranks, config: Config) -> Packed:
    """My share of a batch, packed."""
    mine = [ids for _, ids in ranks.share(batch)]
    return trees(mine, config.token_budget, ranks.device)


def packed_backward(
    model: Any, batch: Sequence[Example], packed: Packed, ranks: Ranks, config: Config
) -> torch.Tensor:
    """`backward` of a batch whose share is packed already."""
    options: dict[str, Any] = {
        "denominator": config.denominator,
        "weighting": config.weighting,
    }
    total = ranking_total(*judgements([r for r, _ in batch]), **options)
    mine = ranks.share(batch)
    sums = torch.zeros(3, device=ranks.device)
    for group, tree in packed:
        with precision_context(ranks.device, config.precision):
            values_RL = scalars(model, tree)
        scores_N = tree.at_last(values_RL)
        judged = judgements([mine[g][0] for g in group])  # pairs are found on the CPU
        loss = ranking_loss(scores_N, *judged, total=total, **options)
        loss.backward()
        with torch.no_grad():
            prompt_N, rank_N = together(judged, ranks.device)
            same = prompt_N[:, None] == prompt_N[None, :]
            preferred = same & (rank_N[:, None] < rank_N[None, :])
            right = preferred & (scores_N[:, None] > scores_N[None, :])
            sums += torch.stack([loss.detach(), right.sum().float(), preferred.sum().float()])
    return sums


def judgements(rankings: Sequence[Ranking]) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) twice: which ranking each reply belongs to, and its rank there."""
    prompt = [i for i, ranking in enumerate(rankings) for _ in ranking.replies]
    rank = [reply.rank for ranking in rankings for reply in ranking.replies]
    return torch.tensor(prompt), torch.tensor(rank)


def normalise(model: Any, tokenizer: Any, config: Config, ranks: Ranks) -> tuple[float, float]:
    """Set the head's bias so that demonstrations score 0 on average (InstructGPT 3.5).

    Returns (mean, standard deviation) before. Idempotent: the mean is taken with the present bias.
    """
    records = [
        d
        for d in read_records(config.demonstrations, Demonstration)
        if (d.split or "train") == "train"
    ][: config.normalise_on]
    documents = []
    for d in records:
        with about(f"{config.demonstrations}: demonstration {d.id!r}"):
            documents.append(encode_replies(tokenizer, prompt_text(d), [d.response], [True]))
    documents = [d for d in documents if longest(d) <= config.max_tokens]
    if not documents:
        raise InputError(
            f"{config.demonstrations}: no demonstration with split train fits into max_tokens, so "
            "the reward's zero cannot be set; give demonstrations"
        )
    check_context(model, max(longest(d) for d in documents))
    scores = torch.tensor(
        gather_scores(
            model,
            documents,
            ranks,
            token_budget=config.token_budget,
            precision=config.precision,
        ),
        dtype=torch.float64,
    )
    mean, deviation = float(scores.mean()), float(scores.std(correction=0))
    _, bias = reward_gain_bias(scores.flatten())
    set_bias(model, scalar_head(model).bias.item() + bias)
    return mean, deviation
