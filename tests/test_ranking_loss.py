"""The K-wise reward-model loss. I-numbers: docs/algorithm.md."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tercet.objectives import ranking_loss, ranking_pairs, ranking_total

S_EXAMPLE = [1.2, 0.3, 0.3, -0.5]


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss_and_gradient(
    scores: list[float], ranks: list[int], prompts: list[int] | None = None, **options: object
) -> tuple[float, Tensor]:
    s = f64(scores).requires_grad_()
    prompt = torch.tensor(prompts or [0] * len(scores))
    loss = ranking_loss(s, prompt, torch.tensor(ranks), **options)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, s)
    return loss.item(), gradient


def test_pairs_of_four_and_nine_replies() -> None:
    assert len(ranking_pairs([1, 2, 3, 4])) == 6 and len(ranking_pairs(range(9))) == 36
    assert ranking_pairs([2, 1, 2]) == [(1, 0), (1, 2)]  # ties give none
    assert ranking_pairs([1, 1, 1]) == []


def test_worked_example_with_strict_ranks_I16() -> None:
    loss, gradient = loss_and_gradient(S_EXAMPLE, [1, 2, 3, 4])
    assert loss == pytest.approx(0.3809070486, abs=1e-9)
    expected = f64([-0.12209438, -0.08682917, 0.0798375, 0.12908605])
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-8)


def test_worked_example_with_a_tie_drops_its_pair_I16() -> None:
    loss, gradient = loss_and_gradient(S_EXAMPLE, [1, 2, 2, 3])
    assert loss == pytest.approx(0.3184590221, abs=1e-9)
    expected = f64([-0.14651325, -0.004195, -0.004195, 0.15490326])
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-8)


def test_worked_example_divided_by_all_combinations() -> None:
    loss, _ = loss_and_gradient(S_EXAMPLE, [1, 2, 2, 3], denominator="combinations")
    assert loss == pytest.approx(0.2653825185, abs=1e-9)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_permuting_the_replies_changes_nothing_I14(order: tuple[int, ...]) -> None:
    ranks = [1, 2, 2, 3]
    loss, gradient = loss_and_gradient(S_EXAMPLE, ranks)
    permuted_loss, permuted_gradient = loss_and_gradient(
        [S_EXAMPLE[i] for i in order], [ranks[i] for i in order]
    )
    assert permuted_loss == pytest.approx(loss, abs=1e-14)
    torch.testing.assert_close(permuted_gradient, gradient[list(order)], rtol=0, atol=1e-14)


def test_interleaved_prompts_are_grouped_by_their_id_I14() -> None:
    loss, _ = loss_and_gradient([1.0, 5.0, 0.0, 3.0], [1, 1, 2, 2], prompts=[7, 2, 7, 2])
    by_hand = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2
    assert loss == pytest.approx(by_hand, abs=1e-14)


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 4)), min_size=2, max_size=9))
@settings(derandomize=True, max_examples=40, deadline=None)
def test_adding_a_constant_changes_nothing_and_gradients_sum_to_0_I15(
    replies: list[tuple[float, int]],
) -> None:
    scores, ranks = [s for s, _ in replies], [r for _, r in replies]
    loss, gradient = loss_and_gradient(scores, ranks)
    shifted, _ = loss_and_gradient([s + 3 for s in scores], ranks)
    assert shifted == pytest.approx(loss, abs=1e-12)
    assert abs(gradient.sum().item()) < 1e-12  # this sum is the gradient of the head's bias


def test_k_wise_gradient_is_the_mean_of_the_pairwise_gradients_I16() -> None:
    ranks = [3, 1, 2, 2, 5]
    scores = [0.3, -1.0, 2.0, 0.7, 0.1]
    _, gradient = loss_and_gradient(scores, ranks)
    pairs = ranking_pairs(ranks)
    mean = torch.zeros(5, dtype=torch.float64)
    for winner, loser in pairs:
        _, (g_winner, g_loser) = loss_and_gradient([scores[winner], scores[loser]], [1, 2])
        mean[winner] += g_winner / len(pairs)
        mean[loser] += g_loser / len(pairs)
    torch.testing.assert_close(gradient, mean, rtol=0, atol=1e-14)


def test_equal_scores_give_ln_2_and_half_gradients_I17() -> None:
    loss, gradient = loss_and_gradient([0.4, 0.4], [1, 2])
    assert loss == pytest.approx(math.log(2), abs=1e-12)
    assert gradient.tolist() == [-0.5, 0.5]  # a hand-written softplus gets 0 or 1 here
    assert loss_and_gradient([0.0] * 5, [1, 2, 3, 4, 5])[0] == pytest.approx(math.log(2), abs=1e-12)


def test_reversed_ranks_equal_negated_scores_I18() -> None:
    reversed_loss, _ = loss_and_gradient(S_EXAMPLE, [4, 3, 2, 1])
    negated_loss, _ = loss_and_gradient([-s for s in S_EXAMPLE], [1, 2, 3, 4])
    assert reversed_loss == pytest.approx(negated_loss, abs=1e-14)
    assert reversed_loss > 0.9


def test_ranks_with_gaps_are_the_same_ranking_I19() -> None:
    assert (
        loss_and_gradient(S_EXAMPLE, [1, 3, 3, 7])[0]
        == loss_and_gradient(S_EXAMPLE, [1, 2, 2, 3])[0]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_is_finite_at_a_difference_of_1000_I20(dtype: torch.dtype) -> None:
    prompt, rank = torch.zeros(2, dtype=torch.int64), torch.tensor([1, 2])
    right = ranking_loss(torch.tensor([1000.0, 0.0], dtype=dtype), prompt, rank)
    wrong = ranking_loss(torch.tensor([0.0, 1000.0], dtype=dtype), prompt, rank)
    assert (right.item(), wrong.item()) == (0, 1000)


def test_duplicating_every_prompt_changes_nothing_I21() -> None:
    scores, ranks, prompts = [*S_EXAMPLE, 0.1, 0.9], [1, 2, 3, 4, 1, 2], [0, 0, 0, 0, 1, 1]
    loss, gradient = loss_and_gradient(scores, ranks, prompts)
    twice, twice_gradient = loss_and_gradient(
        scores * 2, ranks * 2, prompts + [p + 10 for p in prompts]
    )
    assert twice == pytest.approx(loss, abs=1e-14)
    torch.testing.assert_close(
        twice_gradient[:6] + twice_gradient[6:], gradient, rtol=0, atol=1e-14
    )


def test_two_replies_are_plain_bradley_terry_I22() -> None:
    loss, _ = loss_and_gradient([0.2, 1.5], [1, 2])
    assert loss == pytest.approx(-math.log(1 / (1 + math.exp(-(0.2 - 1.5)))), abs=1e-14)


NINE_AND_FOUR = ([1] * 9 + [2] * 4, [*range(9), *range(4)])


def test_nine_replies_weigh_as_much_as_four_I23() -> None:
    prompts, ranks = NINE_AND_FOUR
    scores = [0.0] * 9 + [3.0, 2.0, 1.0, 0.0]
    loss, _ = loss_and_gradient(scores, ranks, prompts)
    four, _ = loss_and_gradient(scores[9:], ranks[9:])
    assert loss == pytest.approx((math.log(2) + four) / 2, abs=1e-14)


def test_weighting_by_pair_counts_36_against_6_I23() -> None:
    prompts, ranks = NINE_AND_FOUR
    scores = [0.0] * 9 + [3.0, 2.0, 1.0, 0.0]
    loss, _ = loss_and_gradient(scores, ranks, prompts, weighting="pair")
    four, _ = loss_and_gradient(scores[9:], ranks[9:])
    assert loss == pytest.approx((36 * math.log(2) + 6 * four) / 42, abs=1e-14)


def test_an_all_tied_prompt_counts_nowhere() -> None:
    with_tied, _ = loss_and_gradient([1.0, 0.0, 9.0, -9.0], [1, 2, 1, 1], prompts=[0, 0, 1, 1])
    assert with_tied == pytest.approx(math.log1p(math.exp(-1)), abs=1e-14)


@pytest.mark.parametrize("weighting", ["prompt", "pair"])
@pytest.mark.parametrize("denominator", ["pairs", "combinations"])
def test_an_all_tied_batch_gives_zero_attached_to_the_graph(
    weighting: str, denominator: str
) -> None:
    loss, gradient = loss_and_gradient(
        [1.0, 2.0], [1, 1], weighting=weighting, denominator=denominator
    )
    assert loss == 0 and gradient.tolist() == [0, 0]


@pytest.mark.parametrize("weighting", ["prompt", "pair"])
@pytest.mark.parametrize("denominator", ["pairs", "combinations"])
def test_micro_batches_add_up_to_the_batch_I37(weighting: str, denominator: str) -> None:
    options = {"weighting": weighting, "denominator": denominator}
    scores, ranks, prompts = [*S_EXAMPLE, 0.1, 0.9], [1, 2, 2, 4, 2, 1], [0, 0, 0, 0, 1, 1]
    whole, _ = loss_and_gradient(scores, ranks, prompts, **options)
    parts = [(scores[:4], ranks[:4]), (scores[4:], ranks[4:])]
    total = sum(
        ranking_total(torch.zeros(len(r), dtype=torch.int64), torch.tensor(r), **options)  # type: ignore[arg-type]
        for _, r in parts
    )
    added = sum(loss_and_gradient(s, r, total=total, **options)[0] for s, r in parts)
    assert added == pytest.approx(whole, abs=1e-14)


def test_totals_by_hand() -> None:
    prompt, rank = torch.tensor([0, 0, 0, 1, 1, 2, 2]), torch.tensor([1, 2, 2, 1, 1, 2, 1])
    assert ranking_total(prompt, rank) == 2  # prompt 1 is all tied
    assert ranking_total(prompt, rank, weighting="pair") == 3
    assert ranking_total(prompt, rank, "combinations", "pair") == 4


def test_bfloat16_scores_are_compared_in_float32_I6() -> None:
    scores = torch.tensor([1.0, 0.5], dtype=torch.bfloat16)
    loss = ranking_loss(scores, torch.zeros(2, dtype=torch.int64), torch.tensor([1, 2]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.5)), abs=1e-6)
