"""A run that waits for people: the store is filled and served, and somebody counts.

    with Campaign.open(plan) as campaign:
        while campaign.count().open:
            time.sleep(1)
        campaign.export(folder)

Every step may be repeated: after a restart the same plan goes on with the same store.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, case, func, select, union

from tercet.label import engines, people, projects, server
from tercet.label.errors import Refused, ended
from tercet.label.export import export
from tercet.label.schema import Kind
from tercet.label.settings import Settings
from tercet.label.store import Store
from tercet.label.tables import ANSWERED, FINAL, assignment, item, labeler, project, prompt
from tercet.records import CandidateSet, InputError, Ranking

CHUNK = 500  # candidate sets in one transaction, so that labelers need not wait for an import


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked of whom, and where."""

    store: str | Path
    sets: Sequence[CandidateSet]
    users: Mapping[str, str] = field(default_factory=dict)
    """prompt id -> whose it is, so that held-out prompts are chosen by user"""
    tags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """prompt id -> its tags, which decide what is asked about a reply"""
    gold: Sequence[Ranking] = ()
    project: str
    kind: Kind = "rank"
    settings: Settings = field(default_factory=Settings)
    criterion: str | None = None
    guidelines: str = ""
    labelers: Sequence[str] = (server.LABELER,)
    held_out_labelers: Sequence[str] = ()
    address: server.Address | None = field(default_factory=server.Address)
    """None: somebody else serves the store"""


@dataclass(frozen=True)
class Count:
    """Answers that were given and that the labelers there are can still give."""

    done: int
    open: int

    @property
    def share(self) -> float:
        return self.done / (self.done + self.open) if self.done + self.open else 1.0


class Campaign:
    """A store with one project in it that people work on. Use `open` in a `with`."""

    def __init__(self, store: Store, project_id: str, served: server.Served | None) -> None:
        self.store, self.project_id, self.served = store, project_id, served
        self._stack = ExitStack()
        self._counted: Count | None = None

    @classmethod
    def open(cls, plan: Plan) -> "Campaign":
        """Imports what is new, serves unless another process does, and prints the links.

        Raises:
            InputError: the store cannot be used, it holds other replies under the same ids, or
                the address cannot be listened on.
            RunFailed: the store cannot be written now.
        """
        with ExitStack() as stack:
            store = stack.enter_context(Store.open(plan.store))
            try:
                project_id = _fill(store, plan)
                served = None
                if plan.address is not None and _take_lock(store, stack):
                    served = stack.enter_context(
                        server.running(store, name=plan.labelers[0], address=plan.address)
                    )
                    _print_links(store, plan, served.url)
                else:
                    print("labels are taken by the server that runs already", flush=True)
            except Refused as refused:
                raise ended(refused, store.url) from None
            campaign = cls(store, project_id, served)
            campaign._stack = stack.pop_all()
        return campaign

    def count(self) -> Count:
        """How far it is. Quotas that no labeler is left for are not waited for: where fewer
        labelers are known than an item wants, or some have skipped it. While the database does
        not answer, what was counted last: people may take days, so it may be restarted meanwhile.

        Raises:
            RunFailed: it does not answer the first time.
        """
        try:
            self._counted = self.store.read(lambda conn: count(conn, self.project_id))
        except Refused as refused:
            if self._counted is None:
                raise ended(refused, self.store.url) from None
        return self._counted

    def export(self, folder: Path) -> dict[str, Any]:
        """The project's files; see `export`.

        Raises:
            RunFailed: the database does not answer.
        """
        try:
            return export(self.store, folder, project=self.project_id)
        except Refused as refused:
            raise ended(refused, self.store.url) from None

    def __enter__(self) -> "Campaign":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def count(conn: Connection, project_id: str) -> Count:
    """Answers given and still possible, over the items that are neither gold, repeats nor held."""
    groups = select(labeler.c.group, func.count()).where(
        labeler.c.role == "labeler", labeler.c.status != "removed"
    )
    known: dict[str, int] = dict(conn.execute(groups.group_by(labeler.c.group)).all())
    everybody = max(1, sum(known.values()))
    training = max(1, everybody - known.get("heldout", 0))
    gone = union(_answered(project_id), _authored(project_id)).subquery()
    tried = (
        select(gone.c.item_id, func.count().label("people"))
        .join(labeler, labeler.c.id == gone.c.labeler_id)
        .where(labeler.c.status != "removed")
        .group_by(gone.c.item_id)
        .subquery()
    )
    held_out = case((item.c.split == "valid", 1), (item.c.split.is_(None), 1), else_=0)
    tried_by = func.coalesce(tried.c.people, 0)
    rows = conn.execute(
        select(item.c.need, item.c.done, held_out, tried_by, func.count())
        .select_from(item)
        .outerjoin(tried, tried.c.item_id == item.c.id)
        .where(
            item.c.project_id == project_id,
            item.c.state == "open",
            item.c.gold.is_(None),
            item.c.repeat_of.is_(None),
        )
        .group_by(item.c.need, item.c.done, held_out, tried_by)
    )
    done = missing = 0
    for need, given, for_all, tried_count, items in rows:
        left = max(0, (everybody if for_all else training) - tried_count)
        done += items * given
        missing += items * min(need - given, left)
    return Count(done, missing)


def _answered(project_id: str) -> Any:
    """(item, labeler) that are through with each other."""
    return select(assignment.c.item_id, assignment.c.labeler_id).where(
        assignment.c.project_id == project_id, assignment.c.state.in_(FINAL)
    )


def _authored(project_id: str) -> Any:
    """(item, labeler) where the labeler wrote a reply to the same prompt in another project."""
    written, own = item.alias("written"), assignment.alias("own")
    return (
        select(item.c.id, own.c.labeler_id)
        .join_from(item, prompt, prompt.c.id == item.c.prompt_id)
        .join(written, written.c.external_id == prompt.c.external_id)
        .join(project, (project.c.id == written.c.project_id) & (project.c.kind == "demonstration"))
        .join(own, own.c.item_id == written.c.id)
        .where(
            item.c.project_id == project_id,
            prompt.c.project_id == project_id,  # so that it is found by its name
            own.c.state.in_(ANSWERED),
        )
    )


def _fill(store: Store, plan: Plan) -> str:
    def prepare(conn: Connection) -> str:
        now = store.now()
        for name in plan.labelers:
            people.add_labeler(conn, now, name)
        for name in plan.held_out_labelers:
            people.add_labeler(conn, now, name, group="heldout")
        id_ = projects.create(
            conn, now, plan.project, plan.kind, settings=plan.settings,
            guidelines=plan.guidelines, criterion=plan.criterion,
        )  # fmt: skip
        projects.check_criterion(conn, id_, plan.criterion)
        projects.set_settings(conn, now, id_, plan.settings, "command")
        projects.add_guidelines(conn, now, id_, plan.guidelines, "command")
        return id_

    project_id = store.write(prepare)
    left_out: list[str] = []
    for start in range(0, len(plan.sets), CHUNK):
        part = plan.sets[start : start + CHUNK]
        left_out += store.write(
            lambda conn, part=part: _add_sets(conn, store.now(), project_id, plan, part)
        )
    if plan.gold:
        left_out += store.write(
            lambda conn: (
                projects.add_gold(conn, store.now(), project_id, plan.gold, tags=plan.tags).refused
            )
        )
    if left_out:
        more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        print(f"label: left out {left_out[0]}{more}", file=sys.stderr, flush=True)
    return project_id


def _add_sets(
    conn: Connection, now: int, project_id: str, plan: Plan, sets: Sequence[CandidateSet]
) -> list[str]:
    """Why some of them cannot be ranked.

    Raises:
        Refused: one is there already with other replies.
    """
    names = select(item.c.external_id).where(
        item.c.project_id == project_id, item.c.external_id.in_([set_.id for set_ in sets])
    )
    there = set(conn.scalars(names))
    found = projects.add_candidate_sets(
        conn, now, project_id, sets, users=plan.users, tags=plan.tags
    )
    for reason in found.refused:
        if any(reason.startswith(f"{name}: ") for name in there):
            raise Refused(
                409,
                "import",
                f"{reason}. Replies that were drawn anew belong into a new store: move the old "
                "one away, or name another `project`",
            )
    return found.refused


def _take_lock(store: Store, stack: ExitStack) -> bool:
    """False when another process serves the SQLite file: then it goes on, and this one waits."""
    if store.path is None:
        return True
    engines.refuse_network(store.path)
    try:
        stack.enter_context(engines.lock(store.path))
    except InputError:
        return False
    return True


def _print_links(store: Store, plan: Plan, url: str) -> None:
    """A fresh link for everybody but the first labeler, whose is printed with the admin's."""

    def job(conn: Connection) -> list[tuple[str, str]]:
        now = store.now()
        rows = conn.execute(select(labeler.c.name, labeler.c.id)).all()
        ids = dict(rows)
        names = [*plan.labelers[1:], *plan.held_out_labelers]
        return [(name, people.invite(conn, now, ids[name])) for name in names]

    for name, token in store.write(job):
        print(f"labeler  {server.join_link(url, token)}   {name}", flush=True)
