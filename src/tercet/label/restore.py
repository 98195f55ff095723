"""Exported answers come back: into a fresh store, or labels that were made elsewhere.

restored = restore(store, [Path("export/rankings.jsonl"), Path("export/answers.jsonl")])

Items, replies, labelers (by alias) and answers are made again; exporting them gives the same bytes.
answers.jsonl adds what the records have no field for. What is there already stays as it is, so a
file may be restored twice.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from tercet import __version__
from tercet.label import audit, ids, people, projects, tables
from tercet.label.answer_lines import AnswerLine
from tercet.label.errors import Refused
from tercet.label.export import ANSWER, FILES
from tercet.label.schema import DEFAULT, Flag, Kind, LabelSchema, check_payload
from tercet.label.source import NAMES
from tercet.label.store import Store
from tercet.label.tables import annotation, assignment, item
from tercet.records import (
    Candidate,
    CandidateSet,
    Demonstration,
    InputError,
    Prompt,
    Ranking,
    about,
    read_lines,
    read_records,
)

UNNAMED = "imported"
"""Alias of the labeler of answers that name none."""
SOME = 400  # ids in one query

Record = Demonstration | Ranking
Details = Mapping[tuple[str, str], Mapping[str, Any]]
"""(kind, record id) -> its line of answers.jsonl."""


@dataclass
class Restored:
    """Answers that are new, and that were there already."""

    added: int = 0
    known: int = 0
    projects: list[str] = field(default_factory=list)


def restore(
    store: Store,
    files: Sequence[Path],
    *,
    project: str | None = None,
    kind: Kind | None = None,
    dry_run: bool = False,
) -> Restored:
    """Puts exported demonstrations, rankings and evaluations into the store: all, or none.

    project: into this one; otherwise one by kind and criterion. kind: of rankings, where the name
    of the file does not tell: "evaluate" for evaluations.jsonl, else "rank".

    Raises:
        InputError: a file that holds something else, or an answer that contradicts the store.
    """
    details: dict[tuple[str, str], dict[str, Any]] = {}
    parts: dict[tuple[Kind, str | None], list[Record]] = {}
    for path in files:
        schema = _schema(path)
        if schema == ANSWER:
            for line in read_records(path, AnswerLine):
                details[line.kind, line.id] = line.model_dump(exclude_unset=True, exclude_none=True)
        elif schema == "tercet.demonstration/1":
            parts.setdefault(("demonstration", None), []).extend(read_records(path, Demonstration))
        elif schema == "tercet.ranking/1":
            told: Kind = "evaluate" if path.name.startswith("evaluations") else "rank"
            for ranking in read_records(path, Ranking):
                parts.setdefault((kind or told, ranking.criterion), []).append(ranking)
        else:
            raise InputError(
                f"{path}: its first line has the schema {schema!r}; restoring takes "
                f"{', '.join(FILES.values())} and answers.jsonl of an export"
            )

    def work(conn: Connection) -> Restored:
        total = Restored()
        for (kind_, criterion), records in parts.items():
            name = project or NAMES[kind_] + (f" ({criterion})" if criterion else "")
            id_ = projects.create(conn, store.now(), name, kind_, criterion=criterion)
            projects.check_criterion(conn, id_, criterion)
            _add(conn, store.now(), id_, records, details, total)
            total.projects.append(name)
        if dry_run:
            raise _DryRun(total)
        return total

    try:
        return store.write(work)
    except _DryRun as dry:
        return dry.restored
    except Refused as refused:
        raise InputError(f"nothing was restored: {refused.message}") from None


def is_export(path: Path) -> bool:
    """Does the file hold answers, by its first line?"""
    return _schema(path) in (ANSWER, "tercet.demonstration/1", "tercet.ranking/1")


class _DryRun(Exception):
    """Leaves the transaction, which is rolled back, with what it would have done."""

    def __init__(self, restored: Restored) -> None:
        super().__init__()
        self.restored = restored


def _schema(path: Path) -> Any:
    return next((row.get("schema") for row in _rows(path)), None)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in read_lines(path):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                why = getattr(error, "msg", "a number or a nesting without end")
                raise InputError(
                    f"{path}:{number}: not JSON ({why}); mend or delete this line"
                ) from error
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: not a JSON object")
            yield row


def _add(
    conn: Connection,
    now: int,
    project_id: str,
    records: Sequence[Record],
    details: Details,
    total: Restored,
) -> None:
    found = projects.get(conn, project_id)
    fresh = _answers(conn, project_id) == 0
    names = {record.id: item_name(record) for record in records}
    _add_items(conn, now, found, records, names)
    items = _items(conn, project_id, list(names.values()))
    labelers: dict[tuple[str | None, str], str] = {}
    versions: dict[frozenset[str], tuple[LabelSchema, int]] = {}
    given: dict[str, int] = {}
    for record in records:
        told = details.get((found.kind, record.id), {})
        row, replies = items[names[record.id]]
        who = (record.labeler, _judge(record, told))
        if who not in labelers:
            labelers[who] = _labeler(conn, now, record, told)
        flags = _flags(record)
        if flags not in versions:
            versions[flags] = _version(conn, found, flags, told, fresh and not versions)
        schema, version = versions[flags]
        payload = check_payload(
            found.kind,
            _payload(record, told, replies),
            row.candidate_ids,
            schema,
            open_prompt=not row.text,
        )
        if _is_there(conn, row.id, labelers[who], payload, record.id):
            total.known += 1
            continue
        _insert(conn, now, found, row, labelers[who], record, told, replies, payload, version)
        if not told.get("extra"):
            given[row.id] = given.get(row.id, 0) + 1
        total.added += 1
    for item_id, count in given.items():
        done = item.c.done + count
        wanted = func.max if conn.dialect.name == "sqlite" else func.greatest
        conn.execute(
            update(item)
            .where(item.c.id == item_id)
            .values(done=done, need=wanted(item.c.need, done + item.c.leased))
        )


def item_name(record: Record) -> str:
    """The item's id: of a written reply its prompt's, else the answer's, which ends with
    criterion and labeler."""
    if isinstance(record, Demonstration) and not _is_open(record):
        return record.prompt_id
    name = record.id
    for part in (record.labeler, record.criterion if isinstance(record, Ranking) else None):
        for mark in "/-":
            if part and name.endswith(mark + part) and len(name) > len(part) + 1:
                name = name[: -len(part) - 1]
                break
    return name


def _is_open(record: Record) -> bool:
    """Did the labeler write the prompt too? Then it is named after the answer."""
    return isinstance(record, Demonstration) and record.prompt_id == record.id


def _add_items(
    conn: Connection,
    now: int,
    found: projects.Project,
    records: Sequence[Record],
    names: Mapping[str, str],
) -> None:
    """Makes the items that are not there; the first answer to one says what it looks like."""
    first = {names[record.id]: record for record in reversed(records)}
    first = dict(reversed(first.items()))
    there = _items(conn, found.id, list(first))
    new = {name: record for name, record in first.items() if name not in there}
    sets, prompts = [], []
    for name, record in new.items():
        with about(record.id):
            if isinstance(record, Ranking):
                sets.append(_candidates(name, record))
            elif _is_open(record):
                prompts.append(
                    Prompt(id=name, text="", source=record.source, user_id=record.user_id)
                )
            else:
                prompts.append(Prompt(id=record.prompt_id, text=record.prompt,
                                      source=record.source, user_id=record.user_id))  # fmt: skip
    refused = []
    if sets:
        refused = projects.add_candidate_sets(conn, now, found.id, sets).refused
    if prompts:
        refused = projects.add_prompts(conn, now, found.id, prompts, actor="command").refused
    if refused:
        raise Refused(422, "import", refused[0])
    for name, record in new.items():
        ours = (item.c.project_id == found.id, item.c.external_id == name)
        conn.execute(update(item).where(*ours).values(split=record.split, need=1))
        prompt_id = select(item.c.prompt_id).where(*ours).scalar_subquery()
        conn.execute(
            update(tables.prompt)
            .where(tables.prompt.c.id == prompt_id)
            .values(split=record.split, source=record.source)
        )


def _candidates(name: str, ranking: Ranking) -> CandidateSet:
    return CandidateSet(
        id=name,
        prompt_id=ranking.prompt_id,
        prompt=ranking.prompt,
        candidates=tuple(
            Candidate(
                id=reply.id,
                text=reply.text,
                policy=reply.policy or "",
                temperature=0,  # records of rankings do not say
                seed=0,
                finish=reply.finish,
            )
            for reply in ranking.replies
        ),
    )


def _items(
    conn: Connection, project_id: str, names: Sequence[str]
) -> dict[str, tuple[Any, dict[str, str]]]:
    """Item's name -> (its row with the prompt's text, reply's id in records -> in the store)."""
    c = tables.candidate
    found = {}
    for start in range(0, len(names), SOME):
        rows = conn.execute(
            select(item.c.id, item.c.external_id, item.c.candidate_ids, tables.prompt.c.text)
            .join_from(item, tables.prompt)
            .where(
                item.c.project_id == project_id, item.c.external_id.in_(names[start : start + SOME])
            )
        ).all()
        ids_ = [id_ for row in rows for id_ in row.candidate_ids]
        external: dict[str, str] = {}
        for at in range(0, len(ids_), SOME):
            query = select(c.c.id, c.c.external_id).where(c.c.id.in_(ids_[at : at + SOME]))
            external.update(conn.execute(query).all())
        for row in rows:
            found[row.external_id] = row, {external[id_]: id_ for id_ in row.candidate_ids}
    return found


def _answers(conn: Connection, project_id: str) -> int:
    query = select(func.count()).where(assignment.c.project_id == project_id)
    return conn.execute(query).scalar_one()


def _labeler(conn: Connection, now: int, record: Record, told: Mapping[str, Any]) -> str:
    judge = _judge(record, told)
    if judge not in ("person", "simulated"):
        raise Refused(422, "judge", f"{record.id}: was ranked by judge {judge!r}, not by a labeler")
    group = record.group if isinstance(record, Ranking) else told.get("group")
    fold = record.fold if isinstance(record, Ranking) else told.get("fold")
    id_ = people.add_labeler(
        conn,
        now,
        record.labeler or UNNAMED,
        group=group if group in people.GROUPS else "train",
        simulated=judge == "simulated",
        fold=fold if fold is not None and 0 <= fold < people.FOLDS else None,
    )
    t = tables.labeler
    simulated = conn.execute(select(t.c.simulated).where(t.c.id == id_)).scalar_one()
    if simulated != (judge == "simulated"):
        raise Refused(
            409, "judge", f"{record.id}: {record.labeler} is a person here and simulated there"
        )
    return id_


def _judge(record: Record, told: Mapping[str, Any]) -> str:
    return record.judge if isinstance(record, Ranking) else told.get("judge", "person")


def _flags(record: Record) -> frozenset[str]:
    """The questions that were asked about the replies."""
    if isinstance(record, Demonstration):
        return frozenset()
    return frozenset(name for reply in record.replies for name in reply.flags or {}) - {"both_bad"}


def _version(
    conn: Connection,
    found: projects.Project,
    flags: frozenset[str],
    told: Mapping[str, Any],
    make_current: bool,
) -> tuple[LabelSchema, int]:
    """A version of the questions that asks exactly `flags`, and its number."""
    t = tables.label_schema
    rows = conn.execute(
        select(t.c.version, t.c.body).where(t.c.project_id == found.id).order_by(t.c.version)
    ).all()
    for row in rows:
        schema = LabelSchema.model_validate(row.body)
        if {flag.id for flag in schema.reply_flags} == flags:
            return schema, row.version
    known = {flag.id: flag for flag in (*DEFAULT.reply_flags, *found.schema.reply_flags)}
    prompt_flags = {flag.id: flag for flag in (*DEFAULT.prompt_flags, *found.schema.prompt_flags)}
    asked = sorted(flags, key=lambda name: (name not in known, list(known).index(name)
                   if name in known else 0, name))  # fmt: skip
    try:
        schema = found.schema.model_copy(
            update={
                "reply_flags": tuple(known.get(n) or Flag(id=n, label=n) for n in asked),
                "prompt_flags": tuple(
                    prompt_flags.get(n) or Flag(id=n, label=n)
                    for n in {**prompt_flags, **told.get("prompt_flags", {})}
                ),
            }
        )
    except ValueError:
        raise Refused(
            422, "flags", f"a flag's name is not lower-case letters, digits and _: {asked}"
        ) from None
    version = rows[-1].version + 1
    body = schema.model_dump(mode="json")
    conn.execute(insert(t).values(project_id=found.id, version=version, body=body))
    if make_current:
        conn.execute(
            update(tables.project)
            .where(tables.project.c.id == found.id)
            .values(schema_version=version)
        )
    return schema, version


def _payload(record: Record, told: Mapping[str, Any], replies: Mapping[str, str]) -> dict[str, Any]:
    shared = {"prompt_flags": told.get("prompt_flags", {}), "note": told.get("note", "")}
    if not told.get("notes", {}).keys() <= replies.keys():
        raise Refused(409, "replies", f"{record.id}: answers.jsonl tells of other replies")
    if isinstance(record, Demonstration):
        own = {"prompt": record.prompt} if _is_open(record) else {}
        return {"text": record.response, **own, **shared}
    if {reply.id for reply in record.replies} != set(replies):
        raise Refused(409, "replies", f"{record.id}: ranks other replies than the item has")
    ranks = sorted({reply.rank for reply in record.replies})
    both_bad = any((reply.flags or {}).get("both_bad") for reply in record.replies)
    return shared | {
        "bins": [[replies[r.id] for r in record.replies if r.rank == rank] for rank in ranks],
        "ratings": {replies[r.id]: r.rating for r in record.replies if r.rating is not None},
        "flags": {
            replies[r.id]: {name: v for name, v in r.flags.items() if name != "both_bad"}
            for r in record.replies
            if r.flags
        },
        "notes": {replies[id_]: text for id_, text in told.get("notes", {}).items()},
        "both_bad": both_bad,
        "strength": told.get("strength"),
        "arranged": told.get("arranged", False),
        "swapped": told.get("swapped", False),
    }


def _is_there(
    conn: Connection, item_id: str, labeler_id: str, payload: Mapping[str, Any], name: str
) -> bool:
    """Has this labeler given this answer?

    Raises:
        Refused: they have given another one, or have the item open.
    """
    row = conn.execute(
        select(assignment.c.state, annotation.c.payload)
        .join_from(assignment, annotation, isouter=True)
        .where(assignment.c.item_id == item_id, assignment.c.labeler_id == labeler_id)
        .order_by(annotation.c.revision.desc())
        .limit(1)
    ).first()
    if row is None:
        return False
    if row.payload is None or ids.canonical(row.payload) != ids.canonical(payload):
        state = f"is {row.state} here" if row.payload is None else "has another answer here"
        raise Refused(409, "other", f"{name}: {state}; restore into a fresh store")
    return True


def _insert(
    conn: Connection,
    now: int,
    found: projects.Project,
    row: Any,
    labeler_id: str,
    record: Record,
    told: Mapping[str, Any],
    replies: Mapping[str, str],
    payload: Mapping[str, Any],
    schema_version: int,
) -> None:
    """One answer: its assignment, its latest revision, and its event."""
    shown = [replies.get(id_, "") for id_ in told.get("shown", ())] or row.candidate_ids
    if sorted(shown) != sorted(row.candidate_ids):
        raise Refused(409, "replies", f"{record.id}: answers.jsonl tells of other replies")
    seconds = record.seconds if isinstance(record, Ranking) else told.get("seconds")
    read = record.guidelines if isinstance(record, Ranking) else told.get("guidelines")
    versions = {
        "schema_version": schema_version,
        "guidelines_version": (
            int(read) if read and read.isdecimal() else found.guidelines_version
        ),
    }
    at = int(told.get("at", now))
    active_ms = round(1000 * (seconds or 0))
    assignment_id, annotation_id = ids.ulid(now), ids.ulid(now)
    conn.execute(
        insert(assignment).values(
            id=assignment_id,
            item_id=row.id,
            project_id=found.id,
            labeler_id=labeler_id,
            state="extra" if told.get("extra") else "done",
            lease_until=at,
            opened_at=at,
            submitted_at=at,
            display_order=shown,
            rev=0,
            active_ms=active_ms,
            created_at=at,
            **versions,
        )
    )
    revision = int(told.get("revision", 1))
    conn.execute(
        insert(annotation).values(
            id=annotation_id,
            assignment_id=assignment_id,
            revision=revision,
            payload=payload,
            active_ms=active_ms,
            at=at,
            app_version=__version__,
            **versions,
        )
    )
    body = {
        "annotation_id": annotation_id,
        "revision": revision,
        "record": record.id,
        "payload_sha256": ids.sha256(ids.canonical(payload)),
    }
    audit.append(conn, now, labeler_id, "restore", assignment_id, body)
