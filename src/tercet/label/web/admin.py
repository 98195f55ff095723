"""The administrators' pages: server-rendered, and working without script."""

import hmac
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request
from sqlalchemy import Connection
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.responses import FileResponse, Response

from tercet.label import audit, oversight, people, projects
from tercet.label.errors import Refused
from tercet.label.export import export
from tercet.label.people import Person
from tercet.label.quality import PUBLISHED, Quality, Who, quality
from tercet.label.source import Asked, Records, asked, load
from tercet.label.store import Store
from tercet.label.web import pages, session
from tercet.label.web.archive import pack
from tercet.label.web.charts import histogram, shares
from tercet.label.web.session import read, write
from tercet.label.web.table import sorted_rows
from tercet.records import InputError

router = APIRouter(prefix="/admin")


@router.get("")
async def overview(request: Request) -> Response:
    person, found = await read(request, lambda conn, *_: oversight.overview(conn), "admin")
    return pages.html("admin_overview.html", person, projects=found)


@router.get("/verify")
async def verify(request: Request) -> Response:
    """Goes through all events and answers; reads only."""

    def job(conn: Connection, *_: Any) -> tuple[list[str], tuple[int, str]]:
        return audit.verify(conn), audit.head(conn)

    person, (faults, head) = await read(request, job, "admin")
    return pages.html("admin_verify.html", person, faults=faults, seq=head[0], hash=head[1])


# One project


@router.get("/projects/{project_id}")
async def project(request: Request, project_id: str) -> Response:
    return await _project_page(request, project_id)


async def _project_page(request: Request, project_id: str, **shown: Any) -> Response:
    words = request.query_params.get("q", "")[:200]

    def job(conn: Connection, *_: Any) -> dict[str, Any]:
        found = projects.get(conn, project_id)
        return {
            "project": found,
            "progress": projects.progress(conn, found.id),
            "versions": oversight.guideline_versions(conn, found.id),
            "held": oversight.items(conn, found.id, held=True),
            "items": oversight.items(conn, found.id, words),
        }

    person, context = await read(request, job, "admin")
    shown = {"report": None, "trouble": None, **shown}
    status = 422 if shown["trouble"] else 200
    return pages.html("admin_project.html", person, status, words=words, **context, **shown)


@router.post("/projects/{project_id}/import")
async def import_(request: Request, project_id: str) -> Response:
    fields = await _fields(request)
    try:
        return await _take_in(request, project_id, fields)
    finally:
        await fields.close()


async def _take_in(request: Request, project_id: str, fields: FormData) -> Response:
    upload = fields.get("file")
    if not isinstance(upload, UploadFile) or not upload.filename:
        return await _project_page(request, project_id, trouble="Choose a .jsonl file first.")
    dry_run = session.text(fields, "dry_run") != ""
    _, found = await read(request, lambda conn, *_: projects.get(conn, project_id), "admin")
    try:
        kind = None if found.kind == "demonstration" else found.kind
        records = await run_in_threadpool(_records, upload, kind)
        about = await run_in_threadpool(_asked, fields.get("prompts"))
        result = await _import(request, fields, found.id, records, about, dry_run)
    except InputError as error:
        return await _project_page(request, project_id, trouble=str(error))
    report = {"file": upload.filename, "dry_run": dry_run, "result": result}
    return await _project_page(request, project_id, report=report)


def _records(upload: UploadFile, kind: Literal["rank", "evaluate"] | None) -> Records:
    with _on_disk(upload) as path:
        try:
            return load(path, kind)
        except InputError:
            return load(path)  # rankings and prompts know their own kind


def _asked(upload: Any) -> Asked:
    """Users and tags by the prompts' own file, which may be left out."""
    if not isinstance(upload, UploadFile) or not upload.filename:
        return asked(None)
    with _on_disk(upload) as path:
        return asked(path)


@contextmanager
def _on_disk(upload: UploadFile) -> Iterator[Path]:
    """The upload as a file, to be read as files of the disk are: same checks, same words."""
    name = Path(upload.filename or "").name
    suffix = ".jsonl.gz" if name.endswith(".gz") else ".jsonl"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"upload{suffix}"
        with path.open("wb") as file:
            while part := upload.file.read(2**20):
                file.write(part)
        try:
            yield path
        except InputError as error:
            raise InputError(str(error).replace(str(path), name)) from None


class _Rehearsed(Exception):
    """Carries what an import would do out of its transaction, which is rolled back."""

    def __init__(self, result: projects.Imported) -> None:
        self.result = result


async def _import(
    request: Request,
    fields: FormData,
    project_id: str,
    records: Records,
    about: Asked,
    dry_run: bool,
) -> projects.Imported:
    users, tags = about

    def job(conn: Connection, now: int, person: Person) -> projects.Imported:
        rows: Any = records.rows
        if records.kind is None:
            result = projects.add_gold(conn, now, project_id, rows, tags=tags, actor=person.id)
        elif records.kind == "demonstration":
            result = projects.add_prompts(conn, now, project_id, rows, actor=person.id)
        else:
            result = projects.add_candidate_sets(
                conn, now, project_id, rows, users=users, tags=tags, actor=person.id
            )
        if dry_run or result.refused:
            raise _Rehearsed(result)
        return result

    try:
        _, result = await write(request, job, "admin", csrf=session.text(fields, "csrf"))
    except _Rehearsed as rehearsed:
        return rehearsed.result
    return result


@router.post("/projects/{project_id}/pause")
async def pause(request: Request, project_id: str) -> Response:
    fields = await _fields(request)
    paused = session.text(fields, "paused") == "1"
    await _write(
        request,
        fields,
        lambda conn, now, person: projects.pause(conn, now, project_id, paused, person.id),
    )
    return pages.to(f"/admin/projects/{project_id}")


@router.post("/projects/{project_id}/guidelines")
async def guidelines(request: Request, project_id: str) -> Response:
    fields = await _fields(request)
    text = session.text(fields, "text").replace("\r\n", "\n")
    await _write(
        request,
        fields,
        lambda conn, now, person: projects.add_guidelines(conn, now, project_id, text, person.id),
    )
    return pages.to(f"/admin/projects/{project_id}#guidelines")


@router.get("/projects/{project_id}/export")
async def download(request: Request, project_id: str) -> Response:
    """A zip of everything, from one state of the store."""
    _, found = await read(request, lambda conn, *_: projects.get(conn, project_id), "admin")
    store = session.store_of(request)
    pairs = request.query_params.get("pairs") == "1"
    path = await run_in_threadpool(_export, store, found.id, pairs)
    return FileResponse(
        path,
        media_type="application/zip",
        filename=f"labels-{found.id}.zip",
        background=BackgroundTask(path.unlink),
    )


def _export(store: Store, project_id: str, pairs: bool) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        try:
            export(store, Path(folder), project=project_id, pairs=pairs)
        except InputError as error:
            raise Refused(409, "export", str(error)) from None
        return pack(Path(folder))


# Quality


@router.get("/projects/{project_id}/quality")
async def quality_page(request: Request, project_id: str) -> Response:
    asked: dict[str, Who] = {"people": "people", "simulated": "simulated"}
    who = asked.get(request.query_params.get("who", ""))

    def job(conn: Connection, *_: Any) -> tuple[projects.Project, Quality]:
        found = projects.get(conn, project_id)
        flags = [flag.id for flag in found.schema.reply_flags]
        return found, quality(conn, found.id, flags, who)

    person, (found, measured) = await read(request, job, "admin")
    sort = request.query_params.get("sort", "name")
    down = request.query_params.get("down", "") == "1"
    return pages.html(
        "admin_quality.html",
        person,
        project=found,
        q=measured,
        rows=sorted_rows(measured.labelers, sort, down),
        sort=sort,
        down=down,
        published=PUBLISHED,
        flag_labels={flag.id: flag.label for flag in found.schema.reply_flags},
        times=histogram(measured.times),
        places=shares(measured.bias.places),
        ratios=shares(measured.bias.ratios),
    )


# One item


@router.get("/items/{item_id}")
async def item(request: Request, item_id: str) -> Response:
    person, found = await read(request, lambda conn, *_: oversight.inspect(conn, item_id), "admin")
    return pages.html("admin_item.html", person, found=found)


@router.post("/items/{item_id}/hold")
async def hold(request: Request, item_id: str) -> Response:
    fields = await _fields(request)
    reason = session.text(fields, "reason").strip()[:500] or "by hand"
    await _write(
        request,
        fields,
        lambda conn, now, person: projects.hold(conn, now, item_id, person.id, reason),
    )
    return pages.to(f"/admin/items/{item_id}")


@router.post("/items/{item_id}/release")
async def release(request: Request, item_id: str) -> Response:
    fields = await _fields(request)
    await _write(
        request, fields, lambda conn, now, person: projects.release(conn, now, item_id, person.id)
    )
    return pages.to(f"/admin/items/{item_id}")


# People


@router.get("/people")
async def people_page(request: Request) -> Response:
    return await _people_page(request)


async def _people_page(request: Request, **shown: Any) -> Response:
    person, found = await read(request, lambda conn, now, _: oversight.members(conn, now), "admin")
    shown = {"link": None, "invited": None, "days": None, **shown}
    return pages.html("admin_people.html", person, members=found, groups=people.GROUPS, **shown)


@router.post("/people/invite")
async def invite(request: Request) -> Response:
    """A new person, or a new link for one who is there; the link is shown in this answer only."""
    fields = await _fields(request)
    name = session.text(fields, "name").strip()
    group = session.text(fields, "group") or "train"
    role = "admin" if session.text(fields, "role") == "admin" else "labeler"
    days = _days(session.text(fields, "days") or "7")
    labeler_id = session.text(fields, "labeler")
    if not labeler_id and not 1 <= len(name) <= 80:
        raise Refused(422, "name", "give a name of 1 to 80 characters")
    if group not in people.GROUPS:
        raise Refused(422, "group", f"there is no group {group[:40]!r}")

    def job(conn: Connection, now: int, person: Person) -> tuple[str, str]:
        id_ = labeler_id or people.add_labeler(
            conn, now, name, role=role, group=group, actor=person.id
        )
        return id_, people.invite(conn, now, id_, days, actor=person.id)

    id_, token = await _write(request, fields, job)
    base = request.app.state.public_url or str(request.base_url)
    link = f"{base.rstrip('/')}/join#{token}"
    return await _people_page(request, link=link, invited=id_, days=days)


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = 0
    if not 0 < days <= 365:
        raise Refused(422, "days", "a link can be valid for up to 365 days")
    return days


@router.post("/people/status")
async def status(request: Request) -> Response:
    fields = await _fields(request)
    labeler_id, wanted = session.text(fields, "labeler"), session.text(fields, "status")

    def job(conn: Connection, now: int, person: Person) -> None:
        if labeler_id == person.id and wanted != "active":
            raise Refused(409, "self", "this is you; another administrator has to do that")
        people.set_status(conn, now, labeler_id, wanted, person.id)

    await _write(request, fields, job)
    return pages.to("/admin/people")


@router.post("/people/sign-out")
async def sign_out(request: Request) -> Response:
    """Ends all sessions of one person."""
    fields = await _fields(request)
    labeler_id = session.text(fields, "labeler")
    await _write(
        request,
        fields,
        lambda conn, now, person: oversight.sign_out_everywhere(conn, now, labeler_id, person.id),
    )
    return pages.to("/admin/people")


async def _fields(request: Request) -> FormData:
    """The fields of a form of this session's own page, before anything is done with them."""
    fields = await session.form(request, "admin")
    person, _ = await read(request, lambda *_: None, "admin")
    given = session.text(fields, "csrf").encode("utf-8", "replace")
    if not hmac.compare_digest(given, person.csrf.encode()):
        raise Refused(403, "csrf", "this page is of an older session; reload it")
    return fields


async def _write(request: Request, fields: FormData, job: session.Work[Any]) -> Any:
    return (await write(request, job, "admin", csrf=session.text(fields, "csrf")))[1]
