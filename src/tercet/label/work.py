"""What a labeler does with an assignment: drafts, submitting, skipping, reporting, amending.

Nothing that was submitted is ever refused for being late: an answer counts while the item wants
one more, and is kept as `extra` otherwise.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, insert, select, update

from tercet import __version__
from tercet.label import audit, ids
from tercet.label.assignment import take_back
from tercet.label.drafts import beat, keep_refused, save_draft
from tercet.label.errors import Refused
from tercet.label.mine import (
    OwnRow,
    active_ms_of,
    is_done,
    load,
    refuse_late_amending,
)
from tercet.label.own_work import history, stats
from tercet.label.people import Person
from tercet.label.schema import LabelSchema, check_payload, unstorable
from tercet.label.tables import ANSWERED, HANDED_BACK, annotation, assignment, item, submission_key

__all__ = [
    "amend",
    "beat",
    "history",
    "keep_refused",
    "report",
    "save_draft",
    "skip",
    "stats",
    "submit",
]

REASON_LIMIT = 2000  # characters
KEY_LIMIT = 64


def submit(
    conn: Connection,
    now: int,
    person: Person,
    assignment_id: str,
    key: str,
    payload: Any,
    active_ms: int,
    following: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Stores an answer, once for each `key`. Late answers are taken, and so are answers to what
    the same labeler skipped in another tab.

    Returns {"annotation_id", "revision", "counted", "late"}, the same each time for one key, and
    as "next" what `following` says of the project's id. It is asked here, since after the event
    it would keep all others from the audit chain for as long as it takes.

    Raises:
        Refused: 404 not theirs, 409 answered already (another key, another answer), 422 the
            answer is incomplete.
    """
    row = load(conn, person, assignment_id, whole=True)
    answer, event = _answer_of(conn, person, key, row), None
    if answer is None:
        answer, event = _take(conn, now, person, row, key, _checked(row, payload), active_ms)
    if following is not None:
        answer["next"] = following(row.project_id)
    if event is not None:
        audit.append(conn, now, person.id, "submit", row.item_id, event)
    return answer


def _take(
    conn: Connection,
    now: int,
    person: Person,
    row: OwnRow,
    key: str,
    stored: dict[str, Any],
    active_ms: int,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What `submit` says under a new key, and the body of the event if the answer is new."""
    if row.state in ANSWERED:
        latest = _latest(conn, row.id)
        if latest.payload != stored:
            raise is_done()
        _keep_key(conn, person, key, latest.id)
        return _answer(row, latest), None
    if row.state == "open":
        quota = {"done": item.c.done + 1, "leased": item.c.leased - 1}
        counts = update(item).where(item.c.id == row.item_id)
    else:
        quota = {"done": item.c.done + 1}
        free = item.c.done + item.c.leased < item.c.need
        counts = update(item).where(item.c.id == row.item_id, free)
    counted = conn.execute(counts.values(quota)).rowcount == 1
    state = "done" if counted else "extra"
    active = active_ms_of(row, active_ms)
    conn.execute(
        update(assignment)
        .where(assignment.c.id == row.id)
        .values(state=state, submitted_at=now, draft=None, rev=row.rev + 1, active_ms=active)
    )
    id_ = _append(conn, now, person, row, key, stored, active, revision=1)
    late = now > row.lease_until
    outcome = {"counted": counted, "late": late}
    told = {"annotation_id": id_, "revision": 1, **outcome}
    return told, _event(row, id_, 1, stored) | outcome


def amend(
    conn: Connection,
    now: int,
    person: Person,
    assignment_id: str,
    key: str,
    payload: Any,
    active_ms: int,
) -> dict[str, Any]:
    """Stores another revision of an answer, once for each `key`; the earlier ones stay.

    Raises:
        Refused: 404 not theirs, 409 not submitted yet, 410 too late, 422 incomplete.
    """
    row = load(conn, person, assignment_id, whole=True)
    if answer := _answer_of(conn, person, key, row):
        return answer
    if row.state not in ANSWERED:
        raise Refused(409, "not-submitted", "this item was not submitted yet")
    refuse_late_amending(now, row)
    stored = _checked(row, payload)
    revision = _latest(conn, row.id).revision + 1
    active = active_ms_of(row, active_ms)
    conn.execute(
        update(assignment)
        .where(assignment.c.id == row.id)
        .values(draft=None, rev=row.rev + 1, active_ms=active)
    )
    id_ = _append(conn, now, person, row, key, stored, active, revision)
    body = _event(row, id_, revision, stored)
    audit.append(conn, now, person.id, "amend", row.item_id, body)
    return {**_answer(row), "annotation_id": id_, "revision": revision}


def skip(conn: Connection, now: int, person: Person, assignment_id: str, reason: str) -> None:
    """Hands an item back to the pool; this labeler does not get it again. Twice is fine.

    Raises:
        Refused: 404 not theirs, 409 answered already, 422 the reason is too long or no text.
    """
    row = load(conn, person, assignment_id)
    _check_reason(reason)
    if row.state in HANDED_BACK:
        return
    _hand_back(conn, row, "skipped")
    body = {"assignment_id": row.id, "reason": reason}
    audit.append(conn, now, person.id, "skip", row.item_id, body)


def report(conn: Connection, now: int, person: Person, assignment_id: str, reason: str) -> None:
    """Like `skip`, for an item that nobody should see; enough reports hold it back.

    Raises:
        Refused: 404 not theirs, 409 answered already, 422 the reason is too long or no text.
    """
    row = load(conn, person, assignment_id)
    _check_reason(reason)
    if row.state == "reported":
        return
    _hand_back(conn, row, "reported")
    reports = conn.execute(
        update(item)
        .where(item.c.id == row.item_id)
        .values(reports=item.c.reports + 1)
        .returning(item.c.reports)
    ).scalar_one()
    held = False
    if reports >= row.settings["hold_after_reports"]:
        why = f"reports: {reports}"
        holding = update(item).where(item.c.id == row.item_id, item.c.state == "open")
        held = conn.execute(holding.values(state="held", held_reason=why)).rowcount == 1
    body = {"assignment_id": row.id, "reason": reason, "reports": reports, "held": held}
    audit.append(conn, now, person.id, "report", row.item_id, body)


def _check_reason(reason: str) -> None:
    if len(reason) > REASON_LIMIT or unstorable(reason):
        raise Refused(422, "reason", f"a reason is a text of at most {REASON_LIMIT} characters")


def _checked(row: OwnRow, payload: Any) -> dict[str, Any]:
    open_prompt = row.kind == "demonstration" and not row.text
    schema = LabelSchema.model_validate(row.schema)
    return check_payload(row.kind, payload, row.candidate_ids, schema, row.tags, open_prompt)


def _answer_of(conn: Connection, person: Person, key: str, row: OwnRow) -> dict[str, Any] | None:
    """What was said when this key came first."""
    if not 1 <= len(key) <= KEY_LIMIT or not (key.isascii() and key.isprintable()):
        raise Refused(422, "key", f"an idempotency key is 1 to {KEY_LIMIT} ASCII characters")
    stored = conn.execute(
        select(annotation.c.id, annotation.c.revision, annotation.c.assignment_id)
        .join_from(submission_key, annotation)
        .where(submission_key.c.labeler_id == person.id, submission_key.c.key == key)
    ).one_or_none()
    if stored is None:
        return None
    if stored.assignment_id != row.id:
        raise Refused(409, "key", "this idempotency key was used for another item")
    return _answer(row, stored)


def _answer(row: OwnRow, stored: OwnRow | None = None) -> dict[str, Any]:
    """What `submit` said of an assignment that is answered."""
    given = {"annotation_id": stored.id, "revision": stored.revision} if stored else {}
    late = row.submitted_at > row.lease_until
    return {**given, "counted": row.state == "done", "late": late}


def _latest(conn: Connection, assignment_id: str) -> OwnRow:
    return conn.execute(
        select(annotation.c.id, annotation.c.revision, annotation.c.payload)
        .where(annotation.c.assignment_id == assignment_id)
        .order_by(annotation.c.revision.desc())
        .limit(1)
    ).one()


def _append(
    conn: Connection,
    now: int,
    person: Person,
    row: OwnRow,
    key: str,
    payload: dict[str, Any],
    active_ms: int,
    revision: int,
) -> str:
    id_ = ids.ulid(now)
    conn.execute(
        insert(annotation).values(
            id=id_,
            assignment_id=row.id,
            revision=revision,
            payload=payload,
            active_ms=active_ms,
            at=now,
            schema_version=row.schema_version,
            guidelines_version=row.guidelines_version,
            app_version=__version__,
        )
    )
    _keep_key(conn, person, key, id_)
    return id_


def _keep_key(conn: Connection, person: Person, key: str, annotation_id: str) -> None:
    conn.execute(
        insert(submission_key).values(labeler_id=person.id, key=key, annotation_id=annotation_id)
    )


def _event(
    row: OwnRow, annotation_id: str, revision: int, payload: dict[str, Any]
) -> dict[str, Any]:
    return {
        "assignment_id": row.id,
        "item_id": row.item_id,
        "annotation_id": annotation_id,
        "revision": revision,
        "payload_sha256": ids.sha256(ids.canonical(payload)),
    }


def _hand_back(conn: Connection, row: OwnRow, state: str) -> None:
    if row.state in ANSWERED:
        raise is_done()
    conn.execute(update(assignment).where(assignment.c.id == row.id).values(state=state))
    if row.state == "open":
        take_back(conn, row.item_id)
