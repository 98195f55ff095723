import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from tercet.config import build, load_recipe, override, to_toml
from tercet.records import InputError


@dataclass(frozen=True)
class Inner:
    scale: float = 1.0
    """how much"""


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path
    """where the data lie"""
    lr: float = 1e-5
    """the learning rate"""
    num_steps: int = 3
    whiten: bool = True
    kind: Literal["k1", "k2", "k3"] = "k1"
    start: Path | None = None
    reference: Path | None = Path("sft/model")
    stops: tuple[str, ...] = ("\n",)
    betas: tuple[float, float] = (0.9, 0.95)
    grid: list[list[int]] = field(default_factory=lambda: [[1], [2, 3]])
    inner: Inner = Inner()
    model: dict[str, Any] = field(default_factory=dict)
    replies: int | tuple[int, int] = 4

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; give at least 1")


CONFIG = Config(data=Path("in.jsonl"))


def complaint(table):
    with pytest.raises(InputError) as caught:
        build(Config, {"data": "x", **table}, "demo.toml [ppo]")
    message = str(caught.value)
    assert message.startswith("demo.toml [ppo]")
    return message


def test_every_kind_of_value_is_built():
    config = build(
        Config,
        {
            "data": "in.jsonl",
            "lr": 1,
            "stops": [".", "!"],
            "betas": [0, 1.0],
            "grid": [[5]],
            "inner": {"scale": 2},
            "start": "model",
            "reference": "none",
            "replies": [4, 9],
            "model": {"layers": 2, "names": ["a"]},
        },
        "demo.toml [ppo]",
    )
    assert config == Config(
        data=Path("in.jsonl"),
        lr=1.0,
        stops=(".", "!"),
        betas=(0.0, 1.0),
        grid=[[5]],
        inner=Inner(2.0),
        start=Path("model"),
        reference=None,
        replies=(4, 9),
        model={"layers": 2, "names": ["a"]},
    )
    assert type(config.lr) is float


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ({"num_step": 1}, ["unknown option 'num_step'", "did you mean 'num_steps'?"]),
        ({"zzz": 1}, ["unknown option 'zzz'", "choose from data, lr"]),
        ({"lr": "fast"}, ["option 'lr' must be a number", '"fast"']),
        ({"lr": True}, ["option 'lr' must be a number"]),
        ({"num_steps": 1.0}, ["option 'num_steps' must be a whole number"]),
        ({"whiten": 1}, ["option 'whiten' must be true or false"]),
        ({"kind": "k4"}, ["option 'kind'", '"k4"', "choose from k1, k2, k3"]),
        ({"betas": [0.9]}, ["option 'betas' must hold 2 values, found 1"]),
        ({"stops": "abc"}, ["option 'stops' must be a list"]),
        ({"stops": ["a", 3]}, ["option 'stops[1]' must be a text"]),
        ({"inner": {"scal": 1}}, ["[ppo] inner", "did you mean 'scale'?"]),
        ({"start": 3}, ["option 'start' must be a path in quotes"]),
        ({"replies": "x"}, ["must be a whole number or a list"]),
        ({"num_steps": 0}, ["num_steps is 0; give at least 1"]),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(table, parts):
    message = complaint(table)
    for part in parts:
        assert part in message


def test_a_missing_option_is_named():
    with pytest.raises(InputError, match=r"demo\.toml \[ppo\]: option 'data' is missing"):
        build(Config, {}, "demo.toml [ppo]")


def test_true_is_not_one():
    @dataclass(frozen=True)
    class Levels:
        level: Literal[0, 1] = 0

    assert build(Levels, {"level": 1}, "r.toml").level == 1
    with pytest.raises(InputError, match="option 'level' is true; choose from 0, 1"):
        build(Levels, {"level": True}, "r.toml")


def test_a_value_where_a_table_belongs():
    with pytest.raises(InputError, match="expected a table"):
        build(Config, 3, "demo.toml [ppo]")  # type: ignore[arg-type]


def test_toml_gives_back_the_same_config():
    config = Config(
        data=Path('a "b" \\ c'),
        lr=1e-7,
        reference=None,
        stops=("\n", "\x7f", "é🙂", ""),
        model={"a b": 1, "deep": {"on": True, "list": [1.5, "x"]}},
        inner=Inner(float("inf")),
        replies=(4, 9),
    )
    text = to_toml(config, "ppo")
    assert text.startswith("[ppo]\n")
    assert build(Config, tomllib.loads(text)["ppo"], "x") == config


def test_toml_without_a_table_is_flat():
    assert to_toml(Inner(0.5)) == "scale = 0.5\n"


def test_flags_override_only_what_they_name():
    argv = [
        "--lr",
        "0.5",
        "--no-whiten",
        "--stops",
        "a",
        "b",
        "--inner.scale",
        "7",
        "--num-steps=9",
    ]
    changed = override(CONFIG, argv)
    assert changed == Config(
        data=Path("in.jsonl"),
        lr=0.5,
        whiten=False,
        stops=("a", "b"),
        inner=Inner(7.0),
        num_steps=9,
    )
    assert override(CONFIG, []) == CONFIG


def test_flags_reach_into_tables():
    assert override(Config(data=Path("x"), model={"layers": 2}), ["--model.layers", "4"]).model == {
        "layers": 4
    }


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--num-step", "1"], ["unknown option --num-step;", "did you mean --num-steps?"]),
        (["--zzz"], ["unknown option --zzz; --help lists all"]),
        (["--lr", "fast"], ["--lr", "'fast'"]),
        (["--kind", "k9"], ["k9", "'k1', 'k2', 'k3'"]),
        (["--num-steps", "0"], ["num_steps is 0; give at least 1"]),
        (["stray"], ["stray"]),
        (["--lr"], ["--lr", "Missing value"]),
    ],
)
def test_a_wrong_flag_is_one_clear_line(argv, parts, capsys):
    with pytest.raises(InputError) as caught:
        override(CONFIG, argv)
    message = str(caught.value)
    assert "\n" not in message
    assert "│" not in message and "─" not in message
    for part in parts:
        assert part in message
    assert capsys.readouterr() == ("", "")


def test_help_lists_options_with_their_sentence_and_value(capsys):
    with pytest.raises(SystemExit) as stop:
        override(CONFIG, ["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "the learning rate" in shown and "1e-05" in shown and "--num-steps" in shown


def test_a_recipe_is_read(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[sft]\nlr = 1e-4\ntext = """a\n\n  \nb"""\n', encoding="utf-8")
    assert load_recipe(path) == {"sft": {"lr": 1e-4, "text": "a\n\n  \nb"}}


@pytest.mark.parametrize(
    ("text", "line"), [("a = 1\n\nb = \n", 3), ("a = 1\na = 2\n", 2), ('a = """\n\nopen', 3)]
)
def test_broken_toml_names_file_and_line(tmp_path, text, line):
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}:{line}: not TOML")


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_recipe(tmp_path / "r.toml")
