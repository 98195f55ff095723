import asyncio
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from tercet.label import audit, campaign, engines
from tercet.label.errors import Refused
from tercet.label.store import Store
from tercet.label.tables import QUEUED, event, guidelines_read, item, meta
from tercet.records import InputError


def note(ref, body=None):
    """A work: one event about `ref`."""
    return lambda conn: audit.append(conn, 1, "tester", "note", ref, body or {})


def refs(conn):
    return conn.scalars(select(event.c.ref).order_by(event.c.seq)).all()


def queued_together(store, works, durable=True):
    """Makes the writer take all the works as one group; their answers, errors as values."""
    started, go_on = threading.Event(), threading.Event()

    def first(conn):
        started.set()
        go_on.wait(10)

    async def run():
        blocker = asyncio.ensure_future(store.awrite(first))
        await asyncio.to_thread(started.wait, 10)
        if isinstance(durable, bool):
            tasks = [store.awrite(work, durable=durable) for work in works]
        else:
            tasks = [store.awrite(w, durable=d) for w, d in zip(works, durable, strict=True)]
        answers = asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # let them into the queue
        go_on.set()
        await blocker
        return await answers

    return asyncio.run(run())


def synchronous(conn):
    return conn.exec_driver_sql("PRAGMA synchronous").scalar()


def test_a_write_returns_what_its_work_returned_and_reads_see_it(store):
    assert store.write(note("a")) == 1
    assert store.write(note("b")) == 2
    assert store.read(refs) == ["a", "b"]


def test_a_work_that_fails_changes_nothing_and_its_error_is_the_callers(store):
    def work(conn):
        note("lost")(conn)
        raise Refused(409, "done", "somebody was first", seconds=3)

    with pytest.raises(Refused, match="somebody was first") as caught:
        store.write(work)
    assert (caught.value.status, caught.value.body) == (409, {"seconds": 3})
    assert store.write(note("kept")) == 1
    assert store.read(refs) == ["kept"]


def test_reads_and_writes_for_the_event_loop(store):
    async def run():
        await asyncio.gather(*(store.awrite(note(str(i)), durable=i % 2 == 0) for i in range(30)))
        return await store.aread(refs)

    assert sorted(asyncio.run(run()), key=int) == [str(i) for i in range(30)]
    assert store.read(audit.verify) == []


def test_writers_in_many_threads_keep_one_chain(store):
    with ThreadPoolExecutor(12) as pool:
        numbers = list(pool.map(lambda i: store.write(note(str(i))), range(60)))
    assert sorted(numbers) == list(range(1, 61))
    assert store.read(audit.verify) == []


def test_foreign_keys_are_enforced(store):
    orphan = {"labeler_id": "nobody", "project_id": "none", "version": 1, "at": 1}
    with pytest.raises(IntegrityError):
        store.write(lambda conn: conn.execute(insert(guidelines_read).values(orphan)))


def test_a_store_opened_again_is_the_same_store(store):
    where = store.path or store._engine.url.render_as_string(hide_password=False)
    store.write(note("kept"))
    with Store.open(where, create=False) as again:
        assert again.read(refs) == ["kept"]


def test_what_waits_is_committed_as_one_group(sqlite_store):
    before = sqlite_store.counters()["groups"]
    answers = queued_together(sqlite_store, [note(str(i)) for i in range(20)])
    assert answers == list(range(1, 21))
    assert sqlite_store.counters()["groups"] - before == 2  # the one that was waited for, and all
    assert sqlite_store.read(refs) == [str(i) for i in range(20)]


def test_one_bad_work_does_not_harm_its_group(sqlite_store):
    def bad(conn):
        note("lost")(conn)
        conn.execute(insert(meta).values(key="version", value="again"))

    def worse(conn):
        note("lost too")(conn)
        raise ValueError("no")

    answers = queued_together(sqlite_store, [note("a"), bad, note("b"), worse, note("c")])
    assert [answers[0], answers[2], answers[4]] == [1, 2, 3]
    assert isinstance(answers[1], IntegrityError)
    assert isinstance(answers[3], ValueError)
    assert sqlite_store.read(refs) == ["a", "b", "c"]
    assert sqlite_store.read(audit.verify) == []


FULL, NORMAL = 2, 1  # the numbers of PRAGMA synchronous


@pytest.mark.parametrize(
    ("durable", "setting"),
    [([True], FULL), ([False], NORMAL), ([False, False], NORMAL), ([False, True, False], FULL)],
)
def test_a_group_with_a_durable_work_is_flushed_to_the_disk(sqlite_store, durable, setting):
    answers = queued_together(sqlite_store, [synchronous] * len(durable), durable)
    assert answers == [setting] * len(durable)


def test_a_write_is_durable_unless_told_otherwise(sqlite_store):
    assert sqlite_store.write(synchronous, durable=False) == NORMAL
    assert sqlite_store.write(synchronous) == FULL


def test_a_write_that_is_cancelled_before_its_turn_does_nothing(sqlite_store):
    started, go_on = threading.Event(), threading.Event()

    async def run():
        def first(conn):
            started.set()
            go_on.wait(10)

        blocker = asyncio.ensure_future(sqlite_store.awrite(first))
        await asyncio.to_thread(started.wait, 10)
        gone = asyncio.ensure_future(sqlite_store.awrite(note("gone")))
        await asyncio.sleep(0)
        gone.cancel()
        stays = asyncio.ensure_future(sqlite_store.awrite(note("stays")))
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(blocker, stays)

    asyncio.run(run())
    assert sqlite_store.read(refs) == ["stays"]


def test_closing_finishes_what_is_queued_and_refuses_the_rest(tmp_path):
    store = Store.open(tmp_path / "labels.sqlite")
    with ThreadPoolExecutor(4) as pool:
        slow = pool.submit(store.write, lambda conn: (time.sleep(0.2), note("slow")(conn))[1])
        while store.counters()["waiting"] == 0 and not slow.running():
            time.sleep(0.001)
        time.sleep(0.02)
        store.close()
        assert slow.result() == 1
    with pytest.raises(Refused) as caught:
        store.write(note("late"))
    assert caught.value.status == 503
    with Store.open(tmp_path / "labels.sqlite") as again:
        assert again.read(refs) == ["slow"]


WRITER = """
import sys, threading
from tercet.label import audit
from tercet.label.store import Store

store = Store.open(sys.argv[1])
say = threading.Lock()

def work(thread):
    for i in range(100_000):
        ref = f"{thread}-{i}"
        store.write(lambda conn: audit.append(conn, 1, "tester", "note", ref, {}))
        with say:
            print(ref, flush=True)

for thread in range(6):
    threading.Thread(target=work, args=(f"{sys.argv[2]}-{thread}",)).start()
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_killed_process_loses_nothing_that_it_acknowledged(kind, request, tmp_path):
    url = (
        str(tmp_path / "s.sqlite") if kind == "sqlite" else request.getfixturevalue("postgres_url")
    )
    chance = random.Random(0)
    acknowledged = []
    for life in range(4 if kind == "sqlite" else 2):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, url, str(life)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        for _ in range(chance.randrange(1, 120)):
            acknowledged.append(process.stdout.readline().strip())
        process.kill()
        # What was said between the last line read and the kill was acknowledged as well.
        rest = process.stdout.read()
        acknowledged += rest[: rest.rfind("\n") + 1].split()
        process.stdout.close()
        process.wait()
    with Store.open(url) as store:
        found = Counter(store.read(refs))
        assert store.read(audit.verify) == []
    assert "" not in acknowledged
    assert {ref: found[ref] for ref in acknowledged} == dict.fromkeys(acknowledged, 1)
    assert max(found.values()) == 1


def test_a_second_server_on_one_file_is_refused(tmp_path):
    path = tmp_path / "labels.sqlite"
    with Store.open(path, serving=True):
        with pytest.raises(InputError, match=r"served by another process.*--database postgresql"):
            Store.open(path, serving=True)
        with Store.open(path) as command:
            assert command.write(note("invite")) == 1
    with Store.open(path, serving=True) as next_one:
        assert next_one.read(refs) == ["invite"]


def test_the_lock_of_a_killed_server_is_free(tmp_path):
    path = tmp_path / "labels.sqlite"
    serve = (
        "import sys, time\n"
        "from tercet.label.store import Store\n"
        "store = Store.open(sys.argv[1], serving=True)\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", serve, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    with pytest.raises(InputError, match="served by another process"):
        Store.open(path, serving=True)
    process.kill()
    process.wait()
    process.stdout.close()
    Store.open(path, serving=True).close()


def test_a_command_writes_beside_a_busy_server(tmp_path):
    path = tmp_path / "labels.sqlite"
    with Store.open(path, serving=True) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), "command"], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        said = [process.stdout.readline().strip()]  # it runs
        for i in range(100):
            server.write(note(f"server-{i}"))
        said += [process.stdout.readline().strip() for _ in range(20)]
        process.kill()
        process.wait()
        process.stdout.close()
        found = server.read(refs)
        assert [ref for ref in found if ref.startswith("server")] == [
            f"server-{i}" for i in range(100)
        ]
        assert set(said) <= set(found)
        assert server.read(audit.verify) == []


def test_a_write_waits_for_another_program_and_then_says_that_it_is_busy(tmp_path, monkeypatch):
    path = tmp_path / "labels.sqlite"
    monkeypatch.setattr(engines, "BUSY_S", 0.1)
    with Store.open(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Refused) as caught:
            store.write(note("refused"))
        assert (caught.value.status, caught.value.code) == (503, "busy")
        assert store.read(refs) == []
        other.execute("ROLLBACK")
        other.close()
        assert store.write(note("now")) == 1


def allow_no_more_pages(conn):
    pages = conn.exec_driver_sql("PRAGMA page_count").scalar()
    conn.exec_driver_sql(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_is_507_for_the_whole_group_and_reads_go_on(sqlite_store):
    sqlite_store.write(note("kept"))
    sqlite_store.write(allow_no_more_pages)
    big = note("big", {"text": "x" * 100_000})
    answers = queued_together(sqlite_store, [note("small"), big, note("after")])
    assert [(a.status, a.code) for a in answers] == [(507, "disk-full")] * 3
    assert len({id(a) for a in answers}) == 3  # an exception each: they gather tracebacks
    assert sqlite_store.counters()["failed_groups"] == 1
    assert sqlite_store.read(refs) == ["kept"]
    assert sqlite_store.write(note("space again")) == 2  # a new connection, without the limit


def test_readiness_tells_of_the_trouble_until_a_write_succeeds(sqlite_store, monkeypatch):
    assert sqlite_store.ready() is None
    sqlite_store.write(allow_no_more_pages)
    with pytest.raises(Refused):
        sqlite_store.write(note("big", {"text": "x" * 100_000}))
    monkeypatch.setattr("tercet.label.store._probe", allow_then_fill)
    assert "disk is full" in sqlite_store.ready()
    monkeypatch.undo()
    assert sqlite_store.ready() is None


def allow_then_fill(conn):
    allow_no_more_pages(conn)
    note("big", {"text": "x" * 100_000})(conn)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk(small_disk):
    path = small_disk / "labels.sqlite"
    told = []
    with Store.open(path, serving=True) as store:
        told.append(store.write(note("first")))
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        codes = set()
        for i in range(40):
            try:
                told.append(store.write(note(str(i), {"text": "x" * 5000})))
            except Refused as refused:
                codes.add((refused.status, refused.code))
        assert codes == {(507, "disk-full")}
        assert store.read(lambda conn: conn.scalar(select(func.count()).select_from(event))) == len(
            told
        )
        assert "disk is full" in store.ready()
        filler.unlink()
        told.append(store.write(note("space again")))
        assert store.ready() is None
        assert store.read(audit.verify) == []
    assert told == list(range(1, len(told) + 1))


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:25 / /home rw,nosuid shared:5 - nfs4 server:/home rw,vers=4.2
31 30 0:26 / /home/ann/my\\040disk rw shared:6 - xfs /dev/sdb rw
32 22 0:27 / /mnt/share rw - cifs //box/share rw
33 22 0:28 / /mnt/keys rw - fuse.sshfs ann@box: rw
34 22 0:29 / /srv rw - nfs box:/srv rw
35 22 0:30 / /srv rw - ext4 /dev/sdc rw
36 22 0:31 / /mnt/größe rw - nfs box:/g rw
nonsense
"""


@pytest.mark.parametrize(
    ("folder", "type_"),
    [
        ("/", "ext4"),
        ("/var/data", "ext4"),
        ("/home", "nfs4"),
        ("/home/bob/runs", "nfs4"),
        ("/homework", "ext4"),
        ("/home/ann/my disk/runs", "xfs"),
        ("/mnt/share/a/b", "cifs"),
        ("/mnt/keys", "fuse.sshfs"),
        ("/mnt/größe/runs", "nfs"),
        ("/srv/runs", "ext4"),  # mounted over the nfs
    ],
)
def test_the_file_system_of_a_folder(folder, type_):
    assert engines.file_system(Path(folder), MOUNTS) == type_


def test_a_server_refuses_a_network_file_system(tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"30 22 0:25 / {tmp_path} rw - nfs4 server:/x rw\n")
    with pytest.raises(InputError, match=r"network file system \(nfs4\).*--database postgresql"):
        engines.refuse_network(tmp_path / "labels.sqlite", mounts)
    mounts.write_text(f"30 22 0:25 / {tmp_path} rw - ext4 /dev/sda rw\n")
    engines.refuse_network(tmp_path / "labels.sqlite", mounts)
    engines.refuse_network(tmp_path / "labels.sqlite", tmp_path / "no such table")


def test_only_its_owner_may_read_a_store(tmp_path):
    with Store.open(tmp_path / "deep" / "labels.sqlite") as store:
        store.write(note("x"))
        files = {f.name: f.stat().st_mode & 0o777 for f in (tmp_path / "deep").iterdir()}
    assert files == {f"labels.sqlite{end}": 0o600 for end in ("", "-wal", "-shm")}


def error_of(where, **options):
    with pytest.raises(InputError) as caught:
        Store.open(where, **options)
    return str(caught.value)


def test_files_that_are_no_store_are_refused_and_left_alone(tmp_path):
    words = tmp_path / "words.sqlite"
    words.write_text("only words")
    assert "not a store of labels: no SQLite file" in error_of(words)
    assert words.read_text() == "only words"
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as raw:
        raw.execute("CREATE TABLE songs (name TEXT)")
    raw.close()
    assert "it holds other tables (songs)" in error_of(other)
    assert "is a folder" in error_of(tmp_path)


def test_a_missing_store_is_not_made_unless_wanted(tmp_path):
    path = tmp_path / "labels.sqlite"
    assert "there is no store" in error_of(path, create=False)
    assert list(tmp_path.iterdir()) == []
    path.touch()
    assert "is empty" in error_of(path, create=False)


@pytest.mark.parametrize(("version", "told"), [("2", "newer tercet"), ("x", "its version")])
def test_a_store_of_another_version_is_refused(store, version, told):
    store.write(
        lambda c: c.execute(meta.update().where(meta.c.key == "version").values(value=version))
    )
    where = store.path or store._engine.url.render_as_string(hide_password=False)
    assert told in error_of(where)


@pytest.mark.parametrize(
    "address",
    [
        "mysql://ann:hidden@host/labels",
        "postgresql://ann:hidden@127.0.0.1:1/labels",
        "postgresql+psycopg://ann:hidden@127.0.0.1:1/labels?password=hidden",
        "postgresql://ann:hidden@host:port/labels",
        "postgresql+psycopg://ann:hidden@/labels?host=/nowhere",
        "sqlite:///:memory:",
        "://hidden",
    ],
)
def test_addresses_that_cannot_be_used_are_named_without_their_password(address):
    told = error_of(address)
    assert "hidden" not in told
    assert "postgresql" in told
    assert "\n" not in told


def test_a_wrong_password_is_not_told(postgres_url):
    told = error_of(postgres_url.replace("tester:", "tester:hidden"))
    assert "password authentication failed" in told
    assert "hidden" not in told


def test_the_driver_for_postgresql_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install" in error_of("postgresql://ann:hidden@127.0.0.1:1/labels")


def test_two_processes_may_make_one_postgresql_store_at_once(postgres_url):
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(Store.open, [postgres_url] * 4))
    heads = [store.read(audit.head) for store in stores]
    for store in stores:
        store.close()
    assert set(heads) == {(0, audit.START)}


def test_a_read_sees_one_state_of_the_store_while_others_write(store):
    def twice(conn):
        before = refs(conn)
        store.write(note("meanwhile"))
        return before, refs(conn), audit.verify(conn)

    assert store.read(twice) == ([], [], [])
    assert store.read(refs) == ["meanwhile"]


def test_reads_cannot_write(store):
    with pytest.raises((DBAPIError, Refused), match=r"read-?only"):
        store.read(note("smuggled"))


def test_two_who_add_the_same_at_once_on_postgresql_both_get_it(postgres_store):
    meet = threading.Barrier(2, timeout=10)
    tries = Counter()

    def add(name):
        def work(conn):
            tries[name] += 1
            if found := conn.scalar(select(meta.c.value).where(meta.c.key == "same")):
                return found
            if tries[name] == 1:
                meet.wait()
            conn.execute(insert(meta).values(key="same", value=name))
            return name

        return work

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(postgres_store.write, [add("a"), add("b")])
    assert one == two
    assert sum(tries.values()) == 3


def test_a_postgresql_deadlock_is_tried_again(postgres_store):
    add = insert(meta)
    for key in ("left", "right"):
        postgres_store.write(lambda conn, key=key: conn.execute(add.values(key=key, value="0")))
    meet = threading.Barrier(2, timeout=10)
    tries = Counter()

    def both(first, second):
        def work(conn):
            tries[first] += 1
            for key in (first, second):
                conn.execute(
                    text("UPDATE meta SET value = value || '+' WHERE key = :k"), {"k": key}
                )
                if tries[first] == 1 and key == first:
                    meet.wait()

        return work

    with ThreadPoolExecutor(2) as pool:
        works = [both("left", "right"), both("right", "left")]
        list(pool.map(postgres_store.write, works))
    values = postgres_store.read(
        lambda c: c.scalars(select(meta.c.value).where(meta.c.key.in_(["left", "right"]))).all()
    )
    assert values == ["0++", "0++"]
    assert sum(tries.values()) == 3


def test_a_lost_postgresql_connection_is_503_and_the_next_write_has_a_new_one(postgres_store):
    def lose(conn):
        conn.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    for call in (postgres_store.write, postgres_store.read):
        with pytest.raises(Refused) as caught:
            call(lose)
        assert (caught.value.status, caught.value.code) == (503, "unavailable")
    assert postgres_store.ready() is None
    assert postgres_store.write(note("again")) == 1


def test_the_clock_gives_milliseconds(sqlite_store):
    assert abs(sqlite_store.now() - time.time() * 1000) < 2000
    sqlite_store.clock = lambda: 5
    assert sqlite_store.now() == 5


def test_sqlite_reads_the_queue_in_the_order_of_its_index(sqlite_store):
    """The planner recognizes a partial index only by the form of its condition."""
    first = (
        select(item.c.id)
        .where(item.c.project_id == "p", QUEUED)
        .order_by(item.c.priority.desc(), item.c.shuffle)
        .limit(3)
    )

    def plan(conn):
        statement = first.compile(conn, compile_kwargs={"literal_binds": True})
        return [row.detail for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}")]

    (step,) = sqlite_store.read(plan)  # one step: no sorting
    assert "USING INDEX item_queue" in step


def test_sqlite_goes_from_a_demonstration_to_the_items_of_its_prompt(sqlite_store):
    """Through all items of the project, once a demonstration, the count of a campaign took
    seconds."""

    def plan(conn):
        statement = campaign._authored("p").compile(conn, compile_kwargs={"literal_binds": True})
        return [row.detail for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}")]

    assert any("item USING INDEX item_prompt" in step for step in sqlite_store.read(plan))


@pytest.mark.parametrize("open_", [engines.private_file, engines.lock])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, open_):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: nothing can be written there"):
        open_(tmp_path / "file" / "labels.sqlite")


def test_a_damaged_file_is_told_with_the_remedy(tmp_path):
    Store.open(tmp_path / "s.sqlite").close()
    with (tmp_path / "s.sqlite").open("r+b") as file:
        file.truncate(8192)
    with pytest.raises(InputError, match="is malformed; restore a backup"):
        Store.open(tmp_path / "s.sqlite")


def test_an_at_sign_in_a_password_never_shows():
    with pytest.raises(InputError, match="write %40") as refused:
        engines.place("postgresql://u:p@secret@db/labels")
    assert "secret" not in str(refused.value)
