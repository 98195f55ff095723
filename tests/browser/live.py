"""More around a served store: projects, people and requests of a test's own making.

with Live(tmp_path) as live:
    project = live.add("Rank", sets=sets_of(5))
    task = live.task(context, live.account("ann"), project)
"""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, TypeVar

from playwright.sync_api import BrowserContext, Page
from sqlalchemy import Connection, func, select

from tercet.label import people, projects, tables
from tercet.label.schema import DEFAULT, Kind, LabelSchema
from tercet.records import Candidate, CandidateSet, Prompt
from tests.browser.harness import Served, ranking_set
from tests.browser.pages import Task

T = TypeVar("T")
QUIET = {"overlap_share": 0, "valid_fraction": 0, "gold_share": 0, "repeat_share": 0}


@dataclass(frozen=True)
class Account:
    """A person's session."""

    name: str
    id: str
    sid: str
    csrf: str


@dataclass(frozen=True)
class Answer:
    """What the server said to a request."""

    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Live(Served):
    """A server whose first project has one item; tests add what they need."""

    def __init__(self, folder: Path, *flags: str) -> None:
        super().__init__(folder, [ranking_set("first")], *flags)

    def read(self, work: Callable[[Connection], T]) -> T:
        return self.store.read(work)

    def write(self, work: Callable[[Connection, int], T]) -> T:
        return self.store.write(lambda conn: work(conn, self.store.now()))

    def counts(self) -> dict[str, int]:
        """How many rows each table has."""
        every = tables.metadata.sorted_tables
        return self.read(
            lambda conn: {
                table.name: conn.scalar(select(func.count()).select_from(table)) or 0
                for table in every
            }
        )

    def add(
        self,
        name: str,
        kind: Kind = "rank",
        *,
        sets: Sequence[CandidateSet] = (),
        prompts: Sequence[Prompt] = (),
        tags: Mapping[str, Sequence[str]] | None = None,
        guidelines: str = "",
        criterion: str | None = None,
        schema: LabelSchema = DEFAULT,
        **settings: Any,
    ) -> str:
        """A project in which every item wants one answer, unless told otherwise; its id."""

        def work(conn: Connection, now: int) -> str:
            id_ = projects.create(
                conn,
                now,
                name,
                kind,
                settings=projects.Settings(**{**QUIET, **settings}),
                schema=schema,
                guidelines=guidelines,
                criterion=criterion,
            )
            refused: list[str] = []
            if sets:
                refused += projects.add_candidate_sets(conn, now, id_, sets, tags=tags).refused
            if prompts:
                refused += projects.add_prompts(conn, now, id_, prompts).refused
            assert not refused, refused
            return id_

        return self.write(work)

    def account(self, name: str, role: str = "labeler") -> Account:
        """Somebody who has used their link."""

        def work(conn: Connection, now: int) -> people.Joined:
            id_ = people.add_labeler(conn, now, name, role=role)
            return people.join(conn, now, people.invite(conn, now, id_))

        joined = self.write(work)
        return Account(name, joined.labeler_id, joined.sid, joined.csrf)

    def page(self, context: BrowserContext, account: Account, path: str = "") -> Page:
        """A page of that person, at `path`."""
        context.add_cookies(
            [{"name": "tercet_session", "value": account.sid, "url": self.url, "httpOnly": True}]
        )
        page = context.new_page()
        if path:
            page.goto(self.url + path)
        return page

    def task(self, context: BrowserContext, account: Account, project: str) -> Task:
        """The task page of that person."""
        return Task(self.page(context, account, "/join"), project)

    def call(
        self,
        account: Account | None,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request as the page's script would send it; bytes are sent as they are."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        given = {"Content-Type": "application/json"} if data is not None else {}
        if account:
            given |= {"Cookie": f"tercet_session={account.sid}", "X-CSRF-Token": account.csrf}
        for name, value in {**given, **(headers or {})}.items():
            request.add_header(name, value)
        try:
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=20) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def next(self, account: Account, project: str) -> list[dict[str, Any]]:
        return self.call(account, "POST", f"/api/projects/{project}/next", {}).json["assignments"]

    def submit(self, account: Account, assignment: str, payload: Any) -> Any:
        answer = self.call(
            account,
            "POST",
            f"/api/assignments/{assignment}/submit",
            {"payload": payload, "active_ms": 20_000},
            {"Idempotency-Key": f"key-{assignment}"},
        )
        assert answer.status == 201, answer.body
        return answer.json


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def set_of(name: str, prompt: str, texts: Sequence[str]) -> CandidateSet:
    """One candidate set with these replies."""
    replies = tuple(
        Candidate(
            id=f"{name}-{j}",
            text=text,
            policy=f"policy-{j}",
            temperature=1.0,
            seed=j,
            finish="stop",
        )
        for j, text in enumerate(texts)
    )
    return CandidateSet(id=name, prompt_id=f"prompt-{name}", prompt=prompt, candidates=replies)


def in_order(assignment: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """An answer that ranks the replies in the order shown."""
    return {"bins": [[reply["id"]] for reply in assignment["replies"]], **more}
