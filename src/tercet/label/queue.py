"""What a labeler may be given: the queue of ordinary items, gold items, silent repeats."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, func, or_, select

from tercet.label import ids, tables
from tercet.label.people import Person
from tercet.label.settings import Project
from tercet.label.tables import ANSWERED, FINAL, QUEUED, assignment, insert_new, item

REPEAT_AFTER = 20  # own answers before the first silent repeat

# Made once: an alias copies all columns of its table, and making a statement costs more than
# running it.
_MET = assignment.alias("met")
_OWN = assignment.alias("own")
_AUTHORED = assignment.alias("authored")
_WRITTEN = item.alias("written")
_TWIN = item.alias("twin")

_BY = assignment.c.labeler_id == bindparam("labeler")
_GIVEN = select(func.count()).where(_BY, assignment.c.project_id == bindparam("project"))
_WRITING = select(tables.project.c.id).where(
    tables.project.c.kind == "demonstration",
    select(1).where(_BY, assignment.c.project_id == tables.project.c.id).exists(),
)

_COLUMNS = (item.c.id, item.c.external_id, item.c.candidate_ids)


def choose(
    conn: Connection, now: int, project: Project, person: Person, wanted: int
) -> Iterator[Row[*tuple[Any, ...]]]:
    """Items to lease, at most `wanted`; their rows are locked.

    Ordinary items come by priority, then in the project's random order, so an item that was begun
    is finished by the next labelers who come by. Now and then a gold item or a repeat comes first.
    """
    wrote = _wrote_for(conn, project, person)
    ordinary = conn.execute(_ordinary(project, person, wrote, wanted)).all()
    if not ordinary and not _has_ordinary(conn, project):
        yield from conn.execute(
            _gold(project, person, wrote, wanted)
        ).all()  # a project of gold items
        return
    given = _given(conn, project, person) if _mixes(project) else 0
    gold = None
    for place, row in enumerate(ordinary):
        kind = _draw(project, person, given + place)
        if kind == "gold":
            gold = gold or iter(conn.execute(_gold(project, person, wrote, wanted)).all())
            yield next(gold, row)
        elif kind == "repeat":
            yield _repeat(conn, now, project, person) or row
        else:
            yield row


def others_until(conn: Connection, project: Project, person: Person) -> int | None:
    """When the first lease ends that keeps an item from this labeler; None: there is none."""
    wrote = _wrote_for(conn, project, person)
    answered = select(1).where(
        _OWN.c.item_id == item.c.id, _OWN.c.labeler_id == person.id, _OWN.c.state.in_(FINAL)
    )
    return conn.execute(
        select(func.min(assignment.c.lease_until))
        .join_from(assignment, item)
        .where(
            assignment.c.state == "open",
            assignment.c.project_id == project.id,
            assignment.c.labeler_id != person.id,
            item.c.state == "open",
            item.c.gold.is_(None),
            item.c.repeat_of.is_(None),
            item.c.done < item.c.need,
            ~answered.exists(),
            *_allowed(project, person, wrote),
        )
    ).scalar_one()


def waiting(conn: Connection, project: Project, person: Person) -> int:
    """How many ordinary items this labeler could start now."""
    wrote = _wrote_for(conn, project, person)
    free = select(func.count()).select_from(item).where(*_free(project, person, wrote))
    return conn.execute(free).scalar_one()


def _ordinary(
    project: Project, person: Person, wrote: Sequence[str], wanted: int
) -> Select[*tuple[Any, ...]]:
    return (
        select(*_COLUMNS)
        .where(*_free(project, person, wrote))
        .order_by(item.c.priority.desc(), item.c.shuffle)
        .limit(wanted)
        .with_for_update(skip_locked=True, of=item)
    )


def _gold(
    project: Project, person: Person, wrote: Sequence[str], wanted: int
) -> Select[*tuple[Any, ...]]:
    return (
        select(*_COLUMNS)
        .where(
            item.c.project_id == project.id,
            item.c.gold.is_not(None),
            item.c.state == "open",
            item.c.done + item.c.leased < item.c.need,
            _not_met(person),
            *_allowed(project, person, wrote),
        )
        .order_by(item.c.shuffle)
        .limit(wanted)
        .with_for_update(skip_locked=True, of=item)
    )


def _free(project: Project, person: Person, wrote: Sequence[str]) -> list[ColumnElement[bool]]:
    return [
        item.c.project_id == project.id,
        QUEUED,
        _not_met(person),
        *_allowed(project, person, wrote),
    ]


def _not_met(person: Person) -> ColumnElement[bool]:
    met = select(1).where(_MET.c.item_id == item.c.id, _MET.c.labeler_id == person.id)
    return ~met.exists()


def _allowed(project: Project, person: Person, wrote: Sequence[str]) -> list[ColumnElement[bool]]:
    """Held-out labelers never see training items, and nobody ranks replies to a prompt that they
    wrote a demonstration for. wrote: `_wrote_for` of this labeler."""
    rules: list[ColumnElement[bool]] = []
    if person.group == "heldout":
        rules.append(or_(item.c.split.is_(None), item.c.split == "valid"))
    if wrote:
        prompt, written, own = tables.prompt, _WRITTEN, _AUTHORED
        # Nested, so that the planner goes from the item to its author and not through all that
        # this labeler ever did.
        name = select(prompt.c.external_id).where(prompt.c.id == item.c.prompt_id)
        same = select(written.c.id).where(
            written.c.project_id.in_(wrote),
            written.c.external_id == name.correlate(item).scalar_subquery(),
        )
        authored = select(1).where(
            own.c.item_id.in_(same.correlate(item)),
            own.c.labeler_id == person.id,
            own.c.state.in_(ANSWERED),
        )
        rules.append(~authored.exists())
    return rules


def _wrote_for(conn: Connection, project: Project, person: Person) -> list[str]:
    """The projects in which this labeler wrote demonstrations; nothing for such a project."""
    if project.kind == "demonstration":
        return []
    return list(conn.scalars(_WRITING, {"labeler": person.id}))


def _has_ordinary(conn: Connection, project: Project) -> bool:
    ordinary = select(item.c.id).where(
        item.c.project_id == project.id, item.c.gold.is_(None), item.c.repeat_of.is_(None)
    )
    return conn.execute(ordinary.limit(1)).first() is not None


def _mixes(project: Project) -> bool:
    chosen = project.settings
    return project.kind != "demonstration" and chosen.gold_share + chosen.repeat_share > 0


def _given(conn: Connection, project: Project, person: Person) -> int:
    """How many items the labeler was given in this project."""
    return conn.execute(_GIVEN, {"labeler": person.id, "project": project.id}).scalar_one()


def _draw(project: Project, person: Person, place: int) -> str:
    if not _mixes(project):
        return "ordinary"
    chosen = project.settings
    drawn = ids.draw(chosen.seed, "mix", person.name, place)
    if drawn < chosen.gold_share:
        return "gold"
    repeat = place >= REPEAT_AFTER and drawn < chosen.gold_share + chosen.repeat_share
    return "repeat" if repeat else "ordinary"


def _repeat(
    conn: Connection, now: int, project: Project, person: Person
) -> Row[*tuple[Any, ...]] | None:
    """A new item that shows what this labeler answered longest ago, for them alone; None if they
    have not answered enough, or saw everything twice."""
    repeated = select(1).where(_TWIN.c.repeat_of == item.c.id, _TWIN.c.only_labeler == person.id)
    answered = (
        select(*_COLUMNS, item.c.prompt_id, item.c.split)
        .join_from(assignment, item)
        .where(
            assignment.c.labeler_id == person.id,
            assignment.c.project_id == project.id,
            assignment.c.state.in_(ANSWERED),
            item.c.gold.is_(None),
            item.c.repeat_of.is_(None),
            item.c.state == "open",
            ~repeated.exists(),
        )
        .order_by(assignment.c.submitted_at)
    )
    rows = conn.execute(answered.limit(REPEAT_AFTER)).all()
    if len(rows) < REPEAT_AFTER:
        return None
    first = rows[0]
    name = f"repeat/{person.id}/{first.external_id}"
    id_ = ids.ulid(now)
    new = insert_new(
        conn,
        item,
        id=id_,
        project_id=project.id,
        prompt_id=first.prompt_id,
        external_id=name,
        candidate_ids=first.candidate_ids,
        split=first.split,
        need=1,
        shuffle=ids.draw(project.settings.seed, "shuffle", name),
        repeat_of=first.id,
        only_labeler=person.id,
    )
    if not new:
        return None
    return conn.execute(select(*_COLUMNS).where(item.c.id == id_)).one()
