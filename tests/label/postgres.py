"""A private PostgreSQL for tests: own folder, own port, a password, and fsync as in earnest.

with running() as server:
    store = Store.open(server.database())
"""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg


@dataclass(frozen=True)
class Server:
    port: int
    password: str

    def database(self) -> str:
        """The address of a new, empty database."""
        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(self.address("postgres"), autocommit=True) as conn:
            conn.execute(f"CREATE DATABASE {name}".encode())
        return self.address(name).replace("postgresql://", "postgresql+psycopg://")

    def address(self, database: str) -> str:
        return f"postgresql://tester:{self.password}@127.0.0.1:{self.port}/{database}"


def programs() -> Path | None:
    """The folder of initdb and postgres; None where PostgreSQL is not installed."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((file.parent for file in folders), default=None)


@contextmanager
def running() -> Iterator[Server]:
    """Makes a cluster, serves it on a free port of 127.0.0.1, and removes it afterwards."""
    bin_ = programs()
    assert bin_, "PostgreSQL is not installed"
    # PostgreSQL refuses to run as root; its own user needs a folder it may enter.
    who: dict[str, Any] = {}
    if getpass.getuser() == "root" and os.geteuid() == 0:
        who = {"user": "postgres", "group": "postgres", "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="tercet-postgres-"))
    try:
        server = Server(_free_port(), secrets.token_urlsafe(12))
        secret = folder / "password"
        secret.write_text(server.password)
        if who:
            shutil.chown(folder, who["user"], who["group"])
            shutil.chown(secret, who["user"], who["group"])
        data = folder / "data"
        subprocess.run(
            [
                *(bin_ / "initdb", "-D", data, "-U", "tester", "--pwfile", secret, "--no-sync"),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            **who,
        )
        control = [bin_ / "pg_ctl", "-D", data, "-w", "-s"]
        options = f"-h 127.0.0.1 -p {server.port} -k {folder} -c fsync=on -c shared_buffers=32MB"
        subprocess.run(
            [*control, "-l", folder / "log", "-o", options, "start"], check=True, cwd=folder, **who
        )
        try:
            yield server
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, cwd=folder, **who)
    finally:
        shutil.rmtree(folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
