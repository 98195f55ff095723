import os
import random
import signal

import numpy as np
import pytest
import torch

from tercet.model import checkpoint
from tercet.model.checkpoint import Checkpoints, rng_state, seed_all, set_rng_state
from tercet.model.shard import Ranks

RANKS = Ranks()


def checkpoints(folder, fingerprint="a", last=100, every_s=1e9, ranks=RANKS):
    return Checkpoints(folder, ranks, fingerprint, last, every_s)


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def steps(folder):
    return sorted(int(path.stem.split("-")[-1]) for path in folder.glob("*.pt"))


def test_every_generator_goes_on_where_it_was():
    seed_all(3)
    draws()
    state = rng_state()
    expected = draws()
    seed_all(4)
    set_rng_state(state)
    assert draws() == expected


def test_a_slow_disk_is_written_to_less_often(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    real = torch.save

    def slow(state, path):
        now[0] += 30
        real(state, path)

    monkeypatch.setattr(checkpoint.torch, "save", slow)
    saved = []
    with checkpoints(tmp_path, every_s=60) as kept:
        for step in range(1, 100):
            now[0] += 10
            before = kept.saved
            kept.offer(step, dict)
            if kept.saved != before:
                saved.append(step)
    assert saved == [7, 35, 63, 91]  # after 60 s at first, then after nine times the 30 s


def test_seeds_and_ranks_differ():
    seen = set()
    for seed, rank in ((0, 0), (0, 1), (1, 0)):
        seed_all(seed, rank)
        seen.add(draws())
    assert len(seen) == 3


def test_a_saved_state_comes_back_exactly(tmp_path):
    weight = torch.randn(3, 3)
    with checkpoints(tmp_path) as kept:
        assert kept.load() is None
        kept.save(7, {"model": {"w": weight}, "beta": 0.1 + 0.2, "guards": {"policy": (1, 2)}})
        expected = draws()
    with checkpoints(tmp_path) as kept:
        state = kept.load()
    assert state is not None
    assert state["step"] == 7
    assert torch.equal(state["model"]["w"], weight)
    assert state["beta"] == 0.1 + 0.2
    assert tuple(state["guards"]["policy"]) == (1, 2)
    assert draws() == expected


def test_only_two_states_are_kept_and_no_partial_one(tmp_path):
    with checkpoints(tmp_path) as kept:
        for step in (5, 10, 15, 20):
            kept.save(step, {})
    assert steps(tmp_path) == [15, 20]
    assert list(tmp_path.glob("*.partial")) == []


def test_a_kill_while_writing_leaves_the_state_before(tmp_path):
    with checkpoints(tmp_path) as kept:
        kept.save(5, {"x": 1})
    name = next(tmp_path.glob("*.pt")).name.replace("-5.pt", "-6.partial")
    (tmp_path / name).write_bytes(b"half")
    with checkpoints(tmp_path) as kept:
        assert kept.load()["step"] == 5  # type: ignore[index]
    assert list(tmp_path.glob("*.partial")) == []


def test_another_configuration_starts_afresh_and_says_so(tmp_path, capsys):
    with checkpoints(tmp_path) as kept:
        kept.save(5, {})
    with checkpoints(tmp_path, fingerprint="b") as kept:
        assert kept.load() is None
    assert "do not fit: from the beginning" in capsys.readouterr().err
    assert steps(tmp_path) == []  # their metrics and epochs are overwritten: no way back


def test_another_format_starts_afresh(tmp_path, monkeypatch, capsys):
    with checkpoints(tmp_path) as kept:
        kept.save(5, {})
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    with checkpoints(tmp_path) as kept:
        assert kept.load() is None
    assert "do not fit: from the beginning" in capsys.readouterr().err


def test_another_number_of_ranks_starts_afresh(tmp_path, monkeypatch):
    with checkpoints(tmp_path) as kept:
        kept.save(5, {})
    two = Ranks(0, 2)
    monkeypatch.setattr(Ranks, "gather", lambda self, mine: list(mine))
    with checkpoints(tmp_path, ranks=two) as kept:
        assert kept.load() is None


def test_the_newest_state_that_all_ranks_hold_is_resumed(tmp_path, monkeypatch):
    with checkpoints(tmp_path) as kept:
        kept.save(5, {})
        kept.save(10, {})
    monkeypatch.setattr(Ranks, "gather", lambda self, mine: [*mine, [5]])  # the other rank's steps
    with checkpoints(tmp_path) as kept:
        assert kept.load()["step"] == 5  # type: ignore[index]
    assert steps(tmp_path) == [5]


def test_states_are_saved_when_time_has_passed_and_at_the_end(tmp_path):
    with checkpoints(tmp_path, last=4) as kept:
        for step in (1, 2, 3, 4):
            kept.offer(step, dict)
            assert steps(tmp_path) == ([] if step < 4 else [4])
    with checkpoints(tmp_path, every_s=-1) as kept:
        kept.offer(6, dict)
    assert 6 in steps(tmp_path)


def test_ctrl_c_saves_between_two_steps_and_stops(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    finished = []
    with pytest.raises(KeyboardInterrupt), checkpoints(tmp_path) as kept:
        for step in range(1, 5):
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            finished.append(step)  # the step in progress ends
            kept.offer(step, dict)
    assert finished == [1, 2]
    assert steps(tmp_path) == [2]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt), checkpoints(tmp_path):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("still running")


def test_ctrl_c_after_the_last_offer_is_not_lost(tmp_path):
    with pytest.raises(KeyboardInterrupt), checkpoints(tmp_path, last=1) as kept:
        kept.offer(1, dict)
        os.kill(os.getpid(), signal.SIGINT)


def test_nothing_is_unpickled_from_a_state(tmp_path):
    with checkpoints(tmp_path) as kept:
        kept.save(1, {"bad": random.Random(0)})  # would run code when loaded
    with (
        pytest.raises(Exception, match=r"weights_only|Weights only"),
        checkpoints(tmp_path) as kept,
    ):
        kept.load()
