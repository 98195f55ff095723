"""Who gets which item next, and what the page is given to show.

An item is promised at most `need` times: `leased` counts open assignments, `done` counted answers,
and every change of either is a conditional UPDATE whose row count is looked at. On PostgreSQL rows
that another transaction holds are skipped, never waited for.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Integer, Row, and_, bindparam, or_, select, update

from tercet.label import ids, queue, tables
from tercet.label.errors import not_found
from tercet.label.people import Person
from tercet.label.schema import applies
from tercet.label.settings import Project, get
from tercet.label.tables import ANSWERED, assignment, insert_new, item

SWEEP = 100  # leases taken back in one transaction
HOUR_MS = 3600 * 1000


# Statements are made once: making one costs more than running it.
_MINE = (
    assignment.c.labeler_id == bindparam("labeler"),
    assignment.c.project_id == bindparam("project"),
)
_WANTED = item.c.done + item.c.leased < item.c.need
_OVER = (
    select(assignment.c.id, assignment.c.item_id)
    .join_from(assignment, item)
    .where(assignment.c.state == "open", assignment.c.lease_until <= bindparam("now"))
    .limit(SWEEP)
    .with_for_update(skip_locked=True)
)
_OPEN = (
    # Own open assignments; one that nobody opened is left out when its item is held.
    select(assignment.c.id)
    .join_from(assignment, item)
    .where(
        *_MINE,
        assignment.c.state == "open",
        or_(item.c.state == "open", assignment.c.opened_at.is_not(None)),
    )
    .order_by(assignment.c.id)
)
_BEGUN = _OPEN.where(assignment.c.opened_at.is_not(None))
_EXPIRED = (
    select(assignment.c.id, assignment.c.item_id)
    .join_from(assignment, item)
    .where(*_MINE, assignment.c.state == "expired", item.c.state == "open", _WANTED)
    .order_by(assignment.c.id)
    .limit(bindparam("wanted", type_=Integer))
    .with_for_update(skip_locked=True)
)
_PROMISE = (
    update(item)
    .where(item.c.id == bindparam("item"), item.c.state == "open", _WANTED)
    .values(leased=item.c.leased + 1)
)
_TAKE_BACK = (
    update(item)
    .where(item.c.id == bindparam("item"))
    .values(leased=item.c.leased - bindparam("count", type_=Integer))
)


@dataclass(frozen=True)
class Next:
    """Assignments to work on, the first one now. If there are none, `reason` says why: "finished"
    (nothing is left for this person), "leased" (others have what is left; ask again at
    `retry_at`), "paused"."""

    assignments: list[str]
    reason: str | None = None
    retry_at: int | None = None


def next_items(conn: Connection, now: int, person: Person, project_id: str) -> Next:
    """The labeler's open assignments, oldest first, filled up to one and those fetched ahead.

    Raises:
        Refused: 404 no such project.
    """
    project = get(conn, project_id)
    mine = {"labeler": person.id, "project": project.id}
    if project.paused:  # what was begun may be finished, also after a reload
        begun = list(conn.scalars(_BEGUN, mine))
        return Next(begun) if begun else Next([], "paused")
    sweep(conn, now)
    open_ = list(conn.scalars(_OPEN, mine))
    if open_:
        renew(conn, now, project.settings.ahead_lease_s, project.id, person.id)
    wanted = 1 + project.settings.ahead - len(open_)
    if wanted > 0:
        open_ += _reopen_own(conn, now, project, person, wanted)
        wanted = 1 + project.settings.ahead - len(open_)
    if wanted > 0:
        open_ += _lease(conn, now, project, person, wanted)
    if open_:
        return Next(open_)
    retry_at = queue.others_until(conn, project, person)
    return Next([], "finished") if retry_at is None else Next([], "leased", max(retry_at, now))


def sweep(conn: Connection, now: int) -> None:
    """Takes back leases that are over: the assignment is expired, its draft stays, and the item
    returns to the pool."""
    rows = conn.execute(_OVER, {"now": now}).all()
    if not rows:
        return
    conn.execute(
        update(assignment)
        .where(assignment.c.id.in_([row.id for row in rows]))
        .values(state="expired")
    )
    for item_id, over in Counter(row.item_id for row in rows).items():
        take_back(conn, item_id, over)


def reopen(conn: Connection, assignment_id: str, item_id: str, lease_until: int) -> bool:
    """Gives an expired assignment its lease back, if the item still wants an answer."""
    if not promise(conn, item_id):
        return False
    conn.execute(
        update(assignment)
        .where(assignment.c.id == assignment_id)
        .values(state="open", lease_until=lease_until)
    )
    return True


def promise(conn: Connection, item_id: str) -> bool:
    """Counts one more open assignment, if the item is open and wants one more answer."""
    return conn.execute(_PROMISE, {"item": item_id}).rowcount == 1


def renew(conn: Connection, now: int, ahead_lease_s: int, project_id: str, labeler: str) -> None:
    """A sign of life: what this labeler has fetched ahead stays theirs a little longer."""
    until = now + 1000 * ahead_lease_s
    rule = and_(
        assignment.c.labeler_id == labeler,
        assignment.c.project_id == project_id,
        assignment.c.state == "open",
        assignment.c.lease_until < until,
    )
    if conn.dialect.name == "postgresql":
        # What another tab is busy with has its sign of life from there. Waiting for it, with the
        # head of the audit chain locked by a submit, would be waiting in a circle.
        free = select(assignment.c.id).where(rule).with_for_update(skip_locked=True)
        rule = assignment.c.id.in_(free)
    conn.execute(update(assignment).where(rule).values(lease_until=until))


def view(conn: Connection, now: int, person: Person, assignment_id: str) -> dict[str, Any]:
    """The assignment as the page gets it; nothing in it tells who wrote a reply.

    Raises:
        Refused: 404 when it is not this labeler's.
    """
    found = views(conn, now, person, [assignment_id])
    if not found:
        raise not_found("assignment")
    return found[0]


def views(
    conn: Connection, now: int, person: Person, assignment_ids: Sequence[str]
) -> list[dict[str, Any]]:
    """`view` of several in a few statements, in the order of the ids; others' are left out."""
    p, s, q, c = tables.project, tables.label_schema, tables.prompt, tables.candidate
    rows = conn.execute(
        select(
            assignment,
            q.c.text,
            q.c.tags,
            p.c.name,
            p.c.kind,
            p.c.criterion,
            p.c.settings,
            s.c.body.label("schema"),
        )
        .join_from(assignment, item, assignment.c.item_id == item.c.id)
        .join(q, item.c.prompt_id == q.c.id)
        .join(p, assignment.c.project_id == p.c.id)
        .join(s, (s.c.project_id == p.c.id) & (s.c.version == assignment.c.schema_version))
        .where(assignment.c.id.in_(assignment_ids), assignment.c.labeler_id == person.id)
    ).all()
    shown = [id_ for row in rows for id_ in row.display_order]
    replies = {
        row.id: row
        for row in conn.execute(select(c.c.id, c.c.text, c.c.finish).where(c.c.id.in_(shown)))
    }
    found = {row.id: _view(now, row, replies) for row in rows}
    for row in rows:
        if row.state in ANSWERED and not amending_is_over(now, row.submitted_at, row.settings):
            found[row.id]["amending"] = _latest(conn, row.id)
    return [found[id_] for id_ in assignment_ids if id_ in found]


def amending_is_over(now: int, submitted_at: int, settings: dict[str, Any]) -> bool:
    """Has the time to change this answer passed?"""
    return now > submitted_at + settings["amend_hours"] * HOUR_MS


def _view(
    now: int, row: Row[*tuple[Any, ...]], replies: dict[str, Row[*tuple[Any, ...]]]
) -> dict[str, Any]:
    settings = row.settings
    tags = row.tags or []
    schema = row.schema
    asked = [flag for flag in schema["reply_flags"] if applies(flag["tags"], tags)]
    return {
        "id": row.id,
        "project": {
            "id": row.project_id,
            "name": row.name,
            "kind": row.kind,
            "criterion": row.criterion,
        },
        "state": row.state,
        "rev": row.rev,
        "draft": row.draft,
        "lease_until": row.lease_until,
        "server_now": now,
        "opened": row.opened_at is not None,
        "active_ms": row.active_ms,
        "prompt": {"text": row.text, "tags": tags},
        "replies": [
            {
                "id": id_,
                "letter": letter,
                "text": replies[id_].text,
                "cut": replies[id_].finish == "length",
            }
            for letter, id_ in zip("ABCDEFGHI", row.display_order, strict=False)
        ],
        "schema": {**schema, "reply_flags": asked},
        "settings": {
            **{name: settings[name] for name in ("rate", "ask_prompt_flags", "strength")},
            "both_bad": settings["both_bad"] and len(row.display_order) == 2,
            "open_prompt": row.kind == "demonstration" and not row.text,
        },
        "guidelines_version": row.guidelines_version,
        "amending": None,
    }


def _latest(conn: Connection, assignment_id: str) -> dict[str, Any]:
    table = tables.annotation
    row = conn.execute(
        select(table.c.revision, table.c.payload)
        .where(table.c.assignment_id == assignment_id)
        .order_by(table.c.revision.desc())
        .limit(1)
    ).one()
    return {"revision": row.revision, "payload": row.payload}


def _reopen_own(
    conn: Connection, now: int, project: Project, person: Person, wanted: int
) -> list[str]:
    """What this labeler let expire, where an answer is still wanted. Nobody gets an item twice, so
    without this an item could wait for ever for somebody else."""
    mine = {"labeler": person.id, "project": project.id, "wanted": wanted}
    rows = conn.execute(_EXPIRED, mine).all()
    until = now + 1000 * project.settings.ahead_lease_s
    return [row.id for row in rows if reopen(conn, row.id, row.item_id, until)]


def _lease(conn: Connection, now: int, project: Project, person: Person, wanted: int) -> list[str]:
    # Ids in order, because open assignments are given back in the order of their ids.
    names = sorted(ids.ulid(now) for _ in range(wanted))
    until = now + 1000 * project.settings.ahead_lease_s
    leased = []
    for row in queue.choose(conn, now, project, person, wanted):
        if not promise(conn, row.id):
            continue
        new = insert_new(
            conn,
            assignment,
            id=names[len(leased)],
            item_id=row.id,
            project_id=project.id,
            labeler_id=person.id,
            state="open",
            lease_until=until,
            display_order=_display_order(project, person, row),
            rev=0,
            active_ms=0,
            schema_version=project.schema_version,
            guidelines_version=project.guidelines_version,
            created_at=now,
        )
        if new:
            leased.append(names[len(leased)])
        else:  # the same person was given it in another tab meanwhile
            take_back(conn, row.id)
    return leased


def take_back(conn: Connection, item_id: str, count: int = 1) -> None:
    """Undoes `promise`."""
    conn.execute(_TAKE_BACK, {"item": item_id, "count": count})


def _display_order(project: Project, person: Person, row: Row[*tuple[Any, ...]]) -> list[str]:
    """A random order of the replies that depends on seed, labeler and item only."""
    places = range(len(row.candidate_ids))
    drawn = {
        place: ids.draw(project.settings.seed, "order", person.name, row.external_id, place)
        for place in places
    }
    return [row.candidate_ids[place] for place in sorted(places, key=drawn.__getitem__)]
