"""A store of labels: one SQLite file, or a PostgreSQL database for more than one server process.

store = Store.open(Path("runs/demo/label/labels.sqlite"), serving=True)
store.write(lambda conn: add_labeler(conn, store.now(), "ann"))
names = store.read(lambda conn: conn.scalars(select(labeler.c.name)).all())
"""

import asyncio
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Literal, TypeVar

from sqlalchemy import URL, Connection, Engine, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tercet.label import engines
from tercet.label.audit import START
from tercet.label.errors import Refused
from tercet.label.tables import STORE_VERSION, chain, meta, metadata
from tercet.label.writer import GroupWriter, refusal, why
from tercet.records import InputError, RunFailed

T = TypeVar("T")
Work = Callable[[Connection], T]

ATTEMPTS = 10  # at one transaction that PostgreSQL calls off because of others
READERS = 4  # threads that read for the event loop of a SQLite store
_HEADER = b"SQLite format 3\0"
_CALLED_OFF = {"40001", "40P01", "55P03"}  # serialization failure, deadlock, lock timeout
# A unique value: somebody else added the row after this work had looked for it; the next look
# finds it.
_THERE_ALREADY = "23505"
_CREATING = 7_283_746_385  # any number; PostgreSQL lets one process at a time create the tables


class Store:
    """Open one per process with `Store.open`, and `close` it.

    url: where it is, without a password. folder: of the SQLite file, None for PostgreSQL.
    clock: milliseconds since 1970 UTC; tests may put another one here.
    """

    def __init__(
        self, url: str, path: Path | None, engine: Engine, writer: GroupWriter | None
    ) -> None:
        self.dialect: Literal["sqlite", "postgresql"] = "sqlite" if path else "postgresql"
        self.url = url
        self.path = path
        self.folder = path.parent if path else None
        self.clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000
        self._engine = engine
        # On PostgreSQL every statement would otherwise see what was committed before it.
        snapshot = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reading = engine if path else engine.execution_options(**snapshot)
        self._writer = writer
        self._lock: IO[str] | None = None
        threads = READERS if path else engines.CONNECTIONS
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="store")

    @classmethod
    def open(cls, where: str | Path, *, serving: bool = False, create: bool = True) -> "Store":
        """Opens the SQLite file or PostgreSQL database, and makes a new one unless not `create`.

        serving: as a server, of which a SQLite file has one at a time. Other commands may write
        beside it.

        Raises:
            InputError: no store is there, it is of a newer tercet, another server has it, it lies
                on a network file system, it is damaged or may not be written, or the database
                cannot be reached.
            RunFailed: the disk is full, or another program keeps the file busy.
        """
        found = engines.place(where)
        if isinstance(found, URL):
            return cls._open_postgresql(found, create)
        path = found.absolute()
        _refuse_other_files(path, create)
        lock = None
        if serving:
            engines.refuse_network(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = engines.lock(path)
        try:
            store = cls._open_sqlite(path, create)
        except BaseException:
            if lock:
                lock.close()
            raise
        store._lock = lock
        return store

    @classmethod
    def _open_sqlite(cls, path: Path, create: bool) -> "Store":
        engines.private_file(path)
        writing = engines.sqlite_engine(path, writing=True)
        try:
            _use_wal(path)
            with writing.begin() as conn:
                _prepare(conn, str(path), create)
        except (sqlite3.Error, DBAPIError) as error:
            if (refused := refusal(error)).code != "storage":
                raise RunFailed(f"{path}: {refused.message}") from None
            raise InputError(
                f"{path} cannot be opened: {why(error)}; restore a backup if it is damaged, or let "
                "this user write in its folder"
            ) from None
        reading = engines.sqlite_engine(path, writing=False)
        return cls(f"sqlite:///{path}", path, reading, GroupWriter(writing))

    @classmethod
    def _open_postgresql(cls, url: URL, create: bool) -> "Store":
        engine = engines.postgresql_engine(url)
        shown = engines.shown(url)
        try:
            with engine.begin() as conn:
                conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CREATING})
                _prepare(conn, shown, create)
        except DBAPIError as error:
            engine.dispose()
            told = engines.without(str(error.orig), url)
            raise InputError(f"{shown} cannot be used: {told}") from None
        except InputError:
            engine.dispose()
            raise
        return cls(shown, None, engine, None)

    def now(self) -> int:
        """The server's time, milliseconds since 1970 UTC."""
        return self.clock()

    def read(self, work: Work[T]) -> T:
        """What `work` returns; it sees one state of the store and must not write.

        Raises:
            Refused: 503 when the database does not answer, or what `work` raises.
        """
        try:
            with self._reading.connect() as conn:
                return work(conn)
        except (OperationalError, PoolTimeout) as error:
            raise self._refusal(error) from error

    def write(self, work: Work[T], *, durable: bool = True) -> T:
        """Does `work` in one transaction and returns what it returned, after the commit.

        What `work` raises undoes its own changes only, and is raised here. durable: flushed to
        the disk first, so that it survives a power cut; otherwise it survives the end of this
        process (PostgreSQL always flushes). `work` may be run more than once.

        Raises:
            Refused: 507 when the disk is full, 503 when the store cannot be written now.
        """
        if self._writer is not None:
            return self._writer.submit(work, durable).result()
        return self._transaction(work)

    async def aread(self, work: Work[T]) -> T:
        """`read` for the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.read, work)

    async def awrite(self, work: Work[T], *, durable: bool = True) -> T:
        """`write` for the event loop. Cancelled before its turn, it does nothing."""
        if self._writer is not None:
            return await asyncio.wrap_future(self._writer.submit(work, durable))
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._transaction, work)

    def ready(self) -> str | None:
        """None, or why this store cannot be written now."""
        try:
            # After a failed write only a real one can tell that the trouble is over.
            if self._writer is None or self._writer.trouble is not None:
                self.write(_probe, durable=False)
            if self.folder and shutil.disk_usage(self.folder).free < 2**20:
                return "the server's disk is full"
        except Refused as refused:
            return refused.message
        return None

    def counters(self) -> dict[str, float]:
        """Figures for monitoring: transactions, groups, failed groups, seconds, waiting works."""
        if (writer := self._writer) is None:
            return {}
        return {
            "writes": writer.writes,
            "groups": writer.groups,
            "failed_groups": writer.failures,
            "busy_seconds": writer.busy_s,
            "waiting": writer.waiting,
        }

    def close(self) -> None:
        """Finishes what is queued, and lets the file go."""
        self._pool.shutdown()
        if self._writer is not None:
            self._writer.close()
        self._engine.dispose()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _transaction(self, work: Work[T]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._engine.begin() as conn:
                    return work(conn)
            except DBAPIError as error:
                state = getattr(error.orig, "sqlstate", None)
                if state in _CALLED_OFF or (state == _THERE_ALREADY and attempt == 1):
                    time.sleep(random.uniform(0, 0.01 * 2**attempt))
                elif isinstance(error, OperationalError) or error.connection_invalidated:
                    raise self._refusal(error) from error
                else:
                    raise
            except PoolTimeout as error:
                raise self._refusal(error) from error
        raise Refused(503, "busy", "the database is busy; try again in a moment")

    def _refusal(self, error: Exception) -> Refused:
        if self._writer is not None:
            return refusal(error)
        if getattr(getattr(error, "orig", None), "sqlstate", None) == "53100":
            return refusal(OSError(28, "disk full"))
        return Refused(503, "unavailable", "the database does not answer; try again in a moment")


def _refuse_other_files(path: Path, create: bool) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a store")
    if not path.exists():
        if not create:
            raise InputError(
                f"there is no store {path}; `tercet label serve` or `import` makes one"
            )
        return
    try:
        with path.open("rb") as file:
            start = file.read(len(_HEADER))
    except PermissionError:
        raise InputError(f"{path} may not be read by this user") from None
    if start not in (b"", _HEADER):
        raise InputError(f"{path} is not a store of labels: no SQLite file")


def _use_wal(path: Path) -> None:
    # Readers go on beside the writer; the mode is a property of the file from now on.
    raw = sqlite3.connect(path, timeout=engines.BUSY_S)
    try:
        mode = raw.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    finally:
        raw.close()
    if mode != "wal":
        raise InputError(f"{path} lies on a file system without shared memory; {engines.HINT}")


def _prepare(conn: Connection, shown: str, create: bool) -> None:
    tables = set(inspect(conn).get_table_names())
    if "meta" in tables and "chain" in tables:
        version = conn.scalars(_meta("version")).one_or_none()
        if version is None or not version.isdecimal():
            raise InputError(f"{shown} is not a store of labels: it does not say its version")
        if int(version) > STORE_VERSION:
            raise InputError(
                f"{shown} was written by a newer tercet (store version {version}, this one "
                f"knows {STORE_VERSION}); update tercet"
            )
        return
    if tables:
        raise InputError(
            f"{shown} is not a store of labels: it holds other tables ({', '.join(sorted(tables))})"
        )
    if not create:
        raise InputError(f"{shown} is empty; `tercet label serve` or `import` makes a store there")
    metadata.create_all(conn)
    conn.execute(insert(chain).values(id=1, seq=0, hash=START))
    conn.execute(insert(meta).values(key="version", value=str(STORE_VERSION)))


def _meta(key: str):
    return select(meta.c.value).where(meta.c.key == key)


def _probe(conn: Connection) -> None:
    if conn.execute(meta.update().where(meta.c.key == "probe").values(value="")).rowcount == 0:
        conn.execute(insert(meta).values(key="probe", value=""))
