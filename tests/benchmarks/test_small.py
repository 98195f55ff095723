"""The engines that need no peer, at toy size: every shipped benchmark runs."""

import math
from types import ModuleType
from typing import Any

import pytest

from benchmarks import engines, ppo, reward_model, rollout, sft

LIMITS = {"device": "CPU", "matmul_flops": 1e10, "copy_bytes": 1e9}


def rows_of(module: ModuleType, engine: str, *argv: str) -> list[dict[str, Any]]:
    benchmark = module.BENCHMARK
    options = engines.parse(benchmark, ["--small", "--repeats", "1", *argv])
    return [benchmark.complete(row, LIMITS) for row in benchmark.engines[engine].run(options)]


@pytest.mark.parametrize("engine", ["tercet", "generate"])
def test_rollout(engine):
    fixed, drawn = rows_of(rollout, engine)
    assert fixed["tokens"] == 8 * 12
    assert drawn["workload"] == "drawn" and drawn["tokens"] < 16 * 12
    for row in (fixed, drawn):
        assert row["tokens_per_second"] > 0
        assert math.isclose(
            row["share_of_floor"], row["floor_seconds"] / row["median_seconds"], rel_tol=0.01
        )


def test_rollout_log_probs_are_those_of_a_plain_forward():
    half, rounded, exact = rows_of(rollout, "check")
    assert exact["mean_difference"] <= rollout.FLOAT32
    assert rollout.FLOAT32 < half["mean_difference"] <= rollout.BF16
    assert rollout.FLOAT32 < rounded["mean_difference"] <= rollout.BF16


def test_reward_model():
    (row,) = rows_of(reward_model, "tercet", "--prompts", "2")
    assert row["tokens"] == 2 * (24 + 9 * 6)
    assert 0 < row["mfu"] == row["useful_mfu"]


def test_pairs_are_all_pairs_best_first():
    options = engines.parse(reward_model.BENCHMARK, ["--small"])
    ((ranking, document),) = reward_model.examples(1, options)
    pairs = reward_model.pair_rows([(ranking, document)])
    assert len(pairs) == 36
    best = min(range(9), key=lambda k: ranking.replies[k].rank)
    assert pairs[0]["chosen_ids"] == [*document.prompt, *document.replies[best]]


def test_sft():
    (row,) = rows_of(sft, "tercet")
    assert 0 < row["tokens"] <= 512
    assert row["tokens_per_second"] > 0


def test_ppo():
    (row,) = rows_of(ppo, "tercet")
    assert row["episodes_per_second"] > 0
    assert {"rollout", "score", "update"} <= set(row["phases"])
    assert sum(row["phases"].values()) <= row["median_seconds"] * 1.01
