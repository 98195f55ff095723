"""A stand-in for the labeling server that breaks on demand, for tests of journal.js and sync.js."""

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import tercet.label

STATIC = Path(tercet.label.__file__).parent / "web" / "static"


@dataclass
class Call:
    method: str
    path: str
    body: Any
    headers: dict[str, str]
    at: float


@dataclass
class Fake:
    """Assignments "a1".."a9" of project "p", leased one open and two ahead."""

    labeler: str = "labeler-1"
    down: bool = False  # answers nothing
    lose_replies: bool = False  # does the work, then answers nothing
    delay_s: float = 0
    refuse: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)  # by end of path
    calls: list[Call] = field(default_factory=list)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: list[tuple[str, str, Any]] = field(default_factory=list)  # assignment, key, payload
    url: str = ""

    def __post_init__(self) -> None:
        for i in range(1, 10):
            self.rows[f"a{i}"] = {"id": f"a{i}", "rev": 0, "draft": None, "active_ms": 0}
        self.lock = threading.Lock()

    def named(self, method: str, end: str) -> list[Call]:
        return [c for c in list(self.calls) if c.method == method and c.path.endswith(end)]

    def next(self) -> dict[str, Any]:
        done = {assignment for assignment, _, _ in self.answers}
        now = {"server_now": 0, "lease_until": 120_000}
        waiting = [{**row, **now} for name, row in self.rows.items() if name not in done]
        return {"assignments": waiting[:3], "reason": "finished", "retry_at": None}

    def answer(self, call: Call) -> tuple[int, Any]:
        for end, (status, body) in self.refuse.items():
            if call.path.endswith(end):
                return status, body
        if call.path.endswith("/next"):
            return 200, self.next()
        _, _, name, verb = call.path.strip("/").split("/")
        row = self.rows[name]
        if verb == "draft":
            if call.headers["If-Match"] != str(row["rev"]):
                return 412, {"code": "conflict", "rev": row["rev"], "draft": row["draft"]}
            row.update(rev=row["rev"] + 1, draft=call.body["draft"])
            return 200, {"rev": row["rev"], "lease_until": 1}
        if verb in ("submit", "amend"):
            key = call.headers["Idempotency-Key"]
            if key not in [k for _, k, _ in self.answers]:
                self.answers.append((name, key, call.body["payload"]))
            return 201, {"annotation_id": key, "revision": 1, "counted": True, "next": self.next()}
        if verb == "beat":
            return 200, {"lease_until": 1, "state": "open"}
        self.answers.append((name, verb, call.body["reason"]))
        return 204, None


class Handler(BaseHTTPRequestHandler):
    fake: Fake

    def do_GET(self) -> None:
        if self.path.startswith("/static/"):
            script = (STATIC / self.path.removeprefix("/static/")).read_bytes()
            self.reply(200, script, "text/javascript")
        else:
            page = (
                '<!doctype html><link rel="icon" href="data:,"><meta name="csrf" content="token">'
                f'<meta name="labeler" content="{self.fake.labeler}">'
            )
            self.reply(200, page.encode(), "text/html")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        call = Call(self.command, self.path, body, dict(self.headers), time.monotonic())
        fake = self.fake
        fake.calls.append(call)
        time.sleep(fake.delay_s)
        if fake.down:
            return self.hang_up()
        with fake.lock:
            status, answer = fake.answer(call)
        if fake.lose_replies:
            return self.hang_up()
        self.reply(status, b"" if answer is None else json.dumps(answer).encode())

    do_PUT = do_POST

    def hang_up(self) -> None:
        self.close_connection = True

    def reply(self, status: int, body: bytes, type_: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", type_)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(fake: Fake) -> ThreadingHTTPServer:
    """Serves `fake` on a free port; `shutdown()` and `server_close()` end it."""
    handler = type("Handler", (Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
    return server
