"""People at the labeling site, in process: the application without a network."""

import json
import re
from typing import Any

from starlette.testclient import TestClient

from tercet.label import people
from tercet.label.store import Store
from tercet.label.web.app import build

HOME = "http://127.0.0.1"
HTML = {"accept": "text/html"}


class Visitor:
    """A browser without script: one cookie jar, and the CSRF token of the pages it got."""

    def __init__(self, app: Any) -> None:
        self.http = TestClient(
            app, base_url=HOME, raise_server_exceptions=False, follow_redirects=False
        )
        self.csrf = ""

    def get(self, path: str, **headers: str) -> Any:
        return self.http.get(path, headers={**HTML, **headers})

    def form(self, path: str, fields: dict[str, str] | None = None, **headers: str) -> Any:
        """Posts a form as a page of this site does."""
        data = {"csrf": self.csrf, **(fields or {})}
        return self.http.post(path, data=data, headers={**HTML, "origin": HOME, **headers})

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Sends JSON as the page's script does. `if_match` becomes If-Match."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = None if body is None else json.dumps(body)  # half surrogate pairs as escapes
        return self.http.request(
            method,
            path,
            content=content,
            headers={"x-csrf-token": self.csrf, "origin": HOME, **named},
        )

    def join(self, token: str) -> Any:
        """Follows an invite link and remembers the page's CSRF token."""
        answer = self.form("/join", {"token": token})
        if answer.status_code == 303:
            page = self.get("/")
            self.csrf = re.search(r'name="csrf" content="([^"]+)"', page.text)[1]
        return answer


class Site:
    """The application over a store, and people who come to it."""

    def __init__(self, store: Store, public_url: str | None = None) -> None:
        self.store = store
        self.app = build(store, public_url)

    @property
    def routes(self) -> list[Any]:
        return self.app.app.routes

    def invite(self, name: str, role: str = "labeler", **options: Any) -> str:
        def job(conn):
            id_ = people.add_labeler(conn, self.store.now(), name, role=role)
            return people.invite(conn, self.store.now(), id_, **options)

        return self.store.write(job)

    def person(self, name: str, role: str = "labeler") -> Visitor:
        """Somebody who has joined."""
        visitor = Visitor(self.app)
        assert visitor.join(self.invite(name, role)).status_code == 303
        return visitor
