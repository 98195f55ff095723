"""Clipped policy and value losses, and a bandit solved with them. I-numbers: docs/algorithm.md."""

import math

import pytest
import torch
from torch import Tensor

from tercet.objectives import (
    gae,
    kl_estimate,
    masked_mean,
    policy_loss,
    reinforce_loss,
    token_logprobs,
    token_rewards,
    value_loss,
)

NAN = math.nan


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def lengths_mask(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


MASK = lengths_mask([1, 3, 4], 4)
ONE = torch.ones(1, 1, dtype=torch.bool)


def policy_at(ratio: float, advantage: float) -> tuple[float, float, dict[str, Tensor]]:
    logp = f64([[math.log(ratio) - 2.0]]).requires_grad_()
    loss, metrics = policy_loss(logp, f64([[-2.0]]), f64([[advantage]]), ONE)
    (gradient,) = torch.autograd.grad(loss, logp)
    return loss.item(), gradient.item(), metrics


# --- policy -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advantage", "ratio", "expected"),
    [
        (1, 0.5, -0.5), (1, 0.8, -0.8), (1, 1.0, -1.0), (1, 1.2, -1.2), (1, 1.5, -1.2),
        (-1, 0.5, 0.8), (-1, 0.8, 0.8), (-1, 1.0, 1.0), (-1, 1.2, 1.2), (-1, 1.5, 1.5),
    ],
)  # fmt: skip
def test_policy_loss_worked_numbers(advantage: float, ratio: float, expected: float) -> None:
    assert policy_at(ratio, advantage)[0] == pytest.approx(expected, abs=1e-12)


def test_before_the_first_step_the_loss_is_minus_the_mean_advantage_I27() -> None:
    logp, advantages = random(3, 4), random(3, 4, seed=1)
    loss, metrics = policy_loss(logp, logp.clone(), advantages, MASK)
    assert loss.item() == pytest.approx(-masked_mean(advantages, MASK).item(), abs=1e-14)
    assert metrics["clip_fraction"] == 0 and metrics["approx_kl"] == 0
    assert metrics["ratio_mean"] == metrics["ratio_min"] == metrics["ratio_max"] == 1


def test_gradient_at_ratio_one_is_reinforce_I33() -> None:
    logp, advantages = random(3, 4).requires_grad_(), random(3, 4, seed=1)
    loss, _ = policy_loss(logp, logp.detach(), advantages, MASK)
    (gradient,) = torch.autograd.grad(loss, logp)
    expected = torch.where(MASK, -advantages / MASK.sum(), 0.0)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("advantage", "ratio"), [(1.0, 1.21), (2.0, 3.0), (-1.0, 0.79), (-3.0, 0.1)]
)
def test_clipped_tokens_have_no_gradient_I34(advantage: float, ratio: float) -> None:
    _, gradient, metrics = policy_at(ratio, advantage)
    assert gradient == 0 and metrics["clip_fraction"] == 1


@pytest.mark.parametrize(("advantage", "ratio"), [(-1.0, 1.5), (1.0, 0.5), (1.0, 1.1), (-1.0, 0.9)])
def test_other_tokens_keep_their_gradient_I34(advantage: float, ratio: float) -> None:
    _, gradient, metrics = policy_at(ratio, advantage)
    assert gradient == pytest.approx(-advantage * ratio) and metrics["clip_fraction"] == 0


def test_nan_behind_the_mask_changes_neither_loss_nor_gradient_I5() -> None:
    old, new, advantages = random(3, 4), random(3, 4, seed=1), random(3, 4, seed=2)
    results = []
    for filler in (0.0, NAN):
        filled = [torch.where(MASK, x, filler) for x in (new, old, advantages)]
        logp = filled[0].requires_grad_()
        loss, metrics = policy_loss(logp, filled[1], filled[2], MASK)
        results.append([loss, *torch.autograd.grad(loss, logp), *metrics.values()])
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)


def test_old_logprobs_and_advantages_are_constants() -> None:
    old, advantages = random(3, 4).requires_grad_(), random(3, 4, seed=1).requires_grad_()
    policy_loss(random(3, 4, seed=2).requires_grad_(), old, advantages, MASK)[0].backward()
    assert old.grad is None and advantages.grad is None


def test_policy_metrics_by_hand() -> None:
    logp = f64([[math.log(2), math.log(0.5), NAN]])
    mask = lengths_mask([2], 3)
    _, metrics = policy_loss(logp, torch.zeros(1, 3).double(), f64([[1.0, 1.0, NAN]]), mask)
    got = {name: value.item() for name, value in metrics.items()}
    assert got == pytest.approx(
        {
            "clip_fraction": 0.5,
            "approx_kl": math.log(2) ** 2 / 2,
            "ratio_mean": 1.25,
            "ratio_min": 0.5,
            "ratio_max": 2.0,
        }
    )


def test_policy_loss_and_metrics_add_up_over_micro_batches_I37() -> None:
    old, new, advantages = random(3, 4), random(3, 4, seed=1), random(3, 4, seed=2)
    loss, metrics = policy_loss(new, old, advantages, MASK)
    rows = [slice(0, 1), slice(1, 3)]
    parts = [policy_loss(new[r], old[r], advantages[r], MASK[r], total=8) for r in rows]
    assert sum(part for part, _ in parts).item() == pytest.approx(loss.item(), abs=1e-14)
    for name in ("clip_fraction", "approx_kl", "ratio_mean"):
        added = sum(m[name].item() for _, m in parts)
        assert added == pytest.approx(metrics[name].item(), abs=1e-14)


def test_a_minibatch_without_valid_tokens_gives_zero() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    logp = random(2, 3).requires_grad_()
    loss, _ = policy_loss(logp, random(2, 3), random(2, 3), nothing)
    value, _ = value_loss(logp, random(2, 3), random(2, 3), nothing)
    (loss + value).backward()
    assert loss == 0 and value == 0 and logp.grad is not None and (logp.grad == 0).all()


def test_a_far_log_ratio_stays_finite() -> None:
    loss, _ = policy_loss(
        torch.full((1, 1), 0.0), torch.full((1, 1), -500.0), -torch.ones(1, 1), ONE
    )
    assert loss.isfinite()


# --- value --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [(-0.5, 1.125), (0.0, 0.5), (0.1, 0.405), (0.2, 0.32), (0.5, 0.32), (1.0, 0.32), (2.0, 0.5)],
)
def test_value_loss_worked_numbers(value: float, expected: float) -> None:
    loss, metrics = value_loss(f64([[value]]), f64([[0.0]]), f64([[1.0]]), ONE)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert metrics["clip_fraction"].item() == (0.2 < value < 1.8)


def test_unchanged_values_give_half_the_squared_error_I35() -> None:
    values, returns = random(3, 4), random(3, 4, seed=1)
    loss, metrics = value_loss(values, values.clone(), returns, MASK)
    expected = 0.5 * masked_mean((values - returns).square(), MASK)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-14)
    assert metrics["value_mean"].item() == pytest.approx(masked_mean(values, MASK).item())


def test_clipping_never_lowers_the_value_loss_I35() -> None:
    values, old, returns = random(3, 4), random(3, 4, seed=1), random(3, 4, seed=2)
    clipped, _ = value_loss(values, old, returns, MASK)
    unclipped, metrics = value_loss(values, old, returns, MASK, clip=None)
    assert clipped > unclipped
    expected = 0.5 * masked_mean((values - returns).square(), MASK)
    assert unclipped.item() == pytest.approx(expected.item(), abs=1e-14)
    assert metrics["clip_fraction"] == 0


def test_value_loss_ignores_nan_behind_the_mask_I5() -> None:
    new, old, returns = random(3, 4), random(3, 4, seed=1), random(3, 4, seed=2)
    results = []
    for filler in (0.0, NAN):
        filled = [torch.where(MASK, x, filler) for x in (new, old, returns)]
        values = filled[0].requires_grad_()
        loss, metrics = value_loss(values, filled[1], filled[2], MASK)
        results.append([loss, *torch.autograd.grad(loss, values), *metrics.values()])
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)


def test_old_values_and_returns_are_constants() -> None:
    old, returns = random(3, 4).requires_grad_(), random(3, 4, seed=1).requires_grad_()
    value_loss(random(3, 4, seed=2).requires_grad_(), old, returns, MASK)[0].backward()
    assert old.grad is None and returns.grad is None


def test_value_loss_adds_up_over_micro_batches_I37() -> None:
    new, old, returns = random(3, 4), random(3, 4, seed=1), random(3, 4, seed=2)
    loss, _ = value_loss(new, old, returns, MASK)
    parts = [value_loss(new[r], old[r], returns[r], MASK[r], total=8)[0] for r in ([0], [1, 2])]
    assert sum(parts).item() == pytest.approx(loss.item(), abs=1e-14)


# --- all together -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "beta", "optimum"),
    [((0.5, 0.5), 0.5, 0.8808), ((0.5, 0.5), 2.0, 0.6225), ((0.2, 0.8), 1.0, 0.4046)],
)
def test_a_bandit_converges_to_the_tilted_reference_I45(
    reference: tuple[float, float], beta: float, optimum: float
) -> None:
    """pi* is proportional to pi_ref * exp(r / beta), with r = (1, 0)."""
    generator = torch.Generator().manual_seed(0)
    ref_logits = f64(reference).log()
    logits = ref_logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    episodes, iterations = 2048, 120
    mask = torch.ones(episodes, 1, dtype=torch.bool)
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - iteration / iterations)
        probability = logits.detach().softmax(0)
        action = torch.multinomial(probability, episodes, replacement=True, generator=generator)[
            :, None
        ]
        old_logp = token_logprobs(logits.detach().expand(episodes, 1, 2), action)
        kl = kl_estimate(old_logp, token_logprobs(ref_logits.expand(episodes, 1, 2), action))
        rewards = token_rewards((action[:, 0] == 0).double(), kl, mask, beta)
        baseline = rewards.mean().expand(episodes, 1)
        advantages, _ = gae(rewards, baseline, mask)
        optimizer.zero_grad()
        logp = token_logprobs(logits.expand(episodes, 1, 2), action)
        policy_loss(logp, old_logp, advantages, mask)[0].backward()
        optimizer.step()
    assert logits.softmax(0)[0].item() == pytest.approx(optimum, abs=0.02)


def test_reinforce_loss_by_hand() -> None:
    # Two episodes: advantages 2 and -1 on their tokens; -(2 * (-1 - 2) + -1 * -3) / 2 = 1.5
    logp_BT = torch.tensor([[-1.0, -2.0], [-3.0, NAN]], requires_grad=True)
    advantages_BT = torch.tensor([[2.0, 2.0], [-1.0, NAN]])
    mask_BT = torch.tensor([[True, True], [True, False]])
    loss = reinforce_loss(logp_BT, advantages_BT, mask_BT)
    loss.backward()
    assert loss.item() == pytest.approx(1.5)
    assert logp_BT.grad is not None
    assert logp_BT.grad.tolist() == [[-1.0, -1.0], [0.5, 0.0]]
