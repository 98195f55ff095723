"""What labelers see of their own work: the last answers, and how much they did."""

from statistics import median
from typing import Any

from sqlalchemy import Connection, func, select

from tercet.label import queue, tables
from tercet.label.assignment import amending_is_over
from tercet.label.people import DAY_MS, Person
from tercet.label.settings import get
from tercet.label.tables import ANSWERED, annotation, assignment, guidelines_read, item

RECENT = 200  # answers whose median time is shown
EXCERPT = 200  # characters of a prompt in a list


def history(conn: Connection, now: int, person: Person, limit: int = 50) -> list[dict[str, Any]]:
    """The labeler's last answers, newest first, and whether each may still be amended."""
    p, q = tables.project, tables.prompt
    # Sorted by ids alone: prompts are looked up for the last ones only.
    last = (
        select(assignment.c.id)
        .where(assignment.c.labeler_id == person.id, assignment.c.state.in_(ANSWERED))
        .order_by(assignment.c.submitted_at.desc(), assignment.c.id.desc())
        .limit(limit)
    )
    rows = conn.execute(
        select(
            assignment.c.id,
            assignment.c.state,
            assignment.c.submitted_at,
            assignment.c.active_ms,
            assignment.c.project_id,
            p.c.name,
            p.c.kind,
            p.c.settings,
            func.substr(q.c.text, 1, EXCERPT + 1).label("prompt"),
            select(func.max(annotation.c.revision))
            .where(annotation.c.assignment_id == assignment.c.id)
            .scalar_subquery()
            .label("revision"),
        )
        .join_from(assignment, item)
        .join(q, q.c.id == item.c.prompt_id)
        .join(p, p.c.id == assignment.c.project_id)
        .where(assignment.c.id.in_(last))
        .order_by(assignment.c.submitted_at.desc(), assignment.c.id.desc())
    )
    return [
        {
            "id": row.id,
            "project": {"id": row.project_id, "name": row.name, "kind": row.kind},
            "prompt": row.prompt[:EXCERPT] + ("…" if len(row.prompt) > EXCERPT else ""),
            "state": row.state,
            "submitted_at": row.submitted_at,
            "active_ms": row.active_ms,
            "revision": row.revision,
            "amendable": not amending_is_over(now, row.submitted_at, row.settings),
        }
        for row in rows
    ]


def stats(conn: Connection, now: int, person: Person) -> dict[str, Any]:
    """Done today (by UTC) and in all, the median seconds of the last answers, and each project:
    `open` with this labeler now, `done` by them, `waiting` for them."""
    midnight = now - now % DAY_MS
    own = (assignment.c.labeler_id == person.id, assignment.c.state.in_(ANSWERED))
    done, today = conn.execute(
        select(func.count(), func.count().filter(assignment.c.submitted_at >= midnight)).where(*own)
    ).one()
    recent = conn.scalars(
        select(assignment.c.active_ms)
        .where(*own)
        .order_by(assignment.c.submitted_at.desc())
        .limit(RECENT)
    ).all()
    counts: dict[tuple[str, str], int] = {
        (project_id, state): count
        for project_id, state, count in conn.execute(
            select(assignment.c.project_id, assignment.c.state, func.count())
            .where(assignment.c.labeler_id == person.id)
            .group_by(assignment.c.project_id, assignment.c.state)
        )
    }
    read: dict[str, int] = {
        row.project_id: row.version
        for row in conn.execute(
            select(guidelines_read.c.project_id, guidelines_read.c.version).where(
                guidelines_read.c.labeler_id == person.id
            )
        )
    }
    projects = []
    for project_id in conn.scalars(select(tables.project.c.id).order_by(tables.project.c.id)):
        project = get(conn, project_id)
        projects.append(
            {
                "id": project.id,
                "name": project.name,
                "kind": project.kind,
                "paused": project.paused,
                "open": counts.get((project.id, "open"), 0),
                "done": sum(counts.get((project.id, state), 0) for state in ANSWERED),
                "waiting": queue.waiting(conn, project, person),
                "guidelines_version": project.guidelines_version,
                "guidelines_read": read.get(project.id),
                "must_read": project.must_read(read.get(project.id)),
            }
        )
    return {
        "done_today": today,
        "done": done,
        "median_seconds": median(recent) / 1000 if recent else None,
        "projects": projects,
    }
