"""Checks 15, 16 and 24: requests of other sites, of other people, and to other places."""

import html
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, Page

from tercet.label import tables
from tercet.label.web import admin
from tests.browser.conftest import Watch
from tests.browser.harness import sets_of
from tests.browser.live import Account, Live, in_order
from tests.browser.pages import Task, join

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with Live(tmp_path_factory.mktemp("live")) as live:
        yield live


@pytest.fixture(scope="module")
def project(live: Live) -> str:
    return live.add("Origin", sets=sets_of(60, 3))


@pytest.fixture(scope="module")
def stranger() -> Iterator[str]:
    """Another site on this machine: the browser sends it the same cookies as "same site"."""

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b'<!doctype html><link rel="icon" href="data:,"><p>stranger')

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def intruder(
    live: Live, stranger: str, watch: Watch, new_context: Callable[..., BrowserContext]
) -> Callable[[Account], Page]:
    """A page of the other site, in the browser of a signed-in person."""

    def open_(account: Account) -> Page:
        watch.allow("request to", "Failed to load resource", "blocked by CORS", "console: ")
        page = live.page(new_context(), account)
        page.goto(stranger)
        return page

    return open_


def unsafe(live: Live, project: str, assignment: str, item: str, person: Account) -> dict[str, Any]:
    """Every address that changes something -> a body that would be right."""
    one = f"/api/assignments/{assignment}"
    answer = {"payload": {"bins": []}, "active_ms": 1}
    return {
        f"/api/projects/{project}/next": {},
        f"{one}/draft": {"draft": {"payload": {}}, "active_ms": 1},
        f"{one}/submit": answer,
        f"{one}/amend": answer,
        f"{one}/skip": {"reason": "stolen"},
        f"{one}/report": {"reason": "stolen"},
        f"{one}/beat": {"active_ms": 1, "opened": True},
        f"/guidelines/{project}/read": {"version": "1"},
        "/sign-out": {},
        **{at: {"name": "eve"} for at in admin_addresses(live, project, item, person, "POST")},
    }


def admin_addresses(live: Live, project: str, item: str, person: Account, method: str) -> list[str]:
    """All that the admin's router answers, with ids that are there."""
    known = {"project_id": project, "item_id": item, "labeler_id": person.id}
    return [
        route.path.format(**{name: known.get(name, "1") for name in route.param_convertors})
        for route in admin.router.routes
        if method in route.methods
    ]


def posts(live: Live) -> dict[str, int]:
    """How many POST requests the server answered, by status. Browsers hide what it said."""
    text = live.call(None, "GET", "/metrics").body.decode()
    counts: dict[str, int] = {}
    for status, count in re.findall(
        r'_seconds_count\{method="POST".*status="(\d+)".*\} (\d+)', text
    ):
        counts[status] = counts.get(status, 0) + int(count)
    return counts


def wait_for(page: Page, true: Callable[[], bool]) -> None:
    for _ in range(200):
        if true():
            return
        page.wait_for_timeout(25)


FETCH = """async ([url, method, body, csrf, mode]) => {
  const headers = mode === "cors"
    ? { "Content-Type": "application/json", "X-CSRF-Token": csrf, "Idempotency-Key": "stolen-key",
        "If-Match": "0" }
    : { "Content-Type": "text/plain" };
  try {
    const answer = await fetch(url, { method, body, mode, headers, credentials: "include" });
    return answer.type;
  } catch (error) { return error.name; }
}"""


@pytest.mark.parametrize("role", ["labeler", "admin"])
def test_a_strangers_requests_change_nothing(
    live: Live, project: str, intruder: Callable[[Account], Page], role: str
) -> None:
    person = live.account(f"{role} at home", role)
    assignment = live.next(person, project)[0]["id"]
    page = intruder(person)
    item = live.assignment(assignment).item_id
    targets = unsafe(live, project, assignment, item, person)
    before, row, told = live.counts(), live.assignment(assignment), posts(live)
    for path, body in targets.items():
        method = "PUT" if path.endswith("/draft") else "POST"
        # Even with the right token, which a stranger cannot know.
        asked = [live.url + path, method, json.dumps(body), person.csrf]
        assert page.evaluate(FETCH, [*asked, "cors"]) == "TypeError", path
        if method == "POST":
            assert page.evaluate(FETCH, [*asked, "no-cors"]) in ("opaque", "TypeError"), path
    count = len(targets) - 1
    wait_for(page, lambda: posts(live).get("403", 0) == told.get("403", 0) + count)
    assert posts(live) == {**told, "403": told.get("403", 0) + count}
    assert live.counts() == before
    assert live.assignment(assignment) == row


@pytest.mark.parametrize("sandboxed", [False, True], ids=["a page", "a sandboxed frame"])
def test_a_strangers_form_is_refused(
    live: Live, project: str, intruder: Callable[[Account], Page], sandboxed: bool
) -> None:
    person = live.account("admin of forms", "admin")
    assignment = live.next(person, project)[0]["id"]
    page = intruder(person)
    item = live.assignment(assignment).item_id
    targets = ["/join", *unsafe(live, project, assignment, item, person)]
    before = live.counts()
    for path in targets:
        told = posts(live)
        form = (
            f'<form method="post" action="{live.url}{path}" target="out">'
            f'<input name="csrf" value="{person.csrf}"><input name="name" value="eve">'
            '<input name="version" value="1"><input name="reason" value="stolen"></form>'
            '<iframe name="out"></iframe><script>document.forms[0].submit()</script>'
        )
        if sandboxed:
            form = (
                '<iframe sandbox="allow-forms allow-scripts" '
                f'srcdoc="{html.escape(form, quote=True)}"></iframe>'
            )
        page.set_content(form)
        wait_for(page, lambda told=told: posts(live) != told)
        assert posts(live) == {**told, "403": told.get("403", 0) + 1}, path
    assert live.counts() == before


def test_a_stranger_cannot_read_or_frame_the_page(
    live: Live, project: str, intruder: Callable[[Account], Page]
) -> None:
    page = intruder(live.account("framed"))
    for path in ("/api/me", "/", f"/task/{project}"):
        told = page.evaluate(
            """(url) => fetch(url, { credentials: "include" }).then((r) => r.text())
               .catch((error) => error.name)""",
            live.url + path,
        )
        assert told == "TypeError"
    page.set_content(f'<iframe src="{live.url}/"></iframe>')
    page.wait_for_function("() => frames.length === 1")
    frame = page.frames[1]
    frame.wait_for_load_state()
    assert "Your work" not in frame.content()


def test_requests_need_the_sessions_own_token(live: Live, project: str) -> None:
    ann, bob = live.account("token ann"), live.account("token bob")
    path = f"/api/projects/{project}/next"
    before = live.counts()
    for token in ("", "x", bob.csrf, ann.sid):
        assert live.call(ann, "POST", path, {}, {"X-CSRF-Token": token}).status == 403
    assert live.counts() == before
    assert live.call(None, "POST", path, {}, {"X-CSRF-Token": ann.csrf}).status == 401
    assert live.call(ann, "POST", path, {}).status == 200


def test_the_ids_of_others_are_not_there(live: Live, project: str) -> None:
    ann, bob = live.account("ann"), live.account("bob")
    open_, answered = live.next(ann, project)[:2]
    live.submit(ann, answered["id"], in_order(answered))
    for theirs in (open_, answered):
        one, page = f"/api/assignments/{theirs['id']}", {"Accept": "text/html"}
        row, before = live.assignment(theirs["id"]), live.counts()
        key = {"Idempotency-Key": f"of-bob-{theirs['id']}"}
        payload = {"payload": in_order(theirs), "active_ms": 1}
        tried = [
            live.call(bob, "GET", one),
            live.call(bob, "GET", f"{one}/markdown"),
            live.call(bob, "GET", f"/amend/{theirs['id']}", headers=page),
            live.call(bob, "PUT", f"{one}/draft", {"draft": {}, "active_ms": 0}, {"If-Match": "0"}),
            live.call(bob, "POST", f"{one}/submit", payload, key),
            live.call(bob, "POST", f"{one}/amend", payload, key),
            live.call(bob, "POST", f"{one}/skip", {"reason": "x"}),
            live.call(bob, "POST", f"{one}/report", {"reason": "x"}),
            live.call(bob, "POST", f"{one}/beat", {"active_ms": 1, "opened": True}),
        ]
        assert [answer.status for answer in tried] == [404] * len(tried)
        # The same words as for what does not exist.
        nothing = live.call(bob, "GET", f"/api/assignments/{'0' * 26}")
        assert tried[0].body == nothing.body
        assert live.assignment(theirs["id"]) == row
        assert live.counts() == before


def test_a_key_of_another_labeler_gives_nothing_away(live: Live, project: str) -> None:
    ann, bob = live.account("key ann"), live.account("key bob")
    hers, his = live.next(ann, project)[0], live.next(bob, project)[0]
    told = live.submit(ann, hers["id"], in_order(hers))
    answer = live.call(
        bob,
        "POST",
        f"/api/assignments/{his['id']}/submit",
        {"payload": in_order(his), "active_ms": 1},
        {"Idempotency-Key": f"key-{hers['id']}"},
    )
    assert answer.status in (201, 409)
    assert told["annotation_id"] not in answer.body.decode()


def test_labelers_get_no_admin_page(live: Live, project: str) -> None:
    ann = live.account("curious")
    assignment = live.next(ann, project)[0]["id"]
    item = live.assignment(assignment).item_id
    before = live.counts()
    asked = 0
    for method in ("GET", "POST"):
        for path in admin_addresses(live, project, item, ann, method):
            asked += 1
            given = {"Accept": "text/html"}
            if method == "POST":
                given["Content-Type"] = "application/x-www-form-urlencoded"
            body = f"csrf={ann.csrf}&name=eve".encode() if method == "POST" else None
            assert live.call(ann, method, path, body, given).status == 403, path
            nobody = live.call(None, method, path, body, given).status
            assert nobody in (401, 303), path
    assert asked >= 10
    assert live.counts() == before


def test_a_removed_labeler_is_out_at_once(live: Live, project: str) -> None:
    from tercet.label import people

    ann = live.account("leaving")
    assert live.call(ann, "GET", "/api/me").status == 200
    live.write(lambda conn, now: people.set_status(conn, now, ann.id, "removed", "test"))
    assert live.call(ann, "GET", "/api/me").status == 401
    assert live.call(ann, "POST", f"/api/projects/{project}/next", {}).status == 401


def test_no_request_leaves_the_origin_in_a_full_session(
    live: Live, new_context: Callable[..., BrowserContext]
) -> None:
    rank = live.add("Session", sets=sets_of(2, 4), guidelines="Read https://example.org first.")
    urls: list[str] = []
    context = new_context()
    context.on("request", lambda request: urls.append(request.url))
    context.on("websocket", lambda socket: urls.append(socket.url))
    page = join(context, live.labeler)
    page.goto(f"{live.url}/task/{rank}")
    page.get_by_role("button", name="I have read").click()
    task = Task(page, rank)
    task.press("4", "q", "m")
    page.wait_for_selector("article .rich")
    task.rank("1234")
    task.press("v")
    page.wait_for_selector("#compare[open]")
    task.press("Escape")
    task.submit()
    task.press("s")
    page.locator("#skip input").first.check()
    page.get_by_role("button", name="Skip this item").click()
    task.wait("empty")
    task.wait_saved()
    page.goto(f"{live.url}/history")
    page.goto(f"{live.url}/amend/{live.answers()[-1].assignment_id}")
    page.wait_for_selector("article")
    page.get_by_role("link", name="tercet").click()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/join")
    boss = join_admin(new_context(), live, urls)
    item = live.rows(tables.item)[0].id
    for path in ("", f"/projects/{rank}", f"/projects/{rank}/quality", f"/items/{item}", "/people"):
        answer = boss.goto(f"{live.url}/admin{path}")
        assert answer and answer.ok, path
    assert len(urls) > 50
    home = urlsplit(live.url).netloc
    assert {url for url in urls if urlsplit(url).netloc != home} == set()


def join_admin(context: BrowserContext, live: Live, urls: list[str]) -> Page:
    context.on("request", lambda request: urls.append(request.url))
    page = context.new_page()
    page.goto(live.admin)
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/admin")
    return page
