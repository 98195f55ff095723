"""10,000 assignments by 20 labelers at once: does every item get exactly the answers it wants?

    python benchmarks/label_overlap.py --out benchmarks/results/label_overlap.json

No HTTP here: threads call the server's own transactions as fast as the store lets them. Some items
are skipped, and some are left until their lease is over and answered late (the store's clock runs
faster than ours), so that items go back to the pool and are promised again.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from label_client import made_up_sets, write_result
from label_load import database
from sqlalchemy import func, select

from tercet.label import assignment, audit, importing, people, projects, work
from tercet.label.people import Person
from tercet.label.settings import Settings
from tercet.label.store import Store
from tercet.label.tables import assignment as assignments
from tercet.label.tables import item
from tercet.records import CandidateSet, read_records


def label(store: Store, person: Person, project: str, options: Any, seed: int) -> Counter[str]:
    """One labeler, until nothing is left."""
    chance, did, late = random.Random(seed), Counter(), []

    def answer(id_: str) -> None:
        def submit(conn: Any) -> dict[str, Any]:
            view = assignment.view(conn, store.now(), person, id_)
            payload = {"bins": [[reply["id"]] for reply in view["replies"]]}
            key = f"{person.id}-{id_}"
            return work.submit(conn, store.now(), person, id_, key, payload, 1)

        told = store.write(submit)
        did["counted" if told["counted"] else "extra"] += 1
        did["late"] += told["late"]

    while True:
        found = store.write(lambda c: assignment.next_items(c, store.now(), person, project))
        if found.reason == "finished":
            break
        if not found.assignments:
            did["waited for a lease"] += 1
            time.sleep(0.05)
        for id_ in found.assignments:
            drawn = chance.random()
            if drawn < options.skip:
                store.write(lambda c, i=id_: work.skip(c, store.now(), person, i, "made up"))
                did["skipped"] += 1
            elif drawn < options.skip + options.leave:
                late.append(id_)
                did["left"] += 1
                time.sleep(options.lease / options.speed)
            else:
                answer(id_)
        while late and chance.random() < 0.2:
            answer_if_open(store, person, late.pop(0), answer)
    for id_ in late:
        answer_if_open(store, person, id_, answer)
    return did


def answer_if_open(store: Store, person: Person, id_: str, answer: Any) -> None:
    view = store.read(lambda conn: assignment.view(conn, store.now(), person, id_))
    if view["state"] in ("open", "expired"):
        answer(id_)


def measure(options: argparse.Namespace, folder: Path, where: str | Path) -> dict[str, Any]:
    records = folder / "candidates.jsonl"
    made_up_sets(records, options.assignments, options.seed, (4, 4), 40)
    settings = Settings(
        lease_s=options.lease,
        ahead_lease_s=options.lease,
        overlap_share=0.5,
        overlap_need=3,
        valid_fraction=0,
    )
    with Store.open(where) as store:
        begun = time.time()
        store.clock = lambda: int(1000 * (begun + options.speed * (time.time() - begun)))
        project = store.write(
            lambda conn: projects.create(conn, store.now(), "rank", "rank", settings=settings)
        )
        # About two answers an item are wanted.
        sets = read_records(records, CandidateSet)[: options.assignments // 2]
        store.write(lambda c: importing.add_candidate_sets(c, store.now(), project, sets))
        labelers = [person(store, f"simulated-{i}") for i in range(options.labelers)]
        began = time.monotonic()
        with ThreadPoolExecutor(options.labelers) as pool:
            jobs = [
                pool.submit(label, store, who, project, options, options.seed + i)
                for i, who in enumerate(labelers)
            ]
            did = sum((job.result() for job in jobs), Counter())
        seconds = time.monotonic() - began
        found = store.read(check)
    return {"seconds": round(seconds, 1), "labelers_did": dict(sorted(did.items())), **found}


def person(store: Store, name: str) -> Person:
    def job(conn: Any) -> Person:
        id_ = people.add_labeler(conn, store.now(), name, simulated=True)
        return Person(id_, name, "labeler", "train", True, "")

    return store.write(job)


def check(conn: Any) -> dict[str, Any]:
    """How many answers items have beside how many they want, and the store's own audit."""
    rows = conn.execute(
        select(item.c.need, func.count(assignments.c.id).filter(assignments.c.state == "done"))
        .join_from(item, assignments, isouter=True)
        .where(item.c.repeat_of.is_(None))
        .group_by(item.c.id, item.c.need)
    ).all()
    states = conn.execute(
        select(assignments.c.state, func.count()).group_by(assignments.c.state)
    ).all()
    return {
        "items": len(rows),
        "answers_wanted": sum(need for need, _ in rows),
        "answers_counted": sum(done for _, done in rows),
        "items_with_too_many": sum(done > need for need, done in rows),
        "items_with_too_few": sum(done < need for need, done in rows),
        "assignments": dict(states),
        "faults_of_the_audit": audit.verify(conn),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assignments", type=int, default=10_000)
    parser.add_argument("--labelers", type=int, default=20)
    parser.add_argument("--skip", type=float, default=0.02)
    parser.add_argument("--leave", type=float, default=0.02)
    parser.add_argument("--lease", type=int, default=10, help="seconds of the store's clock")
    parser.add_argument("--speed", type=float, default=20, help="of the store's clock")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", help="a PostgreSQL address, with an empty database")
    parser.add_argument("--postgresql", action="store_true", help="start a private PostgreSQL")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, database(options) as url:
        result = measure(options, Path(folder), url or Path(folder) / "labels.sqlite")
    print(json.dumps(result, indent=2))
    write_result(options, {"result": result})
    faulty = result["items_with_too_many"] + result["items_with_too_few"]
    return 1 if faulty or result["faults_of_the_audit"] else 0


if __name__ == "__main__":
    sys.exit(main())
