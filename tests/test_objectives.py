"""Log-probs, KL, rewards, advantages, the KL controller. I-numbers: docs/algorithm.md."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tercet.objectives import (
    AdaptiveKL,
    entropy,
    explained_variance,
    gae,
    kl_estimate,
    masked_mean,
    masked_moments,
    nll_loss,
    reward_gain_bias,
    rloo,
    score_rule,
    token_logprobs,
    token_rewards,
    truncate_at_stop,
    whiten,
)

NAN = math.nan


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def lengths_mask(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


# --- log-probs, entropy, nll --------------------------------------------------------------------


def test_probabilities_sum_to_one_I1() -> None:
    logits = random(5, 7) * 10
    logp = torch.stack([token_logprobs(logits, torch.full((5,), v)) for v in range(7)])
    torch.testing.assert_close(logp.exp().sum(0), torch.ones(5, dtype=torch.float64))


def test_a_constant_added_to_the_logits_changes_nothing_I2() -> None:
    logits, tokens = random(6, 9).float(), torch.arange(6)
    logp = token_logprobs(logits, tokens)
    torch.testing.assert_close(token_logprobs(logits + 3, tokens), logp, rtol=0, atol=1e-5)
    torch.testing.assert_close(token_logprobs(logits + 1e4, tokens), logp, rtol=0, atol=1e-2)


def test_logprobs_equal_brute_force_I3() -> None:
    logits = [[1.0, 2.0, -0.5], [0.0, 0.0, 3.0]]
    tokens = [2, 0]
    by_hand = [
        math.log(math.exp(row[t] / 0.7) / sum(math.exp(z / 0.7) for z in row))
        for row, t in zip(logits, tokens, strict=True)
    ]
    got = token_logprobs(f64(logits), torch.tensor(tokens), temperature=0.7)
    torch.testing.assert_close(got, f64(by_hand), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_is_upcast_before_the_softmax_I6(
    given_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    logits, tokens = random(3, 50).to(given_dtype), torch.tensor([1, 2, 3])
    got = token_logprobs(logits, tokens)
    assert got.dtype == entropy(logits).dtype == dtype
    exact = token_logprobs(logits.double(), tokens)
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=1e-5)


def test_entropy_of_uniform_and_of_certain() -> None:
    logits = f64([[0.0, 0.0, 0.0, 0.0], [0.0, -math.inf, -math.inf, -math.inf]]).requires_grad_()
    h = entropy(logits)
    torch.testing.assert_close(h, f64([math.log(4), 0.0]))
    h.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_entropy_of_one_to_three_at_temperature_two() -> None:
    # softmax((0, ln 9) / 2) = (1/4, 3/4)
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy(f64([0.0, math.log(9)]), 2.0).item() == pytest.approx(expected, abs=1e-14)


def test_uniform_logits_give_ln_v_I9() -> None:
    logp = token_logprobs(torch.zeros(4, 11, dtype=torch.float64), torch.tensor([0, 3, 5, 10]))
    loss = nll_loss(logp, torch.tensor([0.0, 1.0, 1.0, 1.0]))
    assert loss.item() == pytest.approx(math.log(11), abs=1e-14)


def test_nll_of_micro_batches_adds_up_to_the_token_mean_I8() -> None:
    logp, weight = f64([[-1.0, -2.0, -9.0], [-6.0, NAN, NAN]]), f64([[1, 1, 0], [1, 0, 0]])
    assert nll_loss(logp, weight).item() == pytest.approx(3.0)
    parts = [nll_loss(logp[i : i + 1], weight[i : i + 1], total=3) for i in range(2)]
    assert sum(parts).item() == pytest.approx(3.0)  # a mean of means would give 3.75


# --- KL -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_equal_policies_have_kl_exactly_zero_I26(kind: str) -> None:
    logp = random(3, 4).float()
    assert torch.equal(kl_estimate(logp, logp.clone(), kind), torch.zeros(3, 4))  # type: ignore[arg-type]


def test_kl_estimates_by_hand() -> None:
    logp, ref = f64([math.log(0.5)]), f64([math.log(0.25)])  # ratio 2, k1 = ln 2
    ln2 = math.log(2)
    assert kl_estimate(logp, ref, "k1").item() == pytest.approx(ln2)
    assert kl_estimate(logp, ref, "k2").item() == pytest.approx(ln2**2 / 2)
    assert kl_estimate(logp, ref, "k3").item() == pytest.approx(0.5 - 1 + ln2)


@given(st.floats(-80, 0), st.floats(-80, 0))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_k2_and_k3_are_never_negative_I38(logp: float, ref: float) -> None:
    for dtype in (torch.float32, torch.float64):
        a, b = torch.tensor(logp, dtype=dtype), torch.tensor(ref, dtype=dtype)
        assert kl_estimate(a, b, "k2") >= 0 and kl_estimate(a, b, "k3") >= 0


def test_expected_k1_and_k3_are_the_analytic_kl_I38() -> None:
    logp, ref = random(6, seed=1).log_softmax(0), random(6, seed=2).log_softmax(0)
    p = logp.exp()
    analytic = (p * (logp - ref)).sum()
    for kind in ("k1", "k3"):
        expected = (p * kl_estimate(logp, ref, kind)).sum()  # type: ignore[arg-type]
        assert abs(expected - analytic).item() < 1e-12


def test_k3_stays_finite_where_exp_overflows_float32() -> None:
    assert kl_estimate(torch.tensor(-200.0), torch.tensor(0.0), "k3").isfinite()


# --- truncation, score rule, rewards ------------------------------------------------------------


def test_truncation_keeps_the_first_stop_token_and_pads_what_follows() -> None:
    responses = torch.tensor([[5, 2, 7, 2], [2, 5, 5, 5], [5, 6, 7, 8], [5, 5, 5, 3]])
    cut, lengths, has_stop = truncate_at_stop(responses, stop_ids=[2, 3], pad_id=9)
    assert cut.tolist() == [[5, 2, 9, 9], [2, 9, 9, 9], [5, 6, 7, 8], [5, 5, 5, 3]]
    assert lengths.tolist() == [2, 1, 4, 4]
    assert has_stop.tolist() == [True, True, False, True]


def test_truncation_ignores_stop_tokens_before_after() -> None:
    responses = torch.tensor([[2, 5, 2, 5]])
    _, lengths, _ = truncate_at_stop(responses, [2], pad_id=9, after=1)
    assert lengths.tolist() == [3]
    _, lengths, _ = truncate_at_stop(responses, [2], pad_id=9, after=2)
    assert lengths.tolist() == [3]
    _, lengths, has_stop = truncate_at_stop(responses, [2], pad_id=9, after=3)
    assert lengths.tolist() == [4] and not has_stop.any()


def test_a_pad_id_inside_the_reply_is_an_ordinary_token() -> None:
    cut, lengths, _ = truncate_at_stop(torch.tensor([[9, 9, 2, 5]]), [2], pad_id=9)
    assert cut.tolist() == [[9, 9, 2, 9]] and lengths.tolist() == [3]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", [5.0, 5.0, -2.0]),
        ("subtract", [5.0, 4.0, -3.0]),
        ("replace", [5.0, -1.0, -1.0]),
    ],
)
def test_score_is_clipped_before_the_missing_stop_rule(mode: str, expected: list[float]) -> None:
    score, has_stop = f64([8.0, 8.0, -2.0]), torch.tensor([True, False, False])
    got = score_rule(score, has_stop, mode, penalty=1.0, clip=5.0)  # type: ignore[arg-type]
    assert got.tolist() == expected


def test_replaced_score_is_never_clipped() -> None:
    got = score_rule(f64([3.0]), torch.tensor([False]), "replace", penalty=7.0, clip=1.0)
    assert got.tolist() == [-7.0]


def test_rewards_sum_to_score_minus_beta_kl_I28() -> None:
    score, kl, mask = random(3), random(3, 5), lengths_mask([1, 3, 5], 5)
    rewards = token_rewards(score, kl, mask, beta=0.02)
    expected = score - 0.02 * (kl * mask).sum(1)
    torch.testing.assert_close(rewards.sum(1), expected, rtol=0, atol=1e-14)


def test_score_stands_on_the_last_valid_token_I26() -> None:
    mask = lengths_mask([1, 2, 3], 3)
    rewards = token_rewards(f64([7.0, 8.0, 9.0]), torch.zeros(3, 3), mask, beta=0.02)
    assert rewards.tolist() == [[7, 0, 0], [0, 8, 0], [0, 0, 9]]


def test_a_dropped_episode_may_carry_nan() -> None:
    rewards = token_rewards(f64([NAN]), f64([[NAN, NAN]]), lengths_mask([0], 2), beta=0.1)
    assert rewards.tolist() == [[0, 0]]


# --- GAE ----------------------------------------------------------------------------------------

R_EXAMPLE, V_EXAMPLE = f64([[-0.02, 0.01, -0.03, 1.0]]), f64([[0.1, 0.2, 0.0, 0.5]])
ALL = torch.ones(1, 4, dtype=torch.bool)


def test_gae_worked_example_I29() -> None:
    advantages, returns = gae(R_EXAMPLE, V_EXAMPLE, ALL)
    torch.testing.assert_close(advantages, f64([[0.7523625, 0.70775, 0.945, 0.5]]))
    torch.testing.assert_close(returns, f64([[0.8523625, 0.90775, 0.945, 1.0]]))


def test_gae_with_lambda_one_is_reward_to_go_minus_value_I29() -> None:
    advantages, _ = gae(R_EXAMPLE, V_EXAMPLE, ALL, lam=1.0)
    torch.testing.assert_close(advantages, f64([[0.86, 0.78, 0.97, 0.5]]))


def test_gae_with_lambda_zero_is_delta_I29() -> None:
    advantages, _ = gae(R_EXAMPLE, V_EXAMPLE, ALL, gamma=0.9, lam=0.0)
    delta = f64([[-0.02 + 0.18 - 0.1, 0.01 - 0.2, -0.03 + 0.45, 1.0 - 0.5]])
    torch.testing.assert_close(advantages, delta)


def test_gae_is_the_discounted_sum_of_deltas_I29() -> None:
    rewards, values, gamma, lam = random(2, 6), random(2, 6, seed=1), 0.9, 0.8
    lengths = [4, 6]
    advantages, _ = gae(rewards, values, lengths_mask(lengths, 6), gamma, lam)
    for b, n in enumerate(lengths):
        v = [*values[b, :n].tolist(), 0.0]
        delta = [rewards[b, t].item() + gamma * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            naive = sum((gamma * lam) ** k * delta[t + k] for k in range(n - t))
            assert advantages[b, t].item() == pytest.approx(naive, abs=1e-13)
        assert (advantages[b, n:] == 0).all()


def test_gae_is_linear_in_the_rewards_I30() -> None:
    r1, r2, zero = random(2, 4, seed=1), random(2, 4, seed=2), torch.zeros(2, 4).double()
    mask = lengths_mask([3, 4], 4)
    both, _ = gae(2 * r1 + r2, zero, mask)
    torch.testing.assert_close(both, 2 * gae(r1, zero, mask)[0] + gae(r2, zero, mask)[0])


def test_gae_ignores_extra_columns_and_nan_behind_the_mask_I30_I5() -> None:
    pad = torch.full((1, 3), NAN, dtype=torch.float64)
    wide = torch.cat([ALL, torch.zeros(1, 3, dtype=torch.bool)], 1)
    advantages, returns = gae(torch.cat([R_EXAMPLE, pad], 1), torch.cat([V_EXAMPLE, pad], 1), wide)
    expected_advantages, expected_returns = gae(R_EXAMPLE, V_EXAMPLE, ALL)
    assert torch.equal(advantages[:, :4], expected_advantages)
    assert torch.equal(returns[:, :4], expected_returns)
    assert (advantages[:, 4:] == 0).all() and (returns[:, 4:] == 0).all()


def test_returns_without_values_are_the_score_I30() -> None:
    mask, zeros = lengths_mask([2, 4], 4), torch.zeros(2, 4, dtype=torch.float64)
    _, returns = gae(token_rewards(f64([3.0, -1.0]), zeros, mask, beta=0.0), zeros, mask, lam=1.0)
    assert returns.tolist() == [[3, 3, 0, 0], [-1, -1, -1, -1]]


def test_a_shift_of_the_score_shifts_the_returns_I31() -> None:
    mask, kl, values = lengths_mask([2, 4], 4), random(2, 4), random(2, 4, seed=1)
    score = random(2, seed=2)

    def returns(score: Tensor) -> Tensor:
        return gae(token_rewards(score, kl, mask, 0.1), values, mask, lam=1.0)[1]

    torch.testing.assert_close(returns(score + 5) - returns(score), 5.0 * mask.double())


# --- moments, whitening -------------------------------------------------------------------------

X_EXAMPLE = f64([[1.0, 2.0, NAN], [3.0, NAN, NAN]])
X_MASK = lengths_mask([2, 1], 3)


def test_moments_are_masked_and_population_I32() -> None:
    count, mean, variance = masked_moments(X_EXAMPLE, X_MASK)
    assert (count.item(), mean.item()) == (3, 2)
    assert variance.item() == pytest.approx(2 / 3, abs=1e-15)
    assert masked_mean(X_EXAMPLE, X_MASK).item() == 2


def test_moments_over_ranks_equal_those_of_all_rows_I37() -> None:
    # This rank holds (1, 2); what the sum over ranks adds is from the other rank, which holds (3).
    of_the_other = iter([f64([1.0, 3.0]), f64((3 - 2) ** 2)])
    count, mean, variance = masked_moments(
        X_EXAMPLE[:1], X_MASK[:1], reduce=lambda tensor: tensor + next(of_the_other)
    )
    assert (count.item(), mean.item()) == (3, 2)
    assert variance.item() == pytest.approx(2 / 3, abs=1e-15)


def test_whitening_worked_example_I32() -> None:
    expected = f64([[-1.2247449, 0.0, 0.0], [1.2247449, 0.0, 0.0]])
    torch.testing.assert_close(whiten(X_EXAMPLE, X_MASK), expected, rtol=0, atol=1e-6)


def test_whitening_may_keep_the_mean_I32() -> None:
    expected = f64([[2 - 1.2247449, 2.0, 0.0], [2 + 1.2247449, 0.0, 0.0]])
    got = whiten(X_EXAMPLE, X_MASK, shift_mean=False)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_whitened_values_have_mean_0_variance_1_and_forget_scale_I32(scale: float) -> None:
    x, mask = random(8, 6), lengths_mask([1, 2, 3, 4, 5, 6, 6, 6], 6)
    whitened = whiten(x, mask)
    _, mean, variance = masked_moments(whitened, mask)
    assert abs(mean.item()) < 1e-12 and variance.item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(whiten(scale * x + 3, mask), whitened, rtol=0, atol=1e-4)


def test_whitening_uses_given_moments_I32() -> None:
    got = whiten(f64([[4.0]]), torch.tensor([[True]]), moments=(f64(100.0), f64(2.0), f64(4.0)))
    assert got.item() == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("x", [[[5.0, NAN]], [[5.0, 5.0]]])
def test_without_a_scale_only_the_mean_is_subtracted(x: list[list[float]]) -> None:
    values = f64(x)
    mask = ~values.isnan()
    assert whiten(values, mask).tolist() == [[0, 0]]
    assert (whiten(values, mask, shift_mean=False)[mask] == 5).all()
    one_of_many = whiten(values, mask, moments=(f64(1.0), f64(1.0), f64(9.0)))
    assert one_of_many[0, 0].item() == 4  # count 1: no division by the deviation


# --- RLOO, controller, normalisation ------------------------------------------------------------


def test_rloo_worked_example() -> None:
    got = rloo(f64([1.0, 2.0, 3.0, 6.0]), torch.tensor([5, 5, 5, 5]))
    torch.testing.assert_close(got, f64([-8 / 3, -4 / 3, 0.0, 4.0]))


def test_rloo_keeps_prompts_apart_and_sums_to_zero() -> None:
    reward, prompt = f64([1.0, 10.0, 3.0, 20.0, 7.0]), torch.tensor([0, 8, 0, 8, 4])
    assert rloo(reward, prompt).tolist() == [-2, -10, 2, 10, 0]


@pytest.mark.parametrize(
    ("kl", "beta"),
    [(3.0, 0.148464), (9.0, 0.151536), (6.0, 0.15), (-5.0, 0.148464), (900.0, 0.151536)],
)
def test_kl_controller_worked_numbers_I39(kl: float, beta: float) -> None:
    controller = AdaptiveKL(0.15, target=6.0, horizon=10_000)
    assert controller.update(kl, episodes=512) == pytest.approx(beta, abs=1e-12)
    assert controller.beta == pytest.approx(beta, abs=1e-12)


def test_kl_controller_is_monotone_and_bounded_I39() -> None:
    betas = [AdaptiveKL(1.0, 6.0).update(kl / 4, 512) for kl in range(-8, 60)]
    assert betas == sorted(betas)
    assert betas[0] == pytest.approx(0.98976) and betas[-1] == pytest.approx(1.01024)


def test_kl_controller_moves_proportionally_inside_the_bounds_I39() -> None:
    # KL 10% above target: beta grows by 10% * 1000 / 10000
    assert AdaptiveKL(1.0, 10.0).update(11.0, 1000) == pytest.approx(1.01)


def test_kl_controller_refuses_a_batch_that_could_zero_beta_I39() -> None:
    with pytest.raises(ValueError, match="raise the horizon above 400"):
        AdaptiveKL(1.0, 6.0, horizon=400).update(3.0, episodes=2000)


def test_kl_controller_keeps_hard_bounds() -> None:
    assert AdaptiveKL(0.1, 6.0, high=0.1).update(60.0, 512) == 0.1
    assert AdaptiveKL(0.1, 6.0, low=0.1).update(0.0, 512) == 0.1


def test_normalised_demonstrations_score_zero_on_average_I24() -> None:
    raw = f64([4.0, 5.0, 9.0])
    gain, bias = reward_gain_bias(raw)
    assert (gain, bias) == (1.0, -6.0)
    assert reward_gain_bias(gain * raw + bias) == (1.0, 0.0)  # idempotent


def test_normalisation_reaches_mean_and_deviation() -> None:
    raw = f64([1.0, 3.0])  # mean 2, population deviation 1
    assert reward_gain_bias(raw, mean=0.5, std=2.0) == (2.0, -3.5)
    assert reward_gain_bias(f64([4.0, 4.0]), std=1.0) == (1.0, -4.0)


def test_explained_variance_of_exact_constant_and_opposite_values() -> None:
    returns, mask = f64([[1.0, 3.0, NAN]]), lengths_mask([2], 3)
    assert explained_variance(returns, returns, mask).item() == 1
    assert explained_variance(f64([[7.0, 7.0, NAN]]), returns, mask).item() == 0
    assert explained_variance(-returns, returns, mask).item() == -3
    assert explained_variance(returns, f64([[2.0, 2.0, NAN]]), mask).item() == 0
