"""Where a store may be, and the database engines that reach it."""

import errno
import os
import re
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sqlalchemy import URL, Connection, Engine, NullPool, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from tercet.records import InputError

BUSY_S = 30.0  # how long a SQLite statement waits for another process that writes
CONNECTIONS = 8  # of one process to PostgreSQL
HINT = "use PostgreSQL for that: --database postgresql+psycopg://user@host/name"

# File systems on which SQLite's locks or its shared memory cannot be relied on.
# fmt: off
NETWORK = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.beegfs", "fuse.ceph", "fuse.glusterfs",
    "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs",
    "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs", "vboxsf",
})
# fmt: on


def place(where: str | Path) -> Path | URL:
    """A path for SQLite, an address for PostgreSQL.

    Raises:
        InputError: neither; the message never repeats an address, which may hold a password.
    """
    if isinstance(where, Path) or "://" not in where:
        return Path(where)
    try:
        url = make_url(where)
    except (ArgumentError, ValueError):
        raise InputError(
            "the database address cannot be read; it looks like "
            "postgresql+psycopg://user:password@host:5432/name, with %-codes for special characters"
        ) from None
    if url.drivername == "sqlite" and url.database and url.database != ":memory:":
        return Path(url.database)
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        if "@" in (url.host or ""):
            raise InputError(
                "the database address has more than one @; write %40 for one in the password"
            )
        return url.set(drivername="postgresql+psycopg")
    raise InputError(
        f"a store is a .sqlite file or postgresql+psycopg://…, not {url.drivername}://…"
    )


def shown(url: URL) -> str:
    """The address without the password."""
    user = f"{url.username}@" if url.username else ""
    port = f":{url.port}" if url.port else ""
    return f"postgresql://{user}{url.host or ''}{port}/{url.database or ''}"


def sqlite_engine(path: Path, *, writing: bool) -> Engine:
    """Connections to a SQLite file: one at a time that takes the write lock as it begins, or
    several that only read."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_S, "check_same_thread": False},
        hide_parameters=True,  # labelers' words stay out of error messages and logs
        **({"poolclass": NullPool} if writing else {"poolclass": QueuePool, "max_overflow": 20}),
    )

    def connected(raw: sqlite3.Connection, _: Any) -> None:
        # Python would begin transactions by its own rules, too late and never IMMEDIATE.
        raw.isolation_level = None
        raw.execute("PRAGMA foreign_keys = ON")
        raw.execute("PRAGMA cache_size = -16000")
        if not writing:
            raw.execute("PRAGMA query_only = ON")

    def begun(conn: Connection) -> None:
        conn.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)
    return engine


def postgresql_engine(url: URL) -> Engine:
    """A pool of connections to PostgreSQL, each transaction READ COMMITTED.

    Raises:
        InputError: psycopg is not installed.
    """
    try:
        return create_engine(
            url,
            isolation_level="READ COMMITTED",
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={"connect_timeout": 5, "application_name": "tercet label"},
        )
    except ImportError:
        raise InputError(
            "PostgreSQL needs the package psycopg: pip install 'tercet[postgres]'"
        ) from None


def file_system(folder: Path, mounts: str) -> str:
    """The type of the file system that holds an absolute folder, by the text of Linux's
    /proc/self/mountinfo; "" when it does not say."""
    found = ""
    longest = -1
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields, type_ = left.split(), right.split()
        if len(fields) < 5 or not type_:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        # A later line is mounted over an earlier one.
        if folder.is_relative_to(point) and len(point.parts) >= longest:
            found, longest = type_[0], len(point.parts)
    return found


def refuse_network(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> None:
    """Raises:
    InputError: the file lies on a network file system.
    """
    if not mounts.exists():
        return
    type_ = file_system(path.parent.resolve(), mounts.read_text(encoding="utf-8"))
    if type_ in NETWORK:
        raise InputError(
            f"{path} lies on a network file system ({type_}), where SQLite loses data; "
            f"put the store on a local disk, or {HINT}"
        )


def lock(path: Path) -> IO[str]:
    """Takes the server's lock beside the file; it lasts until the returned file is closed or the
    process ends.

    Raises:
        InputError: another server has it, or the file cannot be made.
    """
    with _writable(path):
        file = path.with_name(path.name + ".serving").open("a+", encoding="utf-8")
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise InputError(
            f"{path} is served by another process already; stop that one first. "
            f"For several servers or worker processes {HINT}"
        ) from None
    return file


def private_file(path: Path) -> None:
    """Creates an empty file that only its owner may read; one that exists stays as it is.

    Raises:
        InputError: this user may not write there.
    """
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        if path.exists():
            raise InputError(
                f"{path} may not be written ({error.strerror}), which reading a store needs too; "
                "change the permissions, or work on a copy"
            ) from None
        raise InputError(
            f"{path.parent}: nothing can be written there ({error.strerror}); name another folder "
            "or change its permissions"
        ) from None


def without(text: str, url: URL) -> str:
    """A driver's error message on one line, without the secrets of the address."""
    line = " ".join(text.split())
    query: Mapping[str, Any] = url.query
    for secret in (url.password, query.get("password")):
        if secret:
            line = line.replace(str(secret), "…")
    return line
