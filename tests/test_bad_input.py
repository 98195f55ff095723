"""Wrong input through the real command line: exit code 2, one line that says what to do."""

import json
import re
import shutil

import pytest

from tercet.cli import main
from tests.toy import write_recipe


@pytest.fixture
def recipe(toy, tmp_path):
    return write_recipe(toy, tmp_path)


@pytest.fixture
def refused(recipe, capsys):
    """refused(argv, message): exit code 2, the line matches, and the stage left no result."""

    def check(argv, message):
        code = main([str(a) for a in argv])
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if line.startswith("tercet: ")]
        assert code == 2, said
        assert len(lines) == 1, said
        assert lines[0] == said.splitlines()[-1]
        assert re.search(message, lines[0]), lines[0]
        assert "Traceback" not in said
        left = [path.name for path in (recipe.parent / "runs").rglob("*")]
        assert "done.json" not in left
        assert "model" not in left
        assert not [name for name in left if "partial" in name or "tmp" in name]

    return check


def edit(path, row, change):
    """Change one line (counted from 1) of a JSONL file; `change` gets and returns an object."""
    lines = path.read_text().splitlines(keepends=True)
    changed = change(json.loads(lines[row - 1]))
    lines[row - 1] = (changed if isinstance(changed, str) else json.dumps(changed)) + "\n"
    path.write_text("".join(lines))


def without(field):
    return lambda record: {k: v for k, v in record.items() if k != field}


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sft", "--learning-rate", "1"], "unknown option --learning-rate; "),
        (["sft", "--epoch", "1"], "unknown option --epoch; did you mean --epochs?"),
        (["sft", "--epochs", "many"], "epochs.*--help lists all"),
        (["sft", "--epochs", "0"], "epochs must be at least 1"),
        (["ppo", "--rollout-batch", "20"], r"rollout_batch \(20\) must be a multiple of minibatch"),
        (["ppo", "--preset", "openai"], "preset"),
        (["run", "--ppo.betta", "0.1"], r"\[ppo\]: unknown option 'betta'; did you mean 'beta'?"),
        (["run", "--sft.lr", "fast"], r"\[sft\]: option 'lr' must be a number, found \"fast\""),
        (["run", "--beta", "0.1"], r"--beta is not known to `tercet run`.* --ppo\.beta 0\.1"),
        (["run", "--until", "sfd"], "--until sfd: not a stage of .*did you mean 'sft'?"),
        (["run", "--processes", "0"], "processes and threads must be at least 1"),
        (["run", "--device", "tpu"], "device 'tpu' is not known; use auto, cpu, cuda or cuda:N"),
        (["run", "--seed"], "needs a value"),
        (["ptx"], "unknown verb 'ptx'"),
    ],
)
def test_a_wrong_option(argv, message, recipe, refused):
    refused([argv[0], recipe, *argv[1:]], message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[sft]", "[sftt]", r"toy\.toml: table \[sftt\] is not known; did you mean 'sft'?"),
        ("epochs = 2", "epoch = 2", r"toy\.toml \[sft\]: unknown option 'epoch'; did you mean"),
        ("epochs = 2", "epochs = true", r"\[sft\]: option 'epochs' must be a whole number"),
        ("epochs = 2", "epochs = = 2", r"toy\.toml:\d+: not TOML: .*mend this line"),
        ('tokenizer = "word"', 'tokenizer = "words"', r"option 'tokenizer' .*did you mean 'word'?"),
        ("batch = 8\nwarmup = 2", "batch = 800", r"text\.jsonl: \d+ windows .* smaller batch"),
        ("context = 8", "context = 1", r"\[pretrain\]: context must be at least 2"),
    ],
)
def test_a_wrong_recipe(old, new, message, recipe, refused):
    text = recipe.read_text()
    assert text.count(old) >= 1
    recipe.write_text(text.replace(old, new, 1))
    refused(["run", recipe], message)


def test_a_missing_recipe_names_its_neighbour(recipe, refused):
    refused(
        ["run", recipe.with_name("tony.toml")], r"tony\.toml: no such recipe; did you mean .*toy"
    )


# --- files --------------------------------------------------------------------------------------


@pytest.fixture
def sft(recipe, toy):
    return ["sft", recipe, "--model", toy.policy]


@pytest.fixture
def rm(recipe, toy):
    return ["rm", recipe, "--model", toy.policy]


@pytest.fixture
def ppo(recipe, toy):
    return ["ppo", recipe, "--policy", toy.policy, "--reward", toy.reward]


def test_a_missing_file_names_its_neighbour(recipe, sft, refused):
    path = recipe.parent / "demonstrations.jsonl"
    path.rename(recipe.parent / "demonstration.jsonl")
    refused(sft, r"demonstrations\.jsonl: no such file; did you mean .*demonstration\.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("response"), "3: field 'response' is missing; add it"),
        (lambda r: r | {"answer": "x"}, "3: unknown field 'answer'"),
        (lambda r: r | {"prompt": 7}, "3: field 'prompt': .*correct it"),
        (lambda r: r | {"schema": "tercet.ranking/1"}, "3: schema is 'tercet.ranking/1' where"),
        (lambda r: "{half", "3: not one JSON object"),
        (lambda r: r | {"prompt": ""}, ": demonstration 'd2': an empty prompt .*give it a text"),
    ],
)
def test_a_wrong_row_of_demonstrations(change, message, recipe, sft, refused):
    edit(recipe.parent / "demonstrations.jsonl", 3, change)
    refused(sft, r"demonstrations\.jsonl:? ?" + message.removeprefix(": "))


def test_another_encoding(recipe, sft, refused):
    path = recipe.parent / "demonstrations.jsonl"
    edit(path, 4, lambda r: r | {"response": " caf\u00e9"})
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].decode().encode("utf-8").replace(b"\\u00e9", "é".encode("latin-1"))
    path.write_bytes(b"".join(lines))
    refused(sft, r"demonstrations\.jsonl:4: not UTF-8 .*save the file as UTF-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["replies"][0].update(rank="first"), r"2: field 'replies\.0\.rank'"),
        (lambda r: r["replies"][0].update(rank=0), r"2: field 'replies\.0\.rank'.*found 0"),
        (lambda r: r["replies"][1].update(rank=1.5), r"2: field 'replies\.1\.rank'"),
        (lambda r: r.update(replies=r["replies"][:1]), "2: field 'replies'.*at least 2"),
        (lambda r: r["replies"][1].update(id="0"), "2: two entries have the reply id '0'"),
        (lambda r: r.update(prompt=""), " ranking 'r1': an empty prompt"),
    ],
)
def test_a_wrong_row_of_rankings(change, message, recipe, rm, refused):
    edit(recipe.parent / "rankings.jsonl", 2, lambda r: change(r) or r)
    refused(rm, r"rankings\.jsonl:" + message)


def test_rankings_that_decide_nothing(recipe, rm, refused):
    path = recipe.parent / "rankings.jsonl"
    for row in range(1, 31):
        edit(path, row, lambda r: r | {"replies": [x | {"rank": 1} for x in r["replies"]]})
    refused(rm, r"rankings\.jsonl: .*30 all tied.*no preference to learn; give rankings")


def test_a_model_of_another_vocabulary(recipe, toy, sft, refused, tmp_path):
    shutil.copytree(toy.policy, tmp_path / "wrong")
    path = tmp_path / "wrong" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 10}))
    refused(
        ["sft", recipe, "--model", tmp_path / "wrong"],
        r"wrong: the tokenizer has ids up to 17, but the model's vocabulary is only 10",
    )


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_model_folder(missing, recipe, toy, refused, tmp_path):
    shutil.copytree(toy.policy, tmp_path / "half")
    (tmp_path / "half" / missing).unlink()
    refused(["sft", recipe, "--model", tmp_path / "half"], "half: ")


def test_a_reply_that_does_not_fit_behind_its_prompt(ppo, refused):
    refused(
        [*ppo, "--max-new-tokens", "62"],
        "sequences of 66 tokens do not fit this llama model, which has 64 positions: lower",
    )


def test_fewer_prompts_than_an_iteration_needs(ppo, refused):
    refused(
        [*ppo, "--rollout-batch", "64", "--episodes", "64"],
        r"prompts\.jsonl: 32 prompts of split 'ppo'.* needs 64; give more prompts or a smaller",
    )


def test_a_policy_given_as_reward_model(recipe, toy, refused):
    refused(
        ["ppo", recipe, "--policy", toy.policy, "--reward", toy.policy],
        "policy: this is no scalar model.*train one with `tercet rm`",
    )


def test_two_processes_say_it_once_too(recipe, refused):
    (recipe.parent / "text.jsonl").write_text('{"title": "x"}\n')
    refused(["run", recipe, "--processes", "2"], r"text\.jsonl:1: field 'text' is missing")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_fails_for_a_known_reason_says_it_in_one_line(
    processes, recipe, toy, ppo, capfd
):
    """Exit code 1: the input was fine."""
    options = ["--kl-abort", "0.01", "--lr", "0.1", "--warmup-iterations", "0"]
    text = recipe.read_text().replace("processes = 1", f"processes = {processes}")
    recipe.write_text(text)
    assert main([str(a) for a in [*ppo, *options]]) == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("tercet: ")]
    assert len(lines) == 1
    assert re.search(r"passed kl_abort 0\.01 at iteration 1; raise beta or lower lr", lines[0])
    assert not (recipe.parent / "runs" / "toy" / "ppo" / "done.json").exists()
