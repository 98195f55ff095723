import json
import shutil

import pytest
import torch

from tercet.model.load import load_scalar, load_tokenizer, scalar_head, set_bias
from tercet.model.reward import (
    PROBE,
    check_probe,
    encode_replies,
    gather_scores,
    score_documents,
    write_probe,
)
from tercet.model.shard import Ranks
from tercet.model.tree import Document
from tercet.records import InputError

EOS = 0
PROMPT, REPLY = [3, 4, 5], [6, 7, 8]
SAMPLES = [("say red blue:", " red blue."), ("say gold gold:", " gold.")]


@pytest.fixture(scope="module")
def reward(toy):
    return load_scalar(toy.reward, dtype=torch.float64)


def score(model, *replies, prompt=PROMPT, budget=1000):
    return score_documents(model, [Document(prompt, list(replies))], token_budget=budget).tolist()


def test_a_score_is_the_heads_output_at_the_last_token(reward):
    """Against the model's own forward pass on the sequence alone."""
    ids = torch.tensor([[*PROMPT, *REPLY, EOS]])
    reward.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = reward(input_ids=ids, use_cache=False).logits[0, -1, 0].item()
    reward.set_attn_implementation("tercet")
    assert score(reward, [*REPLY, EOS]) == [pytest.approx(expected, abs=1e-6)]


def test_tokens_after_the_reply_change_nothing_and_its_eos_does(reward):
    """I25: other replies and documents behind this one leave its score; its EOS is read."""
    alone = score(reward, [*REPLY, EOS])[0]
    beside = score(reward, [*REPLY, EOS], [9, 9, 9, 9], [10])[0]
    assert beside == pytest.approx(alone, abs=1e-12)
    assert score(reward, REPLY)[0] != pytest.approx(alone, abs=1e-3)
    assert score(reward, [*REPLY, 9])[0] != pytest.approx(alone, abs=1e-3)


def test_a_reply_of_eos_alone_is_read_at_that_eos(reward):
    assert len(score(reward, [EOS])) == 1


@pytest.mark.parametrize("budget", [1, 12, 1000])
def test_scores_come_in_the_order_of_documents_and_replies(reward, budget):
    documents = [
        Document(PROMPT, [[6, EOS], [7, 8, 9, EOS], [7]]),
        Document([9], [[10, 11, EOS]]),
        Document([3] * 9, [[8], [6, EOS]]),
    ]
    alone = [score(reward, r, prompt=d.prompt)[0] for d in documents for r in d.replies]
    found = score_documents(reward, documents, token_budget=budget).tolist()
    assert found == pytest.approx(alone, abs=1e-12)
    nested = gather_scores(reward, documents, Ranks(), token_budget=budget)
    assert [len(row) for row in nested] == [3, 1, 2]
    assert [s for row in nested for s in row] == found


def test_float64_stays_float64_and_no_gradient_is_kept(reward):
    scores = score_documents(reward, [Document(PROMPT, [REPLY])], token_budget=100)
    assert scores.dtype == torch.float64
    assert not scores.requires_grad


def test_eos_is_appended_iff_the_reply_stopped(toy):
    document = encode_replies(toy.tokenizer, "say red blue:", [" red.", " red."], [True, False])
    eos = toy.tokenizer.eos_token_id
    assert document.replies[0] == [*document.replies[1], eos]
    assert document.prompt == toy.tokenizer("say red blue:")["input_ids"]


def test_a_cut_reply_without_text_reads_as_eos(toy):
    document = encode_replies(toy.tokenizer, "say red blue:", [""], [False])
    assert document.replies == [[toy.tokenizer.eos_token_id]]


@pytest.fixture
def folder(toy, tmp_path):
    """A copy of the reward model with a probe."""
    shutil.copytree(toy.reward, tmp_path / "rm")
    model = load_scalar(tmp_path / "rm")
    write_probe(model, load_tokenizer(tmp_path / "rm"), SAMPLES, tmp_path / "rm")
    return tmp_path / "rm"


def test_a_reloaded_model_passes_its_probe(folder):
    assert check_probe(load_scalar(folder), load_tokenizer(folder), folder) < 1e-6


def test_without_a_probe_nothing_is_claimed(toy):
    assert check_probe(load_scalar(toy.reward), toy.tokenizer, toy.reward) is None


@pytest.mark.parametrize("what", ["bias", "head", "tokenizer", "nan"])
def test_a_model_that_scores_otherwise_is_refused(folder, what):
    model, tokenizer = load_scalar(folder), load_tokenizer(folder)
    if what == "bias":
        set_bias(model, 0.5)
    elif what == "head":
        scalar_head(model).weight.data.mul_(-1)
    elif what == "nan":
        scalar_head(model).weight.data.fill_(float("nan"))
    else:
        rows = json.loads((folder / PROBE).read_text())
        rows[0]["reply"] = " blue red."
        (folder / PROBE).write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"probe\.json.*train it again"):
        check_probe(model, tokenizer, folder)
