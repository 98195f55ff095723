"""What a labeler has so far: drafts, leases that last while the page is in use, active time."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select, update

from tercet.label import audit
from tercet.label.assignment import promise, renew
from tercet.label.errors import Refused
from tercet.label.mine import (
    OwnRow,
    active_ms_of,
    is_done,
    load,
    refuse_late_amending,
)
from tercet.label.people import Person
from tercet.label.tables import ANSWERED, FINAL, HANDED_BACK, assignment

DRAFT_LIMIT = 192 * 1024  # bytes


def save_draft(
    conn: Connection,
    now: int,
    person: Person,
    assignment_id: str,
    rev: int,
    draft: Mapping[str, Any],
    active_ms: int,
) -> dict[str, Any]:
    """Keeps what the labeler has so far, if it was made from revision `rev`, and the lease.

    Returns {"rev", "lease_until", "state"}. An expired assignment is opened again if its item
    still wants an answer; if not, the draft is kept all the same.

    Raises:
        Refused: 404 not theirs, 409 already answered or handed back, 410 too late to amend,
            412 another tab saved meanwhile, with `rev` and `draft` as they are here (the caller
            then gives the refused draft to `keep_refused`), 413 too large, 422 no draft.
    """
    _check_draft(draft)
    row = load(conn, person, assignment_id)
    if row.state in HANDED_BACK:
        raise Refused(409, row.state, f"this item was {row.state} already")
    if row.state in ANSWERED:
        if row.rev != rev:
            raise is_done()
        refuse_late_amending(now, row)
    if row.rev != rev:
        stored = conn.execute(
            select(assignment.c.draft).where(assignment.c.id == row.id)
        ).scalar_one()
        if stored == draft:  # a second try: the answer to the first was lost on the way
            return {"rev": row.rev, "lease_until": row.lease_until, "state": row.state}
        message = "another tab or device saved this item meanwhile"
        raise Refused(412, "conflict", message, rev=row.rev, draft=stored)
    kept = _kept(conn, now, row, opened=True)
    values = {**kept, "draft": draft, "rev": rev + 1, "active_ms": active_ms_of(row, active_ms)}
    conn.execute(update(assignment).where(assignment.c.id == row.id).values(values))
    if kept:
        renew(conn, now, row.settings["ahead_lease_s"], row.project_id, person.id)
    return {
        "rev": rev + 1,
        "lease_until": kept.get("lease_until", row.lease_until),
        "state": kept.get("state", row.state),
    }


def keep_refused(
    conn: Connection,
    now: int,
    person: Person,
    assignment_id: str,
    rev: int,
    draft: Mapping[str, Any],
) -> None:
    """Writes a draft that lost against another tab into the audit trail, so that it is not lost.

    A transaction of its own: the refusal undid the one that `save_draft` was in.
    """
    _check_draft(draft)
    row = load(conn, person, assignment_id)
    audit.append(conn, now, person.id, "conflict", row.id, {"rev": rev, "draft": draft})


def beat(
    conn: Connection,
    now: int,
    person: Person,
    assignment_id: str,
    active_ms: int,
    opened: bool,
) -> dict[str, Any]:
    """A sign of life from the page; keeps the lease, or takes it again if that is possible.

    opened: the labeler is looking at this item. Returns {"lease_until", "state"}.

    Raises:
        Refused: 404 not theirs.
    """
    row = load(conn, person, assignment_id)
    if row.state in FINAL:
        return {"lease_until": row.lease_until, "state": row.state}
    kept = _kept(conn, now, row, opened)
    values = {**kept, "active_ms": active_ms_of(row, active_ms)}
    conn.execute(update(assignment).where(assignment.c.id == row.id).values(values))
    if kept:
        renew(conn, now, row.settings["ahead_lease_s"], row.project_id, person.id)
    return {
        "lease_until": kept.get("lease_until", row.lease_until),
        "state": kept.get("state", row.state),
    }


def _kept(conn: Connection, now: int, row: OwnRow, opened: bool) -> dict[str, Any]:
    """The columns that keep a lease or take it again; nothing if somebody else has the item."""
    if row.state != "open" and not (row.state == "expired" and promise(conn, row.item_id)):
        return {}
    looked_at = now if opened and row.opened_at is None else row.opened_at
    seconds = row.settings["ahead_lease_s" if looked_at is None else "lease_s"]
    return {"state": "open", "lease_until": now + 1000 * seconds, "opened_at": looked_at}


def _check_draft(draft: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(draft, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise Refused(422, "draft", "the draft is no JSON object that can be stored") from None
    if len(text.encode("utf-8", "surrogatepass")) > DRAFT_LIMIT:
        raise Refused(413, "draft", f"the draft is larger than {DRAFT_LIMIT // 1024} KB")
