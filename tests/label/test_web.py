import re
import time

import pytest
from sqlalchemy import select, update

from tercet.label import people, projects, tables
from tercet.label.errors import Refused
from tercet.label.web.assets import FOLDER, slim
from tests.label.client import HTML, Site, Visitor
from tests.label.world import Clock, ranking_world, writing_world


@pytest.fixture
def world(sqlite_store):
    clock = Clock(time.time_ns() // 1_000_000)
    sqlite_store.clock = clock
    return ranking_world(sqlite_store, items=6, k=3, labelers=0, clock=clock)


@pytest.fixture
def site(world):
    return Site(world.store)


@pytest.fixture
def ann(site):
    return site.person("ann")


def fetch(visitor, world):
    """The assignments that the page gets."""
    answer = visitor.call("POST", f"/api/projects/{world.project_id}/next")
    assert answer.status_code == 200
    return answer.json()["assignments"]


def tied(assignment):
    """An answer: all replies are as good."""
    return {"payload": {"bins": [[reply["id"] for reply in assignment["replies"]]]}}


# Joining and leaving


def test_a_link_is_followed_by_a_form(site):
    ann = Visitor(site.app)
    page = ann.get("/join")
    assert page.status_code == 200 and 'name="token"' in page.text
    assert ann.join(site.invite("ann")).headers["location"] == "/"
    assert "ann" in ann.get("/").text


def test_without_script_the_whole_link_may_be_pasted(site):
    link = f" https://label.example/join#{site.invite('ann')} "
    assert Visitor(site.app).join(link).status_code == 303


def test_an_admin_comes_to_the_admin_page(site):
    admin = Visitor(site.app)
    assert admin.join(site.invite("boss", "admin")).headers["location"] == "/admin"


def test_a_second_link_leads_to_the_same_work(site, world, ann):
    first = fetch(ann, world)[0]["id"]
    again = Visitor(site.app)
    again.join(site.invite("ann"))
    assert fetch(again, world)[0]["id"] == first


def test_signed_out_is_signed_out(ann):
    answer = ann.form("/sign-out")
    assert answer.headers["location"] == "/join"
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert ann.get("/").headers["location"] == "/join"


def test_who_is_not_signed_in_is_sent_to_join(site):
    stranger = Visitor(site.app)
    assert stranger.get("/").status_code == 303
    assert stranger.get("/").headers["location"] == "/join"
    answer = stranger.call("GET", "/api/me")
    assert answer.status_code == 401 and answer.json()["code"] == "signed-out"


def test_a_session_ends_after_twelve_idle_hours_not_after_busy_ones(world, ann):
    for _ in range(3):
        world.clock.pass_(11 * 3600)
        assert ann.call("GET", "/api/me").status_code == 200
    world.clock.pass_(12 * 3600 + 120)
    assert ann.call("GET", "/api/me").status_code == 401


def test_a_paused_labeler_is_out_at_once(world, ann):
    world.write(
        lambda conn, now: people.set_status(
            conn, now, conn.scalars(select(tables.labeler.c.id)).one(), "paused", "test"
        )
    )
    assert ann.call("GET", "/api/me").status_code == 401


# Pages


def test_home_shows_the_queues(ann, world):
    page = ann.get("/")
    assert f"/task/{world.project_id}" in page.text
    assert "a rank project" in page.text


def test_the_task_page_is_a_shell_for_the_script(ann, world):
    page = ann.get(f"/task/{world.project_id}")
    assert f'data-project="{world.project_id}"' in page.text
    assert f'name="csrf" content="{ann.csrf}"' in page.text


def test_guidelines_are_read_before_work(ann, world):
    world.write(
        lambda conn, now: projects.add_guidelines(
            conn, now, world.project_id, "# Be fair\n\nRead **all** of it.", "test"
        )
    )
    task, guide = f"/task/{world.project_id}", f"/guidelines/{world.project_id}"
    assert ann.get(task).headers["location"] == guide
    page = ann.get(guide).text
    assert "Be fair</h" in page and "<strong>all</strong>" in page
    answer = ann.form(f"{guide}/read", {"version": "2"})
    assert answer.headers["location"] == task
    assert ann.get(task).status_code == 200


def test_guidelines_that_changed_meanwhile_are_not_confirmed(ann, world):
    for text in ("old", "new"):
        world.write(
            lambda conn, now, text=text: projects.add_guidelines(
                conn, now, world.project_id, text, "test"
            )
        )
    guide = f"/guidelines/{world.project_id}"
    assert ann.form(f"{guide}/read", {"version": "2"}).headers["location"] == guide
    assert ann.get(f"/task/{world.project_id}").headers["location"] == guide


def test_history_leads_to_amending(ann, world):
    first = fetch(ann, world)[0]
    path = f"/api/assignments/{first['id']}"
    ann.call("POST", f"{path}/submit", tied(first), idempotency_key="key-00001")
    assert f"/amend/{first['id']}" in ann.get("/history").text
    page = ann.get(f"/amend/{first['id']}")
    assert f'data-amend="{first["id"]}"' in page.text
    bins = {"payload": {"bins": [[reply["id"]] for reply in first["replies"]]}}
    answer = ann.call("POST", f"{path}/amend", bins, idempotency_key="key-00002")
    assert answer.status_code == 201 and answer.json()["revision"] == 2


# The page's script


def test_an_assignment_has_all_that_the_page_shows(ann, world):
    first = fetch(ann, world)[0]
    assert [reply["letter"] for reply in first["replies"]] == ["A", "B", "C"]
    assert first == {
        **ann.call("GET", f"/api/assignments/{first['id']}").json(),
        "server_now": first["server_now"],
    }


def test_markdown_comes_as_a_tree(ann, world):
    first = fetch(ann, world)[0]
    trees = ann.call("GET", f"/api/assignments/{first['id']}/markdown").json()
    assert set(trees) == {"prompt", "replies"}
    assert set(trees["replies"]) == {reply["id"] for reply in first["replies"]}
    assert trees["prompt"][0]["t"] == "p"


def test_a_draft_comes_back(ann, world):
    path = f"/api/assignments/{fetch(ann, world)[0]['id']}"
    draft = {"payload": {"note": "half a pair: \ud83d, and NUL: \0"}, "ui": {}, "undo": []}
    answer = ann.call("PUT", f"{path}/draft", {"draft": draft, "active_ms": 5}, if_match="0")
    assert answer.status_code == 200 and answer.json()["rev"] == 1
    found = ann.call("GET", path).json()
    assert (found["draft"], found["rev"], found["active_ms"]) == (draft, 1, 5)


def test_the_second_of_two_tabs_gets_the_first_ones_draft_and_loses_nothing(ann, world):
    path = f"/api/assignments/{fetch(ann, world)[0]['id']}"
    ann.call("PUT", f"{path}/draft", {"draft": {"payload": {"note": "one"}}}, if_match="0")
    answer = ann.call("PUT", f"{path}/draft", {"draft": {"payload": {"note": "two"}}}, if_match="0")
    assert answer.status_code == 412
    assert answer.json()["code"] == "conflict" and answer.json()["rev"] == 1
    assert answer.json()["draft"] == {"payload": {"note": "one"}}
    kept = select(tables.event.c.body).where(tables.event.c.kind == "conflict")
    assert '"two"' in world.read(lambda conn: conn.scalars(kept).one())


def test_a_draft_without_its_revision_is_refused(ann, world):
    path = f"/api/assignments/{fetch(ann, world)[0]['id']}/draft"
    for match in [None, "", "x", "-1", '"1', "1.0", "9" * 12]:
        headers = {} if match is None else {"if_match": match}
        assert ann.call("PUT", path, {"draft": {}}, **headers).status_code == 422


def test_submit_answers_with_what_comes_next(ann, world):
    first, second, *_ = fetch(ann, world)
    path = f"/api/assignments/{first['id']}/submit"
    answer = ann.call("POST", path, tied(first), idempotency_key="key-00001")
    assert answer.status_code == 201
    body = answer.json()
    assert (body["revision"], body["counted"], body["late"]) == (1, True, False)
    assert body["next"]["assignments"][0]["id"] == second["id"]
    assert len(body["next"]["assignments"]) == 3


def test_the_same_key_gives_the_same_answer(ann, world):
    first = fetch(ann, world)[0]
    path = f"/api/assignments/{first['id']}/submit"
    answers = [ann.call("POST", path, tied(first), idempotency_key="key-00001") for _ in range(3)]
    assert len({answer.json()["annotation_id"] for answer in answers}) == 1
    assert {answer.status_code for answer in answers} == {201}


def test_an_incomplete_answer_names_its_fields(ann, world):
    first = fetch(ann, world)[0]
    path = f"/api/assignments/{first['id']}/submit"
    answer = ann.call("POST", path, {"payload": {"bins": []}}, idempotency_key="key-00001")
    assert answer.status_code == 422 and answer.json()["errors"]


def test_a_submit_needs_a_sound_key(ann, world):
    first = fetch(ann, world)[0]
    path = f"/api/assignments/{first['id']}/submit"
    for key in ["", "short", "k" * 65, "key 0001", "clé-00001"]:
        answer = ann.http.post(
            path,
            json=tied(first),
            headers={"x-csrf-token": ann.csrf, "idempotency-key": key.encode("utf-8")},
        )
        assert answer.status_code == 422


def test_skipped_and_reported_items_do_not_come_back(ann, world):
    first, second, *_ = fetch(ann, world)
    skip = f"/api/assignments/{first['id']}/skip"
    report = f"/api/assignments/{second['id']}/report"
    assert ann.call("POST", skip, {"reason": "too hard"}).status_code == 204
    assert ann.call("POST", report, {"reason": "cut off"}).status_code == 204
    left = [assignment["id"] for assignment in fetch(ann, world)]
    assert first["id"] not in left and second["id"] not in left


def test_a_reason_is_a_text(ann, world):
    path = f"/api/assignments/{fetch(ann, world)[0]['id']}/skip"
    for reason in [None, "", "  ", 7, "x" * 2001, "half \ud83d", "nul \0"]:
        assert ann.call("POST", path, {"reason": reason}).status_code == 422


def test_a_beat_keeps_the_lease(ann, world):
    first = fetch(ann, world)[0]
    path = f"/api/assignments/{first['id']}/beat"
    answer = ann.call("POST", path, {"active_ms": 1000, "opened": True}).json()
    assert answer["state"] == "open" and answer["lease_until"] > first["lease_until"]


def test_times_are_whole_numbers(ann, world):
    path = f"/api/assignments/{fetch(ann, world)[0]['id']}/beat"
    for active_ms in [-1, 1.5, "1", True, 10**11]:
        assert ann.call("POST", path, {"active_ms": active_ms}).status_code == 422


def test_a_body_that_is_no_object_is_refused(ann, world):
    path = f"/api/assignments/{fetch(ann, world)[0]['id']}/beat"
    for body in [b"", b"{", b"[1]", b"7", b"\xff", b"[" * 100_000]:
        answer = ann.http.post(path, content=body, headers={"x-csrf-token": ann.csrf})
        assert answer.status_code == 422 and answer.json()["code"] == "bad-request"


def test_nothing_is_left_is_said_with_the_reason(site, world, ann):
    for number in range(6):
        first = fetch(ann, world)[0]
        path = f"/api/assignments/{first['id']}/submit"
        answer = ann.call("POST", path, tied(first), idempotency_key=f"key-0000{number}")
    assert answer.json()["next"] == {"assignments": [], "reason": "finished", "retry_at": None}


def test_a_paused_project_gives_nothing_out(ann, world):
    world.write(lambda conn, now: projects.pause(conn, now, world.project_id, True, "test"))
    answer = ann.call("POST", f"/api/projects/{world.project_id}/next").json()
    assert answer["assignments"] == [] and answer["reason"] == "paused"


def test_people_write_replies_too(sqlite_store):
    world = writing_world(sqlite_store, labelers=0, clock=sqlite_store.clock)
    ann = Site(sqlite_store).person("ann")
    first = fetch(ann, world)[0]
    assert first["replies"] == [] and first["project"]["kind"] == "demonstration"
    given = {"text": "Because."} | ({"prompt": "Why?"} if first["settings"]["open_prompt"] else {})
    path = f"/api/assignments/{first['id']}/submit"
    answer = ann.call("POST", path, {"payload": given}, idempotency_key="key-00001")
    assert answer.status_code == 201


def test_me_is_what_home_shows(ann, world):
    stats = ann.call("GET", "/api/me").json()
    assert stats["done"] == 0 and [p["id"] for p in stats["projects"]] == [world.project_id]


# Errors


def test_people_get_pages_and_scripts_get_json(ann):
    page = ann.get("/nowhere")
    assert page.status_code == 404 and "text/html" in page.headers["content-type"]
    assert "There is no such page." in page.text
    answer = ann.call("GET", "/api/nowhere")
    assert answer.status_code == 404 and answer.json()["code"] == "not-found"


def test_a_wrong_method_says_which_is_right(ann):
    answer = ann.call("DELETE", "/api/me")
    assert answer.status_code == 405 and answer.json()["code"] == "method"


def test_a_used_link_is_explained(site):
    token = site.invite("ann")
    assert Visitor(site.app).join(token).status_code == 303
    page = Visitor(site.app).join(token)
    assert page.status_code == 410 and "ask for a new one" in page.text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Refused(507, "disk-full", "the server's disk is full"), 507),
        (Refused(423, "paused", "the project is paused"), 423),
        (Refused(503, "busy", "the database is busy"), 503),
        (ZeroDivisionError("a secret"), 500),
    ],
)
def test_refusals_and_bugs_of_the_store(ann, world, monkeypatch, error, status, caplog):
    async def awrite(work, *, durable=True):
        raise error

    monkeypatch.setattr(world.store, "awrite", awrite)
    answer = ann.call("POST", f"/api/projects/{world.project_id}/next")
    assert answer.status_code == status
    assert "a secret" not in answer.text and "Traceback" not in answer.text
    assert ("ZeroDivisionError" in caplog.text) == (status == 500)


# Static files, health, metrics


def test_static_files_are_kept_for_ever_under_their_version(ann):
    page = ann.get("/join").text
    address = page.split('rel="stylesheet" href="')[1].split('"')[0]
    answer = ann.get(address)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/css")
    assert "immutable" in answer.headers["cache-control"]
    again = ann.get(address, **{"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304 and again.content == b""


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [("br, gzip", True), ("gzip;q=0.5", True), ("gzip; q=0", False), ("identity", False)],
)
def test_static_files_are_compressed_for_who_takes_it(ann, accepted, packed):
    plain = ann.get("/static/task.js", **{"accept-encoding": "identity"})
    answer = ann.get("/static/task.js", **{"accept-encoding": accepted})
    assert answer.text == plain.text
    assert (answer.headers.get("content-encoding") == "gzip") is packed
    assert (answer.headers["etag"] != plain.headers["etag"]) is packed
    assert answer.headers["vary"] == "Accept-Encoding"
    if packed:
        assert int(answer.headers["content-length"]) < int(plain.headers["content-length"]) / 2


def test_slim_scripts_keep_their_lines_and_their_strings():
    source = "// What it does\nf(\n  1, // one\n  'a // b', // 'kept'\n/** And\n  more. */\n);\n"
    assert slim(source, ".js") == "\nf(\n1,\n'a // b', // 'kept'\n\n\n);\n"


def test_slim_style_sheets():
    source = "a :is(b, c) {\n  /* one\n  two */ d: calc(1px + 2px); /* e */\n}\n"
    assert slim(source, ".css") == "a :is(b,c){\n\nd:calc(1px + 2px);\n}\n"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.css")), ids=lambda path: path.name)
def test_no_style_sheet_has_a_string_that_slimming_would_change(path):
    strings = re.findall(r"""(["'])(.*?)\1""", path.read_text())
    assert [text for _, text in strings if re.search("[{};:,]|/[*]", text)] == []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.js")), ids=lambda path: path.name)
def test_no_script_has_a_string_over_several_lines(path):
    """`slim` would change it."""
    assert [line for line in path.read_text().splitlines() if line.count("`") % 2] == []


@pytest.mark.parametrize("path", ["style.css", "000000000000/style.css"])
def test_static_files_without_their_version_are_revalidated(ann, path):
    assert ann.get(f"/static/{path}").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["../app.py", "%2e%2e/app.py", "x/../../app.py", "", "none.js"])
def test_nothing_else_is_static(ann, path):
    assert ann.get(f"/static/{path}").status_code == 404


def test_health(ann, world, monkeypatch):
    assert ann.get("/healthz").text == "ok\n"
    assert ann.get("/readyz").status_code == 200
    monkeypatch.setattr(world.store, "ready", lambda: "the server's disk is full")
    answer = ann.get("/readyz")
    assert answer.status_code == 503 and "disk is full" in answer.text


def test_metrics_count_requests_without_ids(ann, world):
    ann.get(f"/task/{world.project_id}")
    text = ann.get("/metrics").text
    assert 'route="/task/{project_id}",status="200"' in text
    assert world.project_id not in text
    assert "tercet_store_writes" in text


def test_the_prompts_of_a_page_may_hold_anything(ann, world):
    name = "<script>alert(1)</script>"
    table = tables.project
    world.write(lambda conn, now: conn.execute(update(table).values(name=name)))
    for path in ("/", f"/task/{world.project_id}", f"/guidelines/{world.project_id}"):
        page = ann.http.get(path, headers=HTML)
        assert page.status_code == 200 and name not in page.text
        assert "&lt;script&gt;alert(1)" in page.text
