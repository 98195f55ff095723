"""The labeling page as a program: the rules of its `sync.js`, without a browser.

A change goes into the journal first, then to the server with the revision it builds on. An answer
goes into the journal's queue under a key of its own and is sent until the server settles it. Faults
are injected into its requests; the journal outlives the page.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from label_client import Account, Client, Lost, Reply, answer, draft

PASSING = (401, 403, 408, 423, 425, 429)
DROPS = ("half", "unread", "lost")


@dataclass
class Entry:
    """One answer in the queue."""

    key: str
    path: str
    body: dict[str, Any]
    assignment: str


@dataclass
class Journal:
    """What the browser keeps on its disk."""

    drafts: dict[str, dict[str, Any]] = field(default_factory=dict)
    queue: list[Entry] = field(default_factory=list)


@dataclass
class Ledger:
    """What all pages sent and were told, to be compared with the store afterwards."""

    faults: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    sent: dict[str, Entry] = field(default_factory=dict)  # key -> entry
    acknowledged: dict[str, dict[str, Any]] = field(default_factory=dict)  # key -> answer
    refused: dict[str, str] = field(default_factory=dict)  # key -> code
    saved: dict[str, dict[int, Any]] = field(default_factory=dict)  # assignment -> rev -> draft

    def newest(self, assignment: str) -> int:
        return max(self.saved.get(assignment, {0: None}))


@dataclass
class Plan:
    """How often what goes wrong; shares of requests, or of assignments."""

    drop: float = 0.08
    duplicate: float = 0.10
    replay: float = 0.05
    crash: float = 0.12
    stall: float = 0.06
    stall_s: float = 12.0
    skip: float = 0.03
    amend: float = 0.04
    on: bool = True


class Page:
    """One open page of a labeler. After a crash, make a new one with the same journal."""

    def __init__(
        self,
        port: int,
        account: Account,
        project: str,
        journal: Journal,
        ledger: Ledger,
        plan: Plan,
        chance: random.Random,
        pause: Callable[[], float],
    ) -> None:
        self.client = Client(port, account)
        self.second = Client(port, account)
        self.account, self.project = account, project
        self.journal, self.ledger, self.plan, self.chance = journal, ledger, plan, chance
        self.pause = pause
        self.name = f"{chance.getrandbits(64):016x}"
        self.n = self.rev = 0
        self.seen: dict[str, int] = {}
        self.old: list[tuple[str, str, Any, dict[str, str]]] = []  # requests to replay

    def close(self) -> None:
        self.client.close()
        self.second.close()

    # Requests

    async def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """One request, with faults. Raises Lost when the page learned nothing, or must retry."""
        plan, chance = self.plan, self.chance
        headers = headers or {}
        drop = chance.choice(DROPS) if plan.on and chance.random() < plan.drop else ""
        if drop:
            self.ledger.faults[f"connection dropped, {drop}"] += 1
        if body and "/beat" not in path:
            self.old.append((method, path, body, headers))
        if plan.on and not drop and body and chance.random() < plan.duplicate:
            self.ledger.faults["request sent twice at once"] += 1
            twin = self.second.call(method, path, body, headers)
            # Which of the two the page hears of is chance.
            calls = [self.client.call(method, path, body, headers), twin]
            chance.shuffle(calls)
            replies = await asyncio.gather(*calls, return_exceptions=True)
            for heard in replies:
                if isinstance(heard, Reply) and heard.status == 201:
                    self._acknowledge(headers["Idempotency-Key"], heard.body)
            if isinstance(replies[0], BaseException):
                raise replies[0]
            reply = replies[0]
        else:
            reply = await self.client.call(method, path, body, headers, drop)
        if reply.status >= 500 or reply.status in PASSING:
            self.ledger.told[f"{reply.status} {reply.body.get('code')}"] += 1
            raise Lost(str(reply.status))
        return reply

    async def until(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """`send`, repeated until there is an answer."""
        wait = 0.05
        while True:
            try:
                return await self.send(method, path, body, headers)
            except Lost:
                await asyncio.sleep(wait * self.chance.uniform(0.8, 1.2))
                wait = min(1.0, wait * 2)

    async def replay(self) -> None:
        """Sends an old request again, as a proxy or a browser's back button may."""
        method, path, body, headers = self.chance.choice(self.old)
        self.ledger.faults[f"old {path.rpartition('/')[2]} replayed"] += 1
        try:
            reply = await self.second.call(method, path, body, headers)
        except Lost:
            return
        key = headers.get("Idempotency-Key")
        if key and reply.status == 201:
            self._acknowledge(key, reply.body)
        elif reply.status == 200 and path.endswith("/draft"):
            # Only a request that the server had never seen may still be taken.
            self._saved(path.split("/")[3], reply.body["rev"], body["draft"])

    # Assignments

    async def next(self) -> dict[str, Any] | None:
        """The assignment to work on, None when there is none now."""
        await self.drain()
        before = {id_: self.ledger.newest(id_) for id_ in self.ledger.saved}
        reply = await self.until("POST", f"/api/projects/{self.project}/next")
        for task in reply.body["assignments"]:
            self._compare(task, before.get(task["id"], 0))
        waiting = {entry.assignment for entry in self.journal.queue}
        tasks = [task for task in reply.body["assignments"] if task["id"] not in waiting]
        if not tasks:
            self.ledger.told[f"none: {reply.body['reason']}"] += 1
            return None
        return self._open(tasks[0])

    def _compare(self, task: dict[str, Any], newest: int) -> None:
        rev, saved = task["rev"], self.ledger.saved.get(task["id"], {})
        self.ledger.told["draft as acknowledged"] += rev in saved
        if rev < newest:
            self.ledger.wrong.append(f"draft of {task['id']} went back from {newest} to {rev}")
        if rev in saved and task["draft"] != saved[rev]:
            self.ledger.wrong.append(f"draft {rev} of {task['id']} is not what was acknowledged")

    def _open(self, task: dict[str, Any]) -> dict[str, Any]:
        self.rev, kept = task["rev"], self.journal.drafts.get(task["id"])
        ours = kept["draft"]["stamp"] if kept else None
        theirs = (task["draft"] or {}).get("stamp")
        self.seen = {theirs["page"]: theirs["n"]} if theirs else {}
        together = ours and theirs and ours["page"] == theirs["page"]
        if kept and ours:
            newer = ours["n"] > theirs["n"] if together else not kept["saved"]
            if newer:
                self.rev = max(self.rev, kept["rev"]) if together else kept["rev"]
                self.seen = {ours["page"]: ours["n"]}
        return task

    async def work(self, task: dict[str, Any], drafts: int) -> None:
        """Saves some drafts, then answers, skips or amends."""
        path, chance, plan = f"/api/assignments/{task['id']}", self.chance, self.plan
        await self.until("POST", f"{path}/beat", {"active_ms": 1, "opened": True})
        for k in range(1, drafts + 1):
            await asyncio.sleep(self.pause())
            if not await self.change(task, answer(task, chance, k / drafts)) or not plan.on:
                return  # answered elsewhere; or the day is over, and the draft stays
        if plan.on and chance.random() < plan.stall:
            self.ledger.faults["away until the lease was over"] += 1
            await asyncio.sleep(plan.stall_s)
        if plan.on and self.old and chance.random() < plan.replay * 5:
            await self.replay()
        if chance.random() < plan.skip:
            await self.finish(task, "skip", {"reason": "made up"})
            return
        await self.finish(task, "submit", {"payload": answer(task, chance)})
        if chance.random() < plan.amend:
            await self.finish(task, "amend", {"payload": answer(task, chance)})

    # Drafts

    async def change(self, task: dict[str, Any], payload: dict[str, Any]) -> bool:
        """Stores a draft; False when somebody (another page) has answered meanwhile."""
        self.n += 1
        self.seen[self.name] = self.n
        value = draft(payload, self.name, self.n)
        while True:
            kept = {"rev": self.rev, "draft": value, "saved": False}
            before = self.ledger.newest(task["id"])
            self.journal.drafts[task["id"]] = kept
            reply = await self.until(
                "PUT",
                f"/api/assignments/{task['id']}/draft",
                {"draft": value, "active_ms": self.n},
                {"If-Match": str(self.rev)},
            )
            if reply.status == 200:
                self.rev = reply.body["rev"]
                self._saved(task["id"], self.rev, value)
                self.journal.drafts[task["id"]] = {**kept, "rev": self.rev, "saved": True}
                return True
            if reply.status != 412:
                self.ledger.told[f"draft {reply.status} {reply.body['code']}"] += 1
                if reply.status != 409:
                    self.ledger.wrong.append(f"draft of {task['id']}: {reply}")
                return False
            self._clashed(task["id"], reply.body, before)

    def _clashed(self, assignment: str, body: dict[str, Any], newest: int) -> None:
        self.rev, theirs = body["rev"], body["draft"]
        stamp = (theirs or {}).get("stamp")
        if stamp and self.seen.get(stamp["page"], 0) < stamp["n"]:
            self.ledger.faults["two pages on one draft"] += 1
            self.seen[stamp["page"]] = stamp["n"]  # "use this": ours, on top of theirs
        if self.rev < newest:
            self.ledger.wrong.append(f"conflict on {assignment} names an older draft")

    def _saved(self, assignment: str, rev: int, value: Any) -> None:
        known = self.ledger.saved.setdefault(assignment, {})
        if rev in known and known[rev] != value:
            self.ledger.wrong.append(f"revision {rev} of {assignment} was given to two drafts")
        known[rev] = value

    # Answers

    async def finish(self, task: dict[str, Any], verb: str, body: dict[str, Any]) -> None:
        """Keeps an answer, then sends the queue, unless the page crashes before."""
        id_ = task["id"]
        key = f"{self.chance.getrandbits(120):030x}"
        body = {**body, "active_ms": self.n}
        entry = Entry(key, f"/api/assignments/{id_}/{verb}", body, id_)
        self.ledger.sent[key] = entry
        self.journal.queue.append(entry)
        self.journal.drafts.pop(id_, None)
        if self.plan.on and self.chance.random() < self.plan.crash:
            self.ledger.faults["page crashed with an answer in its queue"] += 1
            raise PageCrashed
        await self.drain()

    async def drain(self) -> None:
        """Sends the queue in order, each entry until the server has settled it."""
        while self.journal.queue:
            entry = self.journal.queue[0]
            headers = {"Idempotency-Key": entry.key}
            reply = await self.until("POST", entry.path, entry.body, headers)
            if reply.status == 201:
                self._acknowledge(entry.key, reply.body)
            elif reply.status == 204:
                self.ledger.told["handed back"] += 1
            else:
                self.ledger.refused[entry.key] = reply.body["code"]
                verb = entry.path.rpartition("/")[2]
                self.ledger.told[f"{verb} {reply.status} {reply.body['code']}"] += 1
            # The journal may have been taken over by a page opened after a crash.
            if self.journal.queue and self.journal.queue[0] is entry:
                self.journal.queue.pop(0)

    def _acknowledge(self, key: str, body: dict[str, Any]) -> None:
        told = {name: body[name] for name in ("annotation_id", "revision", "counted")}
        if self.ledger.acknowledged.setdefault(key, told) != told:
            self.ledger.wrong.append(f"key {key} was answered in two ways: {told}")
        if body["late"]:
            self.ledger.told["late"] += 1


class PageCrashed(Exception):
    """The page's memory is gone; its journal is not."""
