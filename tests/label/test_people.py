import pytest
from sqlalchemy import select

from tercet.label import audit, people, tables
from tercet.label.errors import Refused
from tercet.label.people import DAY_MS, SESSION_MS
from tests.label.world import START, ranking_world


@pytest.fixture
def store(sqlite_store):
    return sqlite_store


def do(store, function, *args, now=START, **options):
    return store.write(lambda conn: function(conn, now, *args, **options))


def invited(store, name="ann", now=START, **options):
    return do(store, people.invite, do(store, people.add_labeler, name, **options), now=now)


def refusal(store, *args, **options):
    with pytest.raises(Refused) as refused:
        do(store, *args, **options)
    return refused.value.status, refused.value.code


def test_a_link_lets_in_once(store):
    token = invited(store)
    joined = do(store, people.join, token)
    person = do(store, people.session, joined.sid)
    assert (person.id, person.name, person.role) == (joined.labeler_id, "ann", "labeler")
    assert person.csrf == joined.csrf != joined.sid
    assert refusal(store, people.join, token) == (410, "used")


def test_a_link_ends_after_a_week(store):
    token = invited(store)
    assert refusal(store, people.join, token, now=START + 7 * DAY_MS) == (410, "expired")
    assert do(store, people.join, token, now=START + 7 * DAY_MS - 1).sid


def test_an_unknown_link_is_not_found(store):
    assert refusal(store, people.join, "x" * 43) == (404, "not-found")


def test_no_token_is_stored(store):
    token = invited(store)
    joined = do(store, people.join, token)
    stored = store.read(
        lambda conn: str(
            [conn.execute(select(t)).all() for t in (tables.invite, tables.session, tables.event)]
        )
    )
    assert token not in stored
    assert joined.sid not in stored


def test_a_session_ends_when_it_is_not_used(store):
    sid = do(store, people.join, invited(store)).sid
    assert do(store, people.session, sid, now=START + SESSION_MS - 1)
    assert do(store, people.session, sid, now=START + SESSION_MS) is None
    do(store, people.touch, sid, now=START + 1000)
    assert do(store, people.session, sid, now=START + SESSION_MS + 999)
    do(store, people.touch, sid, now=START + 2 * SESSION_MS)  # too late
    assert do(store, people.session, sid, now=START + 2 * SESSION_MS) is None


def test_signing_out_ends_a_session(store):
    sid = do(store, people.join, invited(store)).sid
    do(store, people.sign_out, sid)
    do(store, people.sign_out, sid)
    assert do(store, people.session, sid) is None


def test_a_new_link_for_a_known_name_is_for_the_same_labeler(store):
    first = do(store, people.join, invited(store, group="heldout"))
    second = do(store, people.join, invited(store))
    assert first.labeler_id == second.labeler_id
    assert do(store, people.session, second.sid).group == "heldout"
    assert do(store, people.session, first.sid)


def test_a_name_keeps_its_role_and_group(store):
    do(store, people.add_labeler, "ann")
    assert refusal(store, people.add_labeler, "ann", role="admin") == (409, "role")
    assert refusal(store, people.add_labeler, "ann", group="heldout") == (409, "group")


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 81, "a\u202eb"])
def test_names_that_cannot_be(store, name):
    assert refusal(store, people.add_labeler, name) == (422, "name")


def test_unknown_roles_groups_folds_and_states(store):
    assert refusal(store, people.add_labeler, "ann", role="boss") == (422, "role")
    assert refusal(store, people.add_labeler, "ann", group="x") == (422, "group")
    assert refusal(store, people.add_labeler, "ann", fold=5) == (422, "fold")
    id_ = do(store, people.add_labeler, "ann")
    assert refusal(store, people.set_status, id_, "asleep", "command") == (422, "status")
    assert refusal(store, people.set_status, "nobody", "paused", "command") == (404, "not-found")
    assert refusal(store, people.invite, "nobody") == (404, "not-found")


def test_folds_go_round_and_admins_take_none(store):
    do(store, people.add_labeler, "admin", role="admin")
    for number in range(7):
        do(store, people.add_labeler, f"labeler-{number}")
    labeler = tables.labeler.c
    folds = store.read(
        lambda conn: conn.scalars(
            select(labeler.fold).where(labeler.role == "labeler").order_by(labeler.name)
        ).all()
    )
    assert folds == [0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize("status", ["paused", "removed"])
def test_who_is_not_active_cannot_come_in(store, status):
    token = invited(store)
    joined = do(store, people.join, invited(store))
    do(store, people.set_status, joined.labeler_id, status, "command")
    assert do(store, people.session, joined.sid) is None
    assert refusal(store, people.join, token) == (403, status)
    do(store, people.set_status, joined.labeler_id, "active", "command")
    assert do(store, people.session, joined.sid)
    assert do(store, people.join, token)  # the refusal did not use it up


def test_nobody_is_invited_who_was_removed(store):
    id_ = do(store, people.add_labeler, "ann")
    do(store, people.set_status, id_, "removed", "command")
    assert refusal(store, people.invite, id_) == (409, "removed")


def test_what_a_paused_labeler_had_open_goes_to_others(store):
    world = ranking_world(store, items=1)
    ann, bob = world.labelers
    ann.open(ann.next()[0])
    assert bob.ask().reason == "leased"
    do(store, people.set_status, ann.person.id, "paused", "command", now=world.clock())
    assert len(bob.next()) == 1


def test_reading_guidelines_is_noted(store):
    world = ranking_world(store, items=1, labelers=1)
    person = world.labelers[0].person
    assert do(store, people.read_guidelines, person, world.project_id) == 1
    assert do(store, people.read_guidelines, person, world.project_id) == 1
    assert refusal(store, people.read_guidelines, person, "none") == (404, "not-found")
    rows = store.read(lambda conn: conn.execute(select(tables.guidelines_read)).all())
    assert [(row.labeler_id, row.version) for row in rows] == [(person.id, 1)]


def test_everything_is_in_the_audit_trail(store):
    joined = do(store, people.join, invited(store))
    do(store, people.set_status, joined.labeler_id, "paused", "command")
    kinds = store.read(
        lambda conn: conn.scalars(select(tables.event.c.kind).order_by(tables.event.c.seq)).all()
    )
    assert kinds == ["labeler", "invite", "join", "status"]
    assert store.read(audit.verify) == []
