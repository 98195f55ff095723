import re
import signal
import socket
import subprocess
import sys
import time

import httpx2 as httpx
import pytest
from sqlalchemy import select, update

from tercet.label import tables
from tercet.label.errors import Refused
from tercet.label.server import Address, base_url, links, listen, running, serve
from tercet.label.store import Store
from tercet.records import InputError, write_records
from tests.label.world import candidate_set, ranking_world


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "label.example"])
def test_a_public_address_needs_tls_or_a_proxy(host, tmp_path):
    with pytest.raises(InputError, match=r"--tls-cert and --tls-key, or --behind-proxy"):
        Address(host)
    (tmp_path / "pem").touch()
    Address(host, behind_proxy=True)
    Address(host, tls=(tmp_path / "pem", tmp_path / "pem"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.3.2.1"])
def test_this_machine_needs_neither(host):
    Address(host)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"port": 65_536}, "port 65536 does not exist"),
        ({"port": -1}, "port -1 does not exist"),
        ({"public_url": "label.example"}, "is no address; write https://"),
        ({"public_url": "ftp://label.example"}, "is no address"),
        ({"public_url": "https://label.example/team"}, "has a path"),
    ],
)
def test_what_cannot_be_listened_on(options, said):
    with pytest.raises(InputError, match=said):
        Address(**options)


def test_missing_certificates_are_named(tmp_path):
    with pytest.raises(InputError, match=r"cert\.pem: no such file"):
        Address(tls=(tmp_path / "cert.pem", tmp_path / "key.pem"))


def test_a_file_that_is_no_certificate_is_named(tmp_path, sqlite_store):
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("no PEM")
    address = Address(port=0, tls=(tmp_path / "cert.pem", tmp_path / "key.pem"))
    with pytest.raises(InputError, match=r"cert\.pem and .*key\.pem are no certificate"):
        serve(sqlite_store, address)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (Address(), "http://127.0.0.1:9"),
        (Address("::1"), "http://[::1]:9"),
        (Address("localhost"), "http://localhost:9"),
        (Address("0.0.0.0", behind_proxy=True), "http://127.0.0.1:9"),
        (Address(public_url="https://label.example/"), "https://label.example"),
    ],
)
def test_what_links_begin_with(address, url):
    assert base_url(address, 9) == url


def test_a_taken_port_is_named_with_the_remedy():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} is in use.*--port"):
            listen(Address(port=port))


def test_a_host_of_somewhere_else_is_refused():
    with pytest.raises(InputError, match=r"--host 192\.0\.2\.1"):
        listen(Address("192.0.2.1", 0, behind_proxy=True))


def test_sqlite_has_one_process(sqlite_store):
    with pytest.raises(InputError, match=r"--workers 2: .*--database postgresql"):
        serve(sqlite_store, Address(port=0), workers=2)
    with pytest.raises(InputError, match="--workers 0: at least 1"):
        serve(sqlite_store, Address(port=0), workers=0)


def test_links_are_fresh_and_for_the_same_two_people(sqlite_store):
    first = links(sqlite_store, "http://h:1/")
    second = links(sqlite_store, "http://h:1")
    assert all(re.fullmatch(r"http://h:1/join#[\w-]{43}", link) for link in (*first, *second))
    assert len({*first, *second}) == 4
    with running(sqlite_store, Address(port=0)) as served:
        names = []
        for link in (first[0], second[0], served.labeler):
            with httpx.Client(base_url=served.url) as http:
                token = link.partition("#")[2]
                assert http.post("/join", data={"token": token}).headers["location"] == "/"
                names.append(re.search(r'name="labeler" content="(\w+)"', http.get("/").text)[1])
    assert len(set(names)) == 1


def test_a_removed_admin_never_locks_the_operator_out(sqlite_store):
    links(sqlite_store, "http://h:1")
    table = tables.labeler
    for name, status, fresh in (("admin", "removed", "admin-2"), ("admin-2", "paused", None)):
        changed = update(table).where(table.c.name == name).values(status=status)
        sqlite_store.write(lambda conn, changed=changed: conn.execute(changed))
        links(sqlite_store, "http://h:1")
        admins = select(table.c.name).where(table.c.role == "admin").order_by(table.c.name)
        found = sqlite_store.read(lambda conn, admins=admins: conn.scalars(admins).all())
        assert found == ["admin", fresh or "admin-2"]


def test_a_removed_labeler_is_named_with_the_way_out(sqlite_store):
    links(sqlite_store, "http://h:1", "ann")
    gone = update(tables.labeler).where(tables.labeler.c.name == "ann").values(status="removed")
    sqlite_store.write(lambda conn: conn.execute(gone))
    with pytest.raises(Refused, match=r"ann was removed; .* on the admin page, or choose another"):
        links(sqlite_store, "http://h:1", "ann")
    links(sqlite_store, "http://h:1", "bob")


def test_a_server_in_the_background_prints_its_links_and_ends(sqlite_store, capsys):
    world = ranking_world(sqlite_store, items=1, labelers=0)
    with running(sqlite_store, Address(port=0), name="ann") as served:
        said = capsys.readouterr().out.splitlines()
        assert said == [f"labeler  {served.labeler}", f"admin    {served.admin}"]
        with httpx.Client(base_url=served.url) as http:
            http.post("/join", data={"token": served.labeler.partition("#")[2]})
            assert "ann" in http.get("/").text
            assert http.get("/").headers["content-security-policy"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(served.url)
    assert world.items()  # the store is still open


@pytest.fixture
def start(tmp_path):
    """Starts `tercet label serve` on two candidate sets; kills what a test leaves behind."""
    write_records(tmp_path / "c.jsonl", [candidate_set(n) for n in range(2)])
    started = []

    def go(*options):
        command = [sys.executable, "-m", "tercet", "label", "serve", str(tmp_path / "c.jsonl")]
        process = subprocess.Popen(
            [*command, "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        lines = []
        while not lines or not lines[-1].startswith("admin"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            lines.append(line.rstrip("\n"))
        return process, lines

    yield go
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_serve_says_what_it_imported_and_stops_in_peace(start, tmp_path, sent):
    process, lines = start()
    assert lines[0] == "imported Rank replies: 2 new, 0 known"
    assert [line.split("http")[0] for line in lines[1:]] == ["labeler  ", "admin    "]
    address = lines[1].split()[1].partition("/join")[0]
    assert httpx.get(f"{address}/readyz").text == "ready\n"
    process.send_signal(sent)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")
    with Store.open(tmp_path / "c.sqlite", serving=True, create=False):
        pass  # the lock is free again


def test_a_second_server_of_one_store_is_refused(start, tmp_path):
    start()
    second = subprocess.run(
        [sys.executable, "-m", "tercet", "label", "serve", str(tmp_path / "c.jsonl")],
        capture_output=True,
        text=True,
    )
    assert second.returncode == 2
    assert "is served by another process" in second.stderr and second.stderr.count("\n") == 1


def test_postgresql_is_served_by_several_processes(start, postgres_url):
    process, lines = start("--database", postgres_url, "--workers", "2")
    address, _, token = lines[1].split()[1].partition("/join#")
    with httpx.Client(base_url=address, timeout=30) as http:
        assert http.post("/join", data={"token": token}).status_code == 303
        assert "Rank replies" in http.get("/").text
    pids = set()
    for _ in range(50):
        pids |= set(re.findall(r'pid="(\d+)"', httpx.get(f"{address}/metrics", timeout=30).text))
        if len(pids) == 2:
            break
    assert len(pids) == 2
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_workers_end_when_their_parent_is_killed(start, postgres_url):
    process, lines = start("--database", postgres_url, "--workers", "2")
    address = lines[1].split()[1].partition("/join#")[0]
    httpx.get(f"{address}/healthz", timeout=30)
    process.kill()
    process.wait()
    for _ in range(100):
        try:
            httpx.get(f"{address}/healthz", timeout=30)
        except httpx.TransportError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the workers still answer")


def test_the_server_imports_no_torch():
    code = (
        "import sys, tercet.label.commands, tercet.label.server, tercet.label.web.app;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
