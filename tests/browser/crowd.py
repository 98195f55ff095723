"""Labelers without a browser, as a process of its own: python crowd.py < plan.json > figures.json

Each fetches an item, saves drafts of it, submits and fetches the next, with a pause before every
request. Prints {"times": [seconds, ...], "errors": [...]}.
"""

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from label_client import Account, Client, Lost, answer, draft

DRAFTS = 4


class Crowd:
    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.times: list[float] = []
        self.errors: list[str] = []
        self.end = time.perf_counter() + plan["seconds"]

    async def labeler(self, account: Account, seed: int) -> None:
        chance = random.Random(seed)
        client = Client(self.plan["port"], account)
        await asyncio.sleep(chance.uniform(0, self.plan["pause"]))
        while time.perf_counter() < self.end:
            path = f"/api/projects/{self.plan['project']}/next"
            got = await self.act(client, chance, "POST", path, {}, {})
            for assignment in (got or {"assignments": []})["assignments"][:1]:
                await self.label(client, chance, assignment)
        client.close()

    async def label(self, client: Client, chance: random.Random, task: dict[str, Any]) -> None:
        path, rev, payload = f"/api/assignments/{task['id']}", task["rev"], answer(task, chance)
        for n in range(1, DRAFTS + 1):
            body = {"draft": draft(payload, client.account.name, n), "active_ms": n}
            match = {"If-Match": str(rev)}
            saved = await self.act(client, chance, "PUT", f"{path}/draft", body, match)
            if time.perf_counter() > self.end or saved is None:
                return
            rev = saved["rev"]
        key = {"Idempotency-Key": f"{chance.getrandbits(120):030x}"}
        body = {"payload": payload, "active_ms": 9}
        await self.act(client, chance, "POST", f"{path}/submit", body, key)

    async def act(
        self,
        client: Client,
        chance: random.Random,
        method: str,
        path: str,
        body: Any,
        headers: dict[str, str],
    ) -> Any:
        await asyncio.sleep(self.plan["pause"] * chance.uniform(0.8, 1.2))
        start = time.perf_counter()
        try:
            reply = await client.call(method, path, body, headers)
        except Lost as error:
            self.errors.append(f"{method} {path}: {error}")
            return None
        self.times.append(time.perf_counter() - start)
        if reply.status >= 400:
            self.errors.append(f"{method} {path}: {reply.status} {reply.body}")
            return None
        return reply.body


async def main() -> None:
    plan = json.load(sys.stdin)
    crowd = Crowd(plan)
    people = [Account(**account) for account in plan["accounts"]]
    await asyncio.gather(*(crowd.labeler(account, i) for i, account in enumerate(people)))
    json.dump({"times": crowd.times, "errors": crowd.errors[:20]}, sys.stdout)


asyncio.run(main())
