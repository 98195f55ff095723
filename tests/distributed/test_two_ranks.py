"""Two processes give one process's losses, gradients and models (I37)."""

from dataclasses import replace

import pytest
import torch

from tercet.model.load import load_policy, load_scalar
from tercet.model.reward import gather_scores
from tercet.model.shard import Ranks
from tercet.model.train import held_out_nll, nll_backward, target_count, window_documents
from tercet.model.tree import Document
from tercet.rollout import update
from tercet.stages import ppo, rm, sft
from tests.distributed.processes import in_processes
from tests.model.architectures import saved
from tests.stages import ppo_parts
from tests.stages.test_rm import FOUR, NINE
from tests.toy import distance, gradients, stage, weights

SFT = [Document([3, 4], [[5, 6, 7, 2]]), Document([8], [[9, 2]]), Document([3] * 5, [[4, 2]])]
WINDOWS = window_documents([[3 + i, 7, 9, 20 + i, 11] for i in range(6)])


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return saved("gpt2", tmp_path_factory.mktemp("gpt2"))


def likelihood(ranks, folder):
    model = load_policy(folder, dtype=torch.float64)
    batch = SFT + WINDOWS
    loss = nll_backward(model, ranks.share(batch), target_count(batch), ranks, token_budget=8)
    ranks.sum_gradients(model.parameters())
    held_out = held_out_nll(model, batch, ranks, token_budget=8)
    return float(ranks.sum(loss)), held_out, gradients(model)


def ranking(ranks, folder, config):
    model = load_scalar(folder, dtype=torch.float64, init="normal")
    results = []
    for options in (config, replace(config, weighting="pair", denominator="combinations")):
        model.zero_grad()
        sums = rm.backward(model, [NINE, FOUR, NINE], ranks, options)
        ranks.sum_gradients(model.parameters())
        results.append((ranks.sum(sums).tolist(), gradients(model)))
    documents = [NINE[1], FOUR[1], SFT[0]]
    return results, gather_scores(model, documents, ranks, token_budget=30)


def minibatch(ranks, folder):
    """Metrics and gradients of a PPO minibatch with pretraining windows."""
    policy, value = ppo_parts.models(folder)
    experience = ppo_parts.batch(policy, value)
    options = ppo_parts.config(ptx_coef=27.8, ptx_ratio=0.5, ptx_text="text")
    chosen = [0, 3, 1]  # not a multiple of the ranks
    total = int(sum(experience.mask_BT[experience.episodes[i]].sum() for i in chosen))
    mine = ranks.share(chosen)
    packs = update.packed(experience, mine, options.token_budget, ranks.device)
    row = update.policy_gradient(policy, experience, mine, packs, total, 9, options, ranks)
    row["ptx_loss"] = update.ptx_gradient(policy, WINDOWS, 1, options, ranks)
    ranks.sum_gradients(policy.parameters())
    row |= update.value_gradient(value, experience, mine, packs, total, options, ranks)
    ranks.sum_gradients(value.parameters())
    return row, gradients(policy), gradients(value)


def test_likelihood(gpt2, tmp_path):
    loss, held_out, gradient = likelihood(Ranks(), gpt2)
    for found_loss, found_held_out, found in in_processes(likelihood, gpt2, folder=tmp_path):
        assert found_loss == pytest.approx(loss, rel=1e-12)
        assert found_held_out == pytest.approx(held_out, rel=1e-12)
        assert distance(found, gradient) < 1e-12


def test_ranking_loss(gpt2, toy, tmp_path):
    config = rm.Config(model=gpt2, rankings=toy.rankings, demonstrations=toy.demonstrations)
    alone, scores = ranking(Ranks(), gpt2, config)
    for both, found_scores in in_processes(ranking, gpt2, config, folder=tmp_path):
        for (found_sums, found), (sums, gradient) in zip(both, alone, strict=True):
            assert found_sums == pytest.approx(sums, rel=1e-6)
            assert distance(found, gradient) < 1e-12
        for found_row, row in zip(found_scores, scores, strict=True):
            assert found_row == pytest.approx(row, abs=1e-12)


def test_ppo_minibatch(gpt2, tmp_path):
    row, *alone = minibatch(Ranks(), gpt2)
    for found_row, *found in in_processes(minibatch, gpt2, folder=tmp_path):
        assert found_row == pytest.approx(row, rel=1e-5, abs=1e-6)
        for mine, theirs in zip(found, alone, strict=True):
            assert distance(mine, theirs) < 1e-10


def whole_stage(ranks, module, config, folder):
    stage(module.main, config, folder, ranks)


def test_whole_stages(toy, tmp_path):
    configs = {
        sft: sft.Config(
            model=toy.policy, demonstrations=toy.demonstrations, batch=7, epochs=2, dropout=0.0,
            lr=1e-2,
        ),
        rm: rm.Config(
            model=toy.policy, rankings=toy.rankings, demonstrations=toy.demonstrations, batch=7,
            lr=1e-2,
        ),
        ppo: ppo.Config(
            policy=toy.policy, reward=toy.reward, prompts=toy.prompts, split="ppo", episodes=30,
            rollout_batch=15, minibatch=5, max_new_tokens=6, lr=1e-3, ptx_text=toy.text,
            ptx_coef=0.5, ptx_ratio=1.0, context=8, token_budget=60,
        ),
    }  # fmt: skip
    for module, config in configs.items():
        name = module.__name__.rpartition(".")[2]
        (tmp_path / name).mkdir()
        alone = stage(module.main, config, tmp_path / name / "one")
        in_processes(whole_stage, module, config, tmp_path / name / "two", folder=tmp_path / name)
        assert distance(weights(tmp_path / name / "two" / "model"), weights(alone.model)) < 1e-5
