"""Labelers and admins: who they are, how they come in by an invite link, and their sessions.

token = invite(conn, now, add_labeler(conn, now, "ann"))
person = session(conn, now, join(conn, now, token).sid)
"""

from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select, update

from tercet.label import audit, ids, tables
from tercet.label.errors import Refused, not_found
from tercet.label.tables import guidelines_read, labeler

DAY_MS = 24 * 3600 * 1000
SESSION_MS = 12 * 3600 * 1000  # a session ends this long after its last use
FOLDS = 5

ROLES = ("labeler", "admin")
GROUPS = ("train", "heldout", "research")
STATUSES = ("active", "paused", "removed")


@dataclass(frozen=True)
class Person:
    """Who is asking. `expires_at`: when the session ends unless `touch` pushes it on."""

    id: str
    name: str
    role: str
    group: str
    simulated: bool
    csrf: str
    expires_at: int = 0


@dataclass(frozen=True)
class Joined:
    """What an invite link gives: `sid` goes into the cookie, `csrf` onto the page."""

    labeler_id: str
    sid: str
    csrf: str


def add_labeler(
    conn: Connection,
    now: int,
    name: str,
    *,
    role: str = "labeler",
    group: str = "train",
    simulated: bool = False,
    fold: int | None = None,
    actor: str = "command",
) -> str:
    """The labeler's id; somebody of that name keeps id, group and fold.

    fold: 0..4, for cross-validation over labelers; None: in the order of joining.

    Raises:
        Refused: 422 for a name, role or group that cannot be, 409 when the name is taken by
            somebody of another role or group, or by a person where a program comes.
    """
    name = name.strip()
    if not 1 <= len(name) <= 80 or not name.isprintable():
        raise Refused(422, "name", "a labeler's name is 1 to 80 printable characters")
    for what, given, known in (("role", role, ROLES), ("group", group, GROUPS)):
        if given not in known:
            raise Refused(422, what, f"there is no {what} {given!r}; use {', '.join(known)}")
    if fold is not None and not 0 <= fold < FOLDS:
        raise Refused(422, "fold", f"a fold is 0 to {FOLDS - 1}, not {fold}")
    found = conn.execute(
        select(labeler.c.id, labeler.c.role, labeler.c.group, labeler.c.simulated).where(
            labeler.c.name == name
        )
    ).one_or_none()
    if found:
        if found.role != role:
            raise Refused(409, "role", f"{name} is there as {found.role}; choose another name")
        if group not in ("train", found.group):
            raise Refused(
                409, "group", f"{name} is in the group {found.group}; choose another name"
            )
        if simulated and not found.simulated:
            raise Refused(409, "judge", f"{name} is there as a person; choose another name")
        return found.id
    if fold is None:
        count = select(func.count()).select_from(labeler).where(labeler.c.role == role)
        fold = conn.execute(count).scalar_one() % FOLDS
    id_ = ids.ulid(now)
    conn.execute(
        insert(labeler).values(
            id=id_,
            name=name,
            role=role,
            group=group,
            fold=fold,
            simulated=simulated,
            status="active",
            created_at=now,
        )
    )
    body = {"name": name, "role": role, "group": group, "fold": fold, "simulated": simulated}
    audit.append(conn, now, actor, "labeler", id_, body)
    return id_


def invite(
    conn: Connection, now: int, labeler_id: str, days: float = 7, actor: str = "command"
) -> str:
    """A token that lets the labeler in once within `days`; only its hash is stored.

    Raises:
        Refused: 404 nobody, 409 removed.
    """
    if _status(conn, labeler_id) == "removed":
        name = conn.scalar(select(labeler.c.name).where(labeler.c.id == labeler_id))
        raise Refused(
            409,
            "removed",
            f"{name} was removed; make them active again on the admin page, or choose another name",
        )
    token = ids.token()
    expires = now + int(days * DAY_MS)
    conn.execute(
        insert(tables.invite).values(
            token_sha256=ids.sha256(token), labeler_id=labeler_id, expires_at=expires
        )
    )
    audit.append(conn, now, actor, "invite", labeler_id, {"expires_at": expires})
    return token


def join(conn: Connection, now: int, token: str) -> Joined:
    """Consumes an invite's token and opens a session.

    Raises:
        Refused: 404 no such link, 410 used or expired, 403 the labeler is paused or removed.
    """
    hashed = ids.sha256(token)
    found = conn.execute(
        select(tables.invite).where(tables.invite.c.token_sha256 == hashed)
    ).one_or_none()
    if found is None:
        raise not_found("invite link")
    if found.used_at is None and found.expires_at <= now:
        raise Refused(410, "expired", "this link has expired; ask for a new one")
    used = conn.execute(
        update(tables.invite)
        .where(tables.invite.c.token_sha256 == hashed, tables.invite.c.used_at.is_(None))
        .values(used_at=now)
    )
    if used.rowcount == 0:
        raise Refused(410, "used", "this link was used already; ask for a new one")
    if (status := _status(conn, found.labeler_id)) != "active":
        raise Refused(403, status, f"this account is {status}; ask who invited you")
    joined = Joined(found.labeler_id, ids.token(), ids.token())
    conn.execute(
        insert(tables.session).values(
            sid_sha256=ids.sha256(joined.sid),
            labeler_id=joined.labeler_id,
            csrf=joined.csrf,
            created_at=now,
            expires_at=now + SESSION_MS,
            revoked=False,
        )
    )
    audit.append(conn, now, joined.labeler_id, "join", joined.labeler_id, {})
    return joined


def session(conn: Connection, now: int, sid: str) -> Person | None:
    """Whose session that is; None when it is over or the labeler is not active."""
    row = conn.execute(
        select(
            labeler.c.id,
            labeler.c.name,
            labeler.c.role,
            labeler.c.group,
            labeler.c.simulated,
            tables.session.c.csrf,
            tables.session.c.expires_at,
        )
        .join_from(tables.session, labeler)
        .where(
            tables.session.c.sid_sha256 == ids.sha256(sid),
            tables.session.c.expires_at > now,
            tables.session.c.revoked.is_(False),
            labeler.c.status == "active",
        )
    ).one_or_none()
    return None if row is None else Person(*row)


def touch(conn: Connection, now: int, sid: str) -> None:
    """Pushes the end of a session on. Once in some minutes is enough: see Person.expires_at."""
    conn.execute(
        update(tables.session)
        .where(
            tables.session.c.sid_sha256 == ids.sha256(sid),
            tables.session.c.expires_at > now,
            tables.session.c.revoked.is_(False),
        )
        .values(expires_at=now + SESSION_MS)
    )


def sign_out(conn: Connection, now: int, sid: str) -> None:
    """Ends a session; ending it twice is fine."""
    ended = conn.execute(
        update(tables.session)
        .where(tables.session.c.sid_sha256 == ids.sha256(sid), tables.session.c.revoked.is_(False))
        .values(revoked=True)
        .returning(tables.session.c.labeler_id)
    ).scalar_one_or_none()
    if ended is not None:
        audit.append(conn, now, ended, "sign-out", ended, {})


def set_status(conn: Connection, now: int, labeler_id: str, status: str, actor: str) -> None:
    """active, paused or removed. Who is not active cannot use a session and holds no items:
    what they had open goes back to the pool, and what they answered stays.

    Raises:
        Refused: 404 nobody, 422 no such status.
    """
    if status not in STATUSES:
        raise Refused(422, "status", f"there is no status {status!r}; use {', '.join(STATUSES)}")
    before = _status(conn, labeler_id)
    if before == status:
        return
    conn.execute(update(labeler).where(labeler.c.id == labeler_id).values(status=status))
    if status != "active":
        held = tables.assignment
        conn.execute(
            update(held)
            .where(held.c.labeler_id == labeler_id, held.c.state == "open")
            .values(lease_until=now)  # the next who asks for work takes them back
        )
    body = {"from": before, "to": status}
    audit.append(conn, now, actor, "status", labeler_id, body)


def read_guidelines(conn: Connection, now: int, person: Person, project_id: str) -> int:
    """Notes that the labeler read the guidelines as they are now; returns their version.

    Raises:
        Refused: 404 no such project.
    """
    version = conn.execute(
        select(tables.project.c.guidelines_version).where(tables.project.c.id == project_id)
    ).scalar_one_or_none()
    if version is None:
        raise not_found("project")
    row = (
        guidelines_read.c.labeler_id == person.id,
        guidelines_read.c.project_id == project_id,
    )
    changed = conn.execute(update(guidelines_read).where(*row).values(version=version, at=now))
    if changed.rowcount == 0:
        tables.insert_new(
            conn,
            guidelines_read,
            labeler_id=person.id,
            project_id=project_id,
            version=version,
            at=now,
        )
    body = {"project": project_id, "version": version}
    audit.append(conn, now, person.id, "guidelines-read", person.id, body)
    return version


def _status(conn: Connection, labeler_id: str) -> str:
    status = conn.execute(
        select(labeler.c.status).where(labeler.c.id == labeler_id)
    ).scalar_one_or_none()
    if status is None:
        raise not_found("labeler")
    return status
