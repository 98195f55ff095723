"""What a labeler does with an assignment: drafts, submitting, skipping, reporting, amending.

Nothing that was submitted is ever refused for being late: an answer counts while the item wants
one more, and is kept as `extra` otherwise.
"""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from tercet import __version__
from tercet.label import audit, ids, tables
from tercet.label.assignment import ANSWERED, amending_is_over, promise, renew, take_back
from tercet.label.errors import Refused, not_found
from tercet.label.own_work import history, stats
from tercet.label.people import DAY_MS, Person
from tercet.label.schema import LabelSchema, check_payload, unstorable
from tercet.label.tables import annotation, assignment, item, submission_key

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

DRAFT_LIMIT = 192 * 1024  # bytes
REASON_LIMIT = 2000  # characters
KEY_LIMIT = 64
HANDED_BACK = ("skipped", "reported")

_Row = Row[*tuple[Any, ...]]


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
    row = _load(conn, person, assignment_id)
    if row.state in HANDED_BACK:
        raise Refused(409, row.state, f"this item was {row.state} already")
    if row.state in ANSWERED:
        if row.rev != rev:
            raise _is_done()
        _refuse_late_amending(now, row)
    if row.rev != rev:
        stored = conn.execute(
            select(assignment.c.draft).where(assignment.c.id == row.id)
        ).scalar_one()
        if stored == draft:  # a second try: the answer to the first was lost on the way
            return {"rev": row.rev, "lease_until": row.lease_until, "state": row.state}
        message = "another tab or device saved this item meanwhile"
        raise Refused(412, "conflict", message, rev=row.rev, draft=stored)
    kept = _kept(conn, now, row, opened=True)
    values = {**kept, "draft": draft, "rev": rev + 1, "active_ms": _active(row, active_ms)}
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
    row = _load(conn, person, assignment_id)
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
    row = _load(conn, person, assignment_id)
    if row.state in (*ANSWERED, *HANDED_BACK):
        return {"lease_until": row.lease_until, "state": row.state}
    kept = _kept(conn, now, row, opened)
    values = {**kept, "active_ms": _active(row, active_ms)}
    conn.execute(update(assignment).where(assignment.c.id == row.id).values(values))
    if kept:
        renew(conn, now, row.settings["ahead_lease_s"], row.project_id, person.id)
    return {
        "lease_until": kept.get("lease_until", row.lease_until),
        "state": kept.get("state", row.state),
    }


def submit(
    conn: Connection,
    now: int,
    person: Person,
    assignment_id: str,
    key: str,
    payload: Any,
    active_ms: int,
) -> dict[str, Any]:
    """Stores an answer, once for each `key`. Late answers are taken, and so are answers to what
    the same labeler skipped in another tab.

    Returns {"annotation_id", "revision", "counted", "late"}, the same each time for one key.

    Raises:
        Refused: 404 not theirs, 409 answered already (another key, another answer), 422 the
            answer is incomplete.
    """
    row = _load(conn, person, assignment_id, whole=True)
    if answer := _answer_of(conn, person, key, row):
        return answer
    stored = _checked(row, payload)
    if row.state in ANSWERED:
        latest = _latest(conn, row.id)
        if latest.payload != stored:
            raise _is_done()
        return _answer(row, latest)
    if row.state == "open":
        quota = {"done": item.c.done + 1, "leased": item.c.leased - 1}
        counts = update(item).where(item.c.id == row.item_id)
    else:
        quota = {"done": item.c.done + 1}
        free = item.c.done + item.c.leased < item.c.need
        counts = update(item).where(item.c.id == row.item_id, free)
    counted = conn.execute(counts.values(quota)).rowcount == 1
    state = "done" if counted else "extra"
    active = _active(row, active_ms)
    conn.execute(
        update(assignment)
        .where(assignment.c.id == row.id)
        .values(state=state, submitted_at=now, draft=None, rev=row.rev + 1, active_ms=active)
    )
    id_ = _append(conn, now, person, row, key, stored, active, revision=1)
    late = now > row.lease_until
    about = {"assignment_id": row.id, "item_id": row.item_id, "counted": counted, "late": late}
    _tell(conn, now, person, "submit", id_, 1, stored, about)
    return {"annotation_id": id_, "revision": 1, "counted": counted, "late": late}


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
    row = _load(conn, person, assignment_id, whole=True)
    if answer := _answer_of(conn, person, key, row):
        return answer
    if row.state not in ANSWERED:
        raise Refused(409, "not-submitted", "this item was not submitted yet")
    _refuse_late_amending(now, row)
    stored = _checked(row, payload)
    revision = _latest(conn, row.id).revision + 1
    active = _active(row, active_ms)
    conn.execute(
        update(assignment)
        .where(assignment.c.id == row.id)
        .values(draft=None, rev=row.rev + 1, active_ms=active)
    )
    id_ = _append(conn, now, person, row, key, stored, active, revision)
    about = {"assignment_id": row.id, "item_id": row.item_id}
    _tell(conn, now, person, "amend", id_, revision, stored, about)
    return {**_answer(row), "annotation_id": id_, "revision": revision}


def skip(conn: Connection, now: int, person: Person, assignment_id: str, reason: str) -> None:
    """Hands an item back to the pool; this labeler does not get it again. Twice is fine.

    Raises:
        Refused: 404 not theirs, 409 answered already, 422 the reason is too long or no text.
    """
    row = _load(conn, person, assignment_id)
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
    row = _load(conn, person, assignment_id)
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


def _load(conn: Connection, person: Person, assignment_id: str, *, whole: bool = False) -> _Row:
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


def _kept(conn: Connection, now: int, row: _Row, opened: bool) -> dict[str, Any]:
    """The columns that keep a lease or take it again; nothing if somebody else has the item."""
    if row.state != "open" and not (row.state == "expired" and promise(conn, row.item_id)):
        return {}
    looked_at = now if opened and row.opened_at is None else row.opened_at
    seconds = row.settings["ahead_lease_s" if looked_at is None else "lease_s"]
    return {"state": "open", "lease_until": now + 1000 * seconds, "opened_at": looked_at}


def _active(row: _Row, active_ms: int) -> int:
    return max(row.active_ms, min(active_ms, DAY_MS))


def _check_draft(draft: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(draft, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise Refused(422, "draft", "the draft is no JSON object that can be stored") from None
    if len(text.encode("utf-8", "surrogatepass")) > DRAFT_LIMIT:
        raise Refused(413, "draft", f"the draft is larger than {DRAFT_LIMIT // 1024} KB")


def _check_reason(reason: str) -> None:
    if len(reason) > REASON_LIMIT or unstorable(reason):
        raise Refused(422, "reason", f"a reason is a text of at most {REASON_LIMIT} characters")


def _checked(row: _Row, payload: Any) -> dict[str, Any]:
    open_prompt = row.kind == "demonstration" and not row.text
    schema = LabelSchema.model_validate(row.schema)
    return check_payload(row.kind, payload, row.candidate_ids, schema, row.tags, open_prompt)


def _answer_of(conn: Connection, person: Person, key: str, row: _Row) -> dict[str, Any] | None:
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


def _answer(row: _Row, stored: _Row | None = None) -> dict[str, Any]:
    """What `submit` said of an assignment that is answered."""
    given = {"annotation_id": stored.id, "revision": stored.revision} if stored else {}
    late = row.submitted_at > row.lease_until
    return {**given, "counted": row.state == "done", "late": late}


def _latest(conn: Connection, assignment_id: str) -> _Row:
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
    row: _Row,
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
    conn.execute(insert(submission_key).values(labeler_id=person.id, key=key, annotation_id=id_))
    return id_


def _tell(
    conn: Connection,
    now: int,
    person: Person,
    kind: str,
    annotation_id: str,
    revision: int,
    payload: dict[str, Any],
    about: dict[str, Any],
) -> None:
    body = {
        **about,
        "annotation_id": annotation_id,
        "revision": revision,
        "payload_sha256": ids.sha256(ids.canonical(payload)),
    }
    audit.append(conn, now, person.id, kind, about["item_id"], body)


def _hand_back(conn: Connection, row: _Row, state: str) -> None:
    if row.state in ANSWERED:
        raise _is_done()
    conn.execute(update(assignment).where(assignment.c.id == row.id).values(state=state))
    if row.state == "open":
        take_back(conn, row.item_id)


def _refuse_late_amending(now: int, row: _Row) -> None:
    if amending_is_over(now, row.submitted_at, row.settings):
        hours = row.settings["amend_hours"]
        raise Refused(410, "too-late", f"an answer can be changed for {hours:g} hours")


def _is_done() -> Refused:
    return Refused(409, "done", "this item was submitted already")
