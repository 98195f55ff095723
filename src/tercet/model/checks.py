"""Self-checks that every run makes of itself; a failing one stops the run and says why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tercet.model.reward import check_probe
from tercet.model.shard import Ranks
from tercet.records import RunFailed


class CheckFailed(RunFailed):
    """A run that is not what it says it is."""


def say(ranks: Ranks, line: str) -> None:
    """One line about a passed check, from the main rank."""
    if ranks.main:
        print(f"check  {line}", file=sys.stderr, flush=True)


def check_start(
    mask_BT: Tensor,
    logp_old_BT: Tensor,
    logp_ref_BT: Tensor,
    logp_generated_BT: Tensor,
    half_precision: bool,
    ranks: Ranks,
) -> None:
    """Before any step: KL to the reference is 0, and the rollout's log-probs are training's.

    Policy and reference hold the same weights and see the same pack through the same code, so on
    the CPU the KL is 0 to the bit; elsewhere within 1e-5 (float32) or 2e-2 (bfloat16).
    """
    gap = torch.where(mask_BT, (logp_old_BT - logp_ref_BT).abs(), 0).max().item()
    allowed = 2e-2 if half_precision else 1e-5
    if not gap <= allowed:
        raise CheckFailed(
            f"KL to the reference is not 0 before the first step (log-probs differ by {gap:.3g}, "
            f"allowed {allowed:g}): policy and reference are not the same model, or dropout is on"
        )
    exact = "bit-exact" if gap == 0 else f"within {gap:.1e}"
    say(ranks, f"KL to the reference is 0 at the start ({exact})")
    gap = torch.where(mask_BT, (logp_generated_BT - logp_old_BT).abs(), 0).max().item()
    allowed = 0.25 if half_precision else 1e-3
    if not gap <= allowed:
        raise CheckFailed(
            f"rollout and training log-probs differ by {gap:.3g} (allowed {allowed:g}): the engine "
            "does not compute what the model's forward computes"
        )
    say(ranks, f"rollout log-probs equal the training forward's (within {gap:.1e})")


def check_first_ratio(
    ratio: float, half_precision: bool, iteration: int, first: bool, ranks: Ranks
) -> None:
    """The first minibatch of an iteration has ratio 1: nothing was learned since the rollout."""
    allowed = 2e-2 if half_precision else 1e-4
    if not abs(ratio - 1) <= allowed:
        raise CheckFailed(
            f"iteration {iteration}: the ratio of the first minibatch is {ratio:.6f}, not 1 "
            f"(allowed {allowed:g}): dropout, temperature or stale log-probs"
        )
    if first:
        exact = "exactly" if ratio == 1 else f"within {abs(ratio - 1):.1e}"
        say(ranks, f"ratio of the first minibatch is 1 ({exact})")


def reward_check(
    reward: Any, tokenizer: Any, folder: Path, same_tokenizer: bool, ranks: Ranks
) -> None:
    """The reward model scores its stored probe as it did when it was trained."""
    worst = check_probe(reward, tokenizer, folder)
    if worst is None:
        say(ranks, f"{folder}: no probe stored with this reward model, scores not re-checked")
    else:
        say(ranks, f"reward model scores its probe as when trained (within {worst:.1e})")
    other = "another tokenizer: texts are re-encoded"
    say(ranks, f"reward model uses {'the policy tokenizer' if same_tokenizer else other}")


def check_eos(documents: list[Any], eos: int, ranks: Ranks) -> None:
    """Demonstrations end with EOS and it is a target, or the model would never learn to stop."""
    ended = sum(reply[-1] == eos for document in documents for reply in document.replies)
    trained = sum(document.reply_weight > 0 for document in documents)
    if not ended or not trained:
        raise CheckFailed("no demonstration ends with EOS as a target: the model would never stop")
    say(ranks, f"EOS is kept and trained as a target ({ended} of {len(documents)} examples)")
