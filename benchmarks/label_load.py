"""Simulated labelers against a real `tercet label serve`, each acting every half second.

    python benchmarks/label_load.py --out benchmarks/results/label_load.json

Every labeler fetches, saves a few drafts, submits, and fetches again. Times are from before the
request is sent until the whole answer is read, without the first `--warmup` seconds. Generator and
server share the machine; `generator_cores` and `server_cores` say how much of it each took.
Afterwards the store itself is asked: every acknowledged answer there once, as it was sent, no item
with more answers than wanted, audit chain and counters sound.
"""

import argparse
import asyncio
import contextlib
import json
import math
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from label_client import (
    Account,
    Client,
    Lost,
    Server,
    accounts,
    answer,
    draft,
    made_up_sets,
    write_result,
)
from sqlalchemy import func, select

from tercet.label import audit
from tercet.label.store import Store
from tercet.label.tables import annotation, assignment, item, project

ROOT = Path(__file__).parent.parent


class Load:
    """What all labelers of one run share."""

    def __init__(self, options: argparse.Namespace, port: int, project_id: str) -> None:
        self.options, self.port, self.project = options, port, project_id
        self.begin = time.perf_counter() + options.warmup
        self.end = self.begin + options.seconds
        self.times: dict[str, list[float]] = defaultdict(list)
        self.errors: Counter[str] = Counter()
        self.acknowledged: dict[str, dict[str, Any]] = {}  # annotation id -> payload

    async def labeler(self, account: Account, seed: int) -> None:
        chance = random.Random(seed)
        client = Client(self.port, account)
        await asyncio.sleep(chance.uniform(0, self.options.pause))
        while time.perf_counter() < self.end:
            got = await self._act(client, chance, "next", "POST", self._path)
            if not got or not got["assignments"]:
                continue
            await self._label(client, chance, got["assignments"][0])
        client.close()

    @property
    def _path(self) -> str:
        return f"/api/projects/{self.project}/next"

    async def _label(self, client: Client, chance: random.Random, task: dict[str, Any]) -> None:
        path, rev = f"/api/assignments/{task['id']}", task["rev"]
        await self._act(
            client, chance, "beat", "POST", f"{path}/beat", {"active_ms": 0, "opened": True}
        )
        payload = answer(task, chance)
        for n in range(1, self.options.drafts + 1):
            part = answer(task, chance, n / self.options.drafts)
            body = {"draft": draft(part, client.account.name, n), "active_ms": 500 * n}
            headers = {"If-Match": str(rev)}
            saved = await self._act(client, chance, "draft", "PUT", f"{path}/draft", body, headers)
            rev = saved["rev"] if saved else rev
            if time.perf_counter() > self.end:
                return
        body = {"payload": payload, "active_ms": 500 * self.options.drafts}
        headers = {"Idempotency-Key": f"{chance.getrandbits(120):030x}"}
        done = await self._act(client, chance, "submit", "POST", f"{path}/submit", body, headers)
        if done:
            self.acknowledged[done["annotation_id"]] = payload

    async def _act(
        self,
        client: Client,
        chance: random.Random,
        name: str,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        start = time.perf_counter()
        reply = None
        try:
            reply = await client.call(method, path, body, headers)
            problem = "" if reply.status < 400 else f"{name} {reply.status}"
        except Lost as error:
            problem = f"{name} {error}"
        taken = time.perf_counter() - start
        if problem:
            self.errors[problem] += 1
        elif self.begin <= start < self.end:
            self.times[name].append(taken)
        await asyncio.sleep(self.options.pause * chance.uniform(0.8, 1.2))
        return reply.body if reply and not problem else None


def percentiles(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)

    def at(share: float) -> float:
        return round(1000 * ordered[math.ceil(share * len(ordered)) - 1], 1)

    if not ordered:
        return {"count": 0}
    return {
        "count": len(ordered),
        "p50_ms": at(0.50),
        "p95_ms": at(0.95),
        "p99_ms": at(0.99),
        "max_ms": at(1.0),
    }


async def load(
    options: argparse.Namespace, server: Server, people: list[Account], id_: str
) -> Load:
    run = Load(options, server.port, id_)
    marks: list[tuple[float, float]] = []

    async def watch() -> None:
        for when in (run.begin, run.end):
            await asyncio.sleep(max(0, when - time.perf_counter()))
            marks.append((time.process_time(), server.cpu_s()))

    await asyncio.gather(watch(), *(run.labeler(a, seed) for seed, a in enumerate(people)))
    (own, its), (own_end, its_end) = marks
    run.generator_cores = round((own_end - own) / options.seconds, 2)
    run.server_cores = round((its_end - its) / options.seconds, 2)
    return run


def check(store: Store, acknowledged: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the store holds, against what labelers were told."""

    def work(conn: Any) -> dict[str, Any]:
        stored = dict(conn.execute(select(annotation.c.id, annotation.c.payload)).all())
        per_item = conn.execute(
            select(item.c.need, func.count(assignment.c.id))
            .join_from(item, assignment)
            .where(assignment.c.state == "done")
            .group_by(item.c.id, item.c.need)
        ).all()
        differing = sum(
            any(stored[id_][key] != value for key, value in payload.items())
            for id_, payload in acknowledged.items()
            if id_ in stored
        )
        return {
            "acknowledged": len(acknowledged),
            "missing": len(set(acknowledged) - set(stored)),
            "differing": differing,
            "annotations": len(stored),
            "items_with_too_many": sum(count > need for need, count in per_item),
            "items_answered_by_several": sum(count > 1 for _, count in per_item),
            "faults_of_the_audit": audit.verify(conn),
        }

    return store.read(work)


@contextlib.contextmanager
def database(options: argparse.Namespace) -> Iterator[str | None]:
    """The PostgreSQL address to use: the given one, or a private server's."""
    if not options.postgresql:
        yield options.database
        return
    sys.path.insert(0, str(ROOT))
    from tests.label import postgres

    with postgres.running() as server:
        yield server.database()


def measure(options: argparse.Namespace, folder: Path, url: str | None) -> dict[str, Any]:
    records = folder / "candidates.jsonl"
    made_up_sets(records, options.items, 0, (options.least, options.most), options.size)
    extra = ["--database", url, "--workers", str(options.workers)] if url else []
    server = Server(records, extra, folder / "server.log")
    server.start()
    try:
        with Store.open(url or folder / "candidates.sqlite", create=False) as store:
            people = accounts(store, options.labelers)
            id_ = store.read(lambda conn: conn.scalars(select(project.c.id)).one())
            run = asyncio.run(load(options, server, people, id_))
    finally:
        code = server.stop()
    with Store.open(url or folder / "candidates.sqlite", create=False) as store:
        checked = check(store, run.acknowledged)
    every = [taken for times in run.times.values() for taken in times]
    return {
        "requests_per_second": round(len(every) / options.seconds, 1),
        "all": percentiles(every),
        **{name: percentiles(times) for name, times in sorted(run.times.items())},
        "errors": dict(run.errors),
        "generator_cores": run.generator_cores,
        "server_cores": run.server_cores,
        "server_exit_code": code,
        "store": checked,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labelers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60, help="measured, after the warm-up")
    parser.add_argument("--warmup", type=float, default=5)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two actions")
    parser.add_argument("--drafts", type=int, default=6, help="drafts saved for each answer")
    parser.add_argument("--items", type=int, default=3000)
    parser.add_argument("--least", type=int, default=4, help="replies of an item, least")
    parser.add_argument("--most", type=int, default=9, help="replies of an item, most")
    parser.add_argument("--size", type=int, default=1000, help="mean characters of a reply")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--database", help="a PostgreSQL address, with an empty database")
    parser.add_argument("--postgresql", action="store_true", help="start a private PostgreSQL")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runs = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder, database(options) as url:
            runs.append(measure(options, Path(folder), url))
        print(json.dumps(runs[-1], indent=2), flush=True)
    write_result(options, {"runs": runs})
    sound = all(
        not run["errors"]
        and not run["store"]["missing"]
        and not run["store"]["differing"]
        and not run["store"]["items_with_too_many"]
        and not run["store"]["faults_of_the_audit"]
        for run in runs
    )
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
