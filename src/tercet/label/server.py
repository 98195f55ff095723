"""Serving a store: uvicorn in this process, in a thread, or in several worker processes.

with running(store) as served:
    print(served.labeler)  # http://127.0.0.1:8765/join#...
"""

import errno
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, select

from tercet.label import people, tables
from tercet.label.store import Store
from tercet.records import InputError

PORT = 8765
GRACE_S = 10  # open requests have this long to end
LABELER = "labeler-1"
ADMIN = "admin"


@dataclass(frozen=True)
class Address:
    """Where to listen, and what labelers type to get there.

    tls: certificate and key files. behind_proxy: a proxy in front has TLS, and is believed about
    the client's address. public_url: what labelers see, when it is not what is listened on.
    """

    host: str = "127.0.0.1"
    port: int = PORT
    tls: tuple[Path, Path] | None = None
    behind_proxy: bool = False
    public_url: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65_536:
            raise InputError(f"port {self.port} does not exist; choose 0 to 65535 with --port")
        for file in self.tls or ():
            if not file.is_file():
                raise InputError(f"{file}: no such file; --tls-cert and --tls-key name PEM files")
        if self.public_url is not None:
            web_address("--public-url", self.public_url)
        if not (_is_loopback(self.host) or self.tls or self.behind_proxy):
            raise InputError(
                f"--host {self.host} can be reached from other machines, and without TLS anybody "
                "on the way could read along; give --tls-cert and --tls-key, or --behind-proxy if "
                "a proxy with TLS stands in front, or leave --host out and use an SSH tunnel"
            )


def web_address(option: str, url: str) -> str:
    """`url` if labelers can type it: http or https, a host, maybe a port, and nothing behind.

    Raises:
        InputError: names the option and what is wrong.
    """
    wrong = InputError(f"{option} {url!r} is no address; write https://label.example")
    try:
        parts = urlsplit(url)
        port = parts.port  # raises when it is no port
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise wrong
    if parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise wrong
    if parts.path not in ("", "/"):
        raise InputError(f"{option} {url!r} has a path; give the page a host name of its own")
    return url


@dataclass(frozen=True)
class Served:
    """A server that answers: its address, and fresh links for one labeler and one admin."""

    url: str
    labeler: str
    admin: str


def links(store: Store, base_url: str, name: str = LABELER) -> tuple[str, str]:
    """Fresh single-use links for the labeler `name` and for the admin, the same two persons each
    time, so nobody is locked out and nobody's work gets a second name."""

    def job(conn: Any) -> tuple[str, str]:
        now = store.now()
        labeler_id = people.add_labeler(conn, now, name)
        admin_id = people.add_labeler(conn, now, _admin(conn), role="admin")
        return people.invite(conn, now, labeler_id), people.invite(conn, now, admin_id)

    labeler, admin = store.write(job)
    return join_link(base_url, labeler), join_link(base_url, admin)


def _admin(conn: Connection) -> str:
    """The admin's name: with a number where that person was removed, because whoever may start
    the server has to get in."""
    t = tables.labeler
    gone = set(conn.scalars(select(t.c.name).where(t.c.status == "removed")))
    names = (f"{ADMIN}-{n}" if n > 1 else ADMIN for n in count(1))
    return next(name for name in names if name not in gone)


def join_link(base_url: str, token: str) -> str:
    """The token goes into the fragment, which browsers do not send to any server or log."""
    return f"{base_url.rstrip('/')}/join#{token}"


@contextmanager
def running(store: Store, address: Address | None = None, name: str = LABELER) -> Iterator[Served]:
    """Serves `store` from a thread of this process until the block ends, and prints the links.

    Raises:
        InputError: the port is taken, or the host is not this machine's own.
    """
    address = address or Address()
    listener = listen(address)
    try:
        server = _server(_application(store, address), address)
        served = _announce(store, listener, address, name)
    except BaseException:
        listener.close()
        raise
    thread = threading.Thread(target=server.run, args=([listener],), name="label server")
    thread.start()
    try:
        yield served
    finally:
        server.should_exit = True
        thread.join()


def serve(
    store: Store,
    address: Address,
    name: str = LABELER,
    workers: int = 1,
    database: str | None = None,
    say: Callable[[Served], None] | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM, then lets open requests end.

    workers: processes, for PostgreSQL only; `database` is then the address that they open.

    Raises:
        InputError: the port is taken, the certificate does not load, or SQLite with workers.
    """
    if workers < 1:
        raise InputError(f"--workers {workers}: at least 1 is needed")
    if workers > 1 and store.dialect == "sqlite":
        raise InputError(
            f"--workers {workers}: a SQLite store has one server process; for several use "
            "PostgreSQL: --database postgresql+psycopg://user@host/name"
        )
    listener = listen(address)
    try:
        if workers > 1:
            assert database is not None
            _announce(store, listener, address, name)
            _serve_workers(database, listener, address, workers)
        else:
            server = _server(_application(store, address), address)
            _announce(store, listener, address, name)
            _serve_here(server, listener)
    finally:
        listener.close()


def listen(address: Address) -> socket.socket:
    """A socket that takes connections from now on, even before the server answers them.

    Raises:
        InputError: the port is taken or not allowed, or the host is not of this machine.
    """
    try:
        family, kind, _, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise InputError(f"--host {address.host}: {error.strerror}; give an address") from None
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(where)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {address.port} is in use, maybe by another `tercet label serve`; stop that "
                "or choose another port with --port (0: any free one)"
            ) from None
        if error.errno == errno.EACCES:
            raise InputError(
                f"port {address.port} needs special rights; choose one above 1023 with --port"
            ) from None
        raise InputError(f"--host {address.host}: {error.strerror}; give an address of "
                         "this machine") from None  # fmt: skip
    return listener


def base_url(address: Address, port: int) -> str:
    """What goes in front of /join in a link."""
    if address.public_url:
        return address.public_url.rstrip("/")
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(address.host, address.host)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{'https' if address.tls else 'http'}://{host}:{port}"


def _announce(store: Store, listener: socket.socket, address: Address, name: str) -> Served:
    url = base_url(address, listener.getsockname()[1])
    labeler, admin = links(store, url, name)
    # Exactly these beginnings: scripts read them. Flushed, because stdout may be a pipe.
    print(f"labeler  {labeler}\nadmin    {admin}", flush=True)
    return Served(url, labeler, admin)


def _application(store: Store, address: Address) -> Any:
    from tercet.label.web.app import build

    return build(store, address.public_url)


def _server(application: Any, address: Address, workers: int = 1) -> Any:
    import uvicorn

    certificate, key = address.tls or (None, None)
    config = uvicorn.Config(
        application,
        factory=isinstance(application, str),
        workers=workers,
        ssl_certfile=certificate,
        ssl_keyfile=key and str(key),
        proxy_headers=address.behind_proxy,
        forwarded_allow_ips="*" if address.behind_proxy else None,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=2048,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE_S,
    )
    if address.tls:
        _check_certificate(*address.tls)
    return uvicorn.Server(config)


def _check_certificate(certificate: Path, key: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise InputError(
            f"{certificate} and {key} are no certificate and its key in PEM form: {error}"
        ) from None


def _serve_here(server: Any, listener: socket.socket) -> None:
    from tercet.label.web.app import collect_rarely

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn raises the signal again when it is done; these handlers make that the normal end.
    before = {sig: signal.signal(sig, stop) for sig in (signal.SIGINT, signal.SIGTERM)}
    collect_rarely()
    try:
        server.run([listener])
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


def _serve_workers(database: str, listener: socket.socket, address: Address, workers: int) -> None:
    from uvicorn.supervisors import Multiprocess

    os.environ["TERCET_LABEL_STORE"] = database
    os.environ["TERCET_LABEL_PUBLIC_URL"] = address.public_url or ""
    config = _server("tercet.label.web.app:factory", address, workers).config
    Multiprocess(config, [listener]).run()


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1", "[::1]") or host.startswith("127.")
