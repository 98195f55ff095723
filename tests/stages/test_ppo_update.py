"""One minibatch and one iteration of PPO, by hand and against the models' own forward passes."""

import math
from dataclasses import replace

import pytest
import torch

from tercet.model.optim import EMA, Learner, adam
from tercet.model.shard import Ranks
from tercet.model.train import target_count, window_documents
from tercet.rollout import update as update_room
from tercet.rollout.update import (
    fitted,
    minibatches,
    packed,
    policy_gradient,
    ptx_gradient,
    update,
    value_gradient,
)
from tests.model.architectures import saved
from tests.stages.ppo_parts import batch, config, models
from tests.toy import distance, gradients

RANKS = Ranks()
WINDOWS = window_documents([[3 + i, 7, 9, 20 + i, 11] for i in range(10)])
ALL = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return models(saved("gpt2", tmp_path_factory.mktemp("ppo")))


@pytest.fixture
def policy(pair):
    """Fresh for each test: updates change it."""
    kept = {name: p.detach().clone() for name, p in pair[0].named_parameters()}
    yield pair[0]
    with torch.no_grad():
        for name, p in pair[0].named_parameters():
            p.copy_(kept[name])


@pytest.fixture
def value(pair):
    kept = {name: p.detach().clone() for name, p in pair[1].named_parameters()}
    yield pair[1]
    with torch.no_grad():
        for name, p in pair[1].named_parameters():
            p.copy_(kept[name])


@pytest.fixture
def rollout(policy, value):
    return batch(policy, value)


def tokens(experience, chosen):
    return int(sum(experience.mask_BT[experience.episodes[i]].sum() for i in chosen))


def policy_step(policy, experience, chosen, options, total=None):
    policy.zero_grad()
    total = total or tokens(experience, chosen)
    episodes = sum(len(experience.episodes[i]) for i in chosen)
    packs = packed(experience, chosen, options.token_budget, RANKS.device)
    row = policy_gradient(policy, experience, chosen, packs, total, episodes, options, RANKS)
    return row, gradients(policy)


def value_step(value, experience, chosen, options, total=None):
    value.zero_grad()
    total = total or tokens(experience, chosen)
    packs = packed(experience, chosen, options.token_budget, RANKS.device)
    row = value_gradient(value, experience, chosen, packs, total, options, RANKS)
    return row, gradients(value)


def own(model, group, k):
    """Own forward pass of one reply: the outputs that stand before each of its tokens."""
    ids = torch.tensor([[*group.ids, *group.replies[k]]])
    return model(input_ids=ids, use_cache=False).logits[0, len(group.ids) - 1 : -1]


def test_before_the_first_step_the_ratio_is_one(policy, rollout):
    """I27: clip fraction 0, and the loss is minus the mean advantage of the minibatch."""
    for chosen in ([0, 2], [1, 3]):
        row, _ = policy_step(policy, rollout, chosen, config())
        assert row["ratio_mean"] == pytest.approx(1, abs=1e-6)
        assert (row["ratio_min"], row["ratio_max"]) == (
            pytest.approx(1, abs=1e-12), pytest.approx(1, abs=1e-12)
        )  # fmt: skip
        assert (row["clip_fraction"], row["approx_kl"]) == (0, pytest.approx(0, abs=1e-12))
        rows = [r for i in chosen for r in rollout.episodes[i]]
        mean = rollout.advantages_BT[rows][rollout.mask_BT[rows]].mean()
        assert row["policy_loss"] == pytest.approx(-float(mean), abs=1e-6)
    whole, _ = policy_step(policy, rollout, ALL, config())
    assert whole["policy_loss"] == pytest.approx(0, abs=1e-6)  # whitened over the batch


def test_at_ratio_one_the_gradient_is_reinforce(policy, rollout):
    """I33: minus the token mean of A * grad log p, by the model's own passes."""
    _, packed = policy_step(policy, rollout, ALL, config())
    policy.zero_grad()
    policy.set_attn_implementation("sdpa")
    total = 0.0
    for group, rows in zip(rollout.groups, rollout.episodes, strict=True):
        for k, row in enumerate(rows):
            reply = group.replies[k]
            logp = own(policy, group, k).log_softmax(-1)[range(len(reply)), reply]
            total = total - (rollout.advantages_BT[row, : len(reply)] * logp).sum()
    (total / tokens(rollout, ALL)).backward()
    policy.set_attn_implementation("tercet")
    assert distance(packed, gradients(policy)) < 1e-10


def moved(model):
    """The same model after some steps of its own."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.sin(torch.arange(p.numel(), dtype=p.dtype)).view_as(p))
    return model


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_value_gradient_is_of_half_the_squared_error_before_each_token(value, rollout, clip):
    """The larger of the plain error and that of a value held within `clip` of the old one."""
    row, packed = value_step(moved(value), rollout, ALL, config(value_clip=clip))
    value.zero_grad()
    value.set_attn_implementation("sdpa")
    total = 0.0
    for group, rows in zip(rollout.groups, rollout.episodes, strict=True):
        for k, r in enumerate(rows):
            size = len(group.replies[k])
            new, old = own(value, group, k)[:, 0], rollout.values_BT[r, :size]
            error = (new - rollout.returns_BT[r, :size]).square()
            if clip:
                near = old + (new - old).clamp(-clip, clip)
                error = torch.maximum(error, (near - rollout.returns_BT[r, :size]).square())
            total = total + 0.5 * error.sum()
    loss = total / tokens(rollout, ALL)
    loss.backward()
    value.set_attn_implementation("tercet")
    assert distance(packed, gradients(value)) < 1e-10
    assert row["value_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert (row["value_clip_fraction"] > 0) == bool(clip)


def test_samples_that_share_a_prompt_train_as_if_each_had_its_own(policy, value, rollout):
    apart = batch(policy, value, shared=False)
    torch.testing.assert_close(apart.advantages_BT, rollout.advantages_BT, atol=1e-12, rtol=0)
    options, single = config(), config(samples=1)
    together, shared = policy_step(policy, rollout, ALL, options)
    separate, alone = policy_step(policy, apart, list(range(12)), single)
    assert distance(shared, alone) < 1e-10
    assert together["policy_loss"] == pytest.approx(separate["policy_loss"], abs=1e-6)
    _, shared = value_step(value, rollout, ALL, options)
    _, alone = value_step(value, apart, list(range(12)), single)
    assert distance(shared, alone) < 1e-10


@pytest.mark.parametrize("budget", [1, 25])
def test_micro_batches_do_not_change_gradients_or_metrics(policy, value, rollout, budget):
    """I37, with a policy that has moved, so that ratios differ and some are clipped."""
    policy, value = moved(policy), moved(value)
    small = config(token_budget=budget)
    for step, model in ((policy_step, policy), (value_step, value)):
        whole, packed = step(model, rollout, ALL, config())
        parts, split = step(model, rollout, ALL, small)
        assert whole == pytest.approx(parts, rel=1e-5, abs=1e-6)
        assert distance(packed, split) < 1e-10
    assert policy_step(policy, rollout, ALL, small)[0]["clip_fraction"] > 0


def test_the_sum_over_shares_is_the_gradient_of_the_minibatch(policy, value, rollout):
    """What ranks add up: each divides by the count of all."""
    total = tokens(rollout, ALL)
    for step, model in ((policy_step, policy), (value_step, value)):
        _, whole = step(model, rollout, ALL, config())
        _, first = step(model, rollout, [0, 2], config(), total)
        _, second = step(model, rollout, [1, 3], config(), total)
        assert distance(whole, {n: first[n] + second[n] for n in whole}) < 1e-10


def test_the_ptx_gradient_is_added_with_its_weight(policy, rollout):
    """I36: one step along g_ppo + gamma * g_ptx."""
    options = config(ptx_coef=27.8, ptx_ratio=0.5, ptx_text="text", minibatch=6)
    _, g_ppo = policy_step(policy, rollout, ALL, options)
    policy.zero_grad()
    loss = ptx_gradient(policy, WINDOWS, 0, options, RANKS)
    g_ptx = gradients(policy)
    policy.zero_grad()
    plain = ptx_gradient(policy, WINDOWS, 0, replace(options, ptx_coef=1.0), RANKS)
    assert loss == plain
    assert distance(g_ptx, {n: 27.8 * g for n, g in gradients(policy).items()}) < 1e-10
    packs = packed(rollout, ALL, options.token_budget, RANKS.device)
    policy_gradient(policy, rollout, ALL, packs, tokens(rollout, ALL), 12, options, RANKS)
    both = gradients(policy)
    assert distance(both, {n: g_ppo[n] + g_ptx[n] / 27.8 for n in both}) < 1e-10


def test_one_step_follows_both_gradients_clipped_together(policy, value, rollout, monkeypatch):
    """I36 through `update`: one optimizer step along g_ppo + gamma * g_ptx."""
    seen = []
    monkeypatch.setattr(
        update_room,
        "clip_gradients",
        lambda parameters, bound: seen.append(gradients(policy)) or 1.0,
    )
    options = config(minibatch=12, ptx_coef=27.8, ptx_ratio=0.25, ptx_text="text")
    g_ppo = policy_step(policy, rollout, ALL, options)[1]
    policy.zero_grad()
    ptx_gradient(policy, WINDOWS, 0, options, RANKS)
    expected = {n: g_ppo[n] + g for n, g in gradients(policy).items()}
    metrics = run_update(policy, value, rollout, options, ptx=WINDOWS)
    assert len(seen) == 2  # policy, then value
    assert distance(seen[0], expected) < 1e-10
    assert metrics["ptx_loss"] > 1


def test_ptx_loss_is_the_token_mean_or_the_sum_of_a_window(policy):
    options = config(ptx_coef=1.0, ptx_ratio=0.5, ptx_text="text")
    policy.zero_grad()
    mean = ptx_gradient(policy, WINDOWS, 3, options, RANKS)
    of_tokens = gradients(policy)
    policy.zero_grad()
    summed = ptx_gradient(policy, WINDOWS, 3, replace(options, ptx_reduction="sequence_sum"), RANKS)
    assert summed == pytest.approx(4 * mean)  # 4 targets in each window of 5
    assert distance(gradients(policy), {n: 4 * g for n, g in of_tokens.items()}) < 1e-10


def test_ptx_draws_its_ratio_of_the_minibatch_and_all_windows_in_turn(policy, monkeypatch):
    drawn = []

    def remember(policy, documents, total, *args, **options):
        drawn.append([WINDOWS.index(d) for d in documents])
        assert total == target_count(documents)
        return torch.zeros(())

    monkeypatch.setattr(update_room, "nll_backward", remember)
    options = config(ptx_coef=1.0, ptx_ratio=1 / 3, ptx_text="text")
    for draw in range(5):
        ptx_gradient(policy, WINDOWS, draw, options, RANKS)
    assert [len(d) for d in drawn] == [2] * 5
    assert sorted(i for d in drawn for i in d) == list(range(10))


def test_leave_one_out_follows_the_mean_over_episodes(policy, value):
    """-(1 / B) sum A * grad log p(y): no clip, no token mean."""
    experience = batch(policy, value, algorithm="rloo")
    options = config(algorithm="rloo")
    row, packed = policy_step(policy, experience, ALL, options)
    policy.zero_grad()
    policy.set_attn_implementation("sdpa")
    total = 0.0
    for group, rows in zip(experience.groups, experience.episodes, strict=True):
        for k, r in enumerate(rows):
            reply = group.replies[k]
            logp = own(policy, group, k).log_softmax(-1)[range(len(reply)), reply].sum()
            total = total - experience.advantages_BT[r, 0] * logp
    (total / 12).backward()
    policy.set_attn_implementation("tercet")
    assert distance(packed, gradients(policy)) < 1e-10
    assert row["policy_loss"] == pytest.approx(total.item() / 12, rel=1e-5)


def test_a_dropped_episode_adds_nothing(policy, value, rollout):
    masked = replace(rollout, mask_BT=rollout.mask_BT.clone())
    masked.mask_BT[rollout.episodes[1][0]] = False
    poisoned = replace(masked, advantages_BT=masked.advantages_BT.clone())
    poisoned.advantages_BT[rollout.episodes[1][0]] = math.nan
    _, clean = policy_step(policy, masked, ALL, config())
    _, found = policy_step(policy, poisoned, ALL, config())
    assert distance(clean, found) == 0


# --- all minibatches of an iteration ------------------------------------------------------------


def run_update(policy, value, experience, options, iteration=0, ptx=(), ema=None, lr=1e-3):
    learners = (
        Learner(policy, adam(policy.parameters(), lr), ema),
        Learner(value, adam(value.parameters(), lr)),
    )
    return update(*learners, experience, list(ptx), iteration, options, RANKS)


@pytest.fixture
def visits(monkeypatch):
    """The prompts of each minibatch that the policy and the value model saw."""
    seen = {"policy": [], "value": []}
    for name, function in (("policy", policy_gradient), ("value", value_gradient)):

        def remember(model, experience, mine, *rest, name=name, function=function):
            seen[name].append(list(mine))
            return function(model, experience, mine, *rest)

        monkeypatch.setattr(update_room, f"{name}_gradient", remember)
    return seen


def test_each_inner_epoch_visits_every_prompt_once_in_another_order(policy, value, rollout, visits):
    metrics = run_update(policy, value, rollout, config(inner_epochs=2))
    assert visits["policy"] == visits["value"]
    first, second = visits["policy"][:2], visits["policy"][2:]
    assert [len(chosen) for chosen in visits["policy"]] == [2] * 4
    assert sorted(i for chosen in first for i in chosen) == ALL
    assert sorted(i for chosen in second for i in chosen) == ALL
    assert first != second
    assert metrics["ratio_first_minibatch"] == pytest.approx(1, abs=1e-6)
    assert metrics["ratio_last_minibatch"] != pytest.approx(1, abs=1e-6)
    assert metrics["ratio_min"] < 1 < metrics["ratio_max"]


def test_value_warm_up_trains_only_the_value_model(policy, value, rollout, visits):
    before = [{n: p.detach().clone() for n, p in m.named_parameters()} for m in (policy, value)]
    options = config(value_warmup=2)
    metrics = run_update(policy, value, rollout, options, iteration=1)
    assert visits["policy"] == []
    assert "policy_loss" not in metrics
    assert distance(before[0], dict(policy.named_parameters())) == 0
    assert distance(before[1], dict(value.named_parameters())) > 0
    run_update(policy, value, rollout, options, iteration=2)
    assert distance(before[0], dict(policy.named_parameters())) > 0


def test_inner_epochs_end_early_once_the_policy_has_moved_far(policy, value, rollout, visits):
    run_update(policy, value, rollout, config(inner_epochs=4, inner_early_stop=1e-9), lr=1e-2)
    assert len(visits["policy"]) == 2  # the first epoch ends, no second one begins
    visits["policy"].clear()
    fresh = batch(policy, value)
    run_update(policy, value, fresh, config(inner_epochs=4, inner_early_stop=1e9))
    assert len(visits["policy"]) == 8


def test_a_broken_loss_skips_the_step_and_the_average(policy, value, rollout):
    ema = EMA(policy, 0.5)
    for average in ema.average.values():
        average += 1  # away from the weights, or following them would not show
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    average_before = {n: average.clone() for n, average in ema.average.items()}
    broken = replace(rollout, advantages_BT=torch.full_like(rollout.advantages_BT, math.nan))
    metrics = run_update(policy, value, broken, config(), ema=ema)
    assert metrics["skipped_steps"] == 2
    assert distance(before, dict(policy.named_parameters())) == 0
    assert distance(average_before, ema.average) == 0


def test_the_average_follows_every_step(policy, value, rollout, monkeypatch):
    """I41 through the stage: one update of the average for each optimizer step."""
    updates = []
    monkeypatch.setattr(EMA, "update", lambda self, model: updates.append(model is policy))
    run_update(policy, value, rollout, config(inner_epochs=2), ema=EMA(policy, 0.9))
    assert updates == [True] * 4


def test_minibatches_differ_between_iterations():
    """Each iteration has its own permutation of the prompts."""
    orders = [
        [i for _, chosen in minibatches(4, iteration, 0, config()) for i in chosen]
        for iteration in range(6)
    ]
    assert all(sorted(order) == ALL for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_packs_suit_the_minibatches_of_the_first_rollouts():
    """On a GPU. Four replies of 200 after prompts of 100 fill 1,200 of 1,280 tokens, not 2,048."""
    asked = [("", [5] * 100, i) for i in range(8)]
    rolled = [([[7] * 200], [[0.0] * 200], [True]) for _ in asked]
    options = config(rollout_batch=8, minibatch=4, samples=1, token_budget=2048)
    gpu = Ranks(device=torch.device("cuda"))
    assert fitted(asked, rolled, [], 300, options, gpu) == 1280
    assert fitted(asked, rolled, [], 1500, options, gpu) >= 1500
    assert fitted(asked, rolled, [], 300, options, RANKS) == 2048
    # With 8 windows of 1,024 an episode it is they that a row has to hold without filler.
    text = window_documents([[5] * 1024] * 64)
    options = config(
        rollout_batch=8, minibatch=4, samples=1, token_budget=2048, ptx_text="x", ptx_coef=1.0
    )
    assert fitted(asked, rolled, text, 1024, options, gpu) == 2048
