import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tercet.data.tokens import train_tokenizer
from tercet.model.load import load_policy, load_scalar, new_policy, save_model
from tercet.model.reward import encode_replies, score_documents
from tercet.model.shard import Ranks
from tercet.model.tree import Document
from tercet.records import RunFailed
from tercet.rollout.engine import Engine
from tercet.rollout.experience import (
    Experience,
    Replies,
    Sampling,
    Scorer,
    collect,
    judge_batch,
    roll_out,
)
from tests.toy import LLAMA

CPU = torch.device("cpu")
PLAIN: dict[str, Any] = {
    "beta": 0.1,
    "kl_kind": "k1",
    "missing_eos": "none",
    "missing_eos_penalty": 1.0,
    "score_clip": None,
    "whiten_rewards": False,
    "whiten_advantages": False,
    "gamma": 1.0,
    "lam": 0.95,
    "algorithm": "ppo",
    "device": CPU,
}


def replies(
    scores: list[float],
    k1: list[list[float]],
    values: list[list[float]] | None = None,
    stopped: list[bool] | None = None,
) -> Replies:
    """One prompt whose replies have these scores, per-token log-ratios and values."""
    zeros = [[0.0] * len(row) for row in k1]
    return Replies(
        prompt="p",
        ids=[1],
        replies=[[2] * len(row) for row in k1],
        stopped=stopped or [True] * len(scores),
        texts=["x"] * len(scores),
        scores=scores,
        logp_generated=zeros,
        logp_old=k1,
        logp_ref=zeros,
        values=values or zeros,
        entropy=zeros,
    )


BATCH = [
    replies([0.7], [[0.1, -0.2, 0.3]], [[0.1, 0.2, 0.3]]),
    replies([-1.5, 2.0], [[0.4], [0.0, 0.5]], [[0.5], [0.1, 0.1]], [True, False]),
    replies([0.25], [[-0.1, -0.1, -0.1, -0.1]]),
]


def test_the_score_is_on_the_last_token_and_the_kl_on_each():
    batch = judge_batch(BATCH, **PLAIN)
    expected = [
        [-0.01, 0.02, 0.7 - 0.03, 0],
        [-1.5 - 0.04, 0, 0, 0],
        [0, 2.0 - 0.05, 0, 0],
        [0.01, 0.01, 0.01, 0.25 + 0.01],
    ]
    torch.testing.assert_close(batch.rewards_BT, torch.tensor(expected))
    assert batch.mask_BT.sum(1).tolist() == [3, 1, 2, 4]
    assert batch.episodes == [[0], [1, 2], [3]]


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@pytest.mark.parametrize("mode", ["none", "subtract", "replace"])
def test_rewards_and_kl_add_up_to_the_score_of_each_episode(kind, mode):
    """I28, under every estimator and rule for a missing EOS."""
    batch = judge_batch(BATCH, **PLAIN | {"kl_kind": kind, "missing_eos": mode})
    kl_B = torch.where(batch.mask_BT, batch.kl_BT, 0).sum(1)
    torch.testing.assert_close(batch.rewards_BT.sum(1) + 0.1 * kl_B, batch.score_B)
    cut = {"none": 2.0, "subtract": 1.0, "replace": -1.0}[mode]
    torch.testing.assert_close(batch.score_B, torch.tensor([0.7, -1.5, cut, 0.25]))
    torch.testing.assert_close(batch.kl_B, torch.tensor([0.2, 0.4, 0.5, -0.4]))


def test_the_clip_comes_before_the_missing_eos_rule():
    batch = judge_batch(BATCH, **PLAIN | {"score_clip": 0.5, "missing_eos": "subtract"})
    torch.testing.assert_close(batch.score_B, torch.tensor([0.5, -0.5, -0.5, 0.25]))
    assert batch.raw_score_B.tolist() == pytest.approx([0.7, -1.5, 2.0, 0.25])


def test_advantages_of_the_worked_example():
    """r = [-.02, .01, -.03, 1], V = [.1, .2, 0, .5], lambda .95."""
    group = replies([1.0], [[0.02, -0.01, 0.03, 0.0]], [[0.1, 0.2, 0.0, 0.5]])
    batch = judge_batch([group], **PLAIN | {"beta": 1.0})
    expected = torch.tensor([[0.7523625, 0.70775, 0.945, 0.5]])
    torch.testing.assert_close(batch.advantages_BT, expected)
    torch.testing.assert_close(batch.returns_BT, expected + batch.values_BT)


def test_advantages_are_whitened_over_the_tokens_of_the_whole_batch():
    batch = judge_batch(BATCH, **PLAIN | {"whiten_advantages": True})
    plain = judge_batch(BATCH, **PLAIN)
    valid = batch.advantages_BT[batch.mask_BT]
    assert float(valid.mean()) == pytest.approx(0, abs=1e-6)
    assert float(valid.var(correction=0)) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(batch.returns_BT, plain.returns_BT)  # returns are not whitened


def test_whitened_rewards_keep_their_mean():
    batch = judge_batch(BATCH, **PLAIN | {"whiten_rewards": True})
    plain = judge_batch(BATCH, **PLAIN).rewards_BT[batch.mask_BT]
    valid = batch.rewards_BT[batch.mask_BT]
    assert float(valid.mean()) == pytest.approx(float(plain.mean()), abs=1e-6)
    assert float(valid.var(correction=0)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
def test_an_episode_without_a_finite_score_is_as_if_it_were_not_there(bad, algorithm):
    source = torch.Generator().manual_seed(0)
    scores = torch.randn(120, 2, generator=source).tolist()
    groups = [replies(pair, [[0.1, 0.2], [0.3]], [[0.5, 0.1], [0.2]]) for pair in scores]
    third = replies([1.0, 2.0, bad], [[0.1], [0.2, 0.3], [0.4, 0.1]])
    settings = PLAIN | {"whiten_advantages": True, "algorithm": algorithm}
    batch = judge_batch([*groups, third], **settings)
    without = judge_batch([*groups, replies([1.0, 2.0], [[0.1], [0.2, 0.3]])], **settings)
    assert batch.dropped_B.tolist() == [False] * 242 + [True]
    assert not batch.mask_BT[-1].any()
    for name in ("rewards_BT", "advantages_BT", "returns_BT"):
        torch.testing.assert_close(getattr(batch, name)[:-1], getattr(without, name))
        assert getattr(batch, name)[-1].tolist() == [0, 0]


@pytest.mark.parametrize(("broken", "total"), [(1, 99), (2, 199), (1, 1)])
def test_more_than_one_percent_of_broken_scores_stops_the_run(broken, total):
    groups = [replies([math.nan if i < broken else 0.0], [[0.0]]) for i in range(total)]
    with pytest.raises(RunFailed, match=f"{broken} of {total} replies"):
        judge_batch(groups, **PLAIN)
    judge_batch(groups + [replies([0.0], [[0.0]])] * (100 * broken), **PLAIN)


def test_the_leave_one_out_advantage_is_the_same_on_all_tokens():
    """R = (1, 2, 3, 6): each minus the mean of the others."""
    group = replies([1, 2, 3, 6], [[0.0], [0.0, 0.0], [0.0], [0.0]])
    batch = judge_batch([group], **PLAIN | {"algorithm": "rloo"})
    expected = [[-8 / 3, 0], [-4 / 3, -4 / 3], [0, 0], [4, 0]]
    torch.testing.assert_close(batch.advantages_BT, torch.tensor(expected))


def test_the_leave_one_out_reward_pays_for_the_sequence_kl():
    group = replies([1.0, 1.0], [[0.5, 0.5], [0.0]])
    batch = judge_batch([group], **PLAIN | {"algorithm": "rloo", "beta": 0.2})
    torch.testing.assert_close(batch.advantages_BT[:, 0], torch.tensor([-0.2, 0.2]))


# --- collecting with real models ----------------------------------------------------------------


@pytest.fixture(scope="module")
def models(toy):
    """(policy, reference, value, scorer) as a stage loads them."""
    reward = load_scalar(toy.reward)
    scorer = Scorer(reward, toy.tokenizer, same_tokenizer=True)
    policy, reference = load_policy(toy.policy), load_policy(toy.policy)
    return policy, reference, load_scalar(toy.reward), scorer


def collected(models, *rest):
    policy, *others = models
    return collect(Engine(policy), *others, *rest)


def sampling(toy, **changes):
    eos = toy.tokenizer.eos_token_id
    return replace(Sampling(3, 6, 1.0, (eos,), 0, 8, 64, "float32"), **changes)


def asked(toy, *texts):
    return [(text, toy.tokenizer(text)["input_ids"], 7 + i) for i, text in enumerate(texts)]


PROMPTS = ("say red blue:", "say gold rust:", "say pink teal plum gray:")


@pytest.fixture(scope="module")
def groups(toy, models) -> list[Replies]:
    return collected(models, toy.tokenizer, asked(toy, *PROMPTS), sampling(toy), 5, Ranks())


def judged(groups) -> Experience:
    return judge_batch(groups, **PLAIN)


def test_policy_equal_to_its_reference_has_no_kl_to_the_bit(groups):
    """I26."""
    batch = judged(groups)
    for kind in ("k1", "k2", "k3"):
        kl_BT = judge_batch(groups, **PLAIN | {"kl_kind": kind}).kl_BT
        assert not torch.where(batch.mask_BT, kl_BT, 0).any()
    torch.testing.assert_close(batch.rewards_BT.sum(1), batch.score_B)


def test_log_probs_entropy_and_values_are_those_of_the_model_alone(toy, models, groups):
    """V_t is read at the token before t: the last prompt token for the first reply token."""
    policy, value = models[0], models[2]
    for model in (policy, value):
        model.set_attn_implementation("sdpa")
    try:
        for group in groups:
            for k, reply in enumerate(group.replies):
                ids = torch.tensor([[*group.ids, *reply]])
                start = len(group.ids)
                with torch.no_grad():
                    logits = policy(input_ids=ids, use_cache=False).logits[0, start - 1 : -1]
                    scalar = value(input_ids=ids, use_cache=False).logits[0, start - 1 : -1, 0]
                logp = logits.log_softmax(-1)
                chosen = logp[range(len(reply)), reply]
                assert group.logp_old[k] == pytest.approx(chosen.tolist(), abs=1e-5)
                assert group.logp_generated[k] == pytest.approx(chosen.tolist(), abs=1e-4)
                entropy = -(logp.exp() * logp).sum(-1)
                assert group.entropy[k] == pytest.approx(entropy.tolist(), abs=1e-5)
                assert group.values[k] == pytest.approx(scalar.tolist(), abs=1e-5)
    finally:
        for model in (policy, value):
            model.set_attn_implementation("tercet")


def test_the_temperature_is_in_the_log_probs(toy, models):
    group = collected(
        models, toy.tokenizer, asked(toy, PROMPTS[0]), sampling(toy, temperature=0.5), 5, Ranks()
    )[0]
    policy, reply = models[0], group.replies[0]
    ids = torch.tensor([[*group.ids, *reply]])
    policy.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = policy(input_ids=ids, use_cache=False).logits[0, len(group.ids) - 1 : -1]
    policy.set_attn_implementation("tercet")
    expected = (logits / 0.5).log_softmax(-1)[range(len(reply)), reply].tolist()
    for found in (group.logp_old, group.logp_ref, group.logp_generated):
        assert found[0] == pytest.approx(expected, abs=1e-4)


def test_scores_are_the_reward_models_own(models, groups):
    expected = score_documents(models[3].model, [g.document for g in groups], token_budget=1000)
    found = [score for group in groups for score in group.scores]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_texts_are_the_replies_without_their_eos(toy, groups):
    eos = toy.tokenizer.eos_token_id
    for group in groups:
        for ids, text, stopped in zip(group.replies, group.texts, group.stopped, strict=True):
            assert (ids[-1] == eos) == stopped
            assert text == toy.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("changes", [{"slots": 1}, {"token_budget": 1}])
def test_slots_and_micro_batches_change_nothing(toy, models, groups, changes):
    other = collected(
        models, toy.tokenizer, asked(toy, *PROMPTS), sampling(toy, **changes), 5, Ranks()
    )
    for a, b in zip(groups, other, strict=True):
        assert a.replies == b.replies
        for name in ("scores", "logp_old", "logp_ref", "values"):
            for one, two in zip(getattr(a, name), getattr(b, name), strict=True):
                assert one == pytest.approx(two, abs=1e-5)


def test_a_prompts_replies_do_not_depend_on_its_neighbours(toy, models, groups):
    last = asked(toy, *PROMPTS)[2:]
    alone = collected(models, toy.tokenizer, last, sampling(toy), 5, Ranks())
    assert alone[0].replies == groups[2].replies
    other_seed = collected(models, toy.tokenizer, last, sampling(toy), 6, Ranks())
    assert other_seed[0].replies != groups[2].replies


def test_each_rank_rolls_out_its_share_and_all_get_everything(toy, models, groups, monkeypatch):
    whole = asked(toy, *PROMPTS)
    monkeypatch.setattr(Ranks, "gather", lambda self, mine: list(mine))
    parts = [
        collected(models, toy.tokenizer, whole, sampling(toy), 5, Ranks(rank, 2)) for rank in (0, 1)
    ]
    assert [g.replies for g in (parts[0][0], parts[1][0], parts[0][1])] == [
        g.replies for g in groups
    ]
    assert collected(models, toy.tokenizer, whole, sampling(toy), 5, Ranks(3, 4)) == []


def test_another_tokenizer_reads_the_text_again(toy, models, tmp_path):
    texts = ["say red blue: gold.", "say pink teal plum gray: rust."]
    bytes_ = train_tokenizer(texts, kind="bpe", vocab_size=300)
    save_model(new_policy(LLAMA, bytes_, seed=3), bytes_, tmp_path / "other")
    other = load_scalar(tmp_path / "other", init="normal", seed=0)
    policy, reference, value, _ = models
    scorer = Scorer(other, bytes_, same_tokenizer=False)
    four = policy, reference, value, scorer
    found = collected(four, toy.tokenizer, asked(toy, *PROMPTS), sampling(toy), 5, Ranks())
    for group in found:
        document = encode_replies(bytes_, group.prompt, group.texts, group.stopped)
        expected = score_documents(other, [document], token_budget=1000)
        assert group.scores == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_reply_ended_by_a_stop_text_is_scored_with_an_eos(toy, models, groups):
    """The reward model learned that finished replies end with EOS."""
    eos = toy.tokenizer.eos_token_id
    words = toy.tokenizer.all_special_ids
    k, stop = next((k, r[0]) for k, r in enumerate(groups[0].replies) if r[0] not in words)
    settings = sampling(toy, stop_ids=(eos, stop))
    first = collected(models, toy.tokenizer, asked(toy, *PROMPTS), settings, 5, Ranks())[0]
    assert first.replies[k] == [stop]
    assert first.stopped[k]
    assert first.texts[k] == toy.tokenizer.decode([stop])
    scored = Document(first.ids, [[stop, eos]])
    expected = score_documents(models[3].model, [scored], token_budget=100).item()
    assert first.scores[k] == pytest.approx(expected, abs=1e-5)


def test_stop_tokens_before_truncate_after_do_not_end_a_reply(toy, models, groups):
    eos = toy.tokenizer.eos_token_id
    stop = groups[0].replies[0][0]
    prompt = asked(toy, PROMPTS[0])
    free = roll_out(Engine(models[0]), prompt, sampling(toy, stop_ids=()), 5)[0]
    for after in (1, 3):
        settings = sampling(toy, stop_ids=(eos, stop), truncate_after=after)
        cut = roll_out(Engine(models[0]), prompt, settings, 5)[0]
        for whole, ids, generated, stopped in zip(free[0], *cut, strict=True):
            ends = [t for t in range(after, 6) if whole[t] in (eos, stop)]
            assert ids == whole[: ends[0] + 1 if ends else 6]
            assert len(generated) == len(ids)
            assert stopped == bool(ends)
