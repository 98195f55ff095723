from collections import Counter
from dataclasses import replace

import pytest
import torch

from tercet.data.tokens import train_tokenizer
from tercet.model.load import new_policy, save_model
from tercet.records import CandidateSet, InputError, Prompt, read_records, write_records
from tercet.stages import sample
from tercet.stages.sample import Config, Slot, k_range, main, plan, unsatisfied
from tests.toy import LLAMA, stage


@pytest.fixture(scope="module")
def config(toy):
    return Config(
        policies=(f"toy={toy.policy}",), prompts=toy.prompts, split="ppo", k="2-4", max_new_tokens=6
    )


def sets(run):
    return read_records(run.path / "candidates.jsonl", CandidateSet)


@pytest.fixture(scope="module")
def drawn(config, tmp_path_factory):
    return stage(main, config, tmp_path_factory.mktemp("sample") / "run")


def test_every_prompt_has_k_different_replies_with_their_provenance(drawn):
    found = sets(drawn)
    assert len(found) == 32
    assert {len(s.candidates) for s in found} == {2, 3, 4}
    for s in found:
        texts = [c.text.strip() for c in s.candidates]
        assert len(set(texts)) == len(texts)
        assert all(texts)
        assert {c.policy for c in s.candidates} == {"toy"}
        assert {c.temperature for c in s.candidates} == {1.0}
    done = drawn.done()
    assert done["replies"] == done["asked_replies"] == sum(len(s.candidates) for s in found)


def test_finish_says_whether_the_reply_ended_itself(drawn, toy):
    ends = Counter(c.finish for s in sets(drawn) for c in s.candidates)
    assert ends["stop"] > 0
    assert ends["length"] == drawn.done()["unfinished"] > 0
    for s in sets(drawn):
        for c in s.candidates:
            tokens = len(toy.tokenizer(c.text)["input_ids"])
            assert tokens <= (6 if c.finish == "length" else 5)


def test_one_seed_gives_the_same_replies_however_many_slots_there_are(drawn, config, tmp_path):
    again = stage(main, replace(config, slots=3), tmp_path / "again")
    other = stage(main, replace(config, seed=1), tmp_path / "other")
    assert [c.text for s in sets(again) for c in s.candidates] == [
        c.text for s in sets(drawn) for c in s.candidates
    ]
    assert sets(other) != sets(drawn)


def test_policies_and_temperatures_take_turns(config, toy, tmp_path):
    bytes_ = train_tokenizer(["say red blue: gold."], kind="bpe", vocab_size=260)
    save_model(new_policy(LLAMA, bytes_, seed=3), bytes_, tmp_path / "b" / "model")
    both = (f"a={toy.policy}", str(tmp_path / "b" / "model"))
    options = replace(config, policies=both, temperatures=(0.7, 1.3), k="4")
    found = sets(stage(main, options, tmp_path / "run"))
    for s in found:
        assert Counter((c.policy, c.temperature) for c in s.candidates) == {
            ("a", 0.7): 1, ("a", 1.3): 1, ("b", 0.7): 1, ("b", 1.3): 1,
        }  # fmt: skip
    assert len({c.seed for s in found for c in s.candidates}) >= 4


def test_k_is_the_prompts_own_and_covers_its_range(config, toy):
    prompts = [Prompt(id=f"p{i}", text="say:") for i in range(300)]
    count = Counter(slot.prompt for slot in plan(prompts, replace(config, k="4-9"), 1))
    share = Counter(count.values())
    assert set(share) == set(range(4, 10))
    assert min(share.values()) > 25  # of 50 expected
    assert Counter(s.prompt for s in plan(prompts[:5], replace(config, k="4-9"), 1)) == {
        i: count[i] for i in range(5)
    }


@pytest.mark.parametrize(("text", "found"), [("5", (5, 5)), ("4-9", (4, 9))])
def test_k_is_a_number_or_a_range(text, found):
    assert k_range(text) == found


@pytest.mark.parametrize("k", ["1", "5-4", "many", "1-3", ""])
def test_k_that_gives_no_ranking_is_refused(config, k):
    with pytest.raises(ValueError, match="k = "):
        replace(config, k=k)


def test_missing_empty_and_equal_replies_are_drawn_again():
    slots = [Slot(0, 0, 1.0, text) for text in (" a", "a ", " ", None, " b")] + [
        Slot(1, 0, 1.0, " a")
    ]
    assert unsatisfied(slots) == [slots[1], slots[2], slots[3]]


def test_a_policy_that_says_one_thing_has_nothing_to_rank(config, monkeypatch, tmp_path):
    def repeat(slots, *_):
        for slot in slots:
            slot.text = " red."

    monkeypatch.setattr(sample, "draw", repeat)
    with pytest.raises(InputError, match=r"prompts\.jsonl: no prompt got two different replies"):
        stage(main, config, tmp_path / "run")


def test_k_is_lowered_and_a_prompt_of_one_reply_discarded(config, monkeypatch, tmp_path):
    real = sample.draw

    def often(slots, model, tokenizer, encoded, prompts, *rest):
        real(slots, model, tokenizer, encoded, prompts, *rest)
        for slot in slots:
            if prompts[slot.prompt].id == "p0":
                slot.text = " red."
            if prompts[slot.prompt].id == "p1":
                slot.text = slot.text and f" {'red' if slot.text < ' m' else 'blue'}."

    monkeypatch.setattr(sample, "draw", often)
    run = stage(main, replace(config, k="4"), tmp_path / "run")
    found = {s.prompt_id: len(s.candidates) for s in sets(run)}
    assert "p0" not in found
    assert found["p1"] == 2
    assert found["p2"] == 4
    assert run.done()["discarded_prompts"] == 1


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_precision_is_that_of_sampling(config, tmp_path, monkeypatch, precision):
    seen = set()
    real = sample.Engine.generate

    def spy(*args, **options):
        seen.add(torch.is_autocast_enabled("cpu"))
        return real(*args, **options)

    monkeypatch.setattr(sample.Engine, "generate", spy)
    stage(main, replace(config, precision=precision, max_prompts=3), tmp_path / "run")
    assert seen == {precision == "bf16"}


def test_prompts_that_do_not_exist_or_do_not_fit_are_refused(config, toy, tmp_path):
    with pytest.raises(InputError, match="no prompt with split 'rm'"):
        stage(main, replace(config, split="rm"), tmp_path / "a")
    with pytest.raises(InputError, match="64 positions"):
        stage(main, replace(config, max_new_tokens=62), tmp_path / "b")
    write_records(tmp_path / "p.jsonl", [Prompt(id="p9", text="", split="ppo")])
    with pytest.raises(InputError, match=r"p\.jsonl: prompt 'p9': an empty prompt"):
        stage(main, replace(config, prompts=tmp_path / "p.jsonl"), tmp_path / "c")
