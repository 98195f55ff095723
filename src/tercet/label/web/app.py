"""The application: one store, the routes, the guard around them."""

import gc
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from tercet.label.errors import Refused
from tercet.label.store import Store
from tercet.label.web import admin, labeler, pages
from tercet.label.web.metrics import Metrics
from tercet.label.web.security import Guard

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig

# Spans and logs of requests would carry labelers' words to wherever the environment says.
NO_TELEMETRY: "TelemetryConfig" = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}


def build(store: Store, public_url: str | None = None) -> Guard:
    """The ASGI application that serves `store`. `public_url` is where labelers see it, if a proxy
    changes the Host header."""
    app = FastAPI(openapi_url=None, redirect_slashes=False, telemetry=NO_TELEMETRY)
    app.state.store = store
    app.state.public_url = public_url
    app.state.metrics = Metrics()
    app.router.routes.extend([*labeler.router.routes, *admin.router.routes])
    app.add_api_route("/static/{path:path}", static)
    app.add_api_route("/favicon.ico", favicon)
    app.add_api_route("/healthz", healthz)
    app.add_api_route("/readyz", readyz)
    app.add_api_route("/metrics", metrics)
    app.add_exception_handler(Refused, pages.on_refused)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, pages.on_broken)
    return Guard(app, app.state.metrics, public_url)


async def static(request: Request, path: str) -> Response:
    return pages.assets().answer(path, request.headers)


async def favicon() -> Response:
    """No icon file: an empty answer that browsers keep for a day."""
    return Response(status_code=204, headers={"cache-control": "public, max-age=86400"})


async def healthz() -> Response:
    """200 while the process answers."""
    return PlainTextResponse("ok\n")


async def readyz(request: Request) -> Response:
    """200 while the store can be read and written, else 503."""
    trouble = await run_in_threadpool(request.app.state.store.ready)
    if trouble:
        return PlainTextResponse(f"{trouble}\n", 503)
    return PlainTextResponse("ready\n")


async def metrics(request: Request) -> Response:
    """Request counts and times; nothing about labelers."""
    state = request.app.state
    return PlainTextResponse(state.metrics.text(state.store.counters()))


async def on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "there is no such page", 405: "this address does not take that method"}
    message = words.get(error.status_code, str(error.detail))
    code = {404: "not-found", 405: "method"}.get(error.status_code, "http")
    response = pages.refusal(request.scope, Refused(error.status_code, code, message))
    response.headers.update(error.headers or {})
    return response


def factory() -> Guard:
    """For uvicorn's worker processes: the application that the environment describes."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    store = Store.open(os.environ["TERCET_LABEL_STORE"], serving=True, create=False)
    application = build(store, os.environ.get("TERCET_LABEL_PUBLIC_URL") or None)
    collect_rarely()
    return application


def collect_rarely() -> None:
    """For a process that only serves. A full garbage collection walks all objects, most of them
    made at start-up to stay; every request would wait 70 to 100 ms for it, every few seconds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _end_with_parent(parent: int) -> None:
    """A worker whose parent was killed would hold the port, and nobody would look after it."""
    while os.getppid() == parent:
        time.sleep(1)
    signal.raise_signal(signal.SIGTERM)
