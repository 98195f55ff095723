import json
from dataclasses import replace

import pytest

from tercet.model.load import fingerprint, load_policy, load_tokenizer
from tercet.records import InputError
from tercet.stages.pretrain import Config, main
from tests.toy import LLAMA, same, stage, weights


@pytest.fixture(scope="module")
def config(toy):
    return Config(
        text=toy.text,
        held_out=toy.held_out,
        model=LLAMA,
        tokenizer="word",
        vocabulary=60,
        context=8,
        batch=4,
        epochs=2,
        warmup=2,
        lr=1e-2,
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    return stage(main, config, tmp_path_factory.mktemp("pretrain") / "run")


def test_the_held_out_loss_falls_and_the_folder_is_a_model(trained, config):
    done = trained.done()
    assert done["held_out_nll"] < done["held_out_nll_before"] - 0.5
    tokenizer = load_tokenizer(trained.model)
    assert load_policy(trained.model).config.vocab_size == len(tokenizer) == done["vocabulary"]
    assert tokenizer.decode(tokenizer("say red blue: gold.")["input_ids"]) == "say red blue: gold."


def test_steps_are_whole_batches_of_windows(trained, config):
    lines = [json.loads(line)["text"] for line in config.text.read_text().splitlines()]
    tokenizer = load_tokenizer(trained.model)
    tokens = sum(len(tokenizer(text)["input_ids"]) + 1 for text in lines)  # each ends with EOS
    assert trained.done()["steps"] == 2 * (tokens // 8) // 4
    assert trained.metrics()[-1]["step"] == trained.done()["steps"] - 1


def test_one_seed_gives_one_model(trained, config, tmp_path):
    """I13."""
    again = stage(main, config, tmp_path / "again")
    other = stage(main, replace(config, seed=1), tmp_path / "other")
    assert same(weights(trained.model), weights(again.model))
    assert not same(weights(trained.model), weights(other.model))


def test_a_base_model_goes_on_with_its_own_tokenizer(trained, config, tmp_path):
    more = stage(main, replace(config, base=trained.model, epochs=1), tmp_path / "more")
    before, after = load_tokenizer(trained.model), load_tokenizer(more.model)
    assert fingerprint(before) == fingerprint(after)
    assert more.done()["held_out_nll_before"] == pytest.approx(
        trained.done()["held_out_nll"], abs=1e-6
    )


def test_less_text_than_a_batch_is_refused(config, tmp_path):
    with pytest.raises(InputError, match=r"text\.jsonl: \d+ windows .* smaller batch"):
        stage(main, replace(config, batch=500), tmp_path)


def test_windows_beyond_the_positions_are_refused(toy, config, tmp_path):
    with pytest.raises(InputError, match="64 positions"):
        stage(main, replace(config, base=toy.policy, context=80), tmp_path)


def test_a_text_without_text_is_refused(config, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": " "}\n')
    with pytest.raises(InputError, match=r"empty\.jsonl"):
        stage(main, replace(config, text=empty), tmp_path / "run")


def test_recomputed_activations_change_no_number(trained, config, tmp_path):
    again = stage(main, replace(config, checkpoint_activations=True), tmp_path)
    assert same(weights(trained.model), weights(again.model))


def test_filler_is_logged(trained):
    assert all(0 <= row["filler"] < 1 for row in trained.metrics())
