"""A copy of a store in one file, made while the server goes on."""

import errno
import os
import sqlite3
from pathlib import Path

from tercet.label.engines import private_file
from tercet.label.store import Store
from tercet.records import InputError, RunFailed


def backup(store: Store, target: Path, *, overwrite: bool = False) -> None:
    """Copies a SQLite store as of now to `target`, checks the copy, and puts it there whole or
    not at all. To restore, serve the copy.

    Raises:
        InputError: `target` exists and not `overwrite`, or the store is PostgreSQL.
        RunFailed: the copy is not sound, so the store itself may be damaged.
    """
    if store.path is None:
        raise InputError(
            f"a PostgreSQL store is backed up with its own tool: "
            f"pg_dump --format=custom --file={target.with_suffix('.dump')} '{store.url}'"
        )
    target = target.absolute()
    if target == store.path or (target.exists() and target.samefile(store.path)):
        raise InputError(f"{target} is the store itself; name another file")
    if target.is_dir():
        raise InputError(f"{target} is a folder; name a file in it")
    _refuse_existing(target, overwrite)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    private_file(temporary)
    try:
        _copy(store.path, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(target)
        else:
            _place(temporary, target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _copy(path: Path, target: Path) -> None:
    source, copy = sqlite3.connect(path, timeout=30), sqlite3.connect(target)
    try:
        # In one step: one state of the store, and writers do not wait for it.
        source.backup(copy, pages=-1)
        # No -wal file beside it: the copy is one file. `Store.open` changes that again.
        copy.execute("PRAGMA journal_mode = DELETE")
        found = copy.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, "the disk is full", str(target.parent)) from None
        raise RunFailed(f"{path} cannot be copied: {error}") from None
    finally:
        source.close()
        copy.close()
    if found != "ok":
        raise RunFailed(f"the copy of {path} is not sound ({found}); keep your older backups")


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists; name another file, or move that one away")


def _place(temporary: Path, target: Path) -> None:
    try:
        # Unlike a rename, a link never replaces a file that appeared meanwhile.
        os.link(temporary, target)
    except FileExistsError:
        _refuse_existing(target, overwrite=False)
    except OSError:  # a file system without hard links
        _refuse_existing(target, overwrite=False)
        temporary.replace(target)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
