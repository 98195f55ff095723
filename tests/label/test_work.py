import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from tercet.label import assignment, audit, mine, projects, tables, work
from tercet.label.errors import Refused
from tercet.label.ids import canonical, sha256
from tests.label.world import ranking_world, writing_world

HOUR = 3600


@pytest.fixture
def world(sqlite_store):
    """One item that wants one answer; ann has it, bob waits."""
    return ranking_world(sqlite_store, items=1)


@pytest.fixture
def ann(world):
    return world.labelers[0]


@pytest.fixture
def bob(world):
    return world.labelers[1]


@pytest.fixture
def id_(ann):
    return ann.next()[0]


def refusal(call, *args, **options):
    with pytest.raises(Refused) as refused:
        call(*args, **options)
    return refused.value


def answers(world):
    table = tables.annotation.c
    query = select(tables.annotation).order_by(table.assignment_id, table.revision)
    return world.read(lambda conn: conn.execute(query).all())


def events(world, kind):
    query = select(tables.event).where(tables.event.c.kind == kind)
    return world.read(lambda conn: conn.execute(query).all())


def counters(labeler, id_):
    row = labeler.item(id_)
    return row.done, row.leased


def test_drafts_count_up_and_come_back(ann, id_):
    assert ann.draft(id_, 0, {"note": "a"})["rev"] == 1
    assert ann.draft(id_, 1, {"note": "b"})["rev"] == 2
    view = ann.view(id_)
    assert (view["rev"], view["draft"], view["opened"]) == (2, {"note": "b"}, True)


def test_two_tabs_conflict_and_both_drafts_are_kept(world, ann, id_):
    ann.draft(id_, 0, {"tab": 1})
    refused = refusal(ann.draft, id_, 0, {"tab": 2})
    assert (refused.status, refused.code) == (412, "conflict")
    assert refused.body == {"rev": 1, "draft": {"tab": 1}}
    world.write(lambda conn, now: work.keep_refused(conn, now, ann.person, id_, 0, {"tab": 2}))
    [event] = events(world, "conflict")
    assert event.body == '{"draft":{"tab":2},"rev":0}'
    assert ann.view(id_)["draft"] == {"tab": 1}


def test_a_draft_that_was_sent_twice_is_no_conflict(ann, id_):
    first = ann.draft(id_, 0, {"note": "a"})
    assert ann.draft(id_, 0, {"note": "a"}) == first


def test_an_opened_item_is_kept_for_an_hour(world, ann, bob, id_):
    until = ann.draft(id_, 0, {})["lease_until"]
    assert until == world.clock.at + 3_600_000
    world.clock.pass_(HOUR - 1)
    assert bob.ask().reason == "leased"
    world.clock.pass_(2)
    assert len(bob.next()) == 1


def test_a_draft_takes_an_expired_item_back_if_nobody_has_it(world, ann, bob, id_):
    world.clock.pass_(HOUR)
    bob.skip(bob.next()[0])
    assert ann.draft(id_, 0, {"note": "a"})["state"] == "open"
    assert counters(ann, id_) == (0, 1)


def test_a_draft_is_kept_also_when_somebody_else_has_the_item(world, ann, bob, id_):
    world.clock.pass_(HOUR)
    bob.next()
    saved = ann.draft(id_, 0, {"note": "late"})
    assert (saved["rev"], saved["state"]) == (1, "expired")
    assert saved["lease_until"] < world.clock.at
    assert ann.view(id_)["draft"] == {"note": "late"}
    assert counters(ann, id_) == (0, 1)


def test_drafts_that_cannot_be_stored(ann, id_):
    assert refusal(ann.draft, id_, 0, {"note": "x" * 192 * 1024}).status == 413
    assert refusal(ann.draft, id_, 0, {"number": float("nan")}).status == 422
    assert ann.draft(id_, 0, {"note": "x" * 190 * 1024 + "\0\ud800"})["rev"] == 1


def test_a_beat_opens_and_keeps(world, ann, id_):
    assert ann.view(id_)["lease_until"] == world.clock.at - 1 + 120_000
    told = ann.open(id_)
    assert told == {"lease_until": world.clock.at + 3_600_000, "state": "open"}
    assert ann.view(id_)["opened"]
    ann.submit(id_)
    assert ann.open(id_)["state"] == "done"


def test_active_time_never_falls(world, ann, id_):
    def beat(active_ms):
        world.write(lambda conn, now: work.beat(conn, now, ann.person, id_, active_ms, True))
        return ann.view(id_)["active_ms"]

    assert [beat(5000), beat(3000), beat(7000), beat(10**15)] == [5000, 5000, 7000, 86_400_000]


def test_a_submit_is_counted_and_stored_as_it_was_shown(world, ann, id_):
    payload = ann.answer(id_)
    told = ann.submit(id_, "k", payload)
    [row] = answers(world)
    assert told == {"annotation_id": row.id, "revision": 1, "counted": True, "late": False}
    assert row.payload["bins"] == payload["bins"]
    assert row.payload["ratings"] == payload["ratings"]
    assert row.active_ms == 60_000
    assert counters(ann, id_) == (1, 0)
    [event] = events(world, "submit")
    assert sha256(canonical(row.payload)) in event.body
    assert ann.view(id_)["draft"] is None


def test_the_same_key_is_the_same_answer(world, ann, id_):
    first = ann.submit(id_, "k")
    assert ann.submit(id_, "k") == first  # whatever the payload is now
    assert len(answers(world)) == 1


def test_the_same_payload_under_another_key_is_the_same_answer(world, ann, id_):
    payload = ann.answer(id_)
    first = ann.submit(id_, "k", payload)
    assert ann.submit(id_, "other", payload) == first
    assert len(answers(world)) == 1


def test_a_key_that_was_answered_stays_so_after_an_amendment(ann, id_):
    payload = ann.answer(id_)
    ann.submit(id_, "first", payload)
    told = ann.submit(id_, "second", payload)
    ann.amend(id_, "third", {**payload, "note": "changed"})
    assert ann.submit(id_, "second", payload) == told


def test_another_answer_to_what_is_done_is_refused(world, ann, id_):
    ann.submit(id_, payload={**ann.answer(id_), "note": "first"})
    refused = refusal(ann.submit, id_, payload={**ann.answer(id_), "note": "second"})
    assert (refused.status, refused.code) == (409, "done")
    assert len(answers(world)) == 1


def test_a_key_belongs_to_one_item_and_one_labeler(sqlite_store):
    world = ranking_world(sqlite_store, items=3)
    ann, bob = world.labelers
    first, second, _ = ann.next()
    ann.submit(first, "k")
    assert refusal(ann.submit, second, "k").code == "key"
    world.clock.pass_(200)
    assert bob.submit(bob.next()[0], "k")["revision"] == 1


@pytest.mark.parametrize("key", ["", "x" * 65, "é", "a\nb"])
def test_keys_that_cannot_be(world, ann, id_, key):
    payload = ann.answer(id_)

    def submit():
        world.write(lambda conn, now: work.submit(conn, now, ann.person, id_, key, payload, 0))

    assert refusal(submit).code == "key"


def test_an_incomplete_answer_leaves_everything_as_it_was(world, ann, id_):
    ann.draft(id_, 0, {"note": "half"})
    refused = refusal(ann.submit, id_, "k", {"bins": []})
    assert (refused.status, refused.code) == (422, "incomplete")
    assert ann.view(id_)["draft"] == {"note": "half"}
    assert counters(ann, id_) == (0, 1)
    assert ann.submit(id_, "k")["counted"]  # the key was not used up


def test_late_work_counts_when_nobody_else_has_the_item(world, ann, bob, id_):
    world.clock.pass_(HOUR)
    bob.skip(bob.next()[0])
    assert counters(ann, id_) == (0, 0)
    told = ann.submit(id_, "k")
    assert (told["counted"], told["late"]) == (True, True)
    assert ann.submit(id_, "k") == told
    assert counters(ann, id_) == (1, 0)


def test_late_work_is_extra_when_somebody_else_has_the_item(world, ann, bob, id_):
    world.clock.pass_(HOUR)
    [other] = bob.next()
    told = ann.submit(id_, "k")
    assert (told["counted"], told["late"]) == (False, True)
    assert ann.view(id_)["state"] == "extra"
    assert ann.submit(id_, "k") == told
    assert bob.submit(other)["counted"]
    assert len(answers(world)) == 2
    assert counters(ann, id_) == (1, 0)
    assert world.read(audit.verify) == []


def test_a_lease_that_nobody_took_back_yet_still_counts(world, ann, id_):
    world.clock.pass_(HOUR)
    told = ann.submit(id_)
    assert (told["counted"], told["late"]) == (True, True)


@pytest.mark.parametrize("hand_back", ["skip", "report"])
def test_an_answer_to_what_was_handed_back_is_taken(world, ann, id_, hand_back):
    getattr(ann, hand_back)(id_)
    getattr(ann, hand_back)(id_)
    assert counters(ann, id_) == (0, 0)
    assert len(events(world, hand_back)) == 1
    assert refusal(ann.draft, id_, 0, {}).status == 409
    assert ann.submit(id_)["counted"]
    assert world.read(audit.verify) == []


def test_what_is_answered_is_not_handed_back(ann, id_):
    ann.submit(id_)
    assert refusal(ann.skip, id_).code == "done"
    assert refusal(ann.report, id_).code == "done"


def test_reasons_are_texts_of_some_length(ann, id_):
    assert refusal(ann.skip, id_, "x" * 2001).status == 422
    assert refusal(ann.report, id_, "\0").status == 422
    assert ann.view(id_)["state"] == "open"


def test_three_reports_hold_an_item(sqlite_store):
    world = ranking_world(sqlite_store, items=1, labelers=4)
    *three, last = world.labelers
    for labeler in three:
        [id_] = labeler.next()
        labeler.report(id_, "cannot be read")
    assert three[0].item(id_).state == "held"
    assert three[0].item(id_).held_reason == "reports: 3"
    assert last.ask().reason == "finished"


def test_amending_adds_a_revision(world, ann, id_):
    first = {**ann.answer(id_), "note": "first"}
    ann.submit(id_, "k", first)
    assert ann.view(id_)["amending"]["payload"]["note"] == "first"
    told = ann.amend(id_, "k2", {**first, "note": "second"})
    assert (told["revision"], told["counted"], told["late"]) == (2, True, False)
    assert ann.amend(id_, "k2") == told
    assert [row.payload["note"] for row in answers(world)] == ["first", "second"]
    assert ann.view(id_)["amending"]["revision"] == 2
    assert counters(ann, id_) == (1, 0)
    assert world.read(audit.verify) == []


def test_amending_has_drafts_too(ann, id_):
    ann.submit(id_)
    rev = ann.view(id_)["rev"]
    assert refusal(ann.draft, id_, rev - 1, {}).code == "done"  # from before the submit
    ann.draft(id_, rev, {"note": "better"})
    assert ann.view(id_)["draft"] == {"note": "better"}
    ann.amend(id_)
    assert ann.view(id_)["draft"] is None


def test_amending_ends_after_a_week(world, ann, id_):
    ann.submit(id_)
    world.clock.pass_(168 * HOUR + 1)
    refused = refusal(ann.amend, id_)
    assert (refused.status, refused.message) == (410, "an answer can be changed for 168 hours")
    assert refusal(ann.draft, id_, ann.view(id_)["rev"], {}).status == 410
    assert ann.view(id_)["amending"] is None
    [entry] = history(world, ann)
    assert not entry["amendable"]


def test_only_what_was_submitted_is_amended(ann, id_):
    assert refusal(ann.amend, id_).code == "not-submitted"


def test_others_can_do_nothing(ann, bob, id_):
    payload = ann.answer(id_)
    calls = [
        lambda: bob.draft(id_, 0, {}),
        lambda: bob.open(id_),
        lambda: bob.submit(id_, payload=payload),
        lambda: bob.amend(id_, payload=payload),
        lambda: bob.skip(id_),
        lambda: bob.report(id_),
    ]
    assert [refusal(call).status for call in calls] == [404] * 6


def test_demonstrations(sqlite_store):
    world = writing_world(sqlite_store, prompts=["Who?", ""])
    [ann] = world.labelers
    for id_ in ann.next():
        view = ann.view(id_)
        assert view["replies"] == []
        own = {"prompt": "Own?"} if view["settings"]["open_prompt"] else {}
        ann.submit(id_, payload={"text": f"To {view['prompt']['text']}", **own})
    stored = sorted((row.payload["text"], row.payload.get("prompt")) for row in answers(world))
    assert stored == [("To ", "Own?"), ("To Who?", None)]


def history(world, labeler, limit=50):
    return world.write(lambda conn, now: work.history(conn, now, labeler.person, limit))


def test_history_is_the_own_answers_newest_first(sqlite_store):
    world = ranking_world(sqlite_store, items=4)
    ann, bob = world.labelers
    first, second, third = ann.next()
    for id_ in (first, second, third):
        ann.submit(id_)
    ann.amend(second)
    found = history(world, ann)
    assert [(row["id"], row["revision"]) for row in found] == [(third, 1), (second, 2), (first, 1)]
    assert found[0]["prompt"].startswith("Question")
    assert found[0]["amendable"]
    assert [row["id"] for row in history(world, ann, limit=1)] == [third]
    assert history(world, bob) == []


def test_stats_by_hand(sqlite_store):
    world = ranking_world(sqlite_store, items=6, labelers=1)
    [ann] = world.labelers
    ann.submit(ann.next()[0])
    world.clock.pass_(24 * HOUR)
    for _ in range(2):
        ann.submit(ann.next()[0])
    world.write(
        lambda conn, now: projects.add_guidelines(conn, now, world.project_id, "new", "command")
    )
    ann.next()
    found = world.write(lambda conn, now: work.stats(conn, now, ann.person))
    assert found == {
        "done_today": 2,
        "done": 3,
        "median_seconds": 60.0,
        "projects": [
            {
                "id": world.project_id,
                "name": "a rank project",
                "kind": "rank",
                "paused": False,
                "open": 3,
                "done": 3,
                "waiting": 0,
                "guidelines_version": 2,
                "guidelines_read": None,
                "must_read": True,
            }
        ],
    }


def test_one_submit_of_many_at_once_is_stored(store):
    world = ranking_world(store, items=1, labelers=1)
    [ann] = world.labelers
    [id_] = ann.next()
    payload = ann.answer(id_)
    told = []
    threads = [
        threading.Thread(target=lambda: told.append(ann.submit(id_, "k", payload)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(told) == 8
    assert len({row["annotation_id"] for row in told}) == 1
    assert len(answers(world)) == 1
    assert world.read(audit.verify) == []


def test_late_submits_at_once_fill_the_quota_exactly(store):
    world = ranking_world(store, items=1, labelers=6, overlap_share=1, overlap_need=2)
    held = []
    for labeler in world.labelers:
        [id_] = labeler.next()
        held.append((labeler, id_))
        world.clock.pass_(HOUR)  # each lease is over before the next labeler asks
    threads = [threading.Thread(target=labeler.submit, args=(id_,)) for labeler, id_ in held]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    states = Counter(row.state for row in world.assignments())
    assert states == {"done": 2, "extra": 4}
    assert [(row.done, row.leased) for row in world.items()] == [(2, 0)]
    assert world.read(audit.verify) == []


def test_two_tabs_of_one_labeler_do_not_wait_for_each_other_in_a_circle(postgres_store):
    """One submits and asks for the next item while the other saves a draft of what was fetched
    ahead: neither is called off by the database."""
    world = ranking_world(postgres_store, items=3, labelers=1, ahead=2)
    ann = world.labelers[0]
    first, second, _ = ann.next()
    meet = threading.Barrier(2, timeout=10)
    tries = Counter()

    def submit(conn):
        tries["submit"] += 1
        work.submit(conn, world.clock(), ann.person, first, "k", payload, 0)
        meet.wait(10)
        assignment.next_items(conn, world.clock() + 60_000, ann.person, world.project_id)

    def draft(conn):
        tries["draft"] += 1
        mine.load(conn, ann.person, second)
        meet.wait(10)
        audit.append(conn, world.clock(), "ann", "note", second, {})

    payload = ann.answer(first)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(postgres_store.write, [submit, draft]))
    assert tries == {"submit": 1, "draft": 1}


def test_what_follows_a_submit_is_found_before_the_audit_chain_is_locked(postgres_store):
    world = ranking_world(postgres_store, items=2, labelers=1)
    ann = world.labelers[0]
    id_ = ann.next()[0]
    payload = ann.answer(id_)

    def following(project_id):
        # Another transaction gets on with its event meanwhile.
        world.write(lambda conn, now: audit.append(conn, now, "bob", "note", "x", {}))
        return project_id

    def submit(conn):
        now = world.clock()
        return work.submit(conn, now, ann.person, id_, "k", payload, 0, following=following)

    for _ in range(2):  # a second try under the same key hears what follows too
        assert postgres_store.write(submit)["next"] == world.project_id
    assert [event.kind for event in events(world, "submit")] == ["submit"]
    assert world.read(audit.verify) == []
