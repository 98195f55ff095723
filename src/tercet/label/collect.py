"""Reads a project's latest answers from the store, each kind of item apart."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, func, select

from tercet.label.answers import Answer
from tercet.label.labelers import Person, Tally
from tercet.label.tables import ANSWERED, annotation, assignment, candidate, item, labeler


@dataclass(frozen=True)
class Collected:
    """Latest revisions, counted and extra. Ranks stand in the item's own order of replies."""

    people: Sequence[Person]
    plain: Sequence[Answer] = ()
    gold: Sequence[Answer] = ()
    gold_ranks: Mapping[Any, Sequence[int]] = field(default_factory=dict)
    """item -> known ranks"""
    repeats: Sequence[Answer] = ()
    first_ranks: Mapping[Any, Sequence[int]] = field(default_factory=dict)
    """repeated item -> the ranks that its labeler gave the first time"""
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    """labeler -> counts of assignments"""


def collect(conn: Connection, project_id: str, simulated: bool) -> Collected:
    """Everything that people, or else the simulated labelers, answered in one project."""
    people = _people(conn, project_id, simulated)
    mine = {person.id for person in people}
    tasks = {row.id: row for row in conn.execute(_answered_items(project_id))}
    lengths = _lengths(conn, project_id)
    plain, gold, repeats = [], [], []
    ranks_of: dict[tuple[str, str], dict[str, int]] = {}
    for row in conn.execute(_latest(project_id)):
        if row.labeler_id not in mine:
            continue
        task = tasks[row.item_id]
        ids, payload = task.candidate_ids, row.payload
        ranks = ranks_in(payload.get("bins", ()))
        ranks_of[row.item_id, row.labeler_id] = ranks
        ratings, flags = payload.get("ratings", {}), payload.get("flags", {})
        shown = {reply: place for place, reply in enumerate(row.display_order)}
        answer = Answer(
            item=row.item_id,
            labeler=row.labeler_id,
            ranks=[ranks[reply] for reply in ids],
            ratings=[ratings.get(reply) for reply in ids],
            shown=[shown[reply] for reply in ids],
            lengths=[lengths.get(reply, 0) for reply in ids],
            flags=[flags.get(reply, {}) for reply in ids],
            seconds=row.active_ms / 1000,
            at=row.at,
        )
        (repeats if task.repeat_of else gold if task.gold else plain).append(answer)
    first = {}
    for answer in repeats:
        task = tasks[answer.item]
        ranks = ranks_of.get((task.repeat_of, answer.labeler), {})
        if all(reply in ranks for reply in task.candidate_ids):
            first[answer.item] = [ranks[reply] for reply in task.candidate_ids]
    return Collected(
        people=people,
        plain=plain,
        gold=gold,
        gold_ranks={
            id_: [ranks_in(task.gold)[reply] for reply in task.candidate_ids]
            for id_, task in tasks.items()
            if task.gold
        },
        repeats=[answer for answer in repeats if answer.item in first],
        first_ranks=first,
        tallies=_tallies(conn, project_id),
    )


def ranks_in(bins: Sequence[Sequence[str]]) -> dict[str, int]:
    """Bins of ids, best first -> rank of each id, 1 the best, equal ranks a tie."""
    return {reply: rank for rank, ids in enumerate(bins, start=1) for reply in ids}


def has_people(conn: Connection, project_id: str) -> bool:
    """Did any person, and not only simulated labelers, answer something?"""
    query = (
        select(assignment.c.id)
        .join(labeler, labeler.c.id == assignment.c.labeler_id)
        .where(
            assignment.c.project_id == project_id,
            assignment.c.state.in_(ANSWERED),
            labeler.c.simulated.is_(False),
        )
        .limit(1)
    )
    return conn.execute(query).first() is not None


def _people(conn: Connection, project_id: str, simulated: bool) -> list[Person]:
    """Those who were ever given an item of the project, by name."""
    given = select(assignment.c.labeler_id).where(assignment.c.project_id == project_id)
    query = (
        select(labeler)
        .where(labeler.c.id.in_(given), labeler.c.simulated.is_(simulated))
        .order_by(labeler.c.name)
    )
    return [
        Person(row.id, row.name, row.group, row.fold, row.simulated, row.status)
        for row in conn.execute(query)
    ]


def _answered_items(project_id: str):
    answered = select(assignment.c.item_id).where(
        assignment.c.project_id == project_id, assignment.c.state.in_(ANSWERED)
    )
    return select(item.c.id, item.c.candidate_ids, item.c.gold, item.c.repeat_of).where(
        item.c.id.in_(answered)
    )


def _lengths(conn: Connection, project_id: str) -> dict[str, int]:
    query = select(candidate.c.id, func.length(candidate.c.text)).where(
        candidate.c.project_id == project_id
    )
    return dict(conn.execute(query).all())


def _latest(project_id: str):
    """The newest revision of every counted and extra answer, oldest answer first."""
    newest = (
        select(annotation.c.assignment_id, func.max(annotation.c.revision).label("revision"))
        .join(assignment, assignment.c.id == annotation.c.assignment_id)
        .where(assignment.c.project_id == project_id)
        .group_by(annotation.c.assignment_id)
        .subquery()
    )
    return (
        select(
            assignment.c.item_id,
            assignment.c.labeler_id,
            assignment.c.display_order,
            annotation.c.payload,
            annotation.c.active_ms,
            annotation.c.at,
        )
        .join(assignment, assignment.c.id == annotation.c.assignment_id)
        .join(
            newest,
            (newest.c.assignment_id == annotation.c.assignment_id)
            & (newest.c.revision == annotation.c.revision),
        )
        .where(assignment.c.state.in_(ANSWERED))
        .order_by(annotation.c.at, annotation.c.id)
    )


def _tallies(conn: Connection, project_id: str) -> dict[str, Tally]:
    query = (
        select(assignment.c.labeler_id, assignment.c.state, func.count())
        .where(
            assignment.c.project_id == project_id,
            assignment.c.state.in_(("extra", "skipped", "reported")),
        )
        .group_by(assignment.c.labeler_id, assignment.c.state)
    )
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for person, state, count in conn.execute(query):
        counts[person][state] = count
    return {person: Tally(**states) for person, states in counts.items()}
