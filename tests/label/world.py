"""A small world for the tests of the labeling server: a store with a project, items and labelers,
and scripted labelers who work on it.

world = ranking_world(store, items=30, k=4, labelers=5, overlap_share=1, overlap_need=2)
ann = world.labelers[0]
ann.submit(ann.next()[0])
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, select

from tercet.label import assignment, people, projects, work
from tercet.label.errors import Refused
from tercet.label.tables import assignment as assignments
from tercet.label.tables import item
from tercet.records import Candidate, CandidateSet, Prompt, RankedReply, Ranking

T = TypeVar("T")
START = 1_700_000_000_000  # a November evening of 2023


class Writes(Protocol):
    """What of a Store is needed here."""

    def read(self, work: Callable[[Connection], T]) -> T: ...

    def write(self, work: Callable[[Connection], T], *, durable: bool = True) -> T: ...


@dataclass
class Clock:
    """A server's clock that only moves when it is told to, or by a millisecond a look."""

    at: int = START

    def __call__(self) -> int:
        self.at += 1
        return self.at

    def pass_(self, seconds: float) -> None:
        self.at += int(seconds * 1000)


@dataclass
class World:
    """A store with one project, its labelers, and the clock that all of them use."""

    store: Writes
    clock: Clock
    project_id: str
    labelers: "list[Labeler]" = field(default_factory=list)

    def read(self, work: Callable[[Connection], T]) -> T:
        return self.store.read(work)

    def write(self, work: Callable[[Connection, int], T]) -> T:
        return self.store.write(lambda conn: work(conn, self.clock()))

    def join(self, name: str, **options: Any) -> "Labeler":
        """A labeler with an open session."""

        def enter(conn: Connection, now: int) -> people.Person | None:
            labeler_id = people.add_labeler(conn, now, name, **options)
            joined = people.join(conn, now, people.invite(conn, now, labeler_id))
            return people.session(conn, now, joined.sid)

        person = self.write(enter)
        assert person is not None
        self.labelers.append(Labeler(self, person, random.Random(name)))
        return self.labelers[-1]

    def items(self, *where: Any) -> list[Any]:
        """The item rows, in the order in which they are given out."""
        query = select(item).where(*where).order_by(item.c.shuffle)
        return list(self.read(lambda conn: conn.execute(query).all()))

    def assignments(self, *where: Any) -> list[Any]:
        query = select(assignments).where(*where).order_by(assignments.c.id)
        return list(self.read(lambda conn: conn.execute(query).all()))


@dataclass
class Labeler:
    """A scripted labeler. Every method is one transaction, as one request of the page is."""

    world: World
    person: people.Person
    random: random.Random

    def ask(self) -> assignment.Next:
        world = self.world
        return world.write(
            lambda conn, now: assignment.next_items(conn, now, self.person, world.project_id)
        )

    def next(self) -> list[str]:
        """The assignments to work on; empty when there are none."""
        return self.ask().assignments

    def view(self, assignment_id: str) -> dict[str, Any]:
        return self.world.write(
            lambda conn, now: assignment.view(conn, now, self.person, assignment_id)
        )

    def open(self, assignment_id: str) -> dict[str, Any]:
        return self.world.write(
            lambda conn, now: work.beat(conn, now, self.person, assignment_id, 0, True)
        )

    def draft(self, assignment_id: str, rev: int, draft: dict[str, Any]) -> dict[str, Any]:
        return self.world.write(
            lambda conn, now: work.save_draft(
                conn, now, self.person, assignment_id, rev, draft, 1000
            )
        )

    def answer(self, assignment_id: str) -> dict[str, Any]:
        """A random answer that fits the item."""
        shown = self.view(assignment_id)
        if shown["project"]["kind"] == "demonstration":
            written = {"text": f"reply {self.random.random()}"}
            return written | ({"prompt": "Why?"} if shown["settings"]["open_prompt"] else {})
        return rank_payload([reply["id"] for reply in shown["replies"]], self.random)

    def submit(
        self, assignment_id: str, key: str | None = None, payload: Any = None
    ) -> dict[str, Any]:
        key = key or f"{self.random.getrandbits(64):x}"
        payload = payload or self.answer(assignment_id)
        return self.world.write(
            lambda conn, now: work.submit(
                conn, now, self.person, assignment_id, key, payload, 60_000
            )
        )

    def amend(
        self, assignment_id: str, key: str | None = None, payload: Any = None
    ) -> dict[str, Any]:
        key = key or f"{self.random.getrandbits(64):x}"
        payload = payload or self.answer(assignment_id)
        return self.world.write(
            lambda conn, now: work.amend(
                conn, now, self.person, assignment_id, key, payload, 60_000
            )
        )

    def skip(self, assignment_id: str, reason: str = "too hard") -> None:
        self.world.write(lambda conn, now: work.skip(conn, now, self.person, assignment_id, reason))

    def report(self, assignment_id: str, reason: str = "broken") -> None:
        self.world.write(
            lambda conn, now: work.report(conn, now, self.person, assignment_id, reason)
        )

    def item(self, assignment_id: str) -> Any:
        """The item's row."""
        query = select(item).join_from(assignments, item).where(assignments.c.id == assignment_id)
        return self.world.read(lambda conn: conn.execute(query).one())


def rank_payload(reply_ids: Sequence[str], chance: random.Random) -> dict[str, Any]:
    """A random order with some ties, a rating of each reply and one flag."""
    shuffled = chance.sample(list(reply_ids), len(reply_ids))
    bins: list[list[str]] = []
    for reply in shuffled:
        if bins and chance.random() < 0.3:
            bins[-1].append(reply)
        else:
            bins.append([reply])
    return {
        "bins": bins,
        "ratings": {reply: chance.randint(1, 7) for reply in reply_ids},
        "flags": {shuffled[0]: {"fails_task": chance.random() < 0.5}},
    }


def candidate_set(number: int, k: int = 4, **fields: Any) -> CandidateSet:
    """Set `s<number>` on prompt `p<number>`, with replies that differ."""
    replies = tuple(
        Candidate(
            id=f"s{number}/{i}",
            text=f"reply {i} to question {number}",
            policy=f"secret-policy-{i}",
            temperature=1.0,
            seed=i,
            finish="stop",
        )
        for i in range(k)
    )
    given = {
        "id": f"s{number}",
        "prompt_id": f"p{number}",
        "prompt": f"Question {number}?",
        "candidates": replies,
    }
    return CandidateSet(**{**given, **fields})


def gold_ranking(number: int, ranks: Sequence[int] = (1, 2, 2)) -> Ranking:
    """A ranking `g<number>` whose order is known."""
    replies = tuple(
        RankedReply(id=f"g{number}/{i}", text=f"known {i} of {number}", rank=rank)
        for i, rank in enumerate(ranks)
    )
    return Ranking(
        id=f"g{number}",
        prompt_id=f"gp{number}",
        prompt=f"Known question {number}?",
        replies=replies,
        judge="gold",
    )


def ranking_world(
    store: Writes,
    *,
    items: int = 10,
    k: int = 4,
    labelers: int = 2,
    kind: str = "rank",
    clock: Clock | None = None,
    **settings: Any,
) -> World:
    """A project of `items` sets of `k` replies. Unless told otherwise every item wants one answer,
    nothing is held out, and there are no gold items or repeats."""
    world = _world(store, clock, kind, settings)
    sets = [candidate_set(number, k) for number in range(items)]
    if sets:
        world.write(
            lambda conn, now: projects.add_candidate_sets(conn, now, world.project_id, sets)
        )
    for name in _names(labelers):
        world.join(name)
    return world


def writing_world(
    store: Writes,
    prompts: Sequence[str] = ("Who?", ""),
    *,
    labelers: int = 1,
    clock: Clock | None = None,
    **settings: Any,
) -> World:
    """A project in which people write replies, and the prompt too where it is empty."""
    world = _world(store, clock, "demonstration", settings)
    records = [Prompt(id=f"p{i}", text=text) for i, text in enumerate(prompts)]
    world.write(lambda conn, now: projects.add_prompts(conn, now, world.project_id, records))
    for name in _names(labelers):
        world.join(name)
    return world


def _world(store: Writes, clock: Clock | None, kind: Any, settings: dict[str, Any]) -> World:
    quiet = {"overlap_share": 0, "valid_fraction": 0, "gold_share": 0, "repeat_share": 0}
    chosen = projects.Settings(**{**quiet, **settings})
    clock = clock or Clock()
    project_id = store.write(
        lambda conn: projects.create(conn, clock(), f"a {kind} project", kind, settings=chosen)
    )
    return World(store, clock, project_id)


def _names(count: int) -> list[str]:
    names = ["ann", "bob", "cho", "dee", "eli"]
    return (names + [f"labeler-{i}" for i in range(len(names), count)])[:count]


def walk(world: World, steps: int, chance: random.Random) -> list[tuple[str, str, Any]]:
    """`steps` random actions by random labelers, time passing in between.

    Returns (labeler id, assignment id, payload) of each acknowledged submit.
    """
    acknowledged = []
    seen: dict[str, set[str]] = {labeler.person.id: set() for labeler in world.labelers}
    for _ in range(steps):
        labeler = chance.choice(world.labelers)
        mine = seen[labeler.person.id]
        action = chance.choice(
            ["next", "open", "draft", "submit", "submit", "late", "skip", "report", "amend", "wait"]
        )
        if action == "wait":
            world.clock.pass_(chance.choice([1, 60, 130, 4000]))
            continue
        if action == "next" or not mine:
            mine.update(labeler.next())
            continue
        id_ = chance.choice(sorted(mine))
        payload = labeler.answer(id_)
        try:
            if action == "open":
                labeler.open(id_)
            elif action == "draft":
                labeler.draft(id_, labeler.view(id_)["rev"], {"payload": payload})
            elif action == "skip" and chance.random() < 0.3:
                labeler.skip(id_)
            elif action == "report" and chance.random() < 0.2:
                labeler.report(id_)
            elif action == "amend":
                labeler.amend(id_, payload=payload)
                acknowledged.append((labeler.person.id, id_, payload))
            elif action in ("submit", "late"):
                if action == "late":
                    world.clock.pass_(4000)
                labeler.submit(id_, payload=payload)
                acknowledged.append((labeler.person.id, id_, payload))
        except Refused as refused:
            assert refused.status in (409, 410), refused
    return acknowledged
