"""Answers: HTML from templates, JSON, and refusals in whichever of the two was asked for."""

import json
import secrets
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from tercet import __version__
from tercet.label.errors import Refused
from tercet.label.web.assets import Assets

if TYPE_CHECKING:
    from tercet.label.people import Person

TEMPLATES = Path(__file__).parent / "templates"

HEADINGS = {
    401: "Please sign in",
    403: "Not allowed",
    404: "Not found",
    405: "Not possible here",
    409: "Already done",
    410: "This link is over",
    413: "Too large",
    422: "Something is missing",
    423: "Paused",
    429: "One moment",
    500: "Something broke",
    503: "Not ready",
    507: "The disk is full",
}


@cache
def assets() -> Assets:
    """The static files, read on first use."""
    return Assets()


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals.update(static=assets().url, version=__version__)
    environment.filters.update(when=when, minutes=minutes)
    return environment


def when(milliseconds: int | None) -> str:
    """A server time as people read it: 2026-11-22 15:51 UTC."""
    if milliseconds is None:
        return "never"
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def minutes(seconds: float | None) -> str:
    """A duration as people say it: 45 s, 3 min 20 s."""
    if seconds is None:
        return "-"
    whole, rest = divmod(round(seconds), 60)
    return f"{whole} min {rest} s" if whole else f"{rest} s"


def html(name: str, person: "Person | None" = None, status: int = 200, **context: Any) -> Response:
    """A page from `templates/name`. Every template knows person (or None), csrf, static(), version
    and the filters `when` (milliseconds) and `minutes` (seconds)."""
    csrf = person.csrf if person else ""
    text = _templates().get_template(name).render(person=person, csrf=csrf, **context)
    return Response(text.encode("utf-8", "replace"), status, media_type="text/html")


def data(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON. Half surrogate pairs, which drafts may hold, survive as escapes."""
    body = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Response(body, status, headers, media_type="application/json")


def to(path: str) -> RedirectResponse:
    """After a form: 303, so that a reload does not post again."""
    return RedirectResponse(path, 303)


def wants_html(scope: Mapping[str, Any]) -> bool:
    """Is this a person's browser looking at pages, not the page's script or a tool?"""
    if scope["path"].startswith("/api/"):
        return False
    accept = next((value for name, value in scope["headers"] if name == b"accept"), b"")
    return b"text/html" in accept


def refusal(scope: Mapping[str, Any], error: Refused) -> Response:
    """A Refused as JSON {code, message, ...body}, or as a page for people."""
    if error.status == 401 and wants_html(scope) and scope["method"] == "GET":
        return to("/join")
    if wants_html(scope):
        response = html(
            "message.html",
            status=error.status,
            heading=HEADINGS.get(error.status, "Not possible"),
            text=error.message[:1].upper() + error.message[1:] + ".",
            code=error.code,
        )
    else:
        body = {"code": error.code, "message": error.message, **error.body}
        response = data(body, error.status)
    if error.status == 429:
        response.headers["retry-after"] = "1"
    if error.status == 413:
        response.headers["connection"] = "close"
    return response


def broken(scope: MutableMapping[str, Any]) -> Response:
    """500 with a reference that the log on stderr carries too, and nothing else of the cause."""
    scope["tercet.reference"] = reference = secrets.token_hex(4)
    message = f"something broke on the server; its log tells more under {reference}"
    return refusal(scope, Refused(500, "broken", message, reference=reference))


async def on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal(request.scope, error)


async def on_broken(request: Request, _: Exception) -> Response:
    return broken(request.scope)
