"""The guard alone, around an application that is not ours."""

import asyncio
import logging

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from tercet.label.web.metrics import Metrics
from tercet.label.web.security import BODY_LIMIT, HEADERS, Buckets, Guard, cookie, is_loopback


async def echo(scope, receive, send):
    if scope["path"] == "/broken":
        raise KeyError("secret text")
    size = len(await Request(scope, receive).body())
    await PlainTextResponse(f"read {size}")(scope, receive, send)


def ask(method="POST", path="/", headers=None, chunks=(b"",), app=echo, guard=None):
    """(status, headers, body) of one request whose body arrives in `chunks`."""
    pairs = {"host": "label.example", **(headers or {})}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in pairs.items()],
        "client": ("10.0.0.1", 5),
    }
    left = list(chunks)
    sent = []

    async def receive():
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    asyncio.run((guard or Guard(app, Metrics()))(scope, receive, send))
    answer = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answer, b"".join(part.get("body", b"") for part in sent[1:])


def test_the_policy_is_the_designs():
    assert HEADERS["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # no browser
        ({"origin": "http://label.example"}, 200),
        ({"origin": "HTTPS://Label.Example"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://label.example:81"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "null", "sec-fetch-site": "same-origin"}, 200),  # a form, no referrer
        ({"origin": "null", "sec-fetch-site": "cross-site"}, 403),  # a sandboxed frame
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "https://evil.example", "sec-fetch-site": "same-origin"}, 403),
    ],
)
def test_where_a_writing_request_may_come_from(headers, status):
    assert ask(headers=headers)[0] == status


def test_a_reading_request_may_come_from_anywhere():
    assert ask("GET", headers={"sec-fetch-site": "cross-site"})[0] == 200


def test_behind_a_proxy_the_public_address_is_the_origin():
    guard = Guard(echo, Metrics(), "https://label.example.org/")
    ours = {"host": "10.0.0.7:8765", "origin": "https://label.example.org"}
    assert ask(headers=ours, guard=guard)[0] == 200
    assert ask(headers=ours)[0] == 403


def test_a_refused_origin_tells_the_operator_the_remedy(caplog):
    with caplog.at_level(logging.WARNING, "tercet.label"):
        ask(headers={"origin": "https://other.example"})
    assert "https://other.example" in caplog.text and "--public-url" in caplog.text


def test_a_body_of_just_the_limit_passes():
    assert ask(chunks=[b"x" * BODY_LIMIT])[2] == b"read 262144"


def test_a_body_that_says_it_is_larger_is_not_read():
    status, headers, body = ask(headers={"content-length": "262145"}, chunks=[])
    assert status == 413 and b"256 KB" in body
    assert headers["connection"] == "close"


def test_a_length_that_is_no_number_is_refused():
    assert ask(headers={"content-length": "-5"}, chunks=[])[0] == 413


def test_an_import_may_be_large():
    big = [b"x" * (BODY_LIMIT + 1)]
    assert ask(path="/admin/projects/P/import", chunks=big)[0] == 200
    assert ask(path="/api/import", chunks=big)[0] == 500  # only a Refused handler makes it 413


def test_a_bug_is_a_plain_500_with_a_reference(caplog):
    status, headers, body = ask("GET", "/broken")
    assert status == 500 and b"secret" not in body and b"KeyError" not in body
    assert headers.items() >= HEADERS.items()
    reference = body.decode().split('"reference":"')[1][:8]
    assert reference in caplog.text and "secret text" in caplog.text


def test_a_path_cannot_forge_a_line_of_the_log(caplog):
    ask("POST", "/x\nERROR forged", headers={"origin": "https://other.example"})
    assert "/x\\nERROR forged" in caplog.text and "\nERROR forged" not in caplog.text


def test_a_bucket_lets_a_burst_through_and_then_the_rate():
    buckets = Buckets(rate=2, burst=3)
    assert [buckets.wait("a", 0.0) for _ in range(3)] == [0, 0, 0]
    assert buckets.wait("a", 0.0) == 0.5
    assert buckets.wait("b", 0.0) == 0  # somebody else
    assert buckets.wait("a", 0.5) == 0
    assert buckets.wait("a", 0.5) == 0.5


def test_buckets_forget_the_oldest_key():
    buckets = Buckets(rate=1, burst=1, keys=2)
    for key in "abc":
        assert buckets.wait(key, 0.0) == 0
    assert buckets.wait("a", 0.0) == 0  # forgotten, so full again
    assert buckets.wait("c", 0.0) == 1


def test_a_flood_is_slowed_down_by_session():
    guard = Guard(echo, Metrics(), buckets=Buckets(rate=0.001, burst=2))
    mine = {"cookie": "other=1; tercet_session=s1"}
    assert [ask("GET", headers=mine, guard=guard)[0] for _ in range(3)] == [200, 200, 429]
    assert ask("GET", headers=mine, guard=guard)[1]["retry-after"] == "1"
    assert ask("GET", headers={"cookie": "tercet_session=s2"}, guard=guard)[0] == 200
    assert ask("GET", "/static/task.js", headers=mine, guard=guard)[0] == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1:8765", True),
        ("localhost", True),
        ("[::1]:8765", True),
        ("label.example", False),
        ("10.0.0.1:8765", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_what_is_this_machine(host, loopback):
    assert is_loopback(host) == loopback


def test_a_cookie_is_secure_except_on_this_machine():
    assert cookie("v", "http", "127.0.0.1:1") == (
        "tercet_session=v; Max-Age=2592000; Path=/; HttpOnly; SameSite=Lax"
    )
    assert cookie("v", "http", "label.example").endswith("; Secure")
    assert cookie("v", "https", "localhost").endswith("; Secure")
    assert "Max-Age=0" in cookie("", "http", "localhost")


def test_times_are_counted_by_route_never_by_path():
    metrics = Metrics()
    metrics.observe("GET", "/task/{project_id}", 200, 0.004)
    metrics.observe("GET", "/task/{project_id}", 200, 0.3)
    metrics.observe("BREW", "unknown", 404, 2.0)
    text = metrics.text({"writes": 7})
    one = 'method="GET",route="/task/{project_id}",status="200"'
    assert text.count(one) == 11  # nine buckets, sum, count
    lines = [line for line in text.splitlines() if one in line]
    assert [line.split()[-1] for line in lines] == [
        "1", "1", "1", "1", "1", "1", "2", "2", "2", "0.304000", "2",
    ]  # fmt: skip
    assert 'method="other"' in text and "BREW" not in text
    assert "tercet_store_writes" in text
