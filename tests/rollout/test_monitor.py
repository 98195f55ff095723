import math
from dataclasses import replace

import pytest
import torch

from tercet.rollout.experience import judge_batch
from tercet.rollout.monitor import alarms, repetition, summarise
from tests.rollout.test_experience import BATCH, PLAIN, replies

HEALTHY = {
    "ratio_first_minibatch": 1.0,
    "logp_gap_generated": 1e-6,
    "kl": 1.0,
    "kl_k1": 1.0,
    "entropy": 2.0,
    "frac_no_eos": 0.1,
    "length": 20.0,
    "score": 1.0,
    "score_length_correlation": 0.0,
    "repetition": 0.0,
    "explained_variance": 0.5,
    "value_clip_fraction": 0.1,
    "approx_kl": 0.01,
    "clip_fraction": 0.1,
    "valid_tokens": 4000.0,
}


def test_metrics_of_a_batch_by_hand():
    batch = judge_batch(BATCH, **PLAIN)
    found = summarise(batch, beta=0.1)
    assert found["score"] == pytest.approx((0.7 - 1.5 + 2.0 + 0.25) / 4)
    assert found["kl"] == found["kl_k1"] == pytest.approx((0.2 + 0.4 + 0.5 - 0.4) / 4)
    assert found["kl_max"] == pytest.approx(0.5)
    k2 = [0.5 * x * x for x in (0.1, -0.2, 0.3, 0.4, 0.5)] + [0.5 * 0.01] * 4
    assert found["kl_k2"] == pytest.approx(sum(k2) / 4)
    assert found["rlhf_reward"] == pytest.approx(found["score"] - 0.1 * found["kl"])
    assert found["length"] == pytest.approx(10 / 4)
    assert found["frac_no_eos"] == pytest.approx(1 / 4)
    assert found["value_mean"] == pytest.approx((0.6 + 0.5 + 0.2) / 10)
    assert found["valid_tokens"] == 10
    assert found["logp_gap_generated"] == pytest.approx(0.5)
    assert found["distinct_replies"] == pytest.approx(1 / 4)
    assert all(math.isfinite(x) for x in found.values())


def test_an_infinite_score_leaves_the_means_alone():
    groups = [replies([1.0], [[0.1, 0.1]]) for _ in range(120)]
    broken = replies([math.inf], [[5.0]])
    with_it = summarise(judge_batch([*groups, broken], **PLAIN), beta=0.1)
    without = summarise(judge_batch(groups, **PLAIN), beta=0.1)
    assert with_it.pop("dropped_episodes") == 1
    assert without.pop("dropped_episodes") == 0
    del with_it["distinct_replies"], without["distinct_replies"]
    assert with_it == pytest.approx(without)


def test_score_and_length_move_together():
    longer = [replies([float(n)], [[0.0] * n]) for n in range(1, 9)]
    found = summarise(judge_batch(longer, **PLAIN), beta=0.1)
    assert found["score_length_correlation"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "share"),
    [("a b c", 0.0), ("a b c a b c a b c", 4 / 7), ("x x x x", 1 / 2), ("", 0.0)],
)
def test_repetition_is_the_share_of_triples_said_before(text, share):
    assert repetition(text) == pytest.approx(share)


def test_a_healthy_iteration_is_silent():
    assert alarms(HEALTHY, [HEALTHY] * 30, False) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ratio_first_minibatch": 1.002}, "ratio of the first minibatch"),
        ({"logp_gap_generated": 0.01}, "generation and training"),
        ({"kl_k1": -0.2}, "below 0 means a sampling mismatch"),
        ({"entropy": 0.5}, "entropy"),
        ({"frac_no_eos": 0.6}, "never end"),
        ({"length": 31.0, "score_length_correlation": 0.5}, "length hacking"),
        ({"length": 31.0, "frac_no_eos": 1.0}, "length hacking"),
        ({"repetition": 0.4}, "repeat themselves"),
        ({"explained_variance": -0.1}, "value model explains nothing"),
        ({"value_clip_fraction": 0.6}, "raise value_clip"),
        ({"approx_kl": 0.06}, "steps too large: approx_kl"),
        ({"clip_fraction": 0.4}, "of ratios clipped"),
        ({"valid_tokens": 200.0}, "whitening over only"),
    ],
)
def test_each_failure_has_its_alarm(changes, sentence):
    fired = alarms(HEALTHY | changes, [HEALTHY] * 20, False)
    assert any(sentence in line for line in fired)


def test_a_young_value_model_is_not_blamed():
    assert alarms(HEALTHY | {"explained_variance": -1.0}, [HEALTHY] * 19, False) == []


def test_bfloat16_is_given_its_rounding():
    rough = HEALTHY | {"ratio_first_minibatch": 1.01, "logp_gap_generated": 0.05}
    assert alarms(rough, [], True) == []
    assert len(alarms(rough, [], False)) == 2


def test_over_optimisation_is_gold_falling_while_the_score_rises():
    row = [{"gold": 1.0, "gold_se": 0.1, "score": s} | HEALTHY for s in (0, 0, 0)]
    history = [replace_in(row[0], gold=g, score=s) for g, s in ((1, 1), (2, 2), (1.5, 3), (1.4, 4))]
    fired = alarms(replace_in(row[0], gold=1.3, score=5), history, False)
    assert any("over-optimisation: gold fell from 2.00 (iteration 1) to 1.30" in f for f in fired)
    within_error = replace_in(row[0], gold=1.3, score=5, gold_se=0.7)
    assert alarms(within_error, history, False) == []
    score_fell_too = replace_in(row[0], gold=1.3, score=1.5)
    assert alarms(score_fell_too, history, False) == []


def replace_in(row, **changes):
    return row | changes


def test_the_first_iteration_needs_no_history():
    batch = judge_batch([replace(g) for g in BATCH], **PLAIN)
    fired = alarms(summarise(batch, 0.1), [], False)
    assert any("whitening" in f for f in fired)
    assert torch.isfinite(batch.advantages_BT).all()
