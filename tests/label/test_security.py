"""What nobody may do, on every route there is."""

import hashlib
import re
import time

import pytest
from sqlalchemy import select, update

from tercet.label import people, tables
from tercet.label.web.security import BODY_LIMIT, HEADERS, Buckets
from tests.label.client import HOME, Site, Visitor
from tests.label.test_web import fetch, tied
from tests.label.world import Clock, ranking_world

# Routes that anybody may open, and what they answer to a stranger.
PUBLIC = {
    ("GET", "/join"): 200,
    ("POST", "/join"): 404,  # an unknown token
    ("GET", "/static/{path:path}"): 404,
    ("GET", "/favicon.ico"): 204,
    ("GET", "/healthz"): 200,
    ("GET", "/readyz"): 200,
    ("GET", "/metrics"): 200,
}


@pytest.fixture
def world(sqlite_store):
    clock = Clock(time.time_ns() // 1_000_000)
    sqlite_store.clock = clock
    return ranking_world(sqlite_store, items=8, k=3, labelers=0, clock=clock)


@pytest.fixture
def site(world):
    return Site(world.store)


@pytest.fixture
def ann(site):
    return site.person("ann")


@pytest.fixture
def bob(site):
    return site.person("bob")


def routes(site):
    """(method, pattern) of every route of the application."""
    return [(method, route.path) for route in site.routes for method in sorted(route.methods)]


def fill(pattern, **ids):
    """A path of that pattern; ids that are not given are of nothing that exists."""
    return re.sub(r"{(\w+)(:\w+)?}", lambda m: ids.get(m[1], "0" * 26), pattern)


def ask(visitor, method, path, headers=None):
    """One request that lacks nothing but what the test takes away."""
    given = {
        "accept": "application/json",
        "origin": HOME,
        "x-csrf-token": visitor.csrf,
        "if-match": "0",
        "idempotency-key": "key-00001",
        **(headers or {}),
    }
    if path.startswith("/api/"):
        body = {"json": {"draft": {}, "payload": {}, "reason": "why", "active_ms": 0}}
    else:
        body = {"data": {"csrf": given["x-csrf-token"], "token": "x", "version": "1"}}
    return visitor.http.request(method, path, headers=given, **(body if method != "GET" else {}))


def rows(world):
    """Everything in the store but when sessions end."""

    def look(conn):
        found = {}
        for name, table in tables.metadata.tables.items():
            columns = [c for c in table.c if (name, c.name) != ("session", "expires_at")]
            found[name] = sorted(map(repr, conn.execute(select(*columns)).all()))
        return found

    return world.read(look)


# Who may in


def test_there_are_routes(site):
    assert ("POST", "/api/projects/{project_id}/next") in routes(site)
    assert len(routes(site)) > 20


def test_strangers_get_nothing(site, world, ann):
    ids = {"assignment_id": fetch(ann, world)[0]["id"], "project_id": world.project_id}
    stranger = Visitor(site.app)
    for method, pattern in routes(site):
        answer = ask(stranger, method, fill(pattern, **ids))
        assert answer.status_code == PUBLIC.get((method, pattern), 401), (method, pattern)


def test_labelers_get_no_admin_page(site, world, ann):
    ids = {"project_id": world.project_id, "item_id": world.items()[0].id}
    admin_routes = [found for found in routes(site) if found[1].startswith("/admin")]
    for method, pattern in admin_routes:
        answer = ask(ann, method, fill(pattern, **ids))
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), (method, pattern)


def test_an_assignment_of_somebody_else_does_not_exist(site, world, ann, bob):
    mine = fetch(ann, world)
    submit = f"/api/assignments/{mine[1]['id']}/submit"
    assert ann.call("POST", submit, tied(mine[1]), idempotency_key="k" * 9).status_code == 201
    before = rows(world)
    taking = [found for found in routes(site) if "{assignment_id}" in found[1]]
    assert len(taking) >= 9
    for method, pattern in taking:
        for id_ in (mine[0]["id"], mine[1]["id"], "0" * 26):
            answer = ask(bob, method, fill(pattern, assignment_id=id_))
            assert answer.status_code == 404, (method, pattern)
            assert answer.json() == {
                "code": "not-found",
                "message": "there is no such assignment",
            }
    assert rows(world) == before


def test_every_id_that_a_labelers_route_takes_is_checked(site, world, ann):
    """A route with an id of another kind has to be thought about here."""
    for method, pattern in routes(site):
        names = set(re.findall(r"{(\w+)", pattern)) - {"path"}
        if pattern.startswith("/admin") or not names:
            continue
        assert names in ({"assignment_id"}, {"project_id"}), pattern
        answer = ask(ann, method, fill(pattern))
        assert answer.status_code == 404, (method, pattern)


def test_history_and_figures_are_ones_own(world, ann, bob):
    first = fetch(ann, world)[0]
    path = f"/api/assignments/{first['id']}/submit"
    ann.call("POST", path, tied(first), idempotency_key="key-00001")
    assert first["prompt"]["text"] in ann.get("/history").text
    assert first["prompt"]["text"] not in bob.get("/history").text
    assert bob.call("GET", "/api/me").json()["done"] == 0


# Writing from elsewhere


def writing(site):
    return [found for found in routes(site) if found[0] != "GET"]


@pytest.mark.parametrize("token", ["", "wrong", "é"])
def test_nothing_is_written_without_the_sessions_token(site, world, token):
    admin = site.person("boss", "admin")
    ids = {"project_id": world.project_id, "item_id": world.items()[0].id}
    ids["assignment_id"] = fetch(admin, world)[0]["id"]
    right, admin.csrf = admin.csrf, token
    before = rows(world)
    for method, pattern in writing(site):
        if pattern == "/join":
            continue
        headers = {"x-csrf-token": token.encode()}
        answer = ask(admin, method, fill(pattern, **ids), headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "csrf"), (method, pattern)
    assert rows(world) == before
    admin.csrf = right
    assert admin.call("POST", f"/api/projects/{world.project_id}/next").status_code == 200


def test_the_token_of_another_session_is_wrong(world, ann, bob):
    ann.csrf = bob.csrf
    answer = ann.call("POST", f"/api/projects/{world.project_id}/next")
    assert answer.status_code == 403 and answer.json()["code"] == "csrf"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_nothing_is_written_from_another_site(site, world, headers):
    admin = site.person("boss", "admin")
    token = site.invite("dee")
    before = rows(world)
    for method, pattern in writing(site):
        answer = ask(admin, method, fill(pattern, project_id=world.project_id), headers)
        assert answer.status_code == 403, (method, pattern)
        assert answer.json()["code"] == "foreign-origin"
    assert Visitor(site.app).form("/join", {"token": token}, **headers).status_code == 403
    assert rows(world) == before


def test_reading_changes_nothing(site, world, ann):
    admin = site.person("boss", "admin")
    ids = {
        "assignment_id": fetch(ann, world)[0]["id"],
        "project_id": world.project_id,
        "item_id": world.items()[0].id,
    }
    before = rows(world)
    for method, pattern in routes(site):
        if method == "GET":
            for person in (ann, admin):
                answer = ask(person, "GET", fill(pattern, **ids), {"accept": "text/html"})
                assert answer.status_code < 500, pattern
    assert rows(world) == before


# Sizes and rates


def test_a_large_body_is_refused_whole_or_in_pieces(world, ann):
    path = f"/api/assignments/{fetch(ann, world)[0]['id']}/draft"
    headers = {"x-csrf-token": ann.csrf, "if-match": "0"}
    whole = ann.http.put(path, content=b"x" * (BODY_LIMIT + 1), headers=headers)
    assert whole.status_code == 413
    pieces = (b"x" * 1000 for _ in range(BODY_LIMIT // 1000 + 1))
    chunked = ann.http.put(path, content=pieces, headers=headers)
    assert chunked.status_code == 413 and chunked.json()["code"] == "too-large"


def test_a_draft_of_the_largest_size_fits(world, ann):
    path = f"/api/assignments/{fetch(ann, world)[0]['id']}/draft"
    draft = {"payload": {"text": "x" * (191 * 1024)}}
    assert ann.call("PUT", path, {"draft": draft}, if_match="0").status_code == 200


def test_a_flood_is_told_to_wait(site, ann):
    site.app.buckets = Buckets(rate=0.01, burst=3)
    answers = [ann.call("GET", "/api/me") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[3].headers["retry-after"] == "1"
    assert answers[3].json()["code"] == "too-fast"


# Links and sessions


def test_a_link_works_once(site):
    token = site.invite("ann")
    assert Visitor(site.app).join(token).status_code == 303
    again = Visitor(site.app).join(token)
    assert again.status_code == 410 and "set-cookie" not in again.headers


def test_looking_at_a_link_does_not_use_it(site):
    token = site.invite("ann")
    for path in ("/join", f"/join?token={token}", f"/join#{token}"):
        assert Visitor(site.app).get(path).status_code == 200
    assert Visitor(site.app).join(token).status_code == 303


def test_a_link_ends_after_its_days(site, world):
    token = site.invite("ann", days=7)
    world.clock.pass_(7 * 86_400 + 1)
    assert Visitor(site.app).join(token).status_code == 410


def test_a_made_up_link_does_not_exist(site):
    for token in ("", "x", "'; DROP TABLE invite", "ü" * 43, "\0"):
        assert Visitor(site.app).join(token).status_code == 404


def test_secrets_are_only_stored_as_hashes(site, world):
    token = site.invite("ann")
    ann = Visitor(site.app)
    ann.join(token)
    sid = ann.http.cookies["tercet_session"]
    assert len(token) >= 43 and len(sid) >= 43  # 256 bits
    files = [path for path in world.store.folder.iterdir() if path.is_file()]
    stored = b"".join(path.read_bytes() for path in files)
    assert hashlib.sha256(token.encode()).hexdigest().encode() in stored
    assert hashlib.sha256(sid.encode()).hexdigest().encode() in stored
    assert token.encode() not in stored and sid.encode() not in stored


def test_secrets_are_never_logged(site, world, monkeypatch, caplog):
    token = site.invite("ann")
    ann = Visitor(site.app)
    ann.join(token)
    sid = ann.http.cookies["tercet_session"]
    Visitor(site.app).join(token)
    ann.form("/join", {"token": token}, origin="https://evil.example")

    async def broken(work, *, durable=True):
        raise RuntimeError("a bug")

    monkeypatch.setattr(world.store, "awrite", broken)
    ann.form("/join", {"token": token})
    ann.call("POST", f"/api/projects/{world.project_id}/next")
    assert "a bug" in caplog.text
    for secret in (token, sid, ann.csrf):
        assert secret not in caplog.text


def test_the_cookie_is_for_this_site_and_no_script(site):
    cookie = Visitor(site.app).form("/join", {"token": site.invite("ann")}).headers["set-cookie"]
    assert cookie.startswith("tercet_session=")
    assert cookie.endswith("; Path=/; HttpOnly; SameSite=Lax")


def test_the_cookie_is_secure_on_other_hosts(site):
    public = Site(site.store, "https://label.example")
    headers = {"host": "label.example", "origin": "https://label.example"}
    answer = Visitor(public.app).form("/join", {"token": site.invite("ann")}, **headers)
    assert answer.headers["set-cookie"].endswith("; SameSite=Lax; Secure")


def test_an_old_cookie_is_worth_nothing(site, ann):
    sid = ann.http.cookies["tercet_session"]
    ann.form("/sign-out")
    thief = Visitor(site.app)
    thief.http.cookies.set("tercet_session", sid)
    assert thief.call("GET", "/api/me").status_code == 401


def test_a_removed_labeler_is_out(site, world, ann):
    labeler_id = world.read(lambda conn: conn.scalars(select(tables.labeler.c.id)).one())
    world.write(lambda conn, now: people.set_status(conn, now, labeler_id, "removed", "test"))
    assert ann.call("GET", "/api/me").status_code == 401


# What every answer carries


def test_every_answer_has_the_headers(site, world, ann, monkeypatch):
    answers = [
        ask(person, method, fill(pattern, project_id=world.project_id, path="style.css"))
        for method, pattern in routes(site)
        for person in (Visitor(site.app), ann)
        if pattern != "/sign-out"
    ]
    answers += [ann.get("/nowhere"), ann.call("DELETE", "/api/me"), ann.get("/static/none")]
    answers.append(ann.call("POST", "/api/me", {"x": "x" * (BODY_LIMIT + 1)}))
    answers.append(ann.form("/join", origin="https://evil.example"))

    async def broken(work):
        raise RuntimeError("a bug")

    monkeypatch.setattr(world.store, "aread", broken)
    answers += [ann.get("/"), ann.call("GET", "/api/me")]
    site.app.buckets = Buckets(burst=0)
    answers.append(ann.get("/"))
    seen = {answer.status_code for answer in answers}
    assert seen >= {200, 204, 303, 401, 403, 404, 405, 413, 429, 500}
    for answer in answers:
        assert answer.headers.items() >= HEADERS.items()
        assert "server" not in answer.headers


def test_what_is_personal_is_never_kept_by_a_cache(site, world, ann):
    for method, pattern in routes(site):
        if not pattern.startswith(("/static", "/favicon", "/sign-out")):
            answer = ask(ann, method, fill(pattern, project_id=world.project_id))
            assert answer.headers["cache-control"] == "no-store", (method, pattern)


def test_pages_hold_no_inline_script_or_style(site, world, ann):
    ids = {"assignment_id": fetch(ann, world)[0]["id"], "project_id": world.project_id}
    pages = [ann.get(fill(p, **ids)) for m, p in routes(site) if m == "GET"]
    pages = [page.text for page in pages if "text/html" in page.headers.get("content-type", "")]
    assert len(pages) >= 5
    for page in pages:
        assert not re.search(r"<script(?![^>]*\bsrc=\"/static/)", page)
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
        assert not re.search(r"(?:src|href|action)=\"(?:\w+:)?//", page)


# Blindness

POLICY = "secret-policy"
SEED, TEMPERATURE = 918_273_645, 0.7310585


def test_no_answer_tells_who_wrote_a_reply(site, world, ann):
    """Every byte that a labeler gets, from joining to amending, on every route of theirs."""
    world.write(
        lambda conn, now: conn.execute(
            update(tables.candidate).values(seed=SEED, temperature=TEMPERATURE)
        )
    )
    names = world.read(lambda conn: conn.scalars(select(tables.candidate.c.policy)).all())
    outside = world.read(lambda conn: conn.scalars(select(tables.candidate.c.external_id)).all())
    assert all(name.startswith(POLICY) for name in names)
    answers = []
    ann.http.event_hooks["response"].append(answers.append)
    first, second, third = fetch(ann, world)
    for number, one in enumerate((first, second)):
        path = f"/api/assignments/{one['id']}/submit"
        ann.call("POST", path, tied(one), idempotency_key=f"key-0000{number}")
    ids = {"project_id": world.project_id}
    for id_ in (first["id"], third["id"]):
        for method, pattern in routes(site):
            if pattern != "/sign-out":
                ask(ann, method, fill(pattern, assignment_id=id_, **ids))
                ask(ann, method, fill(pattern, assignment_id=id_, **ids), {"accept": "text/html"})
    assert len(answers) > 80 and any(b"reply 0 to question" in a.content for a in answers)
    secrets = {POLICY, str(SEED), str(TEMPERATURE), *outside, "sha256", "temperature"}
    for answer in answers:
        shown = answer.text + repr(answer.headers)
        for secret in secrets:
            assert secret not in shown, (secret, answer.request.url)
