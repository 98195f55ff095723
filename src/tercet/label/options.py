"""The command line of `tercet label <sub>`: its options, and one-line errors about them."""

import contextlib
import io
import re
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from pydantic import ValidationError
from tyro.conf import Positional, arg

from tercet.config import plain_message
from tercet.label.schema import Kind
from tercet.label.settings import Settings
from tercet.records import InputError

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class Store:
    source: Positional[Annotated[Path, arg(metavar="SOURCE")]]
    """A run's folder or a stage's (runs/demo/sample), a .jsonl of candidates or prompts, or a
    .sqlite store."""
    database: str | None = None
    """Keep the labels in PostgreSQL: postgresql+psycopg://user@host/name."""


@dataclass(frozen=True, kw_only=True)
class Into(Store):
    kind: Kind | None = None
    """What the records are for. Candidates: rank (the default) or evaluate, blind; prompts:
    demonstration."""
    project: str | None = None
    """The project's name, which labelers see. Named by its kind otherwise."""
    criterion: str | None = None
    """What replies are judged by, shown on the page and kept in every ranking."""
    guidelines: Path | None = None
    """A Markdown file that labelers read first. Another text makes a new version."""
    settings: Annotated[Settings, arg(name="")] = field(default_factory=Settings)


@dataclass(frozen=True, kw_only=True)
class Serve(Into):
    """Serve the labeling page, and print a link for a labeler and one for the admin."""

    host: str = "127.0.0.1"
    """Where to listen. Other machines reach it only with TLS or behind a proxy that has TLS."""
    port: int = 8765
    """0 takes any free port."""
    workers: int = 1
    """Server processes, with PostgreSQL only."""
    tls_cert: Path | None = None
    """PEM file of the server's certificate."""
    tls_key: Path | None = None
    """PEM file of its key."""
    behind_proxy: bool = False
    """A proxy with TLS stands in front; its X-Forwarded headers are believed."""
    public_url: str | None = None
    """The address that labelers type, for the links and for the check of where requests come
    from."""
    name: str = "labeler-1"
    """Whom the printed labeler's link is for."""


@dataclass(frozen=True, kw_only=True)
class Import(Into):
    """Import records into a store: all rows of a file, or none. Files of an export put its
    answers back."""

    files: Positional[tuple[Annotated[Path, arg(metavar="FILE")], ...]]
    """.jsonl or .jsonl.gz files of candidates, prompts or, with --gold, rankings; or those of an
    export: demonstrations, rankings, evaluations, answers."""
    gold: bool = False
    """The files hold rankings whose answers are known, to test labelers with."""
    dry_run: bool = False
    """Only say what would be imported."""


@dataclass(frozen=True, kw_only=True)
class Invite(Store):
    """Make a link for a labeler. The same name keeps all its work."""

    name: Positional[Annotated[str, arg(metavar="NAME")]]
    """An alias; exports carry nothing else about a person."""
    group: Literal["train", "heldout", "research"] | None = None
    """heldout labelers never see training prompts."""
    admin: bool = False
    """An administrator: may see everything, and invite."""
    simulated: bool = False
    """A program; what it answers is marked as simulated for ever."""
    days: float = 7
    """The link works once, within so many days."""
    url: str = "http://127.0.0.1:8765"
    """Where the server is for the labeler."""


@dataclass(frozen=True, kw_only=True)
class Status(Store):
    """Show how far each project and each labeler is."""


@dataclass(frozen=True, kw_only=True)
class Export(Store):
    """Write demonstrations, rankings, agreement and the audit trail as files."""

    out: Path | None = None
    """The folder to write to; `export` beside the store otherwise."""
    pairs: bool = False
    """Also write rankings as pairs, for other tools."""
    project: str | None = None
    """Only this project, by its name or id."""
    gold: bool = False
    """With answers to items whose answer was known."""
    repeats: bool = False
    """With second answers to items that the same labeler had seen before."""


@dataclass(frozen=True, kw_only=True)
class Backup(Store):
    """Copy a SQLite store as it is now, also while the server runs."""

    out: Path | None = None
    """The file to write; otherwise beside the store, named by the time."""


@dataclass(frozen=True, kw_only=True)
class Verify(Store):
    """Check the audit trail, and every answer and counter against it."""


def parse(type_: type[C], argv: list[str], prog: str) -> C:
    """The options that `argv` gives. `--help` prints them and exits 0.

    Raises:
        InputError: an unknown option (with the nearest known one), or a value that does not fit.
    """
    known = ["--help", *flags(type_)]
    for argument in argv:
        flag = argument.split("=", 1)[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            near = get_close_matches(flag, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"{prog} --help lists all"
            raise InputError(f"unknown option {argument.split('=', 1)[0]}; {hint}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(type_, args=argv, prog=prog)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise InputError(f"--{name}: {first['msg']}; {prog} --help tells more") from None
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        option = re.search(r"Error parsing (--[\w-]+):", said.getvalue())
        message = plain_message(said.getvalue())
        named = f"{option[1]}: {message}" if option else message
        raise InputError(f"{named}; {prog} --help lists all") from stop


def flags(type_: type[Any]) -> list[str]:
    """All flags of a subcommand, `--no-` forms of its switches included."""
    names = [item.name for item in fields(type_)]
    if "settings" in names:
        names += Settings.model_fields
    shown = [name.replace("_", "-") for name in names if name not in ("source", "settings")]
    return [f"--{name}" for name in shown] + [f"--no-{name}" for name in shown]


def given_settings(argv: list[str]) -> set[str]:
    """The settings that a command line names, so that the others of a project stay."""
    named = {argument.split("=", 1)[0].replace("_", "-") for argument in argv}
    return {
        name
        for name in Settings.model_fields
        if named & {f"--{name.replace('_', '-')}", f"--no-{name.replace('_', '-')}"}
    }
