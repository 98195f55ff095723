"""What PPO learns from: replies of the current policy with scores, log-probs, values, advantages.

Legend: B episodes (prompt by prompt, sample by sample), T reply tokens (right-padded, masked).
Steps 2-6 of an iteration (InstructGPT C.4; Ziegler 2019): roll out, cut, score, evaluate under
policy, reference and value model, then rewards and advantages over the batch of all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tercet.model.frozen import present
from tercet.model.reward import encode_replies, score_documents
from tercet.model.shard import Ranks
from tercet.model.train import precision_context, trees
from tercet.model.tree import Document, logprobs, scalars
from tercet.objectives import (
    KLKind,
    MissingStop,
    gae,
    kl_estimate,
    rloo,
    score_rule,
    token_rewards,
    truncate_at_stop,
    whiten,
)
from tercet.records import RunFailed
from tercet.rollout.engine import Engine

Asked = tuple[str, list[int], int]
"""A prompt: its text, its ids, the key of its sampling noise."""
Rolled = tuple[list[list[int]], list[list[float]], list[bool]]
"""Replies of a prompt: ids, log-probs that the engine saw, whether each ended itself."""


@dataclass(frozen=True)
class Scorer:
    """The frozen reward model: reads ids with the policy's tokenizer, texts with another."""

    model: Any
    """A scalar model, or a `Parked` one."""
    tokenizer: Any
    same_tokenizer: bool


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn."""

    samples: int
    max_new_tokens: int
    temperature: float
    stop_ids: tuple[int, ...]
    truncate_after: int
    slots: int
    token_budget: int
    precision: str


@dataclass(frozen=True)
class Replies:
    """One prompt with its sampled replies, and per reply what was measured of it. Plain numbers."""

    prompt: str
    ids: list[int]
    replies: list[list[int]]
    stopped: list[bool]
    texts: list[str]
    scores: list[float]
    logp_generated: list[list[float]]
    logp_old: list[list[float]]
    logp_ref: list[list[float]]
    values: list[list[float]]
    entropy: list[list[float]]

    @property
    def document(self) -> Document:
        """The prompt once, with all its replies."""
        return Document(self.ids, self.replies)


@dataclass(frozen=True)
class Experience:
    """A rollout batch of all ranks; every tensor is [B] or [B, T] on the training device."""

    groups: list[Replies]
    episodes: list[list[int]]
    """Row numbers of each group's replies."""
    mask_BT: Tensor
    logp_generated_BT: Tensor
    logp_old_BT: Tensor
    logp_ref_BT: Tensor
    values_BT: Tensor
    entropy_BT: Tensor
    kl_BT: Tensor
    raw_score_B: Tensor
    score_B: Tensor
    stopped_B: Tensor
    dropped_B: Tensor
    """bool: no finite score, so nothing of it is learned"""
    rewards_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor

    @property
    def kl_B(self) -> Tensor:
        """Sequence KL, the sum of k1 over a reply."""
        return torch.where(self.mask_BT, self.logp_old_BT - self.logp_ref_BT, 0).sum(1)


@torch.no_grad()
def collect(
    engine: Engine,
    reference: Any,
    value: Any | None,
    scorer: Scorer,
    tokenizer: Any,
    prompts: Sequence[Asked],
    sampling: Sampling,
    seed: int,
    ranks: Ranks,
) -> list[Replies]:
    """Roll out and measure my share of `prompts` (text, ids, key); everybody's, in their order."""
    mine = ranks.share(prompts)
    rolled = roll_out(engine, mine, sampling, seed)
    return measure(
        engine.policy, reference, value, scorer, tokenizer, mine, rolled, sampling, ranks
    )


@torch.no_grad()
def measure(
    policy: Any,
    reference: Any,
    value: Any | None,
    scorer: Scorer,
    tokenizer: Any,
    mine: Sequence[Asked],
    rolled: Sequence[Rolled],
    sampling: Sampling,
    ranks: Ranks,
) -> list[Replies]:
    """Score my replies and evaluate them under policy, reference and value; everybody's, in order.

    Reference and reward model may be `Parked`: each is on the device only while it computes.
    """
    documents = [
        Document(ids, replies) for (_, ids, _), (replies, _, _) in zip(mine, rolled, strict=True)
    ]
    rows = teacher_force(policy, reference, value, documents, sampling, ranks.device)
    eos = tokenizer.eos_token_id
    texts = [
        [
            tokenizer.decode(ids[:-1] if ids[-1] == eos else ids, skip_special_tokens=True)
            for ids in replies
        ]
        for replies, _, _ in rolled
    ]
    # One rule from text to ids: a finished reply ends with EOS, also when another token stopped it.
    scored = [
        Document(
            ids,
            [
                [*reply, eos] if end and reply[-1] != eos else reply
                for reply, end in zip(replies, stopped, strict=True)
            ],
        )
        for (_, ids, _), (replies, _, stopped) in zip(mine, rolled, strict=True)
    ]
    if not scorer.same_tokenizer:
        scored = [
            encode_replies(scorer.tokenizer, prompt, text, stopped)
            for (prompt, _, _), text, (_, _, stopped) in zip(mine, texts, rolled, strict=True)
        ]
    scores: list[list[float]] = []
    if scored:
        with present(scorer.model, ranks.device) as reward:
            flat = score_documents(
                reward, scored, token_budget=sampling.token_budget, precision=sampling.precision
            ).tolist()
        size = sampling.samples
        scores = [flat[start : start + size] for start in range(0, len(flat), size)]
    return ranks.gather(
        [
            Replies(text, ids, replies, stopped, words, score, generated, *row)
            for (text, ids, _), (replies, generated, stopped), words, score, row in zip(
                mine, rolled, texts, scores, rows, strict=True
            )
        ]
    )


def roll_out(
    engine: Engine, prompts: Sequence[Asked], sampling: Sampling, seed: int
) -> list[Rolled]:
    """Per prompt: replies as ids, the log-probs that the engine saw, whether each ended itself.

    With `truncate_after` n only stop tokens at index >= n end a reply (Ziegler's code), so the
    whole length is sampled first and cut afterwards.
    """
    with precision_context(engine.device, sampling.precision):
        rollouts = engine.generate(
            [ids for _, ids, _ in prompts],
            samples=sampling.samples,
            max_new_tokens=sampling.max_new_tokens,
            stop_ids=() if sampling.truncate_after else sampling.stop_ids,
            temperature=sampling.temperature,
            seed=seed,
            keys=[key for _, _, key in prompts],
            slots=sampling.slots,
        )
    result: list[Rolled] = [([], [], []) for _ in prompts]
    for rollout in rollouts:
        tokens, stopped = rollout.tokens, rollout.stopped
        if sampling.truncate_after:
            _, length, found = truncate_at_stop(
                torch.tensor([tokens]), list(sampling.stop_ids), 0, after=sampling.truncate_after
            )
            tokens, stopped = tokens[: int(length)], bool(found)
        replies, generated, ended = result[rollout.prompt]
        replies.append(tokens)
        generated.append(rollout.logprobs[: len(tokens)])
        ended.append(stopped)
    return result


Rows = tuple[list[list[float]], list[list[float]], list[list[float]], list[list[float]]]


def teacher_force(
    policy: Any,
    reference: Any,
    value: Any | None,
    documents: Sequence[Document],
    sampling: Sampling,
    device: torch.device,
) -> list[Rows]:
    """Per document, per reply: (logp_old, logp_ref, values, entropy), by the training forward.

    Policy and reference see the very same packs: where their weights are equal the KL is exactly 0.
    Nothing waits for the device before all of it is under way.
    """
    packs = trees(documents, sampling.token_budget, device)
    temperature, precise = sampling.temperature, partial(precision_context, device)
    with precise(sampling.precision):
        pairs = [logprobs(policy, tree, temperature, entropy=True, where="replies")
                 for _, tree in packs]  # fmt: skip
    with precise(sampling.precision), present(reference, device) as model:
        refs = [logprobs(model, tree, temperature, where="replies") for _, tree in packs]
    with precise(sampling.precision):
        values = [
            torch.zeros_like(old) if value is None else tree.at_previous(scalars(value, tree))
            for (_, tree), (old, _) in zip(packs, pairs, strict=True)
        ]
    result: dict[int, Rows] = {}
    for (group, tree), (old, entropy), ref, state in zip(packs, pairs, refs, values, strict=True):
        lengths = tree.lengths.tolist()
        columns = [
            [row[:length] for row, length in zip(tree.replies(x).tolist(), lengths, strict=True)]
            for x in (old, ref, state, entropy)
        ]
        start = 0
        for i in group:
            end = start + len(documents[i].replies)
            result[i] = tuple(column[start:end] for column in columns)  # type: ignore[assignment]
            start = end
    return [result[i] for i in range(len(documents))]


def judge_batch(
    groups: list[Replies],
    *,
    beta: float,
    kl_kind: KLKind,
    missing_eos: MissingStop,
    missing_eos_penalty: float,
    score_clip: float | None,
    whiten_rewards: bool,
    whiten_advantages: bool,
    gamma: float,
    lam: float,
    algorithm: str,
    device: torch.device,
) -> Experience:
    """Rewards and advantages of a batch, whitened over the valid tokens of all ranks.

    An episode whose score is not finite is masked out and counted; more than 1% raise RunFailed.
    """
    flat = [(g, k) for g in range(len(groups)) for k in range(len(groups[g].replies))]
    longest = max(len(groups[g].replies[k]) for g, k in flat)

    def padded(name: str) -> Tensor:
        rows = [getattr(groups[g], name)[k] for g, k in flat]
        return torch.tensor([row + [0.0] * (longest - len(row)) for row in rows], device=device)

    raw_B = torch.tensor([groups[g].scores[k] for g, k in flat], device=device)
    stopped_B = torch.tensor([groups[g].stopped[k] for g, k in flat], device=device)
    length_B = torch.tensor([len(groups[g].replies[k]) for g, k in flat], device=device)
    finite_B = raw_B.isfinite()
    dropped = int((~finite_B).sum())
    if dropped > 0.01 * len(flat):
        raise RunFailed(
            f"the reward model gave NaN or Inf to {dropped} of {len(flat)} replies of this batch; "
            "check its weights and precision"
        )
    mask_BT = (torch.arange(longest, device=device) < length_B[:, None]) & finite_B[:, None]
    old_BT, ref_BT, values_BT = padded("logp_old"), padded("logp_ref"), padded("values")
    score_B = score_rule(raw_B, stopped_B, missing_eos, missing_eos_penalty, score_clip)
    kl_BT = kl_estimate(old_BT, ref_BT, kl_kind)
    rewards_BT = token_rewards(score_B, kl_BT, mask_BT, beta)
    if algorithm == "rloo":
        # A dropped episode is a prompt of its own: its missing score is nobody's baseline.
        prompt_B = torch.tensor([g for g, _ in flat], device=device)
        apart_B = len(groups) + torch.arange(len(flat), device=device)
        prompt_B = torch.where(finite_B, prompt_B, apart_B)
        total_B = torch.where(mask_BT, rewards_BT, 0).sum(1)
        advantages_BT = torch.where(mask_BT, rloo(total_B, prompt_B)[:, None], 0)
        returns_BT = torch.zeros_like(advantages_BT)
    else:
        if whiten_rewards:
            rewards_BT = whiten(rewards_BT, mask_BT, shift_mean=False)
        advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma, lam)
        if whiten_advantages:
            advantages_BT = whiten(advantages_BT, mask_BT)
    counter = iter(range(len(flat)))
    return Experience(
        groups=groups,
        episodes=[[next(counter) for _ in group.replies] for group in groups],
        mask_BT=mask_BT,
        logp_generated_BT=padded("logp_generated"),
        logp_old_BT=old_BT,
        logp_ref_BT=ref_BT,
        values_BT=values_BT,
        entropy_BT=padded("entropy"),
        kl_BT=kl_BT,
        raw_score_B=raw_B,
        score_B=score_B,
        stopped_B=stopped_B,
        dropped_B=~finite_B,
        rewards_BT=rewards_BT,
        advantages_BT=advantages_BT,
        returns_BT=returns_BT,
    )
