import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

from tercet import rundir
from tercet.records import InputError
from tercet.rundir import RunDir, content_hash, progress


@dataclass(frozen=True)
class Config:
    lr: float = 1e-5
    seed: int = 7


def test_start_leaves_what_repeating_needs(tmp_path):
    data = tmp_path / "in.jsonl"
    data.write_text("abc")
    run = RunDir(tmp_path / "sft")
    run.start(Config(), [data], ["tercet", "sft", "r.toml"], ranks_size=2, table="sft")
    assert (run.path / "config.toml").read_text() == "[sft]\nlr = 1e-05\nseed = 7\n"
    facts = json.loads((run.path / "environment.json").read_text())
    assert facts["argv"] == ["tercet", "sft", "r.toml"]
    assert facts["world_size"] == 2
    assert facts["seeds"] == {"seed": 7}
    # sha256("abc"), FIPS 180-2 appendix B.1
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert facts["inputs"] == {str(data): digest}
    assert facts["versions"]["python"].startswith("3.")
    assert facts["hardware"]["cores"] >= 1


def test_a_missing_input_leaves_nothing_half_written(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        RunDir(tmp_path / "sft").start(Config(), [tmp_path / "nowhere"], [])
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_appended_and_mirrored(tmp_path):
    run = RunDir(tmp_path)
    run.log(1, {"loss": 2})
    run.log(2, {"loss": 1.5, "kl": float("nan")})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 2.0), (2, 1.5)]
    assert rows[1]["kl"] is None
    run.finish({})
    (board,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in board.read_bytes()


def test_tensorboard_can_read_the_mirror(tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    run = RunDir(tmp_path)
    run.log(3, {"loss": 1.5})
    run.finish({})
    (board,) = (tmp_path / "tensorboard").iterdir()
    (event,) = [e for e in EventFileLoader(str(board)).Load() if e.HasField("summary")]
    value = event.summary.value[0]
    assert (event.step, value.tag) == (3, "loss")
    assert (value.simple_value or value.tensor.float_val[0]) == 1.5


def test_rewinding_drops_later_steps(tmp_path):
    run = RunDir(tmp_path)
    for step in (1, 2, 3):
        run.log(step, {"loss": step})
    run.rewind(2)
    run.log(3, {"loss": 30})
    assert [row["loss"] for row in run.metrics()] == [1, 2, 30]


def test_a_run_is_done_only_after_finish_and_no_more_after_start(tmp_path):
    run = RunDir(tmp_path)
    assert run.done() is None
    run.finish({"accuracy": 0.7})
    assert run.done() == {"accuracy": 0.7}
    run.start(Config(), [], [])
    assert run.done() is None


def test_samples_are_files_for_people(tmp_path):
    RunDir(tmp_path).samples("step-10", "Hello é\n")
    assert (tmp_path / "samples" / "step-10.txt").read_text(encoding="utf-8") == "Hello é\n"


def test_other_ranks_write_nothing(tmp_path):
    run = RunDir(tmp_path / "sft", main=False)
    run.start(Config(), [], [])
    run.log(1, {"loss": 1})
    run.rewind(0)
    run.samples("a", "b")
    run.finish({})
    assert not run.path.exists()


def test_folder_hash_sees_names_and_contents_but_not_times(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "x").write_text("1")
    same = content_hash(tmp_path / "a")
    assert content_hash(tmp_path / "b") == same
    (tmp_path / "c" / "sub" / "x").write_text("2")
    assert content_hash(tmp_path / "c") != same
    (tmp_path / "d" / "sub" / "x").rename(tmp_path / "d" / "sub" / "y")
    assert content_hash(tmp_path / "d") != same


def test_progress_off_a_terminal_is_a_few_plain_lines(capsys, monkeypatch):
    clock = iter(range(0, 1000, 4))  # each look at the clock takes four seconds
    monkeypatch.setattr(rundir.time, "monotonic", lambda: float(next(clock)))
    with progress(4, "sft", "step") as meter:
        for step in range(4):
            meter.advance(1, loss=2.5 - step)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert 1 < len(lines) <= 4
    assert lines[-1].startswith("sft  4/4 (100%) steps")
    assert lines[-1].endswith("loss -0.5")
    assert "left" in lines[0] and "s/step" in lines[0]
    assert "\x1b" not in err and "\r" not in err


def test_progress_of_other_ranks_is_silent(capsys):
    with progress(2, "sft", "step", show=False) as meter:
        meter.advance()
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_shows_rate_and_metrics(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    with progress(3, "ppo", "iteration") as meter:
        for _ in range(3):
            meter.advance(1, kl=2.25)
    shown = capsys.readouterr().err
    assert "3/3" in shown and "iterations/s" in shown and "kl 2.25" in shown


@pytest.mark.parametrize(
    ("count", "seconds", "rate"), [(120, 10, "12 steps/s"), (2, 10, "5 s/step"), (0, 10, "")]
)
def test_slow_work_is_told_in_seconds_a_unit(monkeypatch, count, seconds, rate):
    now = [0.0]
    monkeypatch.setattr(rundir.time, "monotonic", lambda: now[0])
    meter = rundir.Meter(None, "sft", "step")
    meter.advance(count)
    now[0] = seconds
    assert meter.rate() == rate


def test_remaining_time_is_told_for_people(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(rundir.time, "monotonic", lambda: now[0])
    meter = rundir.Meter(100, "sft", "step")
    meter.advance(1)
    now[0] = 60.0
    assert meter.remaining() == "1h 39m left"  # 99 steps of a minute each


def test_what_was_done_before_says_nothing_about_the_rate(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(rundir.time, "monotonic", lambda: now[0])
    meter = rundir.Meter(100, "sft", "step")
    meter.resume(90)
    now[0] = 1.0
    assert (meter.rate(), meter.remaining()) == ("", "")
    meter.advance(1)
    now[0] = 60.0
    assert (meter.rate(), meter.remaining()) == ("60 s/step", "9m 00s left")


def test_a_resumed_bar_goes_on_at_its_place(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    with progress(3, "ppo", "iteration") as meter:
        meter.resume(2)
        meter.advance(1, kl=2.25)
    assert "3/3" in capsys.readouterr().err


def test_a_fresh_start_forgets_the_curves_of_an_earlier_run(tmp_path):
    old, run = RunDir(tmp_path), RunDir(tmp_path)
    old.log(1, {"loss": 1.0})
    old.finish({})  # closes the file
    run.rewind(-1)
    run.log(0, {"loss": 2.0})
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    run.finish({})
    run.rewind(0)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_logging_needs_no_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tercet.rundir import RunDir\n"
        f"run = RunDir(Path({str(tmp_path)!r})); run.log(1, {{'loss': 1.0}}); run.finish({{}})\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
