"""Recipes through the real command line, in this process and in others."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tercet.cli import main
from tercet.config import load_recipe
from tercet.pipeline import loop
from tercet.pipeline.processes import launch
from tercet.pipeline.recipe import configure, plan, read_run
from tercet.pipeline.steps import STEPS
from tercet.records import InputError, RunFailed
from tercet.rundir import RunDir
from tests.toy import same, weights, write_recipe

STAGES = ("pretrain", "sft", "rm", "ppo")


@pytest.fixture
def recipe(toy, tmp_path):
    return write_recipe(toy, tmp_path)


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    """A whole run that tests copy before they change it: (recipe, folder of the run)."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(toy, folder)
    assert main(["run", str(recipe)]) == 0
    return recipe, folder / "runs" / "toy"


def done(folder, name):
    return json.loads((folder / name / "done.json").read_text())


def outcome(capture):
    """{stage: "ran" | "skipped"} of what was printed."""
    found = {}
    for line in capture.readouterr().err.splitlines():
        words = line.split()
        if words and words[0] in {step.name for step in STEPS}:
            if line.endswith("unchanged, skipped"):
                found[words[0]] = "skipped"
            elif " done in " in line:
                found[words[0]] = "ran"
    return found


def test_a_run_leaves_every_stage_stamped_and_without_checkpoints(finished):
    _, folder = finished
    for name in STAGES:
        found = done(folder, name)
        assert len(found["fingerprint"]) == 64
        assert found["seconds"] >= 0
        assert not (folder / name / "checkpoints").exists()
        assert (folder / name / "model" / "model.safetensors").exists()
    environment = json.loads((folder / "rm" / "environment.json").read_text())
    assert set(environment["inputs"]) == {
        str(folder / "sft" / "model"),
        str(folder.parents[1] / "rankings.jsonl"),
        str(folder.parents[1] / "demonstrations.jsonl"),
    }


def test_stages_are_wired_to_what_the_ones_before_wrote(finished):
    _, folder = finished
    assert load_recipe(folder / "sft" / "config.toml")["sft"]["model"] == str(
        folder / "pretrain" / "model"
    )
    ppo = load_recipe(folder / "ppo" / "config.toml")["ppo"]
    assert ppo["policy"] == str(folder / "sft" / "model")  # without [rl_init]
    assert ppo["reward"] == str(folder / "rm" / "model")


def test_optional_inputs_that_no_stage_makes_are_left_out(finished):
    _, folder = finished
    assert "held_out" not in load_recipe(folder / "pretrain" / "config.toml")["pretrain"]
    assert "world" not in load_recipe(folder / "ppo" / "config.toml")["ppo"]


def test_an_unchanged_run_is_skipped(finished, capsys):
    recipe, folder = finished
    before = {name: (folder / name / "done.json").stat().st_mtime_ns for name in STAGES}
    assert main(["run", str(recipe)]) == 0
    assert outcome(capsys) == dict.fromkeys(STAGES, "skipped")
    assert before == {name: (folder / name / "done.json").stat().st_mtime_ns for name in STAGES}


def test_a_stages_config_is_a_recipe_that_runs_as_it_is(finished, capsys):
    _, folder = finished
    for name in STAGES:
        assert main([name, str(folder / name / "config.toml")]) == 0
    assert outcome(capsys) == dict.fromkeys(STAGES, "skipped")


def test_what_depends_on_a_changed_file_runs_again(recipe, capsys):
    assert main(["run", str(recipe)]) == 0
    assert outcome(capsys) == dict.fromkeys(STAGES, "ran")
    rankings = recipe.parent / "rankings.jsonl"
    lines = rankings.read_text().splitlines(keepends=True)
    rankings.write_text("".join(lines[1:]))
    assert main(["run", str(recipe)]) == 0
    assert outcome(capsys) == {"pretrain": "skipped", "sft": "skipped", "rm": "ran", "ppo": "ran"}
    assert main(["run", str(recipe), "--ppo.beta", "0.5"]) == 0
    assert outcome(capsys) == {
        "pretrain": "skipped", "sft": "skipped", "rm": "skipped", "ppo": "ran",
    }  # fmt: skip
    # Equal content under a new date is unchanged.
    os.utime(rankings)
    assert main(["run", str(recipe), "--ppo.beta", "0.5"]) == 0
    assert set(outcome(capsys).values()) == {"skipped"}


def test_a_stage_alone_takes_overrides_and_until_stops_a_run(recipe, capsys):
    assert main(["run", str(recipe), "--until", "sft"]) == 0
    assert outcome(capsys) == {"pretrain": "ran", "sft": "ran"}
    assert main(["sft", str(recipe), "--lr", "0.02"]) == 0
    assert outcome(capsys) == {"sft": "ran"}
    written = load_recipe(recipe.parent / "runs" / "toy" / "sft" / "config.toml")
    assert written["sft"]["lr"] == 0.02


def test_an_unfinished_stage_is_not_built_upon(recipe, capsys):
    """Ctrl-C in sft leaves the model of an older sft in place."""
    assert main(["run", str(recipe), "--until", "sft"]) == 0
    folder = recipe.parent / "runs" / "toy"
    (folder / "sft" / "done.json").unlink()
    capsys.readouterr()
    assert main(["rm", str(recipe)]) == 2
    said = capsys.readouterr().err
    assert f"{folder}/sft/model: stage sft of this run has not finished" in said
    assert f"run `tercet sft {recipe}` first" in said


def test_each_seed_has_a_folder_of_its_own(recipe):
    tables = load_recipe(recipe)
    assert plan(recipe, tables, [])[0].name == "toy"
    assert plan(recipe, tables, ["--seed", "3"])[0].name == "toy-seed3"
    assert plan(recipe, tables, ["--seed=3", "--name", "mine"])[0].name == "mine"
    assert plan(recipe, tables, ["--name", "mine", "--seed", "3"])[0].name == "mine"
    run, steps, tables = plan(recipe, tables, ["--seed", "3"])
    assert [configure(step, tables, run, recipe).seed for step in steps] == [3] * 4


def test_a_preset_comes_before_the_recipe_and_the_recipe_before_the_command_line(recipe, toy):
    tables = load_recipe(recipe)
    tables["ppo"] |= {"preset": "nplus"}
    step = next(s for s in STEPS if s.name == "ppo")
    config = configure(step, tables, read_run(tables, recipe), recipe)
    assert (config.beta, config.inner_epochs, config.missing_eos) == (0.05, 4, "replace")
    assert (config.max_new_tokens, config.lr) == (6, 1e-3)  # the recipe's own


def test_a_preset_on_the_command_line_brings_its_values(recipe, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "_launch", lambda steps, configs, *_: seen.append(configs))
    assert main(["ppo", str(recipe), "--preset", "nplus", "--beta", "0.3"]) == 0
    (config,) = seen[0].values()
    assert (config.preset, config.beta, config.inner_epochs, config.lr) == ("nplus", 0.3, 4, 1e-3)


def test_rl_init_and_ppo_ptx_start_from_their_relatives(recipe):
    tables = load_recipe(recipe) | {"rl_init": {}, "ppo_ptx": {}, "world": {}}
    run, steps, tables = plan(recipe, tables, [])
    configs = {s.name: configure(s, tables, run, recipe) for s in steps}
    assert configs["rl-init"].lr == configs["sft"].lr == 1e-2
    assert (configs["rl-init"].epochs, configs["rl-init"].pretrain_fraction) == (2, 0.1)
    assert configs["ppo-ptx"].lr == configs["ppo"].lr == 1e-3
    assert (configs["ppo"].ptx_coef, configs["ppo-ptx"].ptx_coef) == (0.0, 27.8)
    assert configs["ppo"].policy == run.root / "toy" / "rl-init" / "model"


def test_files_inside_nested_tables_count_as_inputs(tmp_path):
    (tmp_path / "demos.jsonl").write_text("{}")
    (tmp_path / "text.jsonl").write_text("{}")
    long = "Answer. " * 50 + "{prompt} x=" + "y" * 300  # a text, and no path
    tables = {
        "data": {
            "root": str(tmp_path),
            "demonstrations": [{"path": "demos.jsonl", "template": long}],
            "pretrain": [{"path": "text.jsonl"}],
        }
    }
    recipe = tmp_path / "own.toml"
    run, (step,), tables = plan(recipe, tables, [])
    found = loop._inputs(configure(step, tables, run, recipe), run.root / run.name, recipe)
    assert found == [tmp_path / "demos.jsonl", tmp_path / "text.jsonl"]
    before = loop._fingerprint(step, configure(step, tables, run, recipe), found)
    (tmp_path / "demos.jsonl").write_text("{ }")
    assert loop._fingerprint(step, configure(step, tables, run, recipe), found) != before


def test_the_papers_preset_gives_ppo_and_ppo_ptx(recipe):
    tables = load_recipe(recipe) | {
        "world": {},
        "ppo": {"preset": "instructgpt"},
        "ppo_ptx": {},
    }
    run, steps, tables = plan(recipe, tables, [])
    found = {s.name: configure(s, tables, run, recipe) for s in steps if s.module == "ppo"}
    assert {name: (c.ptx_coef, c.ptx_ratio) for name, c in found.items()} == {
        "ppo": (0.0, 8.0),
        "ppo-ptx": (27.8, 8.0),
    }


# --- processes ----------------------------------------------------------------------------------


def test_the_work_of_a_run_can_be_sent_to_a_fresh_process(finished):
    """macOS starts processes anew: everything must pickle."""
    recipe, _ = finished
    run, steps, tables = plan(recipe, load_recipe(recipe), [])
    configs = {step.name: configure(step, tables, run, recipe) for step in steps}
    work = partial(loop._stages, [STEPS.index(s) for s in steps], configs, run, recipe)
    again = pickle.loads(pickle.dumps(work))
    assert again.args[1] == configs


def joined():
    from tercet.model.shard import Ranks

    return Ranks.start("cpu")


def good():
    ranks = joined()
    assert ranks.gather([ranks.rank] if ranks.rank < 2 else []) == [0, 1]
    ranks.close()


def wrong_input():
    ranks = joined()
    if ranks.main:
        raise InputError("file.jsonl:3: field 'x' is missing; add it")
    ranks.barrier()


def failed():
    joined()
    raise RunFailed("KL is not 0")


def crashed():
    ranks = joined()
    if ranks.rank == 1:
        raise ZeroDivisionError("a real bug")
    ranks.barrier()


def killed():
    ranks = joined()
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.barrier()


def interrupted():
    joined()
    raise KeyboardInterrupt


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize(
    ("work", "error", "message", "traceback"),
    [
        (wrong_input, InputError, r"file\.jsonl:3", False),
        (failed, RunFailed, "KL is not 0", False),
        (crashed, RunFailed, "its traceback is above", True),
        (killed, RunFailed, "ended by SIGKILL.*memory runs out.*last checkpoint", None),
        (interrupted, KeyboardInterrupt, None, False),
    ],
)
def test_what_goes_wrong_in_a_process_is_said_once(work, error, message, traceback, capfd):
    began = time.monotonic()
    with pytest.raises(error, match=message):
        launch(work, "cpu", 2, 1)
    assert time.monotonic() - began < 12
    said = capfd.readouterr().err
    if traceback is not None:
        assert ("Traceback" in said) == traceback
    if traceback:
        assert "a real bug" in said


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_processes_that_end_well_say_nothing(capfd):
    launch(good, "cpu", 2, 1)
    assert "Traceback" not in capfd.readouterr().err


def says_its_name_and_waits():
    ranks = joined()
    os.write(1, f"{os.getpid()}\n".encode())
    while True:
        ranks.broadcast(False)
        time.sleep(0.1)


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # Ended, but not yet collected by whoever inherited it.
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize(
    ("sent", "before"),
    [
        (signal.SIGKILL, ""),
        (signal.SIGTERM, ""),
        # As in the background of a shell script.
        (signal.SIGKILL, "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "),
    ],
)
def test_no_process_outlives_a_killed_parent(sent, before):
    code = "import tests.test_pipeline as t; t.launch(t.says_its_name_and_waits, 'cpu', 2, 1)"
    code = before + code
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    children = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(sent)
    parent.wait(10)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not all(map(gone, children)):
        time.sleep(0.1)
    parent.stdout.close()
    assert all(map(gone, children))


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_ctrl_c_on_two_processes_leaves_a_run_that_goes_on(toy, tmp_path, capfd):
    """The same command again gives the model of a run that nobody interrupted."""
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    recipes = {
        name: write_recipe(toy, tmp_path / name, processes=2, extra="kl_estimator = 'k1'")
        for name in ("whole", "broken")
    }
    options = ("--ppo.episodes", "320")
    run = tmp_path / "broken" / "runs" / "toy"
    broken = subprocess.Popen(
        [sys.executable, "-m", "tercet", "run", str(recipes["broken"]), *options],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C in a terminal reaches the whole group
    )  # fmt: skip
    metrics = run / "ppo" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (
        not metrics.exists() or metrics.read_text().count("\n") < 3
    ):
        time.sleep(0.02)
    os.killpg(broken.pid, signal.SIGINT)
    said = broken.communicate(timeout=60)[1]
    assert broken.returncode == 130, said
    assert "Traceback" not in said
    assert "tercet: interrupted; to go on from the last checkpoint: tercet run" in said
    assert not (run / "ppo" / "done.json").exists()
    steps = len(metrics.read_text().splitlines())
    assert 3 <= steps < 20
    capfd.readouterr()
    assert main(["run", str(recipes["broken"]), *options]) == 0
    assert outcome(capfd) == {name: "ran" if name == "ppo" else "skipped" for name in STAGES}
    assert main(["run", str(recipes["whole"]), *options]) == 0
    expected = tmp_path / "whole" / "runs" / "toy"
    assert same(weights(run / "ppo" / "model"), weights(expected / "ppo" / "model"))
    assert [row["step"] for row in RunDir(run / "ppo").metrics()] == list(range(20))


def test_two_runs_do_not_share_a_folder(recipe, capsys):
    run = read_run(load_recipe(recipe), recipe)
    held = loop._lock(run.root / run.name)
    assert held is not None
    try:
        assert main(["run", str(recipe), "--until", "pretrain"]) == 2
        assert "another tercet is working in this run" in capsys.readouterr().err
    finally:
        held.close()
    assert main(["run", str(recipe), "--until", "pretrain"]) == 0
