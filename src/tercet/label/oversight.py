"""What an administrator looks at: projects, people, items with everything that happened to them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select, update

from tercet.label import audit, projects
from tercet.label.collect import ranks_in
from tercet.label.errors import not_found
from tercet.label.importing import GOLD_NEED
from tercet.label.tables import (
    ANSWERED,
    annotation,
    assignment,
    candidate,
    event,
    guidelines,
    invite,
    item,
    labeler,
    project,
    prompt,
    session,
)

LISTED = 25
LETTERS = "ABCDEFGHI"


@dataclass(frozen=True)
class Overview:
    """A project in the list of all."""

    id: str
    name: str
    kind: str
    paused: bool
    progress: projects.Progress


@dataclass(frozen=True)
class Member:
    """A person in the list of people. Times are milliseconds UTC."""

    id: str
    name: str
    role: str
    group: str
    fold: int
    simulated: bool
    status: str
    answers: int
    last_answer: int | None
    sessions: int
    """open ones"""
    open_invite: int | None
    """when an unused link expires"""


@dataclass(frozen=True)
class Found:
    """An item in a list."""

    id: str
    external_id: str
    prompt: str
    state: str
    held_reason: str | None
    reports: int
    done: int
    need: int
    gold: bool
    repeat: bool


@dataclass(frozen=True)
class Reply:
    """A reply and who wrote it: for administrators only."""

    letter: str
    """its place in the item's own order, not on anybody's screen"""
    id: str
    external_id: str
    text: str
    finish: str
    policy: str | None
    temperature: float | None
    seed: int | None
    gold_rank: int | None


@dataclass(frozen=True)
class Given:
    """One revision of one labeler's answer."""

    revision: int
    at: int
    seconds: float
    ranks: Sequence[int | None]
    """by reply, in the item's order"""
    ratings: Sequence[int | None]
    flags: Sequence[Sequence[str]]
    """ids of the flags answered with yes, by reply"""
    note: str
    text: str | None
    """of a demonstration"""
    marks: Sequence[str]


@dataclass(frozen=True)
class Work:
    """One labeler's assignment on the item."""

    labeler: str
    state: str
    shown: str
    """letters in the order of the screen"""
    seconds: float
    revisions: Sequence[Given]


@dataclass(frozen=True)
class Inspected:
    """An item with all that is known about it."""

    item: Any
    project: projects.Project
    prompt: Any
    replies: Sequence[Reply]
    work: Sequence[Work]
    events: Sequence[Any]


def overview(conn: Connection) -> list[Overview]:
    """All projects, by name."""
    rows = conn.execute(select(project).order_by(project.c.name)).all()
    return [
        Overview(row.id, row.name, row.kind, row.paused, projects.progress(conn, row.id))
        for row in rows
    ]


def guideline_versions(conn: Connection, project_id: str) -> Sequence[Any]:
    """The versions of the guidelines, newest first: version, text, created_at."""
    query = select(guidelines).where(guidelines.c.project_id == project_id)
    return conn.execute(query.order_by(guidelines.c.version.desc())).all()


def members(conn: Connection, now: int) -> list[Member]:
    """Everybody, by name."""
    given: dict[str, tuple[int, int | None]] = {
        row[0]: (row[1], row[2])
        for row in conn.execute(
            select(assignment.c.labeler_id, func.count(), func.max(assignment.c.submitted_at))
            .where(assignment.c.state.in_(ANSWERED))
            .group_by(assignment.c.labeler_id)
        )
    }
    opened: dict[str, int] = {
        row[0]: row[1]
        for row in conn.execute(
            select(session.c.labeler_id, func.count())
            .where(session.c.revoked.is_(False), session.c.expires_at > now)
            .group_by(session.c.labeler_id)
        )
    }
    invited: dict[str, int] = {
        row[0]: row[1]
        for row in conn.execute(
            select(invite.c.labeler_id, func.max(invite.c.expires_at))
            .where(invite.c.used_at.is_(None), invite.c.expires_at > now)
            .group_by(invite.c.labeler_id)
        )
    }
    return [
        Member(
            row.id,
            row.name,
            row.role,
            row.group,
            row.fold,
            row.simulated,
            row.status,
            *given.get(row.id, (0, None)),
            opened.get(row.id, 0),
            invited.get(row.id),
        )
        for row in conn.execute(select(labeler).order_by(labeler.c.name))
    ]


def sign_out_everywhere(conn: Connection, now: int, labeler_id: str, actor: str) -> int:
    """Ends all sessions of a person and returns how many; links that are not used yet stay.

    Raises:
        Refused: 404 nobody.
    """
    if conn.scalar(select(labeler.c.id).where(labeler.c.id == labeler_id)) is None:
        raise not_found("labeler")
    ended = conn.execute(
        update(session)
        .where(
            session.c.labeler_id == labeler_id,
            session.c.revoked.is_(False),
            session.c.expires_at > now,
        )
        .values(revoked=True)
    ).rowcount
    audit.append(conn, now, actor, "sessions-revoked", labeler_id, {"sessions": ended})
    return ended


def items(conn: Connection, project_id: str, words: str = "", held: bool = False) -> list[Found]:
    """The first items that are held, or whose id or prompt holds `words`; gold items last."""
    query = (
        select(
            item.c.id,
            item.c.external_id,
            prompt.c.text,
            item.c.state,
            item.c.held_reason,
            item.c.reports,
            item.c.done,
            item.c.need,
            item.c.gold,
            item.c.repeat_of,
        )
        .join(prompt, prompt.c.id == item.c.prompt_id)
        .where(item.c.project_id == project_id)
        .order_by(item.c.need >= GOLD_NEED, item.c.done.desc(), item.c.shuffle)
        .limit(LISTED)
    )
    if held:
        query = query.where(item.c.state == "held")
    if words:
        query = query.where(
            item.c.external_id.icontains(words, autoescape=True)
            | prompt.c.text.icontains(words, autoescape=True)
        )
    return [
        Found(*row[:8], gold=bool(row.gold), repeat=row.repeat_of is not None)
        for row in conn.execute(query)
    ]


def inspect(conn: Connection, item_id: str) -> Inspected:
    """One item with its replies, answers and events.

    Raises:
        Refused: 404.
    """
    row = conn.execute(select(item).where(item.c.id == item_id)).first()
    if row is None:
        raise not_found("item")
    known = ranks_in(row.gold or ())
    found = {
        reply.id: reply
        for reply in conn.execute(select(candidate).where(candidate.c.id.in_(row.candidate_ids)))
    }
    replies = [
        Reply(
            LETTERS[place],
            reply.id,
            reply.external_id,
            reply.text,
            reply.finish,
            reply.policy,
            reply.temperature,
            reply.seed,
            known.get(reply.id),
        )
        for place, reply in enumerate(found[id_] for id_ in row.candidate_ids)
    ]
    work, refs = _work(conn, row)
    return Inspected(
        item=row,
        project=projects.get(conn, row.project_id),
        prompt=conn.execute(select(prompt).where(prompt.c.id == row.prompt_id)).one(),
        replies=replies,
        work=work,
        events=conn.execute(
            select(event).where(event.c.ref.in_([item_id, *refs])).order_by(event.c.seq)
        ).all(),
    )


def _work(conn: Connection, row: Any) -> tuple[list[Work], list[str]]:
    """The assignments, and the ids that events about them refer to."""
    letters = dict(zip(row.candidate_ids, LETTERS, strict=False))
    revisions: dict[str, list[Given]] = defaultdict(list)
    refs = []
    for given in conn.execute(
        select(annotation)
        .join(assignment, assignment.c.id == annotation.c.assignment_id)
        .where(assignment.c.item_id == row.id)
        .order_by(annotation.c.revision)
    ):
        refs.append(given.id)
        revisions[given.assignment_id].append(_given(given, row.candidate_ids))
    work = []
    for given in conn.execute(
        select(assignment, labeler.c.name)
        .join(labeler, labeler.c.id == assignment.c.labeler_id)
        .where(assignment.c.item_id == row.id)
        .order_by(assignment.c.created_at, assignment.c.id)
    ):
        refs.append(given.id)
        shown = " ".join(letters.get(id_, "?") for id_ in given.display_order)
        seconds = given.active_ms / 1000
        work.append(Work(given.name, given.state, shown, seconds, revisions[given.id]))
    return work, refs


def _given(row: Any, ids: Sequence[str]) -> Given:
    payload = row.payload
    ranks, ratings = ranks_in(payload.get("bins", ())), payload.get("ratings", {})
    flags = payload.get("flags", {})
    named = {"both_bad": "both bad", "arranged": "arranged by ratings", "swapped": "panes swapped"}
    marks = [words for name, words in named.items() if payload.get(name)]
    marks += [f"{payload['strength']} better"] if payload.get("strength") else []
    marks += [name for name, value in payload.get("prompt_flags", {}).items() if value]
    notes = [payload.get("note", ""), *(payload.get("notes", {}).get(id_, "") for id_ in ids)]
    return Given(
        revision=row.revision,
        at=row.at,
        seconds=row.active_ms / 1000,
        ranks=[ranks.get(id_) for id_ in ids],
        ratings=[ratings.get(id_) for id_ in ids],
        flags=[[name for name, value in flags.get(id_, {}).items() if value] for id_ in ids],
        note="\n".join(note for note in notes if note),
        text=payload.get("text"),
        marks=marks,
    )
