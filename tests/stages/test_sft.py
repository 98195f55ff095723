from dataclasses import replace

import pytest
import torch

from tercet.model.checks import CheckFailed
from tercet.model.load import load_policy
from tercet.model.shard import Ranks
from tercet.model.train import held_out_nll, read_windows
from tercet.records import Demonstration, InputError, read_records, write_records
from tercet.stages.sft import Config, encode, main
from tests.toy import distance, same, stage, weights


@pytest.fixture(scope="module")
def config(toy):
    return Config(
        model=toy.policy,
        demonstrations=toy.demonstrations,
        batch=8,
        epochs=3,
        lr=3e-2,
        dropout=0.0,
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    return stage(main, config, tmp_path_factory.mktemp("sft") / "run")


def test_every_epoch_is_kept_and_the_lowest_validation_loss_chosen(trained):
    done = trained.done()
    losses = {row["epoch"]: row["demonstrations"] for row in done["epochs"]}
    assert sorted(losses) == [1, 2, 3]
    assert done["selected_epoch"] == min(losses, key=lambda e: (losses[e], e))
    epochs = sorted(path.name for path in (trained.path / "epochs").iterdir())
    assert epochs == ["01", "02", "03"]
    chosen = trained.path / "epochs" / f"{done['selected_epoch']:02d}"
    assert same(weights(trained.model), weights(chosen))
    assert losses[3] < losses[1]


def test_the_learning_rate_falls_from_its_peak_along_a_cosine(trained):
    """I12."""
    rates = [row["lr"] for row in trained.metrics() if "lr" in row]
    assert len(rates) == 9
    assert rates[0] == 3e-2
    assert rates[3] == pytest.approx(3e-2 * (0.1 + 0.9 * 0.75))  # cos(pi / 3) = 1 / 2
    assert rates == sorted(rates, reverse=True)


def test_equal_epochs_choose_the_earlier(config, tmp_path):
    assert stage(main, replace(config, lr=0.0), tmp_path / "run").done()["selected_epoch"] == 1


def test_one_seed_gives_one_model_with_dropout_too(config, tmp_path):
    """I13: in one process, whatever drew random numbers before."""
    options = replace(config, dropout=0.3, epochs=1)
    first = stage(main, options, tmp_path / "first")
    torch.rand(3)
    second = stage(main, options, tmp_path / "second")
    other = stage(main, replace(options, seed=1), tmp_path / "other")
    none = stage(main, replace(options, dropout=0.0), tmp_path / "none")
    assert same(weights(first.model), weights(second.model))
    assert not same(weights(first.model), weights(other.model))
    assert not same(weights(first.model), weights(none.model))


def test_micro_batches_do_not_change_the_model(trained, config, tmp_path):
    """I8."""
    small = stage(main, replace(config, token_budget=20), tmp_path / "small")
    assert distance(weights(trained.model), weights(small.model)) < 1e-5


@pytest.mark.parametrize(("mode", "part"), [("norms", "norm"), ("last_n_layers:1", "layers.1")])
def test_frozen_parameters_stay_bit_identical(config, toy, tmp_path, mode, part):
    """I10."""
    run = stage(main, replace(config, adapt=mode, epochs=1), tmp_path / "run")
    before, after = weights(toy.policy), weights(run.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(part in name or name == "model.norm.weight" for name in changed)


def test_an_adapter_is_merged_into_what_is_saved(config, toy, tmp_path):
    run = stage(main, replace(config, adapt="lora:2", epochs=1), tmp_path / "run")
    before, after = weights(toy.policy), weights(run.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("_proj" in name for name in changed)
    load_policy(run.model)


def test_prompts_are_context_unless_asked_for(config, toy, tmp_path):
    """I7: the reported loss is the token mean over the targets alone."""
    first = {}
    for name, on_prompt in (("reply", False), ("both", True)):
        run = stage(main, replace(config, loss_on_prompt=on_prompt), tmp_path / name)
        first[name] = run.metrics()[0]["loss"]
    assert first["reply"] != pytest.approx(first["both"], rel=1e-3)


def test_long_replies_are_cut_without_eos_and_long_prompts_dropped(config, toy):
    eos = toy.tokenizer.eos_token_id
    records = [
        Demonstration(id="a", prompt_id="a", prompt="say red:", response=" red blue gold."),
        Demonstration(id="b", prompt_id="b", prompt="say red blue gold:", response=" red."),
        Demonstration(id="c", prompt_id="c", prompt="say:", response=" red.", split="valid"),
    ]
    options = replace(config, max_prompt_tokens=3, max_reply_tokens=4)
    documents, dropped, cut = encode(records, "train", toy.tokenizer, options)
    assert (len(documents), dropped, cut) == (1, 1, 1)
    assert documents[0].replies == [toy.tokenizer(" red blue gold.")["input_ids"]]
    whole, *_ = encode(records, "train", toy.tokenizer, replace(options, max_reply_tokens=5))
    assert whole[0].replies[0] == [*documents[0].replies[0], eos]
    valid, *_ = encode(records, "valid", toy.tokenizer, options)
    assert len(valid) == 1


def test_demonstrations_that_never_end_stop_the_run(config, tmp_path):
    with pytest.raises(CheckFailed, match="never stop"):
        stage(main, replace(config, max_reply_tokens=1), tmp_path / "run")


def test_a_shorter_run_leaves_nothing_of_a_longer_one(config, tmp_path):
    """`select` reads every folder in epochs/."""
    stage(main, config, tmp_path / "run")
    run = stage(main, replace(config, epochs=1), tmp_path / "run")
    assert [path.name for path in (run.path / "epochs").iterdir()] == ["01"]
    assert [row["step"] for row in run.metrics()] == [0, 1, 2, 2]


def test_pretraining_text_is_mixed_into_every_batch(config, toy, tmp_path):
    options = replace(
        config,
        pretrain_fraction=0.25,
        pretrain_text=toy.text,
        pretrain_held_out=toy.held_out,
        context=8,
        epochs=2,
    )
    run = stage(main, options, tmp_path / "run")
    done = run.done()
    assert len([row for row in run.metrics() if "loss" in row]) == 2 * (24 // 6)
    for row in done["epochs"]:
        assert row["selected_by"] == pytest.approx(row["demonstrations"] + row["pretraining"])
    plain = stage(main, replace(config, epochs=2), tmp_path / "plain")
    assert "pretraining" not in plain.done()["epochs"][0]
    windows = read_windows(toy.held_out, toy.tokenizer, 8)
    forgot = held_out_nll(load_policy(plain.model), windows, Ranks(), token_budget=1000)
    assert done["epochs"][-1]["pretraining"] < forgot - 0.1


@pytest.mark.parametrize(("batch", "fraction"), [(4, 0.1), (8, 0.99)])
def test_a_fraction_that_is_no_window_or_all_of_them_is_refused(config, toy, batch, fraction):
    with pytest.raises(ValueError, match="raise batch, or change pretrain_fraction"):
        replace(config, batch=batch, pretrain_fraction=fraction, pretrain_text=toy.text)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_missing_split_is_named(config, toy, tmp_path, split):
    records = [
        r.model_copy(update={"split": split})
        for r in read_records(toy.demonstrations, Demonstration)
    ]
    write_records(tmp_path / "one.jsonl", records)
    missing = "valid" if split == "train" else "train"
    with pytest.raises(InputError, match=rf"one\.jsonl: no demonstration .*split {missing}"):
        stage(main, replace(config, demonstrations=tmp_path / "one.jsonl"), tmp_path / "run")


def test_an_empty_prompt_is_named(config, toy, tmp_path):
    records = read_records(toy.demonstrations, Demonstration)
    records[3] = records[3].model_copy(update={"prompt": ""})
    write_records(tmp_path / "empty.jsonl", records)
    with pytest.raises(InputError, match=r"empty\.jsonl: demonstration 'd3': an empty prompt"):
        stage(main, replace(config, demonstrations=tmp_path / "empty.jsonl"), tmp_path / "run")


def test_examples_beyond_the_positions_are_refused(config, toy, tmp_path):
    records = read_records(toy.demonstrations, Demonstration)
    records[0] = records[0].model_copy(update={"response": " red" * 70})
    write_records(tmp_path / "long.jsonl", records)
    with pytest.raises(InputError, match="64 positions"):
        stage(main, replace(config, demonstrations=tmp_path / "long.jsonl"), tmp_path / "run")
