import errno
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import tercet
from tercet.cli import STAGES, main, packaged_recipe
from tercet.records import InputError


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "demo.toml"
    path.write_text("[sft]\n")
    return path


@pytest.fixture
def pipeline(monkeypatch):
    """A pipeline that only remembers its calls, or raises what a test puts into `error`."""
    fake = types.ModuleType("tercet.pipeline")
    fake.calls, fake.error = [], None

    def remember(*call):
        fake.calls.append(call)
        if fake.error is not None:
            raise fake.error

    fake.run_recipe = lambda recipe, argv: remember("recipe", recipe, argv)
    fake.run_stage = lambda verb, recipe, argv: remember(verb, recipe, argv)
    monkeypatch.setitem(sys.modules, "tercet.pipeline", fake)
    monkeypatch.setattr(tercet, "pipeline", fake, raising=False)
    return fake


def test_run_passes_recipe_and_options(recipe, pipeline):
    assert main(["run", str(recipe), "--seed", "3"]) == 0
    assert pipeline.calls == [("recipe", recipe, ["--seed", "3"])]


@pytest.mark.parametrize("verb", STAGES)
def test_a_stage_verb_passes_recipe_and_options(verb, recipe, pipeline):
    assert main([verb, str(recipe), "--lr", "0.1"]) == 0
    assert pipeline.calls == [(verb, recipe, ["--lr", "0.1"])]


def test_demo_runs_the_packaged_recipe(pipeline, monkeypatch, recipe):
    monkeypatch.setattr("tercet.cli.packaged_recipe", lambda name: recipe.parent / name)
    assert main(["demo", "--seed", "5"]) == 0
    assert pipeline.calls == [("recipe", recipe, ["--seed", "5"])]


def test_the_packaged_recipe_is_the_visible_one():
    assert packaged_recipe("demo.toml") == Path(__file__).parents[1] / "recipes" / "demo.toml"


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb in (*STAGES, "demo", "run"):
        assert f" {verb} " in shown


def test_no_verb_shows_help_and_is_wrong_input(capsys):
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [*STAGES, "run", "demo"])
def test_a_verb_explains_itself_without_a_recipe(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert f"usage: tercet {verb}" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tercet {tercet.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["pp"], "unknown verb 'pp'; did you mean 'ppo'?"),
        (["xyzzy"], "unknown verb 'xyzzy'; tercet --help lists the verbs"),
        (["ppo"], "'ppo' needs a recipe first: tercet ppo recipes/demo.toml"),
        (["ppo", "--lr", "1"], "'ppo' needs a recipe first"),
        (["run", "{folder}/dmo.toml"], "no such recipe; did you mean {folder}/demo.toml?"),
        (["run", "{folder}/gone/x.toml"], "no such recipe; check the path"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(argv, said, recipe, pipeline, capsys):
    folder = str(recipe.parent)
    assert main([part.replace("{folder}", folder) for part in argv]) == 2
    err = capsys.readouterr().err
    assert said.replace("{folder}", folder) in err
    assert err.startswith("tercet: ") and err.count("\n") == 1
    assert pipeline.calls == []


def test_an_input_error_is_one_line_without_traceback(recipe, pipeline, capsys):
    pipeline.error = InputError("pairs.jsonl:3: field 'rank' is missing;\nadd it")
    assert main(["rm", str(recipe)]) == 2
    said = capsys.readouterr().err
    assert said == "tercet: pairs.jsonl:3: field 'rank' is missing; add it\n"


def test_an_interruption_says_how_to_go_on(recipe, pipeline, capsys):
    pipeline.error = KeyboardInterrupt()
    assert main(["run", str(recipe), "--seed", "3"]) == 130
    assert f"tercet run {recipe} --seed 3" in capsys.readouterr().err


def test_a_full_disk_is_one_line(recipe, pipeline, capsys):
    pipeline.error = OSError(errno.ENOSPC, "No space left on device", "model.safetensors")
    assert main(["sft", str(recipe)]) == 1
    err = capsys.readouterr().err
    assert "disk is full (model.safetensors)" in err and err.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "broken"), KeyError(1)])
def test_bugs_keep_their_traceback(error, recipe, pipeline):
    pipeline.error = error
    with pytest.raises(type(error)):
        main(["sft", str(recipe)])


def test_the_command_exits_with_the_code():
    run = subprocess.run(
        [sys.executable, "-m", "tercet", "nonsense"], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr == "tercet: unknown verb 'nonsense'; tercet --help lists the verbs\n"


def test_help_is_instantaneous():
    seconds = []
    for _ in range(3):  # the best of three: other tests run beside this one
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tercet", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2  # 0.1 s on an idle machine
