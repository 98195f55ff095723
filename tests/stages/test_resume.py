"""A stage that was interrupted goes on to the very weights of one that was not."""

import multiprocessing
import os
import platform
import signal
from pathlib import Path

import pytest
import torch

from tercet.model.checkpoint import Checkpoints
from tercet.stages import ppo, pretrain, rm, sft
from tests.toy import LLAMA, same, stage, weights

MODULES = {"pretrain": pretrain, "sft": sft, "rm": rm, "ppo": ppo}
# (all steps, the step after which the run stops)
STOPS = {"pretrain": (13, 5), "sft": (9, 4), "rm": (6, 2), "ppo": (4, 2)}
OFFER = Checkpoints.offer


@pytest.fixture(scope="module")
def configs(toy):
    return {
        "pretrain": pretrain.Config(
            text=toy.text, model=LLAMA, tokenizer="word", vocabulary=60, context=8, batch=5,
            weight_decay=0.01,
        ),
        "sft": sft.Config(
            model=toy.policy, demonstrations=toy.demonstrations, batch=8, epochs=3, dropout=0.2,
            pretrain_fraction=0.125, pretrain_text=toy.text, pretrain_held_out=toy.held_out,
            context=8, lr=1e-2,
        ),
        "rm": rm.Config(
            model=toy.policy, rankings=toy.rankings, demonstrations=toy.demonstrations, batch=8,
            epochs=2, lr=1e-2, adapt="lora:2,dropout=0.3",
        ),
        "ppo": ppo.Config(
            policy=toy.policy, reward=toy.reward, prompts=toy.prompts, split="ppo", episodes=32,
            rollout_batch=8, minibatch=4, samples=2, inner_epochs=2, max_new_tokens=5, lr=2e-3,
            kl_target=1.0, kl_horizon=50.0, ema=0.8, value_warmup=1, ptx_text=toy.text,
            ptx_coef=0.5, ptx_ratio=1.0, context=8, adam_style="tf",
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(configs, tmp_path_factory):
    """Folders of the stages that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole")
    return {name: stage(MODULES[name].main, configs[name], root / name) for name in MODULES}


def assert_same_result(name, run, whole):
    assert same(weights(run.model), weights(whole.model))
    rows = [
        [
            {k: v for k, v in row.items() if k != "time" and not k.startswith("seconds/")}
            for row in folder.metrics()
        ]
        for folder in (run, whole)
    ]
    assert rows[0] == rows[1]
    if name == "ppo":
        assert same(weights(run.path / "value"), weights(whole.path / "value"))
        pages = [sorted(p.name for p in (f.path / "samples").iterdir()) for f in (run, whole)]
        assert pages[0] == pages[1]
    if name == "sft":
        for epoch in ("01", "02", "03"):
            a, b = (weights(folder.path / "epochs" / epoch) for folder in (run, whole))
            assert same(a, b)
        assert run.done() == whole.done()


@pytest.mark.parametrize("name", MODULES)
def test_ctrl_c_in_the_middle(name, configs, whole, tmp_path, monkeypatch):
    steps, stop = STOPS[name]

    def press(self, step, state):
        assert self.last == steps
        if step == stop:
            os.kill(os.getpid(), signal.SIGINT)
        OFFER(self, step, state)

    monkeypatch.setattr(Checkpoints, "offer", press)
    torch.rand(7)  # generators elsewhere than in the uninterrupted run
    with pytest.raises(KeyboardInterrupt):
        stage(MODULES[name].main, configs[name], tmp_path)
    assert not (tmp_path / "done.json").exists()
    assert [int(p.stem.split("-")[-1]) for p in (tmp_path / "checkpoints").iterdir()] == [stop]

    later = []
    monkeypatch.setattr(
        Checkpoints,
        "offer",
        lambda self, step, state: later.append(step) or OFFER(self, step, state),
    )
    torch.rand(3)
    run = stage(MODULES[name].main, configs[name], tmp_path)
    assert later == list(range(stop + 1, steps + 1))
    assert_same_result(name, run, whole[name])


def test_a_resumed_run_keeps_the_length_of_its_packs(configs, tmp_path, monkeypatch):
    """It was fitted to the first rollouts, which a resumed run does not see."""
    steps, stop = STOPS["ppo"]
    update, seen = ppo.update, []

    def watched(*arguments):
        seen.append(next(x.token_budget for x in arguments if isinstance(x, ppo.Learning)))
        return update(*arguments)

    def press(self, step, state):
        if step == stop:
            os.kill(os.getpid(), signal.SIGINT)
        OFFER(self, step, state)

    monkeypatch.setattr(ppo, "fitted", lambda *_: 640)
    monkeypatch.setattr(ppo, "update", watched)
    with monkeypatch.context() as pressed:
        pressed.setattr(Checkpoints, "offer", press)
        with pytest.raises(KeyboardInterrupt):
            stage(ppo.main, configs["ppo"], tmp_path)
    stage(ppo.main, configs["ppo"], tmp_path)
    assert seen == [640] * steps


def killed(name, config, folder, while_saving):
    """In a process of its own: saves after each step, and is killed like `kill -9` does."""
    stop = STOPS[name][1]
    real = torch.save

    def save(content, path):
        real(content, path)
        with Path(path).open("r+b") as file:
            file.truncate(100)
        os.kill(os.getpid(), signal.SIGKILL)

    def offer(self, step, state):
        self.every_s, self.writing_s = -1.0, 0.0
        if step == stop and while_saving:
            torch.save = save
        OFFER(self, step, state)
        if step == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints.offer = offer  # type: ignore[method-assign]
    stage(MODULES[name].main, config, folder)


@pytest.mark.skipif(platform.system() != "Linux", reason="forks")
@pytest.mark.parametrize(
    ("name", "while_saving"), [*((name, False) for name in MODULES), ("ppo", True)]
)
def test_kill_9(name, while_saving, configs, whole, tmp_path):
    arguments = (name, configs[name], tmp_path, while_saving)
    child = multiprocessing.get_context("fork").Process(target=killed, args=arguments)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    states = sorted(int(p.stem.split("-")[-1]) for p in (tmp_path / "checkpoints").glob("*.pt"))
    stop = STOPS[name][1]
    assert states == ([stop - 1] if while_saving else [stop - 1, stop])
    run = stage(MODULES[name].main, configs[name], tmp_path)
    assert_same_result(name, run, whole[name])


@pytest.mark.parametrize("name", MODULES)
def test_ctrl_c_after_the_last_step_loses_no_training(name, configs, whole, tmp_path, monkeypatch):
    """Normalising, measuring and sampling may take long, too."""

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MODULES[name].RunDir, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            stage(MODULES[name].main, configs[name], tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "offer", lambda *_: pytest.fail("trained again"))
        run = stage(MODULES[name].main, configs[name], tmp_path)
    assert_same_result(name, run, whole[name])
