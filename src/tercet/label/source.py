"""What a SOURCE on the command line names: records to label, and the store of their labels.

resolve(Path("runs/demo/sample"))  # its candidates.jsonl, runs/demo/label/labels.sqlite
resolve(Path("runs/demo"))         # the same
resolve(Path("prompts.jsonl"))     # labels beside it, in prompts.sqlite
resolve(Path("labels.sqlite"))     # a store, nothing to import
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tercet.data.split import owner
from tercet.label.schema import Kind
from tercet.records import CandidateSet, InputError, Prompt, Ranking, read_lines, read_records

STORE = "labels.sqlite"
DATABASES = (".sqlite", ".sqlite3", ".db")
SCHEMAS = {
    "tercet.candidates/1": CandidateSet,
    "tercet.prompt/1": Prompt,
    "tercet.ranking/1": Ranking,
}
# What labelers see as a project's name, so no file's name: it may tell whose replies these are.
NAMES: dict[Kind, str] = {
    "rank": "Rank replies",
    "demonstration": "Write replies",
    "evaluate": "Compare replies",
}


@dataclass(frozen=True)
class Source:
    """Where the labels are, the records to import (None: only the store is named), and the
    prompts of the run that know their users and tags."""

    store: Path
    records: Path | None = None
    prompts: Path | None = None


def resolve(path: Path) -> Source:
    """What `path` names.

    Raises:
        InputError: nothing that can be labeled; says what was looked for.
    """
    if path.is_dir():
        return _folder(path)
    if path.suffix in DATABASES:
        return Source(path)
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        if path.name == "candidates.jsonl" and (path.parent / "config.toml").exists():
            return _folder(path.parent)  # a stage's own file means the same as its folder
        if not path.exists():
            list(read_lines(path))  # raises, with the nearest name
        stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
        return Source(path.with_name(f"{stem}.sqlite"), path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the path")
    raise InputError(
        f"{path}: give a run's folder, a .jsonl of candidates or prompts, or a .sqlite store"
    )


def _folder(path: Path) -> Source:
    for file in (path / "candidates.jsonl", path / "prompts.jsonl"):
        if file.exists():
            return _of_run(path.parent, file)
    if (path / "sample" / "candidates.jsonl").exists():
        return _of_run(path, path / "sample" / "candidates.jsonl")
    for store in (path / STORE, path / "label" / STORE):
        if store.exists():
            return Source(store)
    raise InputError(
        f"{path}: holds neither candidates.jsonl nor prompts.jsonl, sample/candidates.jsonl or "
        f"{STORE}; run `tercet sample` first, or name a file"
    )


def _of_run(run: Path, records: Path) -> Source:
    prompts = run / "data" / "prompts.jsonl"
    return Source(run / "label" / STORE, records, prompts if prompts.exists() else None)


@dataclass(frozen=True)
class Records:
    """One file's records: candidate sets, prompts or rankings."""

    kind: Kind | None  # what they are for; None: rankings, which are gold items only
    rows: Sequence[CandidateSet] | Sequence[Prompt] | Sequence[Ranking]


def load(path: Path, kind: Kind | None = None) -> Records:
    """The records of a file, whose first line tells what they are.

    `kind`: what to do with them, where that is a choice: candidate sets are for ranking, or for
    evaluation.

    Raises:
        InputError: names file, row, field and remedy.
    """
    schema = _schema(path)
    if schema not in SCHEMAS:
        raise InputError(
            f"{path}: its first line has the schema {schema!r}; labeling takes {', '.join(SCHEMAS)}"
        )
    rows = read_records(path, SCHEMAS[schema])
    if schema == "tercet.ranking/1":
        return Records(None, rows)
    allowed = ("demonstration",) if schema == "tercet.prompt/1" else ("rank", "evaluate")
    if kind is not None and kind not in allowed:
        raise InputError(
            f"{path}: {schema} records are for --kind {' or '.join(allowed)}, not {kind}"
        )
    usual: Kind = "evaluate" if path.parent.name == "eval" else "rank"
    return Records(kind or ("demonstration" if schema == "tercet.prompt/1" else usual), rows)


def _schema(path: Path) -> str:
    for row, line in read_lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{path}:{row}: not JSON; mend or delete this line") from None
        return str(value.get("schema")) if isinstance(value, dict) else "none"
    raise InputError(f"{path}: is empty; give a file with records")


Asked = tuple[dict[str, str], dict[str, tuple[str, ...]]]


def asked(prompts: Path | None) -> Asked:
    """prompt id -> whose it is, so that held-out prompts are chosen by user; prompt id -> tags."""
    if prompts is None:
        return {}, {}
    records = read_records(prompts, Prompt)
    return {p.id: owner(p) for p in records}, {p.id: p.tags for p in records if p.tags}
