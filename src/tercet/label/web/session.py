"""Who asks, checked inside the transaction that does the work: one trip to the store a request.

person, stats = await read(request, lambda conn, now, person: work.stats(conn, now, person))
_, answer = await write(request, lambda conn, now, person: work.submit(conn, now, person, ...))
"""

import hmac
import json
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection
from starlette.datastructures import FormData
from starlette.requests import Request

from tercet.label import people
from tercet.label.errors import Refused
from tercet.label.people import Person
from tercet.label.store import Store
from tercet.label.web.security import SAFE, session_id
from tercet.label.work import REASON_LIMIT

TOUCH_MS = 60_000  # a session in use is pushed on once a minute, not on every request

T = TypeVar("T")
Work = Callable[[Connection, int, Person], T]


def store_of(request: Request) -> Store:
    """The store that this application serves."""
    return request.app.state.store


async def read(request: Request, work: Work[T], role: str | None = None) -> tuple[Person, T]:
    """Runs `work` for the person whose session this is.

    Raises:
        Refused: 401 without a session, 403 for another role than `role`.
    """
    store, now = store_of(request), store_of(request).now()
    sid = sid_of(request)

    def job(conn: Connection) -> tuple[Person, T]:
        person = _person(conn, now, sid, role)
        return person, work(conn, now, person)

    result = await store.aread(job)
    if _touch_is_due(result[0], now):
        await store.awrite(lambda conn: people.touch(conn, now, sid), durable=False)
    return result


async def write(
    request: Request,
    work: Work[T],
    role: str | None = None,
    *,
    csrf: str | None = None,
    durable: bool = True,
) -> tuple[Person, T]:
    """Runs `work` in a write transaction, if the request carries the session's CSRF token: the
    header X-CSRF-Token, or `csrf` from a form's field.

    Raises:
        Refused: as `read`, and 403 for a missing or wrong token.
    """
    assert request.method not in SAFE, "a safe method must not write"
    store, now = store_of(request), store_of(request).now()
    sid, given = sid_of(request), csrf or request.headers.get("x-csrf-token", "")

    def job(conn: Connection) -> tuple[Person, T]:
        person = _person(conn, now, sid, role)
        if not hmac.compare_digest(given.encode("utf-8", "replace"), person.csrf.encode()):
            raise Refused(403, "csrf", "this page is of an older session; reload it")
        if _touch_is_due(person, now):
            people.touch(conn, now, sid)
        return person, work(conn, now, person)

    return await store.awrite(job, durable=durable)


async def form(request: Request, role: str | None = None) -> FormData:
    """The fields of a posted form, read only after the session was found good.

    Raises:
        Refused: 401, 403 as `read`; 422 for a body that is no form.
    """
    await read(request, lambda conn, now, person: None, role)
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind not in ("application/x-www-form-urlencoded", "multipart/form-data"):
        raise Refused(422, "bad-request", "a form is needed here")
    return await request.form(max_files=20, max_fields=200)


def text(fields: FormData, name: str) -> str:
    """A text field of a form; "" when it is missing or a file."""
    value = fields.get(name)
    return value if isinstance(value, str) else ""


async def body(request: Request) -> dict[str, Any]:
    """The JSON object that a request carries.

    Raises:
        Refused: 422, not a JSON object.
    """
    try:
        value = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise Refused(422, "bad-request", "the body is not JSON") from None
    if not isinstance(value, dict):
        raise Refused(422, "bad-request", "the body must be a JSON object")
    return value


def whole(given: dict[str, Any], name: str, high: int = 10**10) -> int:
    """A whole number, 0 to `high`, of a JSON body; 0 when absent.

    Raises:
        Refused: 422 that names the field.
    """
    value = given.get(name, 0)
    if type(value) is not int or not 0 <= value <= high:
        raise Refused(422, "bad-request", f"'{name}' must be a whole number from 0 to {high}")
    return value


def reason(given: dict[str, Any]) -> str:
    """Why an item is skipped or reported.

    Raises:
        Refused: 422, missing or too long; what it must be else is said by `work`.
    """
    value = given.get("reason")
    if not isinstance(value, str) or not value.strip() or len(value) > REASON_LIMIT:
        raise Refused(422, "bad-request", f"give a reason of 1 to {REASON_LIMIT} characters")
    return value.strip()


def sid_of(request: Request) -> str:
    sid = session_id(request.headers)
    if sid is None:
        raise _signed_out()
    return sid


def _signed_out() -> Refused:
    return Refused(401, "signed-out", "you are signed out; open your link, or ask for a new one")


def _person(conn: Connection, now: int, sid: str, role: str | None) -> Person:
    person = people.session(conn, now, sid)
    if person is None:
        raise _signed_out()
    if role is not None and person.role != role:
        raise Refused(403, "forbidden", "this page is for administrators")
    return person


def _touch_is_due(person: Person, now: int) -> bool:
    return person.expires_at < now + people.SESSION_MS - TOUCH_MS
