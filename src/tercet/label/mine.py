"""A labeler's own assignment, read and locked, and what holds for all that is done with one."""

from typing import Any

from sqlalchemy import Connection, Row, select

from tercet.label import tables
from tercet.label.assignment import amending_is_over
from tercet.label.errors import Refused, not_found
from tercet.label.people import DAY_MS, Person
from tercet.label.tables import assignment, item

OwnRow = Row[*tuple[Any, ...]]


def load(conn: Connection, person: Person, assignment_id: str, *, whole: bool = False) -> OwnRow:
    """This labeler's assignment, locked; `whole`: with what is needed to check an answer."""
    a, p, s, q = assignment.c, tables.project, tables.label_schema, tables.prompt
    columns = (
        a.id,
        a.item_id,
        a.project_id,
        a.state,
        a.rev,
        a.lease_until,
        a.opened_at,
        a.submitted_at,
        a.active_ms,
        a.schema_version,
        a.guidelines_version,
        p.c.kind,
        p.c.settings,
    )
    query = select(*columns).join_from(assignment, p, a.project_id == p.c.id)
    if whole:
        query = (
            query.add_columns(item.c.candidate_ids, q.c.text, q.c.tags, s.c.body.label("schema"))
            .join(item, item.c.id == a.item_id)
            .join(q, q.c.id == item.c.prompt_id)
            .join(s, (s.c.project_id == a.project_id) & (s.c.version == a.schema_version))
        )
    row = conn.execute(
        query.where(a.id == assignment_id, a.labeler_id == person.id).with_for_update(of=assignment)
    ).one_or_none()
    if row is None:
        raise not_found("assignment")
    return row


def active_ms_of(row: OwnRow, active_ms: int) -> int:
    """The total as the browser counts it; it never falls."""
    return max(row.active_ms, min(active_ms, DAY_MS))


def refuse_late_amending(now: int, row: OwnRow) -> None:
    """410 when the time to change this answer has passed."""
    if amending_is_over(now, row.submitted_at, row.settings):
        hours = row.settings["amend_hours"]
        raise Refused(410, "too-late", f"an answer can be changed for {hours:g} hours")


def is_done() -> Refused:
    """What to raise for something that was submitted already."""
    return Refused(409, "done", "this item was submitted already")
