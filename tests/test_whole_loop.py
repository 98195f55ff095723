"""Every stage of a recipe on a very small world, from raw text to report and figures."""

import json

import pytest

from tercet.cli import main
from tercet.records import Ranking, read_records
from tercet.rundir import RunDir

RECIPE = """
[run]
root = "{folder}"

[world]
documents = 60
held_out_documents = 8
demonstrations = 60
valid_demonstrations = 20
rm_prompts = 30
ppo_prompts = 40
valid_prompts = 8
test_prompts = 12
new_place_prompts = 4
prefixes = 2

[pretrain]
tokenizer = "word"
vocabulary = 1000
context = 64
batch = 8
warmup = 4

[pretrain.model]
model_type = "llama"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2

[sft]
lr = 2e-3
batch = 16
epochs = 2

[rl_init]
context = 64

[sample]
k = "3-4"
max_new_tokens = 16

[label]
valid_fraction = 0.3

[rm]
lr = 1e-3
batch = 8

[select]
max_new_tokens = 16

[ppo]
episodes = 64
rollout_batch = 32
minibatch = 16
max_new_tokens = 16
lr = 1e-4
context = 64

[ppo_ptx]
ptx_coef = 1.0
ptx_ratio = 0.5

[eval]
splits = ["test", "test-new-place"]
stop_text = "\\n"
max_new_tokens = 16
context = 64
resamples = 200
"""
ARMS = {"gpt", "gpt-prompted", "sft", "ppo", "ppo-ptx"}
VERBS = {
    "data", "pretrain", "sft", "rl-init", "sample", "label", "rm", "select", "ppo", "ppo-ptx",
    "eval",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run's folder."""
    folder = tmp_path_factory.mktemp("loop")
    recipe = folder / "small.toml"
    recipe.write_text(RECIPE.format(folder=folder))
    assert main(["run", str(recipe)]) == 0
    return folder / "small"


@pytest.fixture(scope="module")
def report(run):
    return json.loads((run / "report.json").read_text())


def test_every_arm_has_its_win_rate_with_an_interval(report):
    assert set(report["arms"]) == ARMS
    for arm in report["arms"].values():
        assert 0 <= arm["low"] <= arm["win_rate"] <= arm["high"] <= 1
        assert arm["n"] == 12


def test_the_tax_is_counted_from_the_base_model(report):
    assert report["tax"]["gpt"] == 0
    assert set(report["tax"]) >= {"sft", "ppo", "ppo-ptx"}


def test_the_reward_model_is_measured_beside_its_labelers(report):
    found = report["reward_model"]
    assert 0 <= found["low"] <= found["accuracy"] <= found["high"] <= 1
    assert 0.5 < found["labeler_ceiling"] <= 1
    assert 0 <= found["labeler_agreement"] <= 1


def test_every_verb_has_its_seconds(report):
    assert set(report["stages"]) == VERBS
    assert all(stage["seconds"] >= 0 for stage in report["stages"].values())


def test_figures_and_tables_are_there(run):
    names = {path.name for path in (run / "eval").rglob("*") if path.is_file()}
    figures = {
        f"{name}.{kind}" for name in ("figure1", "ppo", "calibration") for kind in ("svg", "png")
    }
    assert names >= figures | {"report.md"}
    for path in (run / "eval").rglob("*.svg"):
        assert path.stat().st_size > 1000


def test_every_stage_says_what_it_ran_and_on_what(run):
    for verb in VERBS:
        assert (run / verb / "config.toml").read_text().startswith("[run]")
        environment = json.loads((run / verb / "environment.json").read_text())
        assert environment["versions"]["torch"]
        for path, digest in environment["inputs"].items():
            assert str(run) in path
            assert len(digest) == 64


def test_what_comes_from_the_world_says_that_it_is_simulated(run, report):
    rankings = read_records(run / "label" / "rankings.jsonl", Ranking)
    assert {r.judge for r in rankings} == {"simulated"}
    assert "simulated" in (run / "eval" / "report.md").read_text()


def test_gold_is_logged_in_every_iteration_of_ppo(run):
    for verb in ("ppo", "ppo-ptx"):
        rows = RunDir(run / verb).metrics()
        assert len(rows) == 2
        assert all("gold" in row for row in rows)
    assert "ptx_loss" in RunDir(run / "ppo-ptx").metrics()[0]
    assert "ptx_loss" not in RunDir(run / "ppo").metrics()[0]


def test_a_second_run_has_nothing_to_do(run, capsys):
    before = (run / "report.json").read_bytes()
    assert main(["run", str(run.parent / "small.toml")]) == 0
    said = capsys.readouterr().err
    assert said.count("unchanged, skipped") == len(VERBS)
    assert (run / "report.json").read_bytes() == before
