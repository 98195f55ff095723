"""A real Chromium, watched: console errors, policy violations and foreign requests fail a test."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Playwright, sync_playwright

from tests.browser.harness import Served
from tests.label.conftest import postgres_server, postgres_url

__all__ = ["postgres_server", "postgres_url"]

ARGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def chromium() -> str:
    """The program: $CHROMIUM_PATH, or Debian's."""
    path = os.environ.get("CHROMIUM_PATH", "/usr/bin/chromium")
    if not Path(path).exists():
        pytest.skip(f"no Chromium at {path}: set CHROMIUM_PATH")
    return path


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """One for all tests of a worker."""
    started = playwright.chromium.launch(executable_path=chromium(), args=list(ARGS))
    yield started
    started.close()


class Watch:
    """What a test's pages must not do. `allow("Failed to load resource")` expects some of it."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.allowed: list[str] = []

    def allow(self, *parts: str) -> None:
        self.allowed += parts

    def fault(self, text: str) -> None:
        self.faults.append(text)

    def follow(self, context: BrowserContext) -> None:
        origins: set[str] = set()

        def request(url: str) -> None:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https", "ws", "wss"):
                return
            origins.add(parts.netloc)
            if parts.hostname != "127.0.0.1" or len(origins) > 1:
                self.fault(f"request to {url}")

        context.on("request", lambda r: request(r.url))
        context.on(
            "console",
            lambda m: self.fault(f"console: {m.text}") if m.type in ("error", "warning") else None,
        )
        context.on("weberror", lambda e: self.fault(f"error: {e.error}"))
        context.on("dialog", lambda d: (self.fault(f"dialog: {d.message}"), d.dismiss()))
        context.add_init_script(
            "addEventListener('securitypolicyviolation', (e) =>"
            " console.error('policy violation', e.violatedDirective, e.blockedURI))"
        )

    def check(self) -> None:
        seen = [f for f in self.faults if not any(part in f for part in self.allowed)]
        assert not seen, "\n".join(seen)


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    watch.check()


@pytest.fixture
def new_context(browser: Browser, watch: Watch) -> Iterator[Callable[..., BrowserContext]]:
    """Makes a watched browser context: cookies and storage of its own."""
    made: list[BrowserContext] = []

    def make(**options: Any) -> BrowserContext:
        context = browser.new_context(**options)
        context.set_default_timeout(10_000)
        watch.follow(context)
        made.append(context)
        return context

    yield make
    for context in made:
        context.close()


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str | None:
    """None for SQLite; parametrised with "postgresql", the address of an empty database."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return None
    return request.getfixturevalue("postgres_url")


BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
"""Once on SQLite, once on PostgreSQL with four workers."""


@pytest.fixture
def serve(tmp_path: Path, database: str | None) -> Iterator[Callable[..., Served]]:
    """`serve(records, *flags)` starts a server; at the end its audit trail must fit its rows."""
    made: list[Served] = []

    def start(records: Any, *flags: str) -> Served:
        folder = tmp_path / f"server{len(made)}"
        folder.mkdir()
        made.append(Served(folder, records, *flags, database=database))
        return made[-1]

    yield start
    for served in made:
        with served:
            pass


class Killable:
    """A Chromium of its own process group and folder, which can be killed like by a power cut."""

    def __init__(self, playwright: Playwright, folder: Path, watch: Watch) -> None:
        port = folder / "DevToolsActivePort"
        port.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [chromium(), *ARGS, f"--user-data-dir={folder}", "--remote-debugging-port=0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + 20
        while not (port.exists() and port.read_text().count("\n")):
            assert time.monotonic() < end, "Chromium did not start"
            time.sleep(0.02)
        address = f"http://127.0.0.1:{port.read_text().split()[0]}"
        self.browser = playwright.chromium.connect_over_cdp(address)
        self.context = self.browser.contexts[0]
        watch.follow(self.context)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def killable(
    playwright: Playwright, tmp_path: Path, watch: Watch
) -> Iterator[Callable[[], Killable]]:
    """Starts a Chromium on one folder, again after it was killed."""
    made: list[Killable] = []

    def start() -> Killable:
        made.append(Killable(playwright, tmp_path / "chromium", watch))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.kill()
