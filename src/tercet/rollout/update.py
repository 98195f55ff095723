"""Step 7 of a PPO iteration: inner epochs of minibatches, policy, pretraining and value gradients.

Legend: B episodes, T reply tokens. `total` counts the valid tokens of a minibatch over all ranks,
so micro-batches and ranks do not change the step (InstructGPT C.4; Ziegler 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tercet.model.optim import Learner, clip_gradients
from tercet.model.shard import Ranks
from tercet.model.train import (
    Packed,
    batch_indices,
    filler,
    fitted_budget,
    nll_backward,
    precision_context,
    target_count,
    trees,
)
from tercet.model.tree import Document, logprobs, scalars
from tercet.objectives import policy_loss, reinforce_loss, value_loss
from tercet.rollout.experience import Asked, Experience, Rolled


@dataclass(frozen=True)
class Learning:
    """The options of an update, by the names and with the meanings that `ppo.Config` has."""

    algorithm: str
    minibatch: int
    inner_epochs: int
    samples: int
    temperature: float
    clip: float
    value_clip: float | None
    value_warmup: int
    inner_early_stop: float | None
    max_grad_norm: float
    ptx_coef: float
    ptx_ratio: float
    ptx_reduction: str
    token_budget: int
    precision: str
    seed: int


def update(
    policy: Learner,
    value: Learner | None,
    batch: Experience,
    ptx: list[Document],
    iteration: int,
    config: Learning,
    ranks: Ranks,
) -> dict[str, float]:
    """All inner epochs and minibatches of one iteration; their mean metrics."""
    train_policy = iteration >= config.value_warmup
    log: list[dict[str, float]] = []
    for epoch in range(config.inner_epochs):
        for draw, chosen in minibatches(len(batch.groups), iteration, epoch, config):
            total = int(sum(batch.mask_BT[batch.episodes[i]].sum() for i in chosen))
            if total == 0:
                continue
            row: dict[str, float] = {}
            mine = ranks.share(chosen)
            packs = packed(batch, mine, config.token_budget, ranks.device)
            if train_policy:
                policy.optimizer.zero_grad()
                row |= policy_gradient(
                    policy.model,
                    batch,
                    mine,
                    packs,
                    total,
                    len(chosen) * config.samples,
                    config,
                    ranks,
                )
                if ptx:
                    row["ptx_loss"] = ptx_gradient(policy.model, ptx, draw, config, ranks)
                ranks.sum_gradients(policy.model.parameters())
                row["filler"] = filler(packs)
                row["grad_norm"] = clip_gradients(policy.model.parameters(), config.max_grad_norm)
                policy.step(row["policy_loss"], row["grad_norm"])
            if value is not None:
                value.optimizer.zero_grad()
                row |= value_gradient(value.model, batch, mine, packs, total, config, ranks)
                ranks.sum_gradients(value.model.parameters())
                norm = clip_gradients(value.model.parameters(), config.max_grad_norm)
                row["value_grad_norm"] = norm
                value.step(row["value_loss"], norm)
            log.append(row)
        stop = config.inner_early_stop
        if stop is not None and log and log[-1].get("approx_kl", 0.0) > 1.5 * stop:
            break
    learners = [policy] if value is None else [policy, value]
    # Gradients would stay allocated through the next rollout.
    for learner in learners:
        learner.optimizer.zero_grad()
    skipped = sum(learner.guard.skipped for learner in learners)
    return merge_rows(log) | {"skipped_steps": float(skipped)}


def fitted(
    mine: Sequence[Asked],
    rolled: Sequence[Rolled],
    ptx: list[Document],
    longest: int,
    config: Learning,
    ranks: Ranks,
) -> int:
    """The token budget, at most the given one, that suits the minibatches of my first rollouts.

    `longest` is the number of tokens that a document may have: a prompt with its replies, a window.
    """
    documents = ranks.gather(
        [Document(ids, replies) for (_, ids, _), (replies, _, _) in zip(mine, rolled, strict=True)]
    )
    steps: list[Sequence[Document]] = []
    for draw, chosen in minibatches(len(documents), 0, 0, config):
        steps += [[documents[i] for i in chosen], windows(ptx, draw, config)]
    return fitted_budget(steps, config.token_budget, longest, ranks)


def minibatches(
    prompts: int, iteration: int, epoch: int, config: Learning
) -> list[tuple[int, list[int]]]:
    """(number in the run, its prompts) of the minibatches of one inner epoch."""
    size = config.minibatch // config.samples
    count = prompts // size
    first = (iteration * config.inner_epochs + epoch) * count
    return [
        (draw, batch_indices(prompts, size, draw, config.seed + 17))
        for draw in range(first, first + count)
    ]


def merge_rows(log: list[dict[str, float]]) -> dict[str, float]:
    """Means over an iteration's minibatches; extremes where a mean would hide them."""
    merged = {name: sum(row[name] for row in log) / len(log) for name in (log[0] if log else {})}
    if log and "ratio_mean" in log[0]:
        merged["ratio_min"] = min(row["ratio_min"] for row in log)
        merged["ratio_max"] = max(row["ratio_max"] for row in log)
        merged["ratio_first_minibatch"] = log[0]["ratio_mean"]
        merged["ratio_last_minibatch"] = log[-1]["ratio_mean"]
    return merged


def packed(
    batch: Experience, mine: Sequence[int], token_budget: int, device: torch.device
) -> Packed:
    """My prompts with their replies in packs, which policy and value model both see."""
    return trees([batch.groups[i].document for i in mine], token_budget, device)


def policy_gradient(
    policy: Any, batch: Experience, mine: Sequence[int], packs: Packed, total: int,
    episodes: int, config: Learning, ranks: Ranks,
) -> dict[str, float]:  # fmt: skip
    """Accumulate the policy gradient of my prompts' replies; metrics summed over ranks."""
    sums = torch.zeros(4, device=ranks.device)
    extremes = torch.ones(2, device=ranks.device)
    for group, tree in packs:
        rows = [row for g in group for row in batch.episodes[mine[g]]]
        with precision_context(ranks.device, config.precision):
            logp_RL = logprobs(policy, tree, config.temperature, where="replies")
        logp_BT = tree.replies(logp_RL)
        width = logp_BT.shape[1]
        old_BT = batch.logp_old_BT[rows, :width]
        advantages_BT, mask_BT = batch.advantages_BT[rows, :width], batch.mask_BT[rows, :width]
        loss, stats = policy_loss(logp_BT, old_BT, advantages_BT, mask_BT, config.clip, total)
        if config.algorithm == "rloo":
            loss = reinforce_loss(logp_BT, advantages_BT, mask_BT, episodes)
        loss.backward()
        sums += torch.stack(
            [loss.detach(), stats["clip_fraction"], stats["approx_kl"], stats["ratio_mean"]]
        )
        # Without a valid token there is no ratio: its extremes are infinite, or NaN.
        pair = torch.stack([stats["ratio_min"], stats["ratio_max"]]).float()
        pair = torch.where(mask_BT.any(), pair, 1.0)
        extremes = torch.stack([extremes.minimum(pair)[0], extremes.maximum(pair)[1]])
    names = ("policy_loss", "clip_fraction", "approx_kl", "ratio_mean")
    found = ranks.gather([extremes.tolist()])
    return dict(zip(names, ranks.sum(sums).tolist(), strict=True)) | {
        "ratio_min": min(low for low, _ in found),
        "ratio_max": max(high for _, high in found),
    }


def windows(ptx: list[Document], draw: int, config: Learning) -> list[Document]:
    """A minibatch's pretraining windows, on all ranks; none without pretraining text."""
    if not ptx:
        return []
    count = min(max(1, round(config.ptx_ratio * config.minibatch)), len(ptx))
    return [ptx[i] for i in batch_indices(len(ptx), count, draw, config.seed + 29)]


def ptx_gradient(
    policy: Any, ptx: list[Document], draw: int, config: Learning, ranks: Ranks
) -> float:
    """Accumulate a minibatch's pretraining gradient (InstructGPT C.4: 8 windows an episode)."""
    chosen = windows(ptx, draw, config)
    total = target_count(chosen) if config.ptx_reduction == "token_mean" else float(len(chosen))
    loss = nll_backward(
        policy,
        ranks.share(chosen),
        total,
        ranks,
        token_budget=config.token_budget,
        coefficient=config.ptx_coef,
        precision=config.precision,
    )
    return float(ranks.sum(loss))


def value_gradient(
    value: Any, batch: Experience, mine: Sequence[int], packs: Packed, total: int,
    config: Learning, ranks: Ranks,
) -> dict[str, float]:  # fmt: skip
    """Accumulate the value gradient of my prompts' replies; metrics summed over ranks."""
    sums = torch.zeros(2, device=ranks.device)
    for group, tree in packs:
        rows = [row for g in group for row in batch.episodes[mine[g]]]
        with precision_context(ranks.device, config.precision):
            values_BT = tree.replies(tree.at_previous(scalars(value, tree)))
        width = values_BT.shape[1]
        loss, stats = value_loss(
            values_BT,
            batch.values_BT[rows, :width],
            batch.returns_BT[rows, :width],
            batch.mask_BT[rows, :width],
            config.value_clip,
            total,
        )
        loss.backward()
        sums += torch.stack([loss.detach(), stats["clip_fraction"]])
    return dict(zip(("value_loss", "value_clip_fraction"), ranks.sum(sums).tolist(), strict=True))
