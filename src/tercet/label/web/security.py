"""What every request passes first: headers, size, rate, and where it comes from.

One plain ASGI layer around the whole application, so that no route, error page or static file can
be without it. What needs the database (session, CSRF token, role) is in `session`.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from tercet.label.errors import Refused
from tercet.label.web.metrics import Metrics
from tercet.label.web.pages import broken, refusal

COOKIE = "tercet_session"
BODY_LIMIT = 256 * 1024
IMPORT_LIMIT = 256 * 1024 * 1024
OPEN_TO_ALL = ("/static/", "/healthz", "/readyz", "/metrics")  # not counted as a flood
SAFE = ("GET", "HEAD", "OPTIONS")

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_RAW_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

log = logging.getLogger("tercet.label")


class Buckets:
    """A token bucket a key: `rate` requests a second for ever, `burst` at once."""

    def __init__(self, rate: float = 40, burst: float = 120, keys: int = 10_000) -> None:
        self.rate, self.burst, self.keys = rate, burst, keys
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, key: str, now: float) -> float:
        """0 if one more request of `key` may pass at `now`, else the seconds until it may."""
        level, then = self._levels.pop(key, (self.burst, now))
        level = min(self.burst, level + (now - then) * self.rate)
        passes = level >= 1
        self._levels[key] = (level - 1 if passes else level, now)
        if len(self._levels) > self.keys:
            self._levels.popitem(last=False)
        return 0 if passes else (1 - level) / self.rate


class Guard:
    """The outermost layer of the application."""

    def __init__(
        self, app: Any, metrics: Metrics, public_url: str | None = None, buckets: Any = None
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.buckets = buckets or Buckets()
        self.public = urlsplit(public_url).netloc.lower() if public_url else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start = time.perf_counter()
        status = 0

        async def guarded_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": with_headers(message.get("headers", []))}
            await send(message)

        try:
            await self._answer(scope, receive, guarded_send)
        except ClientDisconnect:
            status = 499
        except Exception as error:
            # Starlette raises again what its handler has answered with a 500.
            answer = None if status else broken(scope)
            reference = scope.get("tercet.reference", "-")
            log.error("%s %a (%s)", scope["method"], scope["path"], reference, exc_info=error)
            if answer:
                await answer(scope, receive, guarded_send)
        finally:
            route = getattr(scope.get("route"), "path", None) or "unknown"
            self.metrics.observe(scope["method"], route, status, time.perf_counter() - start)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        limit = body_limit(scope["path"])
        try:
            self._refuse_flood(scope, headers)
            if scope["method"] not in SAFE and self._is_foreign(headers):
                log.warning(
                    "refused %s %a: Origin %a, host %a; behind a proxy, give its address as "
                    "--public-url",
                    scope["method"], scope["path"], headers.get("origin"), headers.get("host"),
                )  # fmt: skip
                raise Refused(403, "foreign-origin", "this request came from another site")
            size = headers.get("content-length", "0")
            if not size.isdecimal() or int(size) > limit:
                raise too_large(limit)
        except Refused as error:
            return await refusal(scope, error)(scope, receive, send)
        received = 0

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:  # without a Content-Length only counting tells
                raise too_large(limit)
            return message

        await self.app(scope, limited_receive, send)

    def _refuse_flood(self, scope: Scope, headers: Mapping[str, str]) -> None:
        if scope["path"].startswith(OPEN_TO_ALL):
            return
        address = (scope.get("client") or ("",))[0]
        seconds = self.buckets.wait(session_id(headers) or address, time.monotonic())
        if seconds:
            raise Refused(
                429, "too-fast", "too many requests; wait a moment", retry_after=round(seconds, 3)
            )

    def _is_foreign(self, headers: Mapping[str, str]) -> bool:
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site not in (None, "same-origin", "none"):
            return True
        if origin is None:
            return False  # not a browser, or one that vouches by Sec-Fetch-Site
        if origin == "null":
            # A form of a page with `no-referrer` says null; only Sec-Fetch-Site tells it from a
            # sandboxed frame of another site.
            return site is None
        return urlsplit(origin).netloc.lower() not in (headers.get("host", "").lower(), self.public)


def body_limit(path: str) -> int:
    """Bytes that a request to `path` may carry: an admin's import may be large."""
    return IMPORT_LIMIT if path.startswith("/admin/") and path.endswith("/import") else BODY_LIMIT


def too_large(limit: int) -> Refused:
    """413 that names the limit."""
    size = f"{limit // 1024} KB" if limit < 1024 * 1024 else f"{limit // 1024**2} MB"
    return Refused(413, "too-large", f"the request is too large; at most {size} are taken")


def with_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """A response's headers with the ones that none may lack; personal answers are not cached."""
    cached = any(name.lower() == b"cache-control" for name, _ in headers)
    rest = [] if cached else [(b"cache-control", b"no-store")]
    return [*headers, *_RAW_HEADERS, *rest]


def session_id(headers: Mapping[str, str]) -> str | None:
    """The session cookie's value, or None."""
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE and value:
            return value
    return None


def is_loopback(host: str) -> bool:
    """Does `host` (a name or address, with or without a port) stay on this machine?"""
    name = urlsplit(f"//{host}").hostname or ""
    return name in ("localhost", "::1") or name.endswith(".localhost") or name.startswith("127.")


def cookie(value: str, scheme: str, host: str, days: int = 30) -> str:
    """A Set-Cookie line. The server ends a session after 12 idle hours; the cookie itself lives
    on so that closing the browser does not sign anybody out."""
    secure = "" if scheme == "http" and is_loopback(host) else "; Secure"
    age = days * 86_400 if value else 0
    return f"{COOKIE}={value}; Max-Age={age}; Path=/; HttpOnly; SameSite=Lax{secure}"
