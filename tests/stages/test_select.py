import shutil
from dataclasses import replace

import pytest

from tercet.records import InputError
from tercet.stages import select
from tercet.stages.select import Config, main
from tests.toy import same, stage, weights


@pytest.fixture
def config(toy, tmp_path):
    """Three epochs; the first two are the same model."""
    for name, source in (("01", toy.policy), ("02", toy.policy), ("03", toy.policy)):
        shutil.copytree(source, tmp_path / "epochs" / name)
    return Config(
        epochs=tmp_path / "epochs", reward=toy.reward, prompts=toy.prompts, max_new_tokens=6
    )


def test_every_epoch_is_asked_the_same_and_ties_go_to_the_earlier(config, tmp_path):
    done = stage(main, config, tmp_path / "run").done()
    assert len({row["reward"] for row in done["epochs"]}) == 1  # same model, seed and prompts
    assert done["selected_epoch"] == "01"
    assert done["prompts"] == 8


def test_the_epoch_of_the_highest_mean_reward_is_taken(config, toy, tmp_path, monkeypatch):
    means = iter([1.0, 3.0, 2.0])

    def scores(reward, documents, ranks, **_):
        mean = next(means)
        return [[mean + (-1) ** i] for i in range(len(documents))]

    monkeypatch.setattr(select, "gather_scores", scores)
    run = stage(main, config, tmp_path / "run")
    assert [row["reward"] for row in run.done()["epochs"]] == [1.0, 3.0, 2.0]
    assert run.done()["selected_epoch"] == "02"
    assert same(weights(run.model), weights(config.epochs / "02"))


def test_missing_epochs_and_prompts_are_named(config, tmp_path):
    with pytest.raises(InputError, match="run `tercet sft` first"):
        stage(main, replace(config, epochs=tmp_path / "nowhere"), tmp_path / "run")
    with pytest.raises(InputError, match="no prompt has split 'test'"):
        stage(main, replace(config, split="test"), tmp_path / "run")
