"""The numbers that say how PPO is doing, and the alarms that say what went wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from tercet.objectives import explained_variance, kl_estimate, masked_mean, masked_moments
from tercet.rollout.experience import Experience


def summarise(batch: Experience, beta: float) -> dict[str, float]:
    """Metrics of one rollout batch: over its valid tokens, and its episodes that have a score."""
    mask_BT, kept_B = batch.mask_BT, ~batch.dropped_B
    kinds = {
        f"kl_{kind}": torch.where(
            mask_BT, kl_estimate(batch.logp_old_BT, batch.logp_ref_BT, kind), 0
        ).sum(1)[kept_B]
        for kind in ("k1", "k2", "k3")
    }
    kl_B, length_B = batch.kl_B[kept_B], mask_BT.sum(1)[kept_B].float()
    _, returns_mean, returns_var = masked_moments(batch.returns_BT, mask_BT)
    gap_BT = torch.where(mask_BT, (batch.logp_generated_BT - batch.logp_old_BT).abs(), 0)
    texts = [text for group in batch.groups for text in group.texts]
    score_B = batch.raw_score_B[kept_B]
    numbers = {
        "score": score_B.mean(),
        "score_std": score_B.std(correction=0),
        "rlhf_reward": (batch.score_B[kept_B] - beta * kl_B).mean(),
        "kl": kl_B.mean(),
        "kl_max": kl_B.max(),
        **{name: kl.mean() for name, kl in kinds.items()},
        "entropy": masked_mean(batch.entropy_BT, mask_BT),
        "length": length_B.mean(),
        "frac_no_eos": (~batch.stopped_B[kept_B]).float().mean(),
        "value_mean": masked_mean(batch.values_BT, mask_BT),
        "returns_mean": returns_mean,
        "returns_var": returns_var,
        "explained_variance": explained_variance(batch.values_BT, batch.returns_BT, mask_BT),
        "logp_gap_generated": gap_BT.max(),
        "score_length_correlation": _correlation(score_B, length_B),
        "valid_tokens": mask_BT.sum(),
    }
    return {name: float(number) for name, number in numbers.items()} | {
        "beta": beta,
        "dropped_episodes": float(batch.dropped_B.sum()),
        "distinct_replies": len(set(texts)) / len(texts),
        "repetition": sum(map(repetition, texts)) / len(texts),
    }


def repetition(text: str) -> float:
    """Share of a reply's word triples that it has said before; 0 below four words."""
    words = text.split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if len(triples) > 1 else 0.0


def _correlation(x_B: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    x_B, y_B = x_B - x_B.mean(), y_B - y_B.mean()
    return (x_B * y_B).sum() / (x_B.norm() * y_B.norm()).clamp(min=1e-12)


def alarms(
    now: Mapping[str, float], history: Sequence[Mapping[str, float]], half_precision: bool
) -> list[str]:
    """Sentences for what looks wrong now; `history` holds earlier iterations, oldest first.

    Thresholds come with what they mean; none stops the run by itself.
    """
    found = []

    def alarm(condition: bool, sentence: str) -> None:
        if condition:
            found.append(sentence)

    get = lambda name, default=math.nan: now.get(name, default)  # noqa: E731
    first = history[0] if history else now
    tolerance = 2e-2 if half_precision else 1e-3
    alarm(
        abs(get("ratio_first_minibatch", 1.0) - 1) > tolerance,
        f"ratio of the first minibatch is {get('ratio_first_minibatch'):.4f}, not 1: dropout, "
        "temperature or stale log-probs",
    )
    alarm(
        get("logp_gap_generated") > (0.25 if half_precision else 1e-3),
        f"generation and training log-probs differ by {get('logp_gap_generated'):.3g}",
    )
    alarm(get("kl_k1") < -0.1, f"KL is {get('kl_k1'):.2f}: below 0 means a sampling mismatch")
    alarm(
        get("entropy") < 0.3 * first.get("entropy", 0),
        f"entropy {get('entropy'):.2f} is below 30% of its start {first.get('entropy', 0):.2f}",
    )
    alarm(get("frac_no_eos") > 0.5, f"{get('frac_no_eos'):.0%} of replies never end")
    alarm(
        bool(history)
        and get("length") > 1.5 * first.get("length", math.inf)
        # Once all replies are cut at the same length there is no correlation left to see.
        and (get("score_length_correlation") > 0.3 or get("frac_no_eos") > 0.5),
        f"length hacking: replies grew from {first.get('length', 0):.0f} to {get('length'):.0f} "
        f"tokens; score correlates with length by {get('score_length_correlation'):.2f}",
    )
    alarm(
        get("repetition") > 0.2 and get("repetition") > 2 * first.get("repetition", 0),
        f"replies repeat themselves ({get('repetition'):.0%} of word triples)",
    )
    alarm(
        len(history) >= 20 and get("explained_variance") < 0,
        f"value model explains nothing after {len(history)} iterations "
        f"({get('explained_variance'):.2f})",
    )
    alarm(
        get("value_clip_fraction", 0) > 0.5,
        "value clip cuts over half the tokens: raise value_clip",
    )
    alarm(get("approx_kl", 0) > 0.05, f"steps too large: approx_kl {get('approx_kl'):.3f}")
    alarm(
        get("clip_fraction", 0) > 0.3,
        f"steps too large: {get('clip_fraction'):.0%} of ratios clipped",
    )
    alarm(get("valid_tokens") < 256, f"whitening over only {get('valid_tokens'):.0f} tokens")
    if "gold" in now and len(history) >= 3:
        best = max(range(len(history)), key=lambda i: history[i].get("gold", -math.inf))
        recent = [row.get("gold", math.inf) for row in history[-2:]] + [now["gold"]]
        error = now.get("gold_se", 0.0)
        alarm(
            max(recent) < history[best]["gold"] - error and now["score"] > history[best]["score"],
            f"over-optimisation: gold fell from {history[best]['gold']:.2f} (iteration {best}) to "
            f"{now['gold']:.2f} while the reward model's score rose",
        )
    return found
