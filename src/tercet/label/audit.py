"""The audit trail: every change is an event, and every event carries the hash of the one before.

Who edits, removes or reorders an event breaks the chain from there on. Who edits an answer
contradicts its event. What the chain alone cannot show is that its newest events were cut off
together with the answers they are about; keep the hash of `head` elsewhere to see that too.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Text, cast, func, insert, select, update

from tercet.label.ids import canonical, sha256
from tercet.label.tables import ANSWERED, annotation, assignment, chain, event, item

START = "0" * 64  # what the first event names as the hash before it
MOST_FAULTS = 100


def append(
    conn: Connection, now: int, actor: str, kind: str, ref: str, body: Mapping[str, Any]
) -> int:
    """Adds an event and returns its number, 1 for the first.

    The head of the chain stays locked until the transaction ends, so call this after the other
    statements of a work. The event of an answer has the keys `annotation_id` and `payload_sha256`
    in its body, and the labeler as its actor.
    """
    # On SQLite the transaction holds the write lock already, and FOR UPDATE is left out.
    seq, previous = conn.execute(select(chain.c.seq, chain.c.hash).with_for_update()).one()
    seq += 1
    text = _ascii(body)
    hash_ = _hash(seq, now, actor, kind, ref, text, previous)
    conn.execute(
        insert(event).values(
            seq=seq,
            at=now,
            actor=actor,
            kind=kind,
            ref=ref,
            body=text,
            prev_hash=previous,
            hash=hash_,
        )
    )
    conn.execute(update(chain).values(seq=seq, hash=hash_))
    return seq


def head(conn: Connection) -> tuple[int, str]:
    """Number and hash of the newest event."""
    seq, hash_ = conn.execute(select(chain.c.seq, chain.c.hash)).one()
    return seq, hash_


def verify(conn: Connection) -> list[str]:
    """What is wrong with the store, a sentence each, the first hundred; empty when all agrees:
    the chain, every answer with its event, every item's counters with its assignments."""
    answers: dict[str, tuple[str, str]] = {}
    faults: list[str] = []
    for checks in (_chain(conn, answers), _answers(conn, answers), _counters(conn)):
        for fault in checks:
            faults.append(fault)
            if len(faults) == MOST_FAULTS:
                return faults
    return faults


def _chain(conn: Connection, answers: dict[str, tuple[str, str]]) -> Iterator[str]:
    """Follows the chain; notes in `answers` the actor and payload hash of each annotation id."""
    number, previous = 0, START
    rows = conn.execution_options(yield_per=1000).execute(select(event).order_by(event.c.seq))
    for row in rows:
        if row.seq != number + 1:
            yield f"event {number + 1} is missing: the one after {number} is {row.seq}"
        elif row.prev_hash != previous:
            yield f"event {row.seq} does not follow event {number}: its previous hash differs"
        number, previous = row.seq, row.hash
        found = _hash(row.seq, row.at, row.actor, row.kind, row.ref, row.body, row.prev_hash)
        if found != row.hash:
            yield f"event {row.seq} ({row.kind}) was edited: its hash does not fit its content"
        body = _object(row.body)
        if "payload_sha256" in body:
            answers[str(body.get("annotation_id"))] = row.actor, str(body["payload_sha256"])
    stored = conn.execute(select(chain.c.seq, chain.c.hash)).one_or_none()
    if stored is None:
        yield "the head of the event chain is missing"
    elif tuple(stored) != (number, previous):
        yield f"the event chain ends at event {number}, its head names event {stored.seq}"


def _answers(conn: Connection, answers: dict[str, tuple[str, str]]) -> Iterator[str]:
    told = dict(answers)
    rows = conn.execution_options(yield_per=200).execute(
        select(
            annotation.c.id,
            cast(annotation.c.payload, Text).label("payload"),  # an edited one may be no JSON
            annotation.c.revision,
            assignment.c.id.label("assignment_id"),
            assignment.c.labeler_id,
            assignment.c.state,
        ).join_from(annotation, assignment, isouter=True)
    )
    for row in rows:
        known = told.pop(row.id, None)
        if known is None:
            yield f"annotation {row.id} has no event"
            continue
        if known[1] != _payload_hash(row.payload):
            yield f"annotation {row.id} was edited: its payload does not fit its event"
        if known[0] != row.labeler_id:
            yield f"annotation {row.id} belongs to another labeler than its event names"
        if row.state not in ANSWERED:
            yield f"assignment {row.assignment_id} has an annotation but is {row.state}"
    for missing in sorted(told):
        yield f"annotation {missing} is missing: there is only its event"
    unanswered = (
        select(assignment.c.id)
        .where(assignment.c.state.in_(ANSWERED))
        .where(
            ~select(annotation.c.id).where(annotation.c.assignment_id == assignment.c.id).exists()
        )
    )
    for (id_,) in conn.execute(unanswered.order_by(assignment.c.id)):
        yield f"assignment {id_} is done but has no annotation"


def _counters(conn: Connection) -> Iterator[str]:
    def counted(state: str) -> Any:
        return func.count(assignment.c.id).filter(assignment.c.state == state)

    rows = conn.execute(
        select(item.c.id, item.c.need, item.c.done, item.c.leased, counted("done"), counted("open"))
        .join_from(item, assignment, isouter=True)
        .group_by(item.c.id, item.c.need, item.c.done, item.c.leased)
        .order_by(item.c.id)
    )
    for id_, need, done, leased, is_done, is_open in rows:
        if done != is_done:
            yield f"item {id_} counts {done} answers, there are {is_done}"
        if leased != is_open:
            yield f"item {id_} counts {leased} open assignments, there are {is_open}"
        if is_done > need:
            yield f"item {id_} has {is_done} counted answers, {need} were wanted"


def _payload_hash(text: str) -> str:
    try:
        return sha256(canonical(json.loads(text)))
    except (ValueError, RecursionError):
        return "no JSON"


def _ascii(value: Any) -> str:
    # Escapes keep what no database stores as text: NUL, half a surrogate pair.
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _hash(*parts: Any) -> str:
    return hashlib.sha256(_ascii(parts).encode()).hexdigest()


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
