import sqlite3
import threading

import pytest
from sqlalchemy import select

from tercet.label import audit, backup
from tercet.label.store import Store
from tercet.label.tables import event
from tercet.records import InputError, RunFailed


def add(store, ref):
    return store.write(lambda conn: audit.append(conn, 1, "tester", "note", ref, {"x": "y" * 500}))


def refs(store):
    return store.read(lambda c: c.scalars(select(event.c.ref).order_by(event.c.seq)).all())


def test_a_backup_can_be_served_in_place_of_the_store(sqlite_store, tmp_path):
    for i in range(20):
        add(sqlite_store, str(i))
    target = tmp_path / "backups" / "one.sqlite"
    backup.backup(sqlite_store, target)
    add(sqlite_store, "after")
    assert [file.name for file in target.parent.iterdir()] == ["one.sqlite"]  # one file, whole
    assert target.stat().st_mode & 0o777 == 0o600
    with Store.open(target, serving=True, create=False) as restored:
        assert refs(restored) == [str(i) for i in range(20)]
        assert restored.read(audit.verify) == []
        assert add(restored, "goes on") == 21
    assert refs(sqlite_store)[-1] == "after"


def test_a_backup_of_a_store_that_is_written_to_is_one_state_of_it(sqlite_store, tmp_path):
    add(sqlite_store, "first")
    stop = threading.Event()

    def write():
        while not stop.is_set():
            add(sqlite_store, "more")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        counts = []
        for i in range(5):
            backup.backup(sqlite_store, tmp_path / f"{i}.sqlite")
            with Store.open(tmp_path / f"{i}.sqlite") as copy:
                assert copy.read(audit.verify) == []
                counts.append(copy.read(audit.head)[0])
    finally:
        stop.set()
        writer.join()
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def test_a_command_backs_up_beside_the_server(tmp_path):
    path = tmp_path / "labels.sqlite"
    with Store.open(path, serving=True) as server:
        add(server, "kept")
        with Store.open(path, create=False) as command:
            backup.backup(command, tmp_path / "copy.sqlite")
    with Store.open(tmp_path / "copy.sqlite") as copy:
        assert refs(copy) == ["kept"]


def test_an_existing_file_is_kept_unless_told_otherwise(sqlite_store, tmp_path):
    target = tmp_path / "other.txt"
    target.write_text("precious")
    with pytest.raises(InputError, match=r"other\.txt exists; name another file"):
        backup.backup(sqlite_store, target)
    assert target.read_text() == "precious"
    backup.backup(sqlite_store, target, overwrite=True)
    with Store.open(target) as copy:
        assert copy.read(audit.verify) == []


def test_a_file_that_appears_during_the_copy_is_kept(sqlite_store, tmp_path, monkeypatch):
    target = tmp_path / "copy.sqlite"
    copy = backup._copy

    def slow(*paths):
        copy(*paths)
        target.write_text("precious")

    monkeypatch.setattr(backup, "_copy", slow)
    with pytest.raises(InputError, match="exists"):
        backup.backup(sqlite_store, target)
    assert target.read_text() == "precious"
    assert not list(tmp_path.glob(".copy*"))


def test_the_store_itself_and_folders_are_no_targets(sqlite_store, tmp_path):
    with pytest.raises(InputError, match="is the store itself"):
        backup.backup(sqlite_store, sqlite_store.path, overwrite=True)
    link = tmp_path / "link.sqlite"
    link.symlink_to(sqlite_store.path)
    with pytest.raises(InputError, match="is the store itself"):
        backup.backup(sqlite_store, link, overwrite=True)
    with pytest.raises(InputError, match="is a folder"):
        backup.backup(sqlite_store, tmp_path, overwrite=True)


def test_a_damaged_store_makes_no_backup(tmp_path):
    path, target = tmp_path / "labels.sqlite", tmp_path / "copy.sqlite"
    with Store.open(path) as store:
        for i in range(200):
            add(store, str(i))
    with sqlite3.connect(path) as raw:
        page, size = raw.execute(
            "SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_master "
            "WHERE name = 'event'"
        ).fetchone()
    raw.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    with Store.open(path) as store:
        target.write_text("the older backup")
        with pytest.raises(RunFailed, match=r"not sound|cannot be copied"):
            backup.backup(store, target, overwrite=True)
    assert target.read_text() == "the older backup"
    assert not list(tmp_path.glob(".copy*"))


def test_a_full_disk_leaves_no_half_backup(sqlite_store, tmp_path, monkeypatch):
    connect = sqlite3.connect

    class Full(sqlite3.Connection):
        def backup(self, target, **options):
            target.execute("PRAGMA max_page_count = 2")
            super().backup(target, **options)

    monkeypatch.setattr(
        backup.sqlite3, "connect", lambda *a, **o: connect(*a, **{**o, "factory": Full})
    )
    with pytest.raises(OSError, match="disk is full"):
        backup.backup(sqlite_store, tmp_path / "copy.sqlite")
    assert not list(tmp_path.glob("*copy*"))


def test_a_postgresql_store_names_the_command_to_run(postgres_store, postgres_server, tmp_path):
    with pytest.raises(InputError) as caught:
        backup.backup(postgres_store, tmp_path / "labels.sqlite")
    told = str(caught.value)
    assert "pg_dump --format=custom" in told
    assert f"--file={tmp_path / 'labels.dump'}" in told
    assert "postgresql://tester@127.0.0.1" in told
    assert postgres_server.password not in told
