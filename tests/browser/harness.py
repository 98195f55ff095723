"""`tercet label serve` as a process of its own, on a store that tests can look into.

with Served(tmp_path, [ranking_set("s0", k=4)]) as served:
    page.goto(served.labeler)
    ...
    assert served.answers()[0].payload["bins"] == ...
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Row, Select, Table, select

from tercet.label import audit, people, tables
from tercet.label.server import join_link
from tercet.label.store import Store
from tercet.records import Candidate, CandidateSet, Prompt, write_records

# Every item once, nothing mixed in: what a test imports is what its labelers get.
PLAIN = (
    *("--overlap-share", "0", "--valid-fraction", "0"),
    *("--gold-share", "0", "--repeat-share", "0"),
)
START_S = 60


def ranking_set(name: str, k: int = 4, text: str = "Reply {j} to {name}.") -> CandidateSet:
    """K replies to one prompt, all of different texts."""
    return CandidateSet(
        id=name,
        prompt_id=f"prompt-{name}",
        prompt=f"What about {name}?",
        candidates=tuple(
            Candidate(
                id=f"{name}-{j}",
                text=text.format(j=j, name=name),
                policy=f"policy-{j}",
                temperature=1.0,
                seed=j,
                finish="stop",
            )
            for j in range(k)
        ),
    )


def sets_of(count: int, k: int = 4) -> list[CandidateSet]:
    """`count` candidate sets, "s0", "s1", ..."""
    return [ranking_set(f"s{i}", k) for i in range(count)]


class Served:
    """A server process, started. `flags` go to `serve`; `database` and `workers` for PostgreSQL."""

    def __init__(
        self,
        folder: Path,
        records: Sequence[CandidateSet] | Sequence[Prompt],
        *flags: str,
        database: str | None = None,
        workers: int = 4,
    ) -> None:
        self.source = folder / ("prompts.jsonl" if _are_prompts(records) else "candidates.jsonl")
        write_records(self.source, records)
        self.flags = [*PLAIN, *flags]
        self.where: str | Path = self.source.with_suffix(".sqlite")
        if database:
            self.flags += ["--database", database, "--workers", str(workers)]
            self.where = database
        self.port = 0
        self.process: subprocess.Popen[str] | None = None
        self._store: Store | None = None
        self.start()

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, type_: object, *_: object) -> None:
        """Ends the server as Ctrl-C does. What it leaves must agree with its audit trail."""
        try:
            if type_ is None:
                faults = self.store.read(audit.verify)
                assert not faults, faults
        finally:
            self.stop()
            if self._store:
                self._store.close()

    # The process

    def start(self) -> None:
        """Starts it on the port it had before, and reads the links that it prints."""
        command = [sys.executable, "-m", "tercet", "label", "serve", str(self.source)]
        self.log = self.source.with_name("server.log").open("a")
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), *self.flags],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        lines: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(target=_read, args=(self.process.stdout, lines), daemon=True)
        reader.start()
        links: dict[str, str] = {}
        while len(links) < 2:
            line = lines.get(timeout=START_S)
            assert line, f"the server ended:\n{Path(self.log.name).read_text()}"
            who, _, link = line.partition(" ")
            if who in ("labeler", "admin"):
                links[who] = link.strip()
        self.labeler, self.admin = links["labeler"], links["admin"]
        parts = urlsplit(self.labeler)
        self.port = parts.port or 0
        self.url = f"{parts.scheme}://{parts.netloc}"
        # Connections wait until a worker has started; a page would not wait as long.
        with urllib.request.urlopen(f"{self.url}/readyz", timeout=START_S) as ready:
            assert ready.status == 200

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGINT)
            code = self.process.wait(timeout=30)
            self._gone()
            assert code == 0, f"exit code {code}:\n{Path(self.log.name).read_text()}"

    def kill(self) -> None:
        """kill -9, the workers too."""
        assert self.process
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._gone()

    def _gone(self) -> None:
        assert self.process and self.process.stdout
        self.process.stdout.close()
        self.log.close()
        self.process = None

    # The store, beside the server

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = Store.open(self.where)
        return self._store

    def rows(self, query: Select[Any] | Table) -> list[Row[Any]]:
        query = select(query) if isinstance(query, Table) else query
        return list(self.store.read(lambda conn: conn.execute(query).all()))

    def answers(self) -> list[Row[Any]]:
        """Annotations in order, each with its assignment's state, item, labeler and display."""
        a, t = tables.assignment, tables.annotation
        return self.rows(
            select(
                t.c.id,
                t.c.payload,
                t.c.revision,
                t.c.active_ms,
                t.c.assignment_id,
                a.c.state,
                a.c.item_id,
                a.c.labeler_id,
                a.c.display_order,
            )
            .join_from(t, a)
            .order_by(t.c.at, t.c.id)
        )

    def assignment(self, assignment_id: str) -> Row[Any]:
        a = tables.assignment
        return self.rows(select(a).where(a.c.id == assignment_id))[0]

    def project(self) -> str:
        """The id of the first project."""
        return self.rows(select(tables.project.c.id).order_by(tables.project.c.id))[0].id

    def invite(self, name: str) -> str:
        """A link for one more labeler."""

        def job(conn: Any) -> str:
            now = self.store.now()
            return people.invite(conn, now, people.add_labeler(conn, now, name))

        return join_link(self.url, self.store.write(job))

    def set(self, table: Table, id_: str, **values: Any) -> None:
        """Changes a row behind the server's back."""
        self.store.write(
            lambda conn: conn.execute(table.update().where(table.c.id == id_).values(**values))
        )


def _are_prompts(records: Sequence[CandidateSet] | Sequence[Prompt]) -> bool:
    return isinstance(records[0], Prompt)


def _read(pipe: Any, lines: "queue.Queue[str]") -> None:
    for line in pipe:
        lines.put(line)
    lines.put("")
