"""At least 1,000 faults against a real `tercet label serve`, and then: is anything lost?

    python benchmarks/label_faults.py --out benchmarks/results/label_faults.json

Pages (`label_page.py`) follow the rules of the real one. The server is killed with SIGKILL at
random moments and started again; connections break before, during and after the answer; requests
are sent twice, and old ones again; labelers stay away until their lease is over; pages crash with
answers in their queue; some labelers work with two pages at once. When enough faults were injected,
everybody sends what is left, and the store is compared with what was sent and acknowledged.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from label_client import Account, Server, accounts, made_up_sets, write_result
from label_load import database
from label_page import Journal, Ledger, Page, PageCrashed, Plan
from sqlalchemy import func, select

from tercet.label import audit
from tercet.label.store import Store
from tercet.label.tables import annotation, assignment, item, project, submission_key


async def labeler(
    account: Account, seed: int, id_: str, port: int, ledger: Ledger, plan: Plan, pause: float
) -> Journal:
    """One browser: pages one after the other on one journal, until the plan is off."""
    chance, journal = random.Random(seed), Journal()
    waits = random.Random(-seed)

    def open_page() -> Page:
        return Page(
            port, account, id_, journal, ledger, plan, chance, lambda: pause * waits.uniform(0.2, 2)
        )

    page = open_page()
    while plan.on:
        try:
            task = await page.next()
            if task is None:
                await asyncio.sleep(0.5)
                continue
            await page.work(task, chance.randint(1, 4))
            if plan.on and chance.random() < plan.crash:
                ledger.faults["page reloaded"] += 1
                raise PageCrashed
        except PageCrashed:
            page.close()
            page = open_page()
    await page.drain()
    page.close()
    return journal


async def kill_and_restart(server: Server, ledger: Ledger, plan: Plan, options: Any) -> None:
    """Kills the server after random times, until there were enough faults and enough kills."""
    chance = random.Random(options.seed)
    started = time.monotonic()
    while time.monotonic() - started < options.most_seconds:
        await asyncio.sleep(chance.uniform(0.1, 2 * options.between_kills))
        if ledger.faults.total() >= options.faults and (
            ledger.faults["server killed"] >= options.kills
        ):
            break
        ledger.faults["server killed"] += 1
        server.kill()
        await asyncio.to_thread(server.start)
    plan.on = False


async def run(server: Server, people: list[Account], id_: str, options: Any) -> Ledger:
    ledger, plan = Ledger(), Plan(stall_s=options.lease + 2)
    # The first few labelers have two pages, in two browsers.
    browsers = people + people[: options.doubles]
    journals = await asyncio.gather(
        *(
            labeler(account, options.seed + 1000 + i, id_, server.port, ledger, plan, options.pause)
            for i, account in enumerate(browsers)
        ),
        kill_and_restart(server, ledger, plan, options),
    )
    for journal in journals[:-1]:
        if journal.queue:
            ledger.wrong.append(f"{len(journal.queue)} answers were never settled")
    return ledger


def compare(store: Store, ledger: Ledger) -> dict[str, Any]:
    """The store against the ledger; `wrong` must be empty."""

    def work(conn: Any) -> dict[str, Any]:
        wrong = list(ledger.wrong)
        rows = conn.execute(
            select(
                annotation.c.id,
                annotation.c.payload,
                annotation.c.revision,
                assignment.c.id.label("assignment_id"),
            ).join_from(annotation, assignment)
        ).all()
        stored = {row.id: row for row in rows}
        for key, told in ledger.acknowledged.items():
            entry, row = ledger.sent[key], stored.get(told["annotation_id"])
            if row is None:
                wrong.append(f"acknowledged answer {key} is missing")
            elif row.assignment_id != entry.assignment or row.revision != told["revision"]:
                wrong.append(f"acknowledged answer {key} is stored for something else")
            elif any(row.payload[k] != v for k, v in entry.body["payload"].items()):
                wrong.append(f"acknowledged answer {key} is stored with another content")
        known = {told["annotation_id"] for told in ledger.acknowledged.values()}
        if unknown := set(stored) - known:
            wrong.append(f"{len(unknown)} answers are stored that nobody was told of")
        if len(known) != len(ledger.acknowledged):
            wrong.append("two keys were told the same annotation")
        revisions = Counter((row.assignment_id, row.revision) for row in rows)
        doubles = sum(count - 1 for count in revisions.values())
        keys = conn.scalar(select(func.count()).select_from(submission_key))
        if keys != len(known):
            wrong.append(f"{keys} keys are stored for {len(known)} answers")
        open_ = conn.execute(
            select(assignment.c.id, assignment.c.rev, assignment.c.draft).where(
                assignment.c.state.in_(("open", "expired"))
            )
        )
        compared = 0
        for row in open_:
            saved, newest = ledger.saved.get(row.id, {}), ledger.newest(row.id)
            compared += bool(saved)
            if row.rev < newest or (row.rev in saved and row.draft != saved[row.rev]):
                wrong.append(f"the draft of {row.id} is older than what was acknowledged")
        per_item = conn.execute(
            select(item.c.id, item.c.need, func.count(assignment.c.id))
            .join_from(item, assignment)
            .where(assignment.c.state == "done")
            .group_by(item.c.id, item.c.need)
        ).all()
        wrong += [f"item {i} has {n} answers of {need}" for i, need, n in per_item if n > need]
        states = conn.execute(
            select(assignment.c.state, func.count()).group_by(assignment.c.state)
        ).all()
        return {
            "wrong": wrong + audit.verify(conn),
            "answers_sent": len(ledger.sent),
            "answers_acknowledged": len(ledger.acknowledged),
            "answers_refused": dict(Counter(ledger.refused.values())),
            "annotations": len(stored),
            "duplicates": doubles,
            "drafts_acknowledged": sum(map(len, ledger.saved.values())),
            "open_drafts_compared": compared,
            "assignments": dict(states),
            "events": audit.head(conn)[0],
        }

    return store.read(work)


def measure(options: argparse.Namespace, folder: Path, url: str | None) -> dict[str, Any]:
    records, where = folder / "candidates.jsonl", url or folder / "candidates.sqlite"
    made_up_sets(records, options.items, options.seed, (4, 6), 80)
    short = ["--lease-s", str(options.lease), "--ahead-lease-s", str(options.lease)]
    extra = ["--database", url, "--workers", str(options.workers)] if url else []
    server = Server(records, [*short, *extra], folder / "server.log")
    server.start()
    began = time.monotonic()
    try:
        with Store.open(where, create=False) as store:
            people = accounts(store, options.labelers)
            id_ = store.read(lambda conn: conn.scalars(select(project.c.id)).one())
        ledger = asyncio.run(run(server, people, id_, options))
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.stop()
    with Store.open(where, create=False) as store:
        found = compare(store, ledger)
    return {
        "seconds": round(time.monotonic() - began),
        "faults": ledger.faults.total(),
        "faults_by_kind": dict(sorted(ledger.faults.items())),
        "told": dict(sorted(ledger.told.items())),
        "server_log_lines": len((folder / "server.log").read_text().splitlines()),
        **found,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=1000, help="at least so many")
    parser.add_argument("--kills", type=int, default=100, help="of them, at least")
    parser.add_argument("--between-kills", type=float, default=1.5, help="mean seconds up")
    parser.add_argument("--most-seconds", type=float, default=1800)
    parser.add_argument("--labelers", type=int, default=12)
    parser.add_argument("--doubles", type=int, default=4, help="labelers with two pages")
    parser.add_argument("--lease", type=int, default=10, help="seconds")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between drafts, mean")
    parser.add_argument("--items", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", help="a PostgreSQL address, with an empty database")
    parser.add_argument("--postgresql", action="store_true", help="start a private PostgreSQL")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, database(options) as url:
        result = measure(options, Path(folder), url)
    print(json.dumps(result, indent=2))
    write_result(options, {"result": result})
    return 1 if result["wrong"] or result["duplicates"] else 0


if __name__ == "__main__":
    sys.exit(main())
