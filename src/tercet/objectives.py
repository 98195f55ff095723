"""Every equation of the three steps, as pure functions of tensors.

Shapes: B episodes, T reply tokens (right-padded; valid where the bool mask is True), N replies,
V vocabulary.

Three rules hold throughout:
* arithmetic is at least float32 (bf16 and fp16 are upcast first, float64 stays float64);
* whatever stands behind a mask, NaN included, changes neither a value nor a gradient;
* a loss is a sum divided by `total`. Left out, that is the count in the tensors given; a
  micro-batch passes the count of the whole batch over all ranks, and its losses then add up.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Count = int | float | Tensor
KLKind = Literal["k1", "k2", "k3"]
MissingStop = Literal["replace", "subtract", "none"]
Denominator = Literal["pairs", "combinations"]
Weighting = Literal["prompt", "pair"]


def _wide(x: Tensor) -> Tensor:
    """At least float32: reductions in half precision lose what the equations are about."""
    return x if x.dtype == torch.float64 else x.float()


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    # where, not multiplication: nan * 0 is nan, in the value and in the gradient.
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def _per(total: Count | None, here: Tensor) -> Count:
    """The denominator: `total`, or what is counted `here`; never 0, so an empty sum stays 0."""
    if total is None:
        return here.clamp(min=1)
    return total.clamp(min=1) if isinstance(total, Tensor) else max(total, 1)


# --- language modelling -------------------------------------------------------------------------


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(token) under softmax(logits / temperature).

    logits (..., V), tokens (...) int64 -> (...), nats. The temperature must be the one used for
    sampling, or ratios and KL compare different distributions (Ziegler 2019).
    """
    assert temperature > 0, f"temperature must be above 0, not {temperature}"
    z = _wide(logits) / temperature
    return z.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - z.logsumexp(-1)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of softmax(logits / temperature): (..., V) -> (...). Logits may be -inf."""
    assert temperature > 0, f"temperature must be above 0, not {temperature}"
    logp = (_wide(logits) / temperature).log_softmax(-1)
    possible = logp > -math.inf
    return -(logp.exp() * _masked(logp, possible)).sum(-1)


def nll_loss(logp: Tensor, weight: Tensor, total: Count | None = None) -> Tensor:
    """Weighted token mean of -logp: the loss of SFT, pretraining and ptx.

    logp, weight: same shape; weight 0 marks a token that is no target. `total` is the sum of the
    weights over the whole optimizer batch: a mean of micro-batch means would favour short examples.
    When it is 0 there is no step to take.
    """
    weight = _wide(weight)
    nll_sum = -(_masked(_wide(logp), weight != 0) * weight).sum()
    if total is None:
        weight_sum = weight.sum()
        total = torch.where(weight_sum > 0, weight_sum, torch.ones_like(weight_sum))
    return nll_sum / total


# --- reward model -------------------------------------------------------------------------------


def ranking_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """(winner, loser) indices of each pair that the ranks decide; ties give none (InstructGPT C.2).

    >>> ranking_pairs([1, 2, 2])
    [(0, 1), (0, 2)]
    """
    indices = range(len(ranks))
    return [(a, b) for a in indices for b in indices if ranks[a] < ranks[b]]


@dataclass(frozen=True)
class _Pairs:
    winner_P: Tensor
    loser_P: Tensor
    weight_P: Tensor  # float64, before division by the total
    total: int


def _pairs(prompt_N: Tensor, rank_N: Tensor, denominator: str, weighting: str) -> _Pairs:
    assert denominator in ("pairs", "combinations"), denominator
    assert weighting in ("prompt", "pair"), weighting
    _, prompt_N = prompt_N.unique(return_inverse=True)
    same_prompt = prompt_N[:, None] == prompt_N[None, :]
    winner_P, loser_P = (same_prompt & (rank_N[:, None] < rank_N[None, :])).nonzero(as_tuple=True)
    pair_prompt_P = prompt_N[winner_P]
    replies = prompt_N.bincount()
    decided = pair_prompt_P.bincount(minlength=len(replies))
    per_prompt = decided if denominator == "pairs" else replies * (replies - 1) // 2
    if weighting == "prompt":
        weight_P = 1.0 / per_prompt[pair_prompt_P].double()
        total = int((decided > 0).sum())
    else:
        weight_P = torch.ones_like(pair_prompt_P, dtype=torch.float64)
        total = int(per_prompt[decided > 0].sum())
    return _Pairs(winner_P, loser_P, weight_P, total)


def ranking_total(
    prompt_N: Tensor,
    rank_N: Tensor,
    denominator: Denominator = "pairs",
    weighting: Weighting = "prompt",
) -> int:
    """What `ranking_loss` divides by; summed over micro-batches and ranks it is their `total`."""
    return _pairs(prompt_N, rank_N, denominator, weighting).total


def ranking_loss(
    scores_N: Tensor,
    prompt_N: Tensor,
    rank_N: Tensor,
    denominator: Denominator = "pairs",
    weighting: Weighting = "prompt",
    total: Count | None = None,
) -> Tensor:
    """K-wise ranking loss (InstructGPT Eq. 1): -log sigma(s_winner - s_loser), mean over pairs.

    scores_N: one score a reply; prompt_N: int, which prompt the reply answers (any ids, any order);
    rank_N: 1 = best, equal = tie. Tied pairs are dropped; a prompt with only ties counts nowhere,
    and a batch of such prompts gives 0 attached to the graph.

    denominator: a prompt's sum is divided by its decided "pairs" (C.2), or by all "combinations"
    C(K, 2) (Eq. 1 as printed). weighting: every "prompt" counts the same, or every "pair" does.
    """
    pairs = _pairs(prompt_N, rank_N, denominator, weighting)
    s = _wide(scores_N)
    delta_P = s[pairs.winner_P.to(s.device)] - s[pairs.loser_P.to(s.device)]
    # logsigmoid, not softplus: torch's softplus drops log1p(exp(-x)) above 20, 2e-9 in float64.
    loss_P = -F.logsigmoid(delta_P) * pairs.weight_P.to(s)
    return loss_P.sum() / _per(total, torch.tensor(pairs.total, device=s.device))


def reward_gain_bias(
    scores_N: Tensor, mean: float = 0.0, std: float | None = None
) -> tuple[float, float]:
    """(gain, bias) such that gain * scores + bias has this mean and, when given, this deviation.

    The default is InstructGPT 3.5: gain 1 and bias -mean, with scores of demonstrations. With `std`
    (population), the form of Ziegler 2019, on samples of the initial policy. Scores must be read
    with gain 1 and bias 0. Scores that do not vary keep gain 1.
    """
    scores_N = scores_N.double()
    gain = 1.0
    if std is not None:
        spread = float(scores_N.std(correction=0))
        gain = std / spread if spread > 1e-6 else 1.0
    return gain, mean - gain * float(scores_N.mean())


# --- rollouts to rewards ------------------------------------------------------------------------


def truncate_at_stop(
    responses_BT: Tensor, stop_ids: Sequence[int], pad_id: int, after: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Pad what follows the first stop token, which is kept: (responses_BT, lengths_B, has_stop_B).

    Only stop tokens at index >= `after` count. Without one the length is T. A pad id inside the
    reply is an ordinary token: lengths come from the stop token alone.
    """
    length = responses_BT.shape[1]
    time_T = torch.arange(length, device=responses_BT.device)
    stops = torch.tensor(list(stop_ids), dtype=responses_BT.dtype, device=responses_BT.device)
    is_stop_BT = torch.isin(responses_BT, stops) & (time_T >= after)
    has_stop_B = is_stop_BT.any(1)
    lengths_B = torch.where(is_stop_BT, time_T, length - 1).amin(1) + 1
    kept_BT = time_T < lengths_B[:, None]
    return torch.where(kept_BT, responses_BT, pad_id), lengths_B, has_stop_B


def score_rule(
    score_B: Tensor,
    has_stop_B: Tensor,
    mode: MissingStop = "subtract",
    penalty: float = 1.0,
    clip: float | None = None,
) -> Tensor:
    """Clip the score to [-clip, clip], then apply the rule for a reply without stop token.

    "subtract" lowers it by `penalty`; "replace" sets it to -penalty, which is never clipped
    (Ziegler 2019); "none" leaves it. `clip` None: no clipping.
    """
    score_B = _wide(score_B)
    if clip is not None:
        score_B = score_B.clamp(-clip, clip)
    if mode == "none":
        return score_B
    assert mode in ("replace", "subtract"), mode
    punished_B = score_B - penalty if mode == "subtract" else torch.full_like(score_B, -penalty)
    return torch.where(has_stop_B, score_B, punished_B)


def kl_estimate(logp: Tensor, logp_ref: Tensor, kind: KLKind = "k1") -> Tensor:
    """Per-token estimate of KL(pi || pi_ref) on samples of pi; k1, k2, k3 of Schulman's note.

    k1 = logp - logp_ref is unbiased and may be negative; k2 = k1^2 / 2; k3 = exp(-k1) - 1 + k1.
    k2 and k3 are never negative. k3 clamps its exponent to [-20, 20]: exp overflows float32 at 88.
    """
    k1 = _wide(logp) - _wide(logp_ref)
    if kind == "k1":
        return k1
    if kind == "k2":
        return 0.5 * k1.square()
    assert kind == "k3", kind
    # Near 0 rounding can leave a negative last bit.
    return (torch.expm1((-k1).clamp(-20, 20)) + k1).clamp(min=0)


def token_rewards(score_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, beta: float) -> Tensor:
    """r_t = -beta * kl_t, plus the score on the last valid token (InstructGPT Eq. 2, per token).

    Returns (B, T), 0 behind the mask. An episode without valid tokens gets no reward at all, so a
    dropped episode may carry a NaN score.
    """
    time_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = torch.where(mask_BT, time_T, -1).amax(1)
    is_last_BT = time_T == last_B[:, None]
    score_BT = _masked(_wide(score_B)[:, None].expand(mask_BT.shape), is_last_BT)
    return score_BT - beta * _masked(_wide(kl_BT), mask_BT)


@dataclass
class AdaptiveKL:
    """The KL coefficient, steered towards a target KL a sequence (Ziegler 2019, 2.2).

    >>> controller = AdaptiveKL(0.15, target=6.0)
    >>> round(controller.update(kl=9.0, episodes=512), 6)
    0.151536

    `beta` is all the state that a checkpoint needs. `low` and `high` bound it.
    """

    beta: float
    target: float
    horizon: float = 10_000
    low: float = 0.0
    high: float = math.inf

    def update(self, kl: float, episodes: int) -> float:
        """The next beta, from the mean sequence KL of the batch just used and its episodes.

        Raises ValueError when the batch is so large beside the horizon that beta could reach 0.
        """
        assert math.isfinite(kl), f"KL is {kl}"
        if 0.2 * episodes / self.horizon >= 1:
            raise ValueError(
                f"KL controller: 0.2 * {episodes} episodes / horizon {self.horizon:g} must be "
                f"below 1; raise the horizon above {0.2 * episodes:g}"
            )
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        beta = self.beta * (1 + error * episodes / self.horizon)
        self.beta = min(max(beta, self.low), self.high)
        return self.beta


# --- advantages ---------------------------------------------------------------------------------


def gae(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman 2016): (advantages_BT, returns_BT), masked to 0.

    values_BT[b, t] is the value of the state before token t. After the last token both value and
    advantage are 0, also for a reply cut by its length (Ziegler 2019); returns = advantages +
    values.
    """
    rewards_BT = _masked(_wide(rewards_BT), mask_BT)
    values_BT = _masked(_wide(values_BT), mask_BT)
    next_values_BT = F.pad(values_BT, (0, 1))[:, 1:]
    delta_BT = rewards_BT + gamma * next_values_BT - values_BT
    advantage_B = torch.zeros_like(delta_BT[:, 0])
    backwards: list[Tensor] = []
    for delta_B in reversed(delta_BT.unbind(1)):
        advantage_B = delta_B + gamma * lam * advantage_B
        backwards.append(advantage_B)
    advantages_BT = _masked(torch.stack(backwards[::-1], 1), mask_BT)
    return advantages_BT, advantages_BT + values_BT


def masked_mean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the valid entries; 0 when there are none."""
    return _masked(_wide(x_BT), mask_BT).sum() / mask_BT.sum().clamp(min=1)


def masked_moments(
    x_BT: Tensor, mask_BT: Tensor, reduce: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(count, mean, population variance) of the valid entries, each a scalar tensor.

    `reduce` sums a tensor over all ranks (`Ranks.sum`); with it the moments are those of all ranks.
    It is called twice: the variance is about the common mean, not a difference of large squares.
    """
    over_ranks = reduce or (lambda tensor: tensor)
    x_BT = _masked(_wide(x_BT), mask_BT)
    count, total = over_ranks(torch.stack([mask_BT.sum().to(x_BT), x_BT.sum()])).unbind()
    mean = total / count.clamp(min=1)
    squares = over_ranks(_masked((x_BT - mean).square(), mask_BT).sum())
    return count, mean, squares / count.clamp(min=1)


def whiten(
    x_BT: Tensor,
    mask_BT: Tensor,
    shift_mean: bool = True,
    moments: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8) over the valid entries, 0 behind the mask (Ziegler 2019).

    Population variance. `moments` are those of `masked_moments`: of all ranks when it got `reduce`.
    shift_mean=False puts the mean back. With fewer than two valid entries, or a variance below
    1e-12, there is no scale to divide by and only the mean is subtracted.
    """
    count, mean, variance = moments or masked_moments(x_BT, mask_BT)
    no_scale = (count < 2) | (variance < 1e-12)
    scale = torch.where(no_scale, torch.ones_like(variance), (variance + 1e-8).rsqrt())
    whitened_BT = (_wide(x_BT) - mean) * scale
    return _masked(whitened_BT if shift_mean else whitened_BT + mean, mask_BT)


def rloo(reward_B: Tensor, prompt_B: Tensor) -> Tensor:
    """Leave-one-out advantage (Ahmadian 2024): reward minus the mean of the prompt's other samples.

    (B,) -> (B,). The advantages of a prompt sum to 0. A prompt's only sample has no baseline: 0.
    """
    reward_B = _wide(reward_B)
    _, prompt_B = prompt_B.unique(return_inverse=True)
    samples = prompt_B.bincount()
    sums = reward_B.new_zeros(len(samples)).index_add(0, prompt_B, reward_B)
    k_B = samples[prompt_B]
    return (reward_B - sums[prompt_B] / k_B) * k_B / (k_B - 1).clamp(min=1)


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns): below 0 is worse than a constant.

    0 when the returns do not vary.
    """
    residual_BT = _wide(returns_BT) - _wide(values_BT)
    _, _, unexplained = masked_moments(residual_BT, mask_BT)
    _, _, variance = masked_moments(returns_BT, mask_BT)
    explained = 1 - unexplained / variance.clamp(min=1e-12)
    return torch.where(variance > 1e-12, explained, torch.zeros_like(explained))


# --- PPO losses ---------------------------------------------------------------------------------


def policy_loss(
    logp_BT: Tensor,
    old_logp_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    clip: float = 0.2,
    total: Count | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate (Schulman 2017, Eq. 7) as a loss, a token mean, and its metrics.

    Old log-probs and advantages are constants. Metrics, detached: clip_fraction (tokens whose
    gradient the clip removes), approx_kl (k2 of new against old) and ratio_mean are divided by the
    same total as the loss, so they add up over micro-batches; ratio_min and ratio_max are over this
    call's tokens.
    """
    log_ratio_BT = _masked(_wide(logp_BT) - _wide(old_logp_BT.detach()), mask_BT)
    ratio_BT = log_ratio_BT.clamp(-20, 20).exp()
    advantages_BT = _masked(_wide(advantages_BT.detach()), mask_BT)
    unclipped_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1 - clip, 1 + clip)
    per = _per(total, mask_BT.sum())
    # Behind the mask the advantage is 0, so those tokens add nothing.
    loss = torch.maximum(unclipped_BT, clipped_BT).sum() / per
    with torch.no_grad():
        metrics = {
            "clip_fraction": (clipped_BT > unclipped_BT).sum() / per,
            "approx_kl": 0.5 * log_ratio_BT.square().sum() / per,
            "ratio_mean": _masked(ratio_BT, mask_BT).sum() / per,
            "ratio_min": torch.where(mask_BT, ratio_BT, math.inf).amin(),
            "ratio_max": torch.where(mask_BT, ratio_BT, -math.inf).amax(),
        }
    return loss, metrics


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    clip: float | None = 0.2,
    total: Count | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Half the squared error to the returns, the larger of unclipped and clipped (Ziegler's code).

    The clipped value stays within `clip` of the old one; None turns clipping off. Old values and
    returns are constants. Metrics, detached and divided like the loss: clip_fraction, value_mean.
    """
    values_BT = _masked(_wide(values_BT), mask_BT)
    old_values_BT = _masked(_wide(old_values_BT.detach()), mask_BT)
    returns_BT = _masked(_wide(returns_BT.detach()), mask_BT)
    near_BT = values_BT
    if clip is not None:
        near_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)
    unclipped_BT = (values_BT - returns_BT).square()
    clipped_BT = (near_BT - returns_BT).square()
    per = _per(total, mask_BT.sum())
    loss = 0.5 * torch.maximum(unclipped_BT, clipped_BT).sum() / per
    with torch.no_grad():
        metrics = {
            "clip_fraction": (clipped_BT > unclipped_BT).sum() / per,
            "value_mean": values_BT.sum() / per,
        }
    return loss, metrics


def reinforce_loss(
    logp_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, total: Count | None = None
) -> Tensor:
    """-sum(A_t * logp_t) / episodes: the sequence-level REINFORCE of RLOO (Ahmadian 2024, Eq. 6).

    Advantages are constants, the same on all tokens of an episode. `total` counts episodes.
    """
    advantages_BT = _masked(advantages_BT.detach(), mask_BT)
    weighted_BT = _masked(_wide(logp_BT), mask_BT) * advantages_BT
    return -weighted_BT.sum() / _per(total, mask_BT.any(1).sum())
