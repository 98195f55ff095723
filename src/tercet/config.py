"""Recipe TOML plus command-line overrides become frozen stage configs, and go back to TOML.

recipe = load_recipe(Path("recipes/demo.toml"))
config = build(PPOConfig, recipe["ppo"], "recipes/demo.toml [ppo]")
config = override(config, ["--ptx-coef", "27.8"])
text = to_toml(config, "ppo")
"""

import contextlib
import io
import json
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tercet.records import InputError, read_lines

C = TypeVar("C")

_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def load_recipe(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        InputError: no such file, not UTF-8, or not TOML; names file and line.
    """
    text = "".join(line for _, line in read_lines(path))
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
        message = (
            str(error)[: place.start()]
            if place
            else str(error).removesuffix(" (at end of document)")
        )
        line = place[1] if place else str(text.count("\n") + 1)
        raise InputError(f"{path}:{line}: not TOML: {message}; mend this line") from error


def build(cls: type[C], table: Mapping[str, Any], where: str) -> C:
    """A frozen config dataclass from one TOML table; every value is checked against its type.

    A whole number is accepted for a float, a text for a Path, a list for a tuple, a table for a
    nested dataclass, and "none" for an optional value. `where` names the table in errors.

    Raises:
        InputError: unknown, missing or mistyped option, or a ValueError from `__post_init__`.
    """
    if not isinstance(table, Mapping):
        raise InputError(
            f"{where}: expected a table of options, found {_show(table)}; write [name]"
        )
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls) if field.init}  # pyright: ignore[reportArgumentType]
    for name in table:
        if name not in known:
            raise InputError(f"{where}: unknown option '{name}'{suggest(name, known)}")
    for name, field in known.items():
        if name not in table and _required(field):
            raise InputError(f"{where}: option '{name}' is missing; add it")
    values = {name: _coerce(value, hints[name], where, name) for name, value in table.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def suggest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """The remedy part of an error about a name: the nearest known one, or all of them."""
    near = get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; choose from {', '.join(known) or 'none'}"


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _coerce(value: Any, hint: Any, where: str, name: str) -> Any:
    """`value` as `hint` wants it, or InputError naming the option."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(value, arguments, where, name)
    if origin is Literal:
        # bool is an int: compare types too, so that `true` is not accepted for 1.
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        choices = [str(choice) for choice in arguments]
        raise InputError(
            f"{where}: option '{name}' is {_show(value)}{suggest(str(value), choices)}"
        )
    if hint is float and type(value) is int:
        return float(value)
    if hint in _PLAIN and type(value) is hint:
        return value
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        return _coerce_sequence(list(value), origin, arguments, where, name)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: _coerce(v, arguments[1], where, f"{name}.{key}") for key, v in value.items()}
    if is_dataclass(hint) and isinstance(value, dict):
        return build(hint, value, f"{where} {name}")  # pyright: ignore[reportArgumentType]
    raise InputError(f"{where}: option '{name}' must be {_describe(hint)}, found {_show(value)}")


def _coerce_union(value: Any, choices: tuple[Any, ...], where: str, name: str) -> Any:
    if type(None) in choices and (value is None or value == "none"):
        return None
    wanted = [choice for choice in choices if choice is not type(None)]
    problems = []
    for choice in wanted:
        try:
            return _coerce(value, choice, where, name)
        except InputError as error:
            problems.append(error)
    if len(wanted) == 1:  # the only alternative's own words are the most precise
        raise problems[0]
    names = " or ".join(_describe(choice) for choice in wanted)
    raise InputError(f"{where}: option '{name}' must be {names}, found {_show(value)}")


def _coerce_sequence(
    value: list[Any], origin: type, arguments: tuple[Any, ...], where: str, name: str
) -> list[Any] | tuple[Any, ...]:
    fixed = origin is tuple and Ellipsis not in arguments
    if fixed and len(value) != len(arguments):
        raise InputError(
            f"{where}: option '{name}' must hold {len(arguments)} values, found {len(value)}"
        )
    hints = arguments if fixed else [arguments[0]] * len(value)
    items = [
        _coerce(item, hint, where, f"{name}[{index}]")
        for index, (item, hint) in enumerate(zip(value, hints, strict=True))
    ]
    return items if origin is list else tuple(items)


def _describe(hint: Any) -> str:
    if hint in _PLAIN:
        return _PLAIN[hint]
    if hint is Path:
        return "a path in quotes"
    if is_dataclass(hint) or get_origin(hint) in (dict, Mapping):
        return "a table"
    return "a list" if get_origin(hint) in (list, tuple, Sequence) else str(hint)


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:60]


def override(config: C, argv: Sequence[str], prog: str = "tercet VERB RECIPE") -> C:
    """The config with command-line flags applied: `--kebab-case value`, `--flag` / `--no-flag`.

    `--help` prints every option with its present value and exits 0.

    Raises:
        InputError: an unknown flag (with the nearest known one), or a value that does not fit.
    """
    import tyro  # 0.1 s: only when a stage really starts

    said = io.StringIO()
    known = ["--help", *_flags(config)]
    for argument in argv:
        flag = argument.split("=", 1)[0].replace("_", "-")
        if re.fullmatch(r"--[a-zA-Z].*", flag) and flag not in known:
            near = get_close_matches(flag, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists all"
            raise InputError(f"unknown option {argument.split('=', 1)[0]}; {hint}")
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(type(config), default=config, args=list(argv), prog=prog)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        message = plain_message(said.getvalue())
        raise InputError(f"{' '.join(argv)}: {message}; --help lists all") from stop


def _flags(value: Any, prefix: str = "--") -> list[str]:
    """All flags of a config as tyro names them: --name, --no-switch, --outer.inner, --list.0."""
    if is_dataclass(value):
        items = {
            field.name.replace("_", "-"): getattr(value, field.name) for field in fields(value)
        }
    elif isinstance(value, Mapping):
        items = dict(value)
    else:
        items = {str(index): item for index, item in enumerate(value)}
    flags = []
    for name, item in items.items():
        flags.append(f"{prefix}{name}")
        if isinstance(item, bool):
            flags.append(f"{prefix}no-{name}")
        if is_dataclass(item) or isinstance(item, Mapping | list | tuple):
            flags += _flags(item, f"{prefix}{name}.")
    return flags


def plain_message(box: str) -> str:
    """What tyro says in a frame of several lines, as one line without the frame and its hints."""
    lines = [line.strip("│ ") for line in box.splitlines() if re.search(r"\w", line)]
    text = " ".join(" ".join(lines[1:]).split())  # the first line is the frame's title
    text = re.split(r" (?:Argument helptext|Perhaps you meant|For full helptext)", text)[0]
    return re.sub(r"^Error parsing \S+: ", "", text).strip()


def to_toml(config: Any, table: str = "") -> str:
    """The config as TOML, under `[table]` if given, which `build` turns into an equal config.

    TOML has no null: None is left out where it is the default, and written "none" elsewhere.
    """
    header = [f"[{table}]"] if table else []
    return "\n".join([*header, *(f"{key} = {text}" for key, text in _entries(config))]) + "\n"


def _entries(config: Any) -> list[tuple[str, str]]:
    if isinstance(config, Mapping):
        return [(_key(k), _value(v)) for k, v in config.items() if v is not None]
    shown = []
    for field in fields(config):
        value = getattr(config, field.name)
        if field.init and not (value is None and field.default is None):
            shown.append((field.name, _value(value)))
    return shown


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        # JSON's escapes are TOML's, but TOML also wants DEL escaped.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    return f"{{ {', '.join(f'{key} = {text}' for key, text in _entries(value))} }}"
