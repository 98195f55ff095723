"""What labelers and evaluators open, and what their page's script calls."""

import re
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import Connection, select
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tercet.label import assignment, markdown, people, projects, tables, work
from tercet.label.errors import Refused
from tercet.label.people import Person
from tercet.label.web import pages, session
from tercet.label.web.security import cookie
from tercet.label.web.session import read, write

router = APIRouter()


# Pages


@router.get("/join")
async def join_page(request: Request) -> Response:
    """The token is in the address's fragment, which no server and no log ever sees."""
    return pages.html("join.html")


@router.post("/join")
async def join(request: Request) -> Response:
    fields = await request.form(max_files=0, max_fields=10)
    # A labeler without script pastes the whole link.
    token = session.text(fields, "token").strip().rpartition("#")[2]
    store = session.store_of(request)
    now = store.now()

    def consume(conn: Connection) -> tuple[people.Joined, Person | None]:
        joined = people.join(conn, now, token)
        return joined, people.session(conn, now, joined.sid)

    joined, person = await store.awrite(consume)
    response = pages.to("/admin" if person and person.role == "admin" else "/")
    line = cookie(joined.sid, request.url.scheme, request.headers.get("host", ""))
    response.headers["set-cookie"] = line
    return response


@router.post("/sign-out")
async def sign_out(request: Request) -> Response:
    fields = await session.form(request)
    sid = session.sid_of(request)
    csrf = session.text(fields, "csrf")
    await write(request, lambda conn, now, _: people.sign_out(conn, now, sid), csrf=csrf)
    response = pages.to("/join")
    line = cookie("", request.url.scheme, request.headers.get("host", ""))
    response.headers["set-cookie"] = line
    return response


@router.get("/")
async def home(request: Request) -> Response:
    person, stats = await read(request, work.stats)
    return pages.html("home.html", person, stats=stats)


@router.get("/task/{project_id}")
async def task(request: Request, project_id: str) -> Response:
    def look(conn: Connection, now: int, person: Person) -> tuple[projects.Project, bool]:
        project = projects.get(conn, project_id)
        table = tables.guidelines_read
        seen = select(table.c.version).where(
            table.c.labeler_id == person.id, table.c.project_id == project.id
        )
        return project, project.must_read(conn.scalar(seen))

    person, (project, must_read) = await read(request, look)
    if must_read:
        return pages.to(f"/guidelines/{project.id}")
    return pages.html("task.html", person, project=project, amend=None)


@router.get("/amend/{assignment_id}")
async def amend_page(request: Request, assignment_id: str) -> Response:
    def look(conn: Connection, now: int, person: Person) -> projects.Project:
        view = assignment.view(conn, now, person, assignment_id)
        return projects.get(conn, view["project"]["id"])

    person, project = await read(request, look)
    return pages.html("task.html", person, project=project, amend=assignment_id)


@router.get("/guidelines/{project_id}")
async def guidelines(request: Request, project_id: str) -> Response:
    person, project = await read(request, lambda conn, *_: projects.get(conn, project_id))
    nodes = await run_in_threadpool(markdown.tree, project.guidelines)
    return pages.html("guidelines.html", person, project=project, nodes=nodes)


@router.post("/guidelines/{project_id}/read")
async def guidelines_read(request: Request, project_id: str) -> Response:
    fields = await session.form(request)
    version = session.text(fields, "version")

    def job(conn: Connection, now: int, person: Person) -> bool:
        project = projects.get(conn, project_id)
        if str(project.guidelines_version) != version:
            return False  # they changed while this version was on the screen
        people.read_guidelines(conn, now, person, project.id)
        return True

    _, current = await write(request, job, csrf=session.text(fields, "csrf"))
    return pages.to(f"/task/{project_id}" if current else f"/guidelines/{project_id}")


@router.get("/history")
async def history(request: Request) -> Response:
    person, entries = await read(request, work.history)
    return pages.html("history.html", person, entries=entries)


# The page's script


@router.post("/api/projects/{project_id}/next")
async def next_(request: Request, project_id: str) -> Response:
    _, answer = await write(request, lambda conn, now, person: _next(conn, now, person, project_id))
    return pages.data(answer)


def _next(conn: Connection, now: int, person: Person, project_id: str) -> dict[str, Any]:
    found = assignment.next_items(conn, now, person, project_id)
    views = assignment.views(conn, now, person, found.assignments) if found.assignments else []
    return {"assignments": views, "reason": found.reason, "retry_at": found.retry_at}


@router.get("/api/assignments/{assignment_id}")
async def one(request: Request, assignment_id: str) -> Response:
    _, view = await read(
        request, lambda conn, now, person: assignment.view(conn, now, person, assignment_id)
    )
    return pages.data(view)


@router.get("/api/assignments/{assignment_id}/markdown")
async def as_markdown(request: Request, assignment_id: str) -> Response:
    _, view = await read(
        request, lambda conn, now, person: assignment.view(conn, now, person, assignment_id)
    )

    def trees() -> dict[str, Any]:
        replies = {reply["id"]: markdown.tree(reply["text"]) for reply in view["replies"]}
        return {"prompt": markdown.tree(view["prompt"]["text"]), "replies": replies}

    return pages.data(await run_in_threadpool(trees))


@router.put("/api/assignments/{assignment_id}/draft")
async def save_draft(request: Request, assignment_id: str) -> Response:
    """Acknowledged after its commit, which is not fsynced: the browser's journal has it too."""
    match = re.fullmatch(r'[0-9]{1,9}|"[0-9]{1,9}"', request.headers.get("if-match", ""))
    if match is None:
        raise Refused(422, "bad-request", "If-Match must be the draft's revision")
    rev = int(match[0].strip('"'))
    given = await session.body(request)
    draft, active_ms = given.get("draft"), session.whole(given, "active_ms")
    if not isinstance(draft, dict):
        raise Refused(422, "bad-request", "'draft' must be a JSON object")
    try:
        _, saved = await write(
            request,
            lambda conn, now, person: work.save_draft(
                conn, now, person, assignment_id, rev, draft, active_ms
            ),
            durable=False,
        )
    except Refused as refused:
        if refused.code == "conflict":
            await write(
                request,
                lambda conn, now, person: work.keep_refused(
                    conn, now, person, assignment_id, rev, draft
                ),
            )
        raise
    return pages.data(saved)


@router.post("/api/assignments/{assignment_id}/submit")
async def submit(request: Request, assignment_id: str) -> Response:
    """The answer and what comes next, from one transaction."""
    key, payload, active_ms = await _answer(request)

    def job(conn: Connection, now: int, person: Person) -> dict[str, Any]:
        def following(project_id: str) -> dict[str, Any]:
            return _next(conn, now, person, project_id)

        return work.submit(
            conn, now, person, assignment_id, key, payload, active_ms, following=following
        )

    _, answer = await write(request, job)
    return pages.data(answer, 201)


@router.post("/api/assignments/{assignment_id}/amend")
async def amend(request: Request, assignment_id: str) -> Response:
    key, payload, active_ms = await _answer(request)
    _, answer = await write(
        request,
        lambda conn, now, person: work.amend(
            conn, now, person, assignment_id, key, payload, active_ms
        ),
    )
    return pages.data(answer, 201)


async def _answer(request: Request) -> tuple[str, dict[str, Any], int]:
    key = request.headers.get("idempotency-key", "")
    if not re.fullmatch(r"[A-Za-z0-9_-]{8,64}", key):
        raise Refused(422, "bad-request", "Idempotency-Key must be 8 to 64 letters or digits")
    given = await session.body(request)
    payload = given.get("payload")
    if not isinstance(payload, dict):
        raise Refused(422, "bad-request", "'payload' must be a JSON object")
    return key, payload, session.whole(given, "active_ms")


@router.post("/api/assignments/{assignment_id}/skip")
async def skip(request: Request, assignment_id: str) -> Response:
    why = session.reason(await session.body(request))
    await write(request, lambda conn, now, person: work.skip(conn, now, person, assignment_id, why))
    return Response(status_code=204)


@router.post("/api/assignments/{assignment_id}/report")
async def report(request: Request, assignment_id: str) -> Response:
    why = session.reason(await session.body(request))
    await write(
        request, lambda conn, now, person: work.report(conn, now, person, assignment_id, why)
    )
    return Response(status_code=204)


@router.post("/api/assignments/{assignment_id}/beat")
async def beat(request: Request, assignment_id: str) -> Response:
    given = await session.body(request)
    active_ms, opened = session.whole(given, "active_ms"), given.get("opened") is True
    _, answer = await write(
        request,
        lambda conn, now, person: work.beat(conn, now, person, assignment_id, active_ms, opened),
        durable=False,
    )
    return pages.data(answer)


@router.get("/api/me")
async def me(request: Request) -> Response:
    _, stats = await read(request, work.stats)
    return pages.data(stats)
