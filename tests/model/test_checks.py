import shutil

import pytest
import torch

from tercet.data.tokens import encode_reply
from tercet.model.checks import (
    CheckFailed,
    check_eos,
    check_first_ratio,
    check_start,
    reward_check,
)
from tercet.model.load import load_scalar, load_tokenizer, set_bias
from tercet.model.reward import write_probe
from tercet.model.shard import Ranks
from tercet.model.tree import Document
from tercet.records import InputError

RANKS = Ranks()
MASK = torch.tensor([[True, True], [True, False]])
LOGP = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]])


def start(ref=LOGP, generated=LOGP, half=False):
    check_start(MASK, LOGP, ref, generated, half, RANKS)


def test_equal_log_probs_pass_and_say_so(capsys):
    start()
    said = capsys.readouterr().err
    assert "KL to the reference is 0 at the start (bit-exact)" in said
    assert "rollout log-probs equal the training forward's" in said


def test_what_stands_behind_the_mask_does_not_count():
    behind = LOGP.clone()
    behind[1, 1] = float("nan")
    start(behind, behind)


@pytest.mark.parametrize("wrong", [1e-3, float("nan"), float("inf")])
def test_another_reference_stops_the_run(wrong):
    with pytest.raises(CheckFailed, match="KL to the reference is not 0"):
        start(ref=LOGP + wrong)


def test_an_engine_that_computes_otherwise_stops_the_run():
    with pytest.raises(CheckFailed, match="rollout and training"):
        start(generated=LOGP - 0.01)


def test_half_precision_is_given_its_rounding():
    start(LOGP + 1e-2, LOGP + 1e-1, half=True)
    with pytest.raises(CheckFailed):
        start(LOGP + 3e-2, half=True)


@pytest.mark.parametrize("ratio", [1.001, 0.999, float("nan")])
def test_a_first_ratio_that_is_not_one_stops_the_run(ratio):
    with pytest.raises(CheckFailed, match="iteration 3: the ratio"):
        check_first_ratio(ratio, False, 3, False, RANKS)


def test_the_first_ratio_is_said_once(capsys):
    check_first_ratio(1.0, False, 0, True, RANKS)
    assert "ratio of the first minibatch is 1 (exactly)" in capsys.readouterr().err
    check_first_ratio(1.0, False, 1, False, RANKS)
    assert capsys.readouterr().err == ""


def test_only_the_main_rank_speaks(capsys):
    check_start(MASK, LOGP, LOGP, LOGP, False, Ranks(rank=1, size=2))
    assert capsys.readouterr().err == ""


def test_a_reward_model_is_asked_its_probe(toy, tmp_path, capsys):
    folder = tmp_path / "rm"
    shutil.copytree(toy.reward, folder)
    model, tokenizer = load_scalar(folder), load_tokenizer(folder)
    reward_check(model, tokenizer, folder, True, RANKS)
    assert "no probe stored" in capsys.readouterr().err
    write_probe(model, tokenizer, [("say red:", " red.")], folder)
    reward_check(model, tokenizer, folder, False, RANKS)
    said = capsys.readouterr().err
    assert "scores its probe as when trained" in said
    assert "another tokenizer" in said
    set_bias(model, 9.0)
    with pytest.raises(InputError):
        reward_check(model, tokenizer, folder, True, RANKS)


def test_demonstrations_without_eos_are_refused(toy, capsys):
    eos = toy.tokenizer.eos_token_id
    ended = Document([3], [encode_reply(toy.tokenizer, " red.", True)])
    cut = Document([3], [encode_reply(toy.tokenizer, " red.", False)])
    check_eos([ended, cut], eos, RANKS)
    assert "(1 of 2 examples)" in capsys.readouterr().err
    with pytest.raises(CheckFailed, match="never stop"):
        check_eos([cut], eos, RANKS)
