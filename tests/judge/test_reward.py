from pathlib import Path

import pytest

from tercet.data.tokens import train_tokenizer
from tercet.judge.rankings import score_rankings
from tercet.judge.reward import RewardJudge, load
from tercet.model.load import load_scalar, new_policy, save_model
from tercet.model.shard import Ranks
from tests.judge.rankings_by_hand import ranking

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> RewardJudge:
    folder = tmp_path_factory.mktemp("rm") / "model"
    tokenizer = train_tokenizer(["Say p. one two three", "Say q. four"], kind="word")
    save_model(new_policy(TINY, tokenizer, seed=0), tokenizer, folder)
    save_model(load_scalar(folder, init="normal", seed=0), tokenizer, folder)
    return load(folder, Ranks.start("cpu"))


def test_a_reply_has_one_score_whatever_else_is_scored(judge: RewardJudge) -> None:
    alone = judge.score(["Say p."], [" one"], ["stop"])
    together = judge.score(
        ["Say q.", "Say p.", "Say p.", "Say p."],
        [" four", " one two", " one", " one"],
        ["stop", "stop", "stop", "stop"],
    )
    assert together[2] == together[3] == pytest.approx(alone[0], abs=1e-5)
    assert together[1] != pytest.approx(alone[0], abs=1e-3)


def test_a_cut_reply_is_read_without_eos(judge: RewardJudge) -> None:
    stopped, cut = judge.score(["Say p."] * 2, [" one"] * 2, ["stop", "length"])
    assert abs(stopped - cut) > 1e-3


def test_rankings_get_a_score_a_reply_in_their_order(judge: RewardJudge) -> None:
    shown = [ranking("p", (" one", 1), (" two", 2)), ranking("q", (" four", 1), (" one", 2))]
    scores = score_rankings(judge, shown)
    assert [len(row) for row in scores] == [2, 2]
    expected = judge.score(["Say q."], [" one"], ["stop"])[0]
    assert scores[1][1] == pytest.approx(expected, abs=1e-5)


def test_the_judge_is_named_after_its_stage(tmp_path: Path, judge: RewardJudge) -> None:
    save_model(judge.model, judge.tokenizer, tmp_path / "rm" / "model")
    assert load(tmp_path / "rm" / "model", Ranks.start("cpu")).name == "reward model rm"
