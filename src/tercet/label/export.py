"""What was labeled as files for training, evaluation, other tools and the archive.

    demonstrations.jsonl   tercet.demonstration/1
    rankings.jsonl         tercet.ranking/1: one answer of one labeler to one prompt, all replies
    evaluations.jsonl      the same of projects that compare policies, for `eval.verdicts`
    answers.jsonl          tercet.answer/1: what else was said: notes, prompt flags, order shown
    pairs.jsonl            prompt, chosen, rejected, on request
    agreement.json         how far the labelers agree, by project
    audit.jsonl            the chain of events
    manifest.json          counts and sha256 of these files, written last

Everything comes from one state of the store, in the order of item, labeler and criterion, so that
an unchanged store gives the same bytes again. Each answer counts as it is now; earlier revisions
stay in the store. Late answers beyond the quota are real answers and are included; answers.jsonl
marks them `extra`. Gold items and silent repeats are left out unless asked for.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, func, select

from tercet import __version__
from tercet.label import audit, projects, tables
from tercet.label.collect import ranks_in
from tercet.label.quality import quality
from tercet.label.schema import Kind, LabelSchema
from tercet.label.store import Store
from tercet.label.tables import annotation, assignment, event, item, labeler, prompt
from tercet.records import (
    Demonstration,
    InputError,
    RankedReply,
    Ranking,
    dump,
    write_atomically,
)

FILES: dict[Kind, str] = {
    "demonstration": "demonstrations.jsonl",
    "rank": "rankings.jsonl",
    "evaluate": "evaluations.jsonl",
}
ANSWER = "tercet.answer/1"
BATCH = 200  # answers that are in memory at a time


@dataclass(frozen=True)
class Answer:
    """One labeler's answer as a record, and the line of answers.jsonl about it."""

    record: Demonstration | Ranking
    details: dict[str, Any]


def export(
    store: Store,
    folder: Path,
    *,
    project: str | None = None,
    pairs: bool = False,
    gold: bool = False,
    repeats: bool = False,
) -> dict[str, Any]:
    """Writes the files of all projects, or of one by id or name; returns the manifest.

    Each file is written whole or not at all, and manifest.json last.

    Raises:
        InputError: no such project, two answers that would have one id, or no folder to write to.
    """

    def work(conn: Connection) -> dict[str, Any]:
        chosen = _projects(conn, project)
        _begin(folder)
        files = _write_answers(conn, folder, chosen, pairs, gold, repeats)
        agreement = {
            row.name: _plain(asdict(quality(conn, row.id, _flags(conn, row.id))))
            for row in chosen
            if row.kind != "demonstration"
        }
        files["agreement.json"] = _write_json(folder / "agreement.json", agreement)
        files["audit.jsonl"] = _write_events(conn, folder / "audit.jsonl")
        seq, hash_ = audit.head(conn)
        return {
            "schema": "tercet.export/1",
            "tercet": __version__,
            "projects": [_about(conn, row) for row in chosen],
            "gold": gold,
            "repeats": repeats,
            "files": files,
            "last_event": {"seq": seq, "hash": hash_},
        }

    manifest = store.read(work)
    _write_json(folder / "manifest.json", manifest)
    return manifest


def _begin(folder: Path) -> None:
    """Makes the folder; what is there already is no whole export from now on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"{folder}: no folder that can be written ({error.strerror}); name another one"
        ) from None


def answers(
    conn: Connection,
    kind: Kind,
    project_ids: Sequence[str],
    *,
    gold: bool = False,
    repeats: bool = False,
) -> Iterator[Answer]:
    """The latest revision of every answer to those projects, which are all of one kind.

    Raises:
        InputError: two answers would have one id.
    """
    schemas: dict[tuple[str, int], LabelSchema] = {}
    asks_flags = {id_: projects.get(conn, id_).settings.rate for id_ in project_ids}
    previous = ""
    result = conn.execute(
        _query(conn, project_ids, gold, repeats), execution_options={"yield_per": BATCH}
    )
    for rows in result.partitions():
        texts = _candidates(conn, rows)
        for row in rows:
            id_ = "/".join(filter(None, (row.item, row.criterion, row.labeler)))
            if id_ == previous:
                raise InputError(
                    f"two projects of this store ask {row.labeler} the same of {row.item}; export "
                    "them one by one with --project"
                )
            previous = id_
            if kind == "demonstration":
                yield Answer(
                    _demonstration(id_, row), _details(kind, id_, row, {}) | _about_labeler(row)
                )
                continue
            key = (row.project_id, row.schema_version)
            if key not in schemas:
                schemas[key] = _schema(conn, *key)
            flags = asks_flags[row.project_id] or any(row.payload["flags"].values())
            asked = [flag.id for flag in schemas[key].reply_flags] if flags else []
            names = {c: texts[c].external_id for c in row.candidate_ids}
            yield Answer(_ranking(id_, row, texts, asked), _details(kind, id_, row, names))


def _projects(conn: Connection, project: str | None) -> Sequence[Any]:
    t = tables.project
    query = select(t.c.id, t.c.name, t.c.kind, t.c.criterion).order_by(t.c.name)
    rows = conn.execute(query).all()
    if project is None:
        return rows
    if not (found := [row for row in rows if project in (row.id, row.name)]):
        known = ", ".join(row.name for row in rows) or "none"
        raise InputError(f"there is no project {project!r}; the store has {known}")
    return found


def _query(conn: Connection, project_ids: Sequence[str], gold: bool, repeats: bool) -> Any:
    # Text in the order of its code points, whatever the database's language is.
    binary = "C" if conn.dialect.name == "postgresql" else "BINARY"
    newest = (
        select(func.max(annotation.c.revision))
        .where(annotation.c.assignment_id == assignment.c.id)
        .correlate(assignment)
        .scalar_subquery()
    )
    query = (
        select(
            item.c.external_id.label("item"),
            item.c.candidate_ids,
            item.c.split,
            item.c.gold,
            item.c.repeat_of,
            prompt.c.external_id.label("prompt_id"),
            prompt.c.text.label("prompt"),
            prompt.c.source,
            prompt.c.user_id,
            tables.project.c.criterion,
            labeler.c.name.label("labeler"),
            labeler.c.group,
            labeler.c.fold,
            labeler.c.simulated,
            assignment.c.state,
            assignment.c.display_order,
            assignment.c.project_id,
            annotation.c.payload,
            annotation.c.revision,
            annotation.c.active_ms,
            annotation.c.at,
            annotation.c.schema_version,
            annotation.c.guidelines_version,
        )
        .join_from(assignment, annotation)
        .join(item, item.c.id == assignment.c.item_id)
        .join(prompt, prompt.c.id == item.c.prompt_id)
        .join(labeler, labeler.c.id == assignment.c.labeler_id)
        .join(tables.project, tables.project.c.id == assignment.c.project_id)
        .where(assignment.c.project_id.in_(project_ids), annotation.c.revision == newest)
        .order_by(
            item.c.external_id.collate(binary),
            labeler.c.name.collate(binary),
            func.coalesce(tables.project.c.criterion, "").collate(binary),
        )
    )
    if not gold:
        query = query.where(item.c.gold.is_(None))
    return query if repeats else query.where(item.c.repeat_of.is_(None))


def _candidates(conn: Connection, rows: Sequence[Any]) -> dict[str, Any]:
    ids = {candidate for row in rows for candidate in row.candidate_ids}
    t = tables.candidate
    query = select(t.c.id, t.c.external_id, t.c.text, t.c.finish, t.c.policy).where(t.c.id.in_(ids))
    return {row.id: row for row in conn.execute(query)} if ids else {}


def _schema(conn: Connection, project_id: str, version: int) -> LabelSchema:
    t = tables.label_schema
    query = select(t.c.body).where(t.c.project_id == project_id, t.c.version == version)
    return LabelSchema.model_validate(conn.execute(query).scalar_one())


def _demonstration(id_: str, row: Any) -> Demonstration:
    own = row.payload.get("prompt")
    return Demonstration(
        id=id_,
        # A prompt that the labeler wrote too is nobody else's.
        prompt_id=row.prompt_id if own is None else id_,
        prompt=row.prompt if own is None else own,
        response=row.payload["text"],
        labeler=row.labeler,
        user_id=row.user_id,
        source=row.source,
        split=row.split,
    )


def _ranking(id_: str, row: Any, candidates: Mapping[str, Any], asked: Sequence[str]) -> Ranking:
    payload = row.payload
    ranks = ranks_in(payload["bins"])
    replies = []
    for key in row.candidate_ids:
        flags = dict.fromkeys(asked) | payload["flags"].get(key, {})
        if payload["both_bad"]:
            flags["both_bad"] = True
        replies.append(
            RankedReply(
                id=candidates[key].external_id,
                text=candidates[key].text,
                rank=ranks[key],
                policy=candidates[key].policy or None,
                finish=candidates[key].finish,
                rating=payload["ratings"].get(key),
                flags={name: flags[name] for name in sorted(flags)} or None,
            )
        )
    return Ranking(
        id=id_,
        prompt_id=row.prompt_id,
        prompt=row.prompt,
        replies=tuple(replies),
        judge=_judge(row),
        labeler=row.labeler,
        group=row.group,
        fold=row.fold,
        criterion=row.criterion,
        seconds=row.active_ms / 1000,
        guidelines=str(row.guidelines_version),
        split=row.split,
        source=row.source,
    )


def _details(kind: Kind, id_: str, row: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """What the record has no field for; replies by the ids of the record. Empty answers are left
    out."""
    payload = row.payload
    notes = payload.get("notes", {})
    said = {
        "prompt_flags": payload["prompt_flags"],
        "note": payload["note"],
        "notes": {names[key]: notes[key] for key in row.candidate_ids if notes.get(key)},
        "strength": payload.get("strength"),
        "arranged": payload.get("arranged", False),
        "swapped": payload.get("swapped", False),
        "shown": [names[key] for key in row.display_order],
        "extra": row.state == "extra",
        "gold": row.gold is not None,
        "repeat": row.repeat_of is not None,
    }
    return {
        "schema": ANSWER,
        "kind": kind,
        "id": id_,
        "revision": row.revision,
        "at": row.at,
        **{name: value for name, value in said.items() if value},
    }


def _about_labeler(row: Any) -> dict[str, Any]:
    """What a ranking says of its labeler, and a demonstration has no field for."""
    return {
        "judge": _judge(row),
        "group": row.group,
        "fold": row.fold,
        "seconds": row.active_ms / 1000,
        "guidelines": str(row.guidelines_version),
    }


def _judge(row: Any) -> Literal["person", "simulated"]:
    return "simulated" if row.simulated else "person"


def _write_answers(
    conn: Connection, folder: Path, chosen: Sequence[Any], pairs: bool, gold: bool, repeats: bool
) -> dict[str, Any]:
    files: dict[str, Any] = {}
    with ExitStack() as stack:
        details = stack.enter_context(_Lines(folder / "answers.jsonl"))
        paired = stack.enter_context(_Lines(folder / "pairs.jsonl")) if pairs else None
        for kind, name in FILES.items():
            ids = [row.id for row in chosen if row.kind == kind]
            if not ids:
                continue
            with _Lines(folder / name) as records:
                for answer in answers(conn, kind, ids, gold=gold, repeats=repeats):
                    records.add(dump(answer.record))
                    details.add(_json(answer.details))
                    if paired is not None and kind == "rank":
                        for pair in preference_pairs(answer.record):
                            paired.add(_json(pair))
            files[name] = records.facts
    files[details.path.name] = details.facts
    if paired is not None:
        files[paired.path.name] = paired.facts
    return files


def preference_pairs(record: Demonstration | Ranking) -> Iterator[dict[str, Any]]:
    """Every two replies of which one is better, as {prompt, chosen, rejected}; ties give none."""
    if not isinstance(record, Ranking):
        return
    for a, b in combinations(record.replies, 2):
        if a.rank != b.rank and a.text != b.text:
            chosen, rejected = (a, b) if a.rank < b.rank else (b, a)
            yield {
                "id": f"{record.id}/{chosen.id}>{rejected.id}",
                "prompt": record.prompt,
                "chosen": chosen.text,
                "rejected": rejected.text,
                "annotator": record.labeler,
                "criterion": record.criterion,
                "split": record.split,
                "source": record.source,
            }


def _write_events(conn: Connection, path: Path) -> dict[str, Any]:
    """The chain: `body` is the text that was hashed."""
    with _Lines(path) as lines:
        query = select(event).order_by(event.c.seq)
        for row in conn.execute(query, execution_options={"yield_per": BATCH}):
            lines.add(_json(dict(row._mapping)))
    return lines.facts


def _about(conn: Connection, row: Any) -> dict[str, Any]:
    """A project in the manifest: what was asked, in which words, and how far it is."""
    found = projects.get(conn, row.id)
    return {
        "name": row.name,
        "kind": row.kind,
        "criterion": row.criterion,
        "guidelines_version": found.guidelines_version,
        "guidelines": found.guidelines,
        "schema_version": found.schema_version,
        "questions": found.schema.model_dump(mode="json"),
        "settings": found.settings.model_dump(mode="json"),
        "progress": asdict(projects.progress(conn, row.id)),
    }


def _flags(conn: Connection, project_id: str) -> list[str]:
    return [flag.id for flag in projects.get(conn, project_id).schema.reply_flags]


class _Lines:
    """A file of lines that appears under its name when the `with` ends well, and `facts` of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._hash = hashlib.sha256()
        self._lines = self._bytes = 0

    def __enter__(self) -> "_Lines":
        self._file = self._temporary.open("wb")
        return self

    def add(self, line: str) -> None:
        data = f"{line}\n".encode()
        self._file.write(data)
        self._hash.update(data)
        self._lines += 1
        self._bytes += len(data)

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "lines": self._lines,
            "bytes": self._bytes,
            "sha256": self._hash.hexdigest(),
        }

    def __exit__(self, failed: object, *_: object) -> None:
        try:
            with self._file:
                if failed is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if failed is None:
                self._temporary.replace(self.path)
        finally:
            self._temporary.unlink(missing_ok=True)


def _write_json(path: Path, value: Any) -> dict[str, Any]:
    data = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    write_atomically(path, data)
    return {
        "lines": data.count(b"\n"),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _plain(value: Any) -> Any:
    """Numbers, texts, lists and dicts; NaN and infinity, which JSON lacks, become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, str | int | None):
        return value
    number = value.item() if hasattr(value, "item") else float(value)
    return number if abs(number) < float("inf") else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
