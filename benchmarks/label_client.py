"""What the benchmarks of the labeling server share: a server process, made-up replies to rank, and
a light HTTP client, so that the generator takes little of the machine that it shares with the
server."""

import argparse
import asyncio
import json
import os
import platform
import random
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tercet.label import people
from tercet.label.store import Store
from tercet.records import Candidate, CandidateSet, write_records
from tercet.rundir import environment

TIMEOUT_S = 30.0
WORDS = [a + b for a in ("ba", "ke", "lo", "mi", "nu", "so") for b in ("den", "for", "lin", "mas")]


def made_up_sets(path: Path, count: int, seed: int, replies: tuple[int, int], size: int) -> None:
    """Writes `count` candidate sets of `replies` (least, most) texts of about `size` characters."""
    chance = random.Random(seed)

    def words(characters: int) -> str:
        return " ".join(chance.choices(WORDS, k=max(1, characters // 5)))

    write_records(
        path,
        (
            CandidateSet(
                id=f"set-{i}",
                prompt_id=f"prompt-{i}",
                prompt=words(200) + "?",
                candidates=tuple(
                    Candidate(
                        id=f"reply-{k}",
                        text=words(chance.randrange(size // 2, size * 3 // 2)),
                        policy="made-up",
                        temperature=1.0,
                        seed=k,
                        finish="stop",
                    )
                    for k in range(chance.randint(*replies))
                ),
            )
            for i in range(count)
        ),
    )


def write_result(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Writes options.out: machine, versions, commit, command, options, then what was measured."""
    if options.out is None:
        return
    facts = environment(None, ["python", *_command()], 1, {})
    facts["hardware"] = {k: v for k, v in facts["hardware"].items() if k != "host"}
    facts["hardware"]["cpu"] = _processor()
    facts["versions"] |= {"sqlite": sqlite3.sqlite_version}
    facts["versions"] |= {name: version(name) for name in ("sqlalchemy", "fastapi", "uvicorn")}
    # A database's address may hold a password.
    asked = {k: v for k, v in vars(options).items() if k not in ("out", "database")}
    text = json.dumps({"environment": facts, "options": asked, **result}, indent=2)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n", encoding="utf-8")


def _command() -> list[str]:
    words = list(sys.argv)
    for i, word in enumerate(words):
        if words[i - 1 : i] == ["--database"]:
            words[i] = "URL"
        elif word.startswith("--database="):
            words[i] = "--database=URL"
    return words


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`tercet label serve` as a process, on one port over all its lives."""

    def __init__(self, source: Path, options: list[str], log: Path) -> None:
        self.port = free_port()
        code = "import sys; from tercet.cli import main; sys.exit(main())"
        self.command = [sys.executable, "-c", code, "label", "serve", str(source), *options]
        self.command += ["--port", str(self.port)]
        self.log = log
        self.starts: list[float] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns when the server answers."""
        began = time.perf_counter()
        # OMP_NUM_THREADS: numpy's threads would take the second core.
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        while self.process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 5) as probe:
                    probe.sendall(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
                    if b" 200 " in probe.recv(100):
                        self.starts.append(time.perf_counter() - began)
                        return
            except OSError:
                time.sleep(0.02)
        raise SystemExit(f"the server did not start; {self.log} tells why")

    def kill(self) -> None:
        """SIGKILL, to the workers too."""
        assert self.process
        os.killpg(self.process.pid, 9)
        self._ended()

    def stop(self) -> int:
        """Ctrl-C; returns the exit code."""
        assert self.process
        self.process.send_signal(2)
        return self._ended()

    def cpu_s(self) -> float:
        """Processor time that the server process has used in this life (Linux; without workers)."""
        assert self.process
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _ended(self) -> int:
        assert self.process
        code = self.process.wait(60)
        if self.process.stdout:
            self.process.stdout.close()
        return code


@dataclass(frozen=True)
class Account:
    """A labeler's session."""

    name: str
    id: str
    sid: str
    csrf: str


def accounts(store: Store, count: int) -> list[Account]:
    """Simulated labelers with sessions, made beside the running server."""

    def work(conn: Any) -> list[Account]:
        now, made = store.now(), []
        for i in range(count):
            name = f"simulated-{i}"
            id_ = people.add_labeler(conn, now, name, simulated=True)
            joined = people.join(conn, now, people.invite(conn, now, id_))
            made.append(Account(name, id_, joined.sid, joined.csrf))
        return made

    return store.write(work)


class Lost(Exception):
    """No answer: refused, reset, timed out, or dropped on purpose."""


@dataclass(frozen=True)
class Reply:
    status: int
    body: Any


class Client:
    """One kept-alive HTTP/1.1 connection of one labeler."""

    def __init__(self, port: int, account: Account) -> None:
        self.port, self.account = port, account
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        drop: str = "",
    ) -> Reply:
        """Sends one request and reads the answer.

        drop: break the connection "half" way through the request, after the request "unread", or
        after the answer was read ("lost"); the caller then learns nothing in each case.

        Raises:
            Lost: there is no answer.
        """
        text = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            f"Cookie: tercet_session={self.account.sid}",
            f"X-CSRF-Token: {self.account.csrf}",
            "Content-Type: application/json",
            f"Content-Length: {len(text)}",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
        ]
        request = "\r\n".join(lines).encode() + b"\r\n\r\n" + text
        try:
            return await asyncio.wait_for(self._exchange(request, drop), TIMEOUT_S)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            self.close()
            raise Lost(type(error).__name__) from None
        except BaseException:
            self.close()
            raise

    async def _exchange(self, request: bytes, drop: str) -> Reply:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port, limit=2**22)
        reader, writer = self._streams
        if drop == "half":
            writer.write(request[: len(request) * 2 // 3])
            await writer.drain()
            raise ConnectionAbortedError
        writer.write(request)
        if drop == "unread":
            await writer.drain()
            raise ConnectionAbortedError
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status = int(head.split(" ", 2)[1])
        fields = {}
        for line in head.split("\r\n")[1:]:
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        text = await reader.readexactly(int(fields.get("content-length", "0")))
        if drop == "lost":
            raise ConnectionAbortedError
        if fields.get("connection", "") == "close":
            self.close()
        is_json = fields.get("content-type", "").startswith("application/json")
        return Reply(status, json.loads(text) if is_json else text)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


def answer(assignment: dict[str, Any], chance: random.Random, done: float = 1.0) -> dict[str, Any]:
    """A made-up answer to an assignment; of a fraction `done` of its replies."""
    ids = [reply["id"] for reply in assignment["replies"]]
    chance.shuffle(ids)
    ids = ids[: max(1, round(len(ids) * done))]
    bins: list[list[str]] = []
    for id_ in ids:
        if bins and chance.random() < 0.2:
            bins[-1].append(id_)
        else:
            bins.append([id_])
    schema = assignment["schema"]
    flags = [flag["id"] for flag in schema["reply_flags"]]
    return {
        "bins": bins,
        "ratings": {id_: chance.randint(1, schema["rating_max"]) for id_ in ids},
        "flags": {id_: {f: chance.choice([True, False, None]) for f in flags} for id_ in ids},
        "notes": {id_: "why: " + " ".join(chance.choices(WORDS, k=8)) for id_ in ids[:1]},
        "note": " ".join(chance.choices(WORDS, k=12)),
    }


def draft(payload: dict[str, Any], page: str, n: int) -> dict[str, Any]:
    """What the page stores while somebody works: the answer so far, where they are, undo steps."""
    undo = [{"bins": payload["bins"], "focus": None} for _ in range(min(n, 20))]
    ui = {"step": "rank", "focus": payload["bins"][0][0]}
    return {"payload": payload, "ui": ui, "undo": undo, "stamp": {"page": page, "n": n}}
