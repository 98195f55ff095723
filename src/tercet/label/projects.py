"""Projects and their items: making, filling, pausing, holding back, and how far they are."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, case, func, insert, or_, select, update

from tercet.label import audit, ids, tables
from tercet.label.errors import Refused, not_found
from tercet.label.importing import Imported, add_candidate_sets, add_gold, add_prompts
from tercet.label.schema import DEFAULT, Kind, LabelSchema, unstorable
from tercet.label.settings import Project, Settings, get, parse
from tercet.label.tables import HANDED_BACK, assignment, item

__all__ = [
    "Imported",
    "Progress",
    "Project",
    "Settings",
    "add_candidate_sets",
    "add_gold",
    "add_guidelines",
    "add_prompts",
    "check_criterion",
    "create",
    "get",
    "hold",
    "parse",
    "pause",
    "progress",
    "release",
    "set_schema",
    "set_settings",
]


@dataclass(frozen=True)
class Progress:
    """How far a project is. Gold items and repeats count nowhere but in `labelers`.

    needed, done: counted answers. leased: open assignments. extra: answers beyond the quota.
    skipped: assignments handed back, reports too. labelers: people who were given something.
    """

    items: int
    needed: int
    done: int
    leased: int
    held: int
    extra: int
    skipped: int
    labelers: int


def create(
    conn: Connection,
    now: int,
    name: str,
    kind: Kind,
    *,
    settings: Settings | None = None,
    schema: LabelSchema = DEFAULT,
    guidelines: str = "",
    criterion: str | None = None,
    actor: str = "command",
) -> str:
    """The project's id; a project of that name and kind is left as it is.

    Raises:
        Refused: 409 when the name belongs to a project of another kind or with another criterion
            than the one given, 422 a name that cannot be.
    """
    name = name.strip()
    if not 1 <= len(name) <= 120 or not name.isprintable():
        raise Refused(422, "name", "a project's name is 1 to 120 printable characters")
    table = tables.project
    found = conn.execute(select(table.c.id, table.c.kind).where(table.c.name == name)).one_or_none()
    if found:
        if found.kind != kind:
            raise Refused(
                409, "kind", f"the project {name} is of kind {found.kind}; choose another name"
            )
        if criterion is not None:
            check_criterion(conn, found.id, criterion)
        return found.id
    id_ = ids.ulid(now)
    chosen = (settings or Settings()).model_dump(mode="json")
    conn.execute(
        insert(table).values(
            id=id_,
            name=name,
            kind=kind,
            criterion=criterion,
            settings=chosen,
            schema_version=1,
            guidelines_version=1,
            paused=False,
            created_at=now,
        )
    )
    body = schema.model_dump(mode="json")
    conn.execute(insert(tables.label_schema).values(project_id=id_, version=1, body=body))
    conn.execute(
        insert(tables.guidelines).values(
            project_id=id_, version=1, text=_text(guidelines), created_at=now
        )
    )
    about = {"name": name, "kind": kind, "criterion": criterion, "settings": chosen}
    audit.append(conn, now, actor, "project", id_, about)
    return id_


def check_criterion(conn: Connection, project: str, criterion: str | None) -> None:
    """Answers by different criteria are not mixed.

    Raises:
        Refused: 409 when the project asks by another one; None is one too: none.
    """
    found = get(conn, project)
    if found.criterion != criterion:
        asks = f"asks for {found.criterion!r}" if found.criterion else "names none"
        raise Refused(
            409,
            "criterion",
            f"the project {found.name} asks by another criterion (it {asks}); name another project",
        )


def set_settings(conn: Connection, now: int, project: str, settings: Settings, actor: str) -> None:
    """Replaces the settings; items that are there keep the need and split they have."""
    old = get(conn, project)
    if old.settings == settings:
        return
    values = settings.model_dump(mode="json")
    conn.execute(
        update(tables.project).where(tables.project.c.id == old.id).values(settings=values)
    )
    audit.append(conn, now, actor, "settings", old.id, values)


def add_guidelines(conn: Connection, now: int, project: str, text: str, actor: str) -> int:
    """Makes `text` the guidelines and returns their version; the same text is no new version."""
    old = get(conn, project)
    if old.guidelines == text:
        return old.guidelines_version
    version = old.guidelines_version + 1
    conn.execute(
        insert(tables.guidelines).values(
            project_id=old.id, version=version, text=_text(text), created_at=now
        )
    )
    conn.execute(
        update(tables.project)
        .where(tables.project.c.id == old.id)
        .values(guidelines_version=version)
    )
    body = {"version": version, "sha256": ids.sha256(text)}
    audit.append(conn, now, actor, "guidelines", old.id, body)
    return version


def set_schema(conn: Connection, now: int, project: str, schema: LabelSchema, actor: str) -> int:
    """Makes these the questions and returns their version. What is open keeps its own version."""
    old = get(conn, project)
    if old.schema == schema:
        return old.schema_version
    version = old.schema_version + 1
    body = schema.model_dump(mode="json")
    conn.execute(insert(tables.label_schema).values(project_id=old.id, version=version, body=body))
    conn.execute(
        update(tables.project).where(tables.project.c.id == old.id).values(schema_version=version)
    )
    audit.append(conn, now, actor, "schema", old.id, {"version": version, "body": body})
    return version


def pause(conn: Connection, now: int, project: str, paused: bool, actor: str) -> None:
    """Stops giving out items, or goes on; work that is open may always be finished."""
    found = get(conn, project)
    if found.paused == paused:
        return
    conn.execute(
        update(tables.project).where(tables.project.c.id == found.id).values(paused=paused)
    )
    audit.append(conn, now, actor, "pause" if paused else "resume", found.id, {})


def hold(conn: Connection, now: int, item_id: str, actor: str, reason: str = "by hand") -> None:
    """Takes an item out of the queue; who has it open may finish.

    Raises:
        Refused: 404.
    """
    _set_state(conn, now, item_id, actor, state="held", held_reason=_text(reason))


def release(conn: Connection, now: int, item_id: str, actor: str) -> None:
    """Puts a held item back into the queue, with its reports forgotten.

    Raises:
        Refused: 404.
    """
    _set_state(conn, now, item_id, actor, state="open", held_reason=None, reports=0)


def progress(conn: Connection, project_id: str) -> Progress:
    """How far the project is."""
    row = conn.execute(
        select(
            func.count(),
            func.coalesce(func.sum(item.c.need), 0),
            func.coalesce(func.sum(item.c.done), 0),
            func.coalesce(func.sum(item.c.leased), 0),
            func.coalesce(func.sum(case((item.c.state == "held", 1), else_=0)), 0),
        ).where(item.c.project_id == project_id, item.c.gold.is_(None), item.c.repeat_of.is_(None))
    ).one()
    ordinary = and_(item.c.gold.is_(None), item.c.repeat_of.is_(None))
    handed_back = assignment.c.state.in_(HANDED_BACK)
    extra, skipped, labelers = conn.execute(
        select(
            func.coalesce(
                func.sum(case((and_(assignment.c.state == "extra", ordinary), 1), else_=0)), 0
            ),
            func.coalesce(func.sum(case((and_(handed_back, ordinary), 1), else_=0)), 0),
            func.count(assignment.c.labeler_id.distinct()),
        )
        .join_from(assignment, item)
        .where(assignment.c.project_id == project_id)
    ).one()
    return Progress(*map(int, row), extra=int(extra), skipped=int(skipped), labelers=labelers)


def _set_state(conn: Connection, now: int, item_id: str, actor: str, **values: Any) -> None:
    changed = conn.execute(
        update(item)
        .where(
            item.c.id == item_id, or_(*(item.c[k].is_distinct_from(v) for k, v in values.items()))
        )
        .values(**values)
    )
    if changed.rowcount:
        kind = "hold" if values["state"] == "held" else "release"
        audit.append(conn, now, actor, kind, item_id, {"reason": values["held_reason"]})
    elif not conn.execute(select(item.c.id).where(item.c.id == item_id)).first():
        raise not_found("item")


def _text(text: str) -> str:
    if problem := unstorable(text):
        raise Refused(422, "text", f"the text {problem}")
    return text
