"""The one thread that writes to a SQLite store: whatever waits is committed as one group.

A commit that survives a power cut costs a wait for the disk. Works that arrive during that wait
are done together and share the next one, in the order of arrival.
"""

import contextlib
import errno
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy import Connection, Engine

from tercet.label.errors import Refused

LARGEST_GROUP = 100

_BUSY, _NO_MEMORY, _READ_ONLY, _IO, _CORRUPT, _FULL, _CANNOT_OPEN, _NO_DATABASE = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOTADB,
)
# Faults of the file rather than of one statement: SQLite may have rolled everything back.
_OF_THE_FILE = frozenset(
    {_BUSY, _NO_MEMORY, _READ_ONLY, _IO, _CORRUPT, _FULL, _CANNOT_OPEN, _NO_DATABASE}
)


@dataclass(frozen=True)
class _Job:
    work: Callable[[Connection], Any]
    durable: bool
    answer: Future[Any] = field(default_factory=Future)


class _GroupFailed(Exception):
    """The file failed during a work: no work of the group can be committed."""


class GroupWriter:
    """Runs works on one connection of `engine`, whose transactions must begin IMMEDIATE.

    writes, groups, failures: counted since the start. busy_s: seconds spent in groups.
    trouble: why the last group failed, until one succeeds.
    """

    def __init__(self, engine: Engine) -> None:
        self.writes = self.groups = self.failures = 0
        self.busy_s = 0.0
        self.trouble: Refused | None = None
        self._engine = engine
        self._conn: Connection | None = None
        self._synchronous = ""
        self._closing = False
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Works that no group has taken yet."""
        return self._queue.qsize()

    def submit(self, work: Callable[[Connection], Any], durable: bool) -> Future[Any]:
        """Queues a work. The future is answered when its group is committed, or with what the
        work raised, or with a Refused (503, 507) when the group could not be committed.

        durable: committed means flushed to the disk, not only handed to the operating system."""
        job = _Job(work, durable)
        with self._lock:
            if self._closing:
                raise Refused(503, "closing", "the server is stopping; try again in a moment")
            self._queue.put(job)
        return job.answer

    def close(self) -> None:
        """Finishes what is queued, then ends the thread."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        for group in self._groups():
            started = time.perf_counter()
            self._commit(group)
            self.busy_s += time.perf_counter() - started
        self._disconnect()

    def _groups(self) -> Iterator[list[_Job]]:
        more = True
        while more:
            jobs = [self._queue.get()]
            with contextlib.suppress(Empty):
                while jobs[-1] is not None and len(jobs) < LARGEST_GROUP:
                    jobs.append(self._queue.get_nowait())
            more = jobs[-1] is not None
            # A caller that is gone before its turn (a dropped connection) is not served.
            group = [job for job in jobs if job and job.answer.set_running_or_notify_cancel()]
            if group:
                yield group

    def _commit(self, group: list[_Job]) -> None:
        try:
            conn = self._connection("FULL" if any(job.durable for job in group) else "NORMAL")
            with conn.begin():
                outcomes = [_outcome(conn, job) for job in group]
        except BaseException as error:
            self.failures += 1
            self._disconnect()
            self.trouble = refusal(error)
            for job in group:
                job.answer.set_exception(refusal(error))
            return
        self.trouble = None
        self.groups += 1
        self.writes += len(group)
        # Also what a work raised is told only now: it may rest on another work of the group.
        for job, (result, error) in zip(group, outcomes, strict=True):
            if error is None:
                job.answer.set_result(result)
            else:
                job.answer.set_exception(error)

    def _connection(self, synchronous: str) -> Connection:
        if self._conn is None:
            self._conn = self._engine.connect()
            self._synchronous = ""
        if synchronous != self._synchronous:
            # Inside a transaction SQLite ignores this.
            _raw(self._conn).execute(f"PRAGMA synchronous = {synchronous}")
            self._synchronous = synchronous
        return self._conn

    def _disconnect(self) -> None:
        if self._conn is not None:
            with contextlib.suppress(Exception):
                self._conn.invalidate()
            with contextlib.suppress(Exception):
                self._conn.close()
        self._conn = None


def _outcome(conn: Connection, job: _Job) -> tuple[Any, Exception | None]:
    try:
        with conn.begin_nested():
            return job.work(conn), None
    except Exception as error:
        if _code(error) in _OF_THE_FILE or not _raw(conn).in_transaction:
            raise _GroupFailed from error
        return None, error


def _raw(conn: Connection) -> sqlite3.Connection:
    raw = conn.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "orig", None) or error.__cause__ or error.__context__


def _code(error: BaseException) -> int:
    """The first primary SQLite error code of the file among the causes of an error; else 0."""
    codes = [getattr(cause, "sqlite_errorcode", 0) & 0xFF for cause in _causes(error)]
    return next((code for code in codes if code in _OF_THE_FILE), 0)


def _is_full(error: BaseException) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT)
    return any(
        getattr(cause, "sqlite_errorcode", 0) in (_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
        or (isinstance(cause, OSError) and cause.errno in full)
        for cause in _causes(error)
    )


def refusal(error: BaseException) -> Refused:
    """What callers are told when the file, and no rule, stopped them: 507 full disk, else 503."""
    if _is_full(error):
        return Refused(
            507, "disk-full", "the server's disk is full; your work stays on this device for now"
        )
    if _code(error) == _BUSY:
        return Refused(503, "busy", "another program is writing to the store; try again")
    return Refused(503, "storage", f"the store could not be used: {why(error)}")


def why(error: BaseException) -> str:
    """The first line of the database's own words."""
    first = next((c for c in _causes(error) if not isinstance(c, _GroupFailed)), error)
    told = str(getattr(first, "orig", None) or first).splitlines()
    return told[0] if told else type(first).__name__
