"""`tercet label <sub>`: what each subcommand does."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from tercet.label import options, people, projects, tables
from tercet.label.audit import head, verify
from tercet.label.backup import backup
from tercet.label.errors import Refused, ended
from tercet.label.schema import Kind, unstorable
from tercet.label.source import NAMES, Records, Source, asked, load, resolve
from tercet.label.store import Store
from tercet.label.writer import refusal
from tercet.records import InputError, RunFailed, read_lines

LONGEST_DAYS = 3660
"""Ten years; whoever needs a link for longer makes another one."""


def run(sub: str, argv: list[str]) -> int:
    """Runs one subcommand and returns its exit code.

    Raises:
        InputError, RunFailed: one line for the person at the terminal.
    """
    type_, command = COMMANDS[sub]
    chosen = options.parse(type_, argv, f"tercet label {sub}")
    try:
        return command(chosen, argv)
    except Refused as refused:
        if refused.status >= 500:
            raise RunFailed(_trouble(refused)) from None
        raise ended(refused) from None
    except SQLAlchemyError as error:
        raise RunFailed(_trouble(refusal(error))) from None
    except json.JSONDecodeError:
        raise RunFailed(
            "the store holds a value that is no JSON; `tercet label verify` names its row, restore "
            "a backup"
        ) from None


def _trouble(refused: Refused) -> str:
    """What the store's own trouble means at the terminal, where labelers are told otherwise."""
    if refused.code == "disk-full":
        return "the disk of the store is full; free some space and run the same command again"
    if refused.code == "storage":
        return f"{refused.message}; if `tercet label verify` fails too, restore a backup"
    return refused.message


def _open(chosen: options.Store, source: Source, **how: bool) -> Store:
    if chosen.database is not None and "://" not in chosen.database:
        raise InputError(
            f"--database {chosen.database!r} is no address; write "
            "postgresql+psycopg://user@host/name"
        )
    return Store.open(chosen.database or source.store, **how)


def serve(chosen: options.Serve, argv: list[str]) -> int:
    from tercet.label.server import Address, serve

    address = Address(
        chosen.host,
        chosen.port,
        _tls(chosen),
        chosen.behind_proxy,
        chosen.public_url,
    )
    source = resolve(chosen.source)
    records = load(source.records, chosen.kind) if source.records else None
    with _open(chosen, source, serving=True, create=records is not None) as store:
        if records:
            # A set that cannot be ranked should not keep people from all others.
            print(_import(store, chosen, argv, records, source, whole=False), flush=True)
        serve(store, address, chosen.name, chosen.workers, chosen.database)
    return 0


def _tls(chosen: options.Serve) -> tuple[Path, Path] | None:
    if chosen.tls_cert and chosen.tls_key:
        return chosen.tls_cert, chosen.tls_key
    if chosen.tls_cert or chosen.tls_key:
        raise InputError("--tls-cert and --tls-key belong together; give both")
    return None


class _DryRun(Exception):
    """Carries what an import would have done out of its transaction, which is rolled back."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said


def import_(chosen: options.Import, argv: list[str]) -> int:
    from tercet.label.restore import is_export

    source = resolve(chosen.source)
    if not chosen.files:
        raise InputError("there is nothing to import; name one or more files behind SOURCE")
    if not chosen.gold and is_export(chosen.files[0]):
        return _restore(chosen, source)
    loaded = [(file, load(file, chosen.kind)) for file in chosen.files]
    for file, records in loaded:
        if (records.kind is None) != chosen.gold:
            wanted = "rankings" if chosen.gold else "candidates or prompts, and answers apart"
            raise InputError(f"{file}: give {wanted}")
    with _open(chosen, source) as store:
        for file, records in loaded:
            print(f"{file}: {_import(store, chosen, argv, records, source, chosen.dry_run)}")
    return 0


def _restore(chosen: options.Import, source: Source) -> int:
    """Answers that were exported, or given elsewhere, come into the store."""
    from tercet.label.restore import restore

    kind = None if chosen.kind == "demonstration" else chosen.kind
    with _open(chosen, source) as store:
        found = restore(
            store, chosen.files, project=chosen.project, kind=kind, dry_run=chosen.dry_run
        )
    did = "would restore" if chosen.dry_run else "restored"
    print(f"{did} {found.added} new answers, {found.known} known, in {', '.join(found.projects)}")
    return 0


def _import(
    store: Store,
    chosen: options.Into,
    argv: list[str],
    records: Records,
    source: Source,
    dry_run: bool = False,
    whole: bool = True,
) -> str:
    """Imports in one transaction and says what came of it; `whole`: all rows or none."""
    users, tags = asked(source.prompts if records.kind != "demonstration" else None)
    guidelines = _text(chosen.guidelines) if chosen.guidelines else None
    if guidelines is not None and unstorable(guidelines):
        raise InputError(f"{chosen.guidelines}: holds NUL characters; save it as plain text")

    def job(conn: Connection) -> str:
        now = store.now()
        project = _project(conn, now, chosen, argv, records.kind, guidelines)
        rows: Sequence[Any] = records.rows
        if records.kind is None:
            found = projects.add_gold(conn, now, project.id, rows, tags=tags)
        elif records.kind == "demonstration":
            found = projects.add_prompts(conn, now, project.id, rows)
        else:
            found = projects.add_candidate_sets(conn, now, project.id, rows, users=users, tags=tags)
        said = f"{project.name}: {_counts(found)}"
        if found.refused and whole:
            did = "would be" if dry_run else "was"
            raise InputError(f"nothing {did} imported: {_some(found.refused)}")
        if dry_run:
            raise _DryRun(f"{said}; nothing was stored")
        return f"imported {said}"

    try:
        return store.write(job)
    except _DryRun as dry:
        return f"would import {dry.said}"


def _project(
    conn: Connection,
    now: int,
    chosen: options.Into,
    argv: list[str],
    kind: Kind | None,
    guidelines: str | None,
) -> projects.Project:
    """The project that the records belong to, made if it is new, changed where flags say so."""
    kind = kind or chosen.kind
    name = chosen.project or (NAMES[kind] if kind else _only_project(conn))
    if kind is not None:
        projects.create(
            conn,
            now,
            name,
            kind,
            settings=chosen.settings,
            guidelines=guidelines or "",
            criterion=chosen.criterion,
        )
    project = projects.get(conn, name)
    given = {n: getattr(chosen.settings, n) for n in options.given_settings(argv)}
    projects.set_settings(
        conn, now, project.id, project.settings.model_copy(update=given), "command"
    )
    if guidelines is not None:
        projects.add_guidelines(conn, now, project.id, guidelines, "command")
    return project


def _only_project(conn: Connection) -> str:
    names = conn.scalars(select(tables.project.c.name)).all()
    if len(names) != 1:
        there = ", ".join(names) or "none yet"
        raise InputError(f"--project: gold items go into one project; the store has {there}")
    return names[0]


def _counts(found: projects.Imported) -> str:
    said = [f"{found.added} new", f"{found.known} known"]
    if found.held:
        said.append(f"{found.held} held back for an admin to look at")
    if found.refused:
        said.append(f"{len(found.refused)} refused: {_some(found.refused)}")
    return ", ".join(said)


def _some(reasons: Sequence[str]) -> str:
    more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return "; ".join(reasons[:3]) + more


def _text(path: Path) -> str:
    return "".join(line for _, line in read_lines(path))


def invite(chosen: options.Invite, _: list[str]) -> int:
    from tercet.label.server import join_link, web_address

    if not 0 < chosen.days <= LONGEST_DAYS:
        raise InputError(
            f"--days {chosen.days:g}: a link works for some time, {LONGEST_DAYS} days at most"
        )
    url = web_address("--url", chosen.url)

    def job(conn: Connection) -> str:
        now = store.now()
        labeler_id = people.add_labeler(
            conn,
            now,
            chosen.name,
            role="admin" if chosen.admin else "labeler",
            group=chosen.group or "train",
            simulated=chosen.simulated,
        )
        return people.invite(conn, now, labeler_id, chosen.days)

    with _open(chosen, resolve(chosen.source), create=False) as store:
        print(join_link(url, store.write(job)))
    return 0


def status(chosen: options.Status, _: list[str]) -> int:
    from rich.console import Console

    with _open(chosen, resolve(chosen.source), create=False) as store:
        tables_ = store.read(lambda conn: [_projects_table(conn), _people_table(conn)])
    # Names are text, whatever brackets and colons are in them.
    console = Console(markup=False, emoji=False, highlight=False)
    for table in tables_:
        console.print(table)
    return 0


def _projects_table(conn: Connection) -> Any:
    table = _table("project", "kind", "items", "answers", "open", "extra", "held", "skipped")
    for id_, name, kind, paused in conn.execute(
        select(
            tables.project.c.id, tables.project.c.name, tables.project.c.kind,
            tables.project.c.paused,
        ).order_by(tables.project.c.created_at)
    ):  # fmt: skip
        p = projects.progress(conn, id_)
        table.add_row(
            f"{name} (paused)" if paused else name, kind, str(p.items), f"{p.done} of {p.needed}",
            str(p.leased), str(p.extra), str(p.held), str(p.skipped),
        )  # fmt: skip
    return table


def _people_table(conn: Connection) -> Any:
    table = _table("name", "role", "group", "status", "answers", "last answer (UTC)")
    work = tables.assignment
    for row in conn.execute(
        select(
            tables.labeler.c.name, tables.labeler.c.role, tables.labeler.c.group,
            tables.labeler.c.status, func.count(work.c.submitted_at),
            func.max(work.c.submitted_at),
        )
        .select_from(tables.labeler)
        .outerjoin(work, work.c.labeler_id == tables.labeler.c.id)
        .group_by(tables.labeler.c.id)
        .order_by(tables.labeler.c.created_at)
    ):  # fmt: skip
        *words, count, last = row
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(last / 1000)) if last else "-"
        table.add_row(*words, str(count), when)
    return table


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for column in columns:
        table.add_column(column)
    return table


def back_up(chosen: options.Backup, _: list[str]) -> int:
    source = resolve(chosen.source)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    target = chosen.out or source.store.with_name(f"{source.store.stem}.{stamp}.sqlite")
    with _open(chosen, source, create=False) as store:
        backup(store, target)
    print(f"backup   {target}")
    return 0


def verify_(chosen: options.Verify, _: list[str]) -> int:
    with _open(chosen, resolve(chosen.source), create=False) as store:
        faults, (seq, hash_) = store.read(lambda conn: (verify(conn), head(conn)))
    for fault in faults:
        print(fault)
    if faults:
        raise RunFailed("the store does not agree with its audit trail; restore a backup")
    print(f"sound    {seq} events, the newest has the hash {hash_}")
    return 0


def export(chosen: options.Export, _: list[str]) -> int:
    from tercet.label.export import export

    source = resolve(chosen.source)
    out = chosen.out or source.store.parent / "export"
    with _open(chosen, source, create=False) as store:
        manifest = export(
            store, out, project=chosen.project, pairs=chosen.pairs, gold=chosen.gold,
            repeats=chosen.repeats,
        )  # fmt: skip
    for name, facts in manifest["files"].items():
        print(f"{facts['lines']:>9} lines  {out / name}")
    return 0


COMMANDS = {
    "serve": (options.Serve, serve),
    "import": (options.Import, import_),
    "invite": (options.Invite, invite),
    "status": (options.Status, status),
    "export": (options.Export, export),
    "backup": (options.Backup, back_up),
    "verify": (options.Verify, verify_),
}
