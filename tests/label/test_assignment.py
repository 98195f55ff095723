import random
import threading
from collections import Counter

import pytest
from sqlalchemy import select, update

from tercet.label import audit, ids, projects, tables
from tercet.label.errors import Refused
from tercet.label.tables import assignment, item
from tests.label.world import (
    candidate_set,
    gold_ranking,
    ranking_world,
    walk,
    writing_world,
)


@pytest.fixture
def lone(sqlite_store):
    return sqlite_store


def names(labeler, assignment_ids):
    """The external ids of the items."""
    return [labeler.item(id_).external_id for id_ in assignment_ids]


def test_one_item_and_two_ahead(lone):
    world = ranking_world(lone, items=10)
    ann = world.labelers[0]
    first = ann.next()
    assert len(first) == 3
    assert ann.next() == first
    ann.submit(first[0])
    assert ann.next()[:2] == first[1:]


def test_items_come_by_priority_then_in_random_order(lone):
    world = ranking_world(lone, items=6, ahead=5, labelers=1)
    urgent = world.items()[4]
    world.write(
        lambda conn, now: conn.execute(
            update(item).where(item.c.id == urgent.id).values(priority=1)
        )
    )
    [ann] = world.labelers
    others = [row.external_id for row in world.items() if row.id != urgent.id]
    assert names(ann, ann.next()) == [urgent.external_id, *others]
    assert others != sorted(others)


def test_an_item_goes_to_as_many_as_it_needs_and_to_nobody_twice(lone):
    world = ranking_world(lone, items=1, labelers=3, overlap_share=1, overlap_need=2)
    ann, bob, cho = world.labelers
    [id_] = ann.next()
    assert ann.next() == [id_]
    assert len(bob.next()) == 1
    refused = cho.ask()
    assert (refused.assignments, refused.reason) == ([], "leased")
    leases = [row.lease_until for row in world.assignments()]
    assert refused.retry_at == min(leases)
    ann.submit(id_)
    assert ann.ask().reason == "finished"


def test_finished_when_nothing_is_left(lone):
    world = ranking_world(lone, items=1)
    ann, bob = world.labelers
    ann.submit(ann.next()[0])
    assert ann.ask().reason == bob.ask().reason == "finished"


def test_a_paused_project_gives_nothing_but_takes_work(lone):
    world = ranking_world(lone, items=3)
    [ann, _] = world.labelers
    id_ = ann.next()[0]
    world.write(lambda conn, now: projects.pause(conn, now, world.project_id, True, "command"))
    assert ann.ask().reason == "paused"
    assert ann.submit(id_)["counted"]
    world.write(lambda conn, now: projects.pause(conn, now, world.project_id, False, "command"))
    assert len(ann.next()) == 2


def test_what_was_begun_comes_back_after_a_reload_though_the_project_is_paused(lone):
    world = ranking_world(lone, items=3)
    ann, bob = world.labelers
    begun = ann.next()[0]
    ann.draft(begun, 0, {"note": "half"})
    world.write(lambda conn, now: projects.pause(conn, now, world.project_id, True, "command"))
    assert ann.next() == [begun]
    assert bob.ask().reason == "paused"
    ann.submit(begun)
    assert ann.ask().reason == "paused"


def test_what_was_fetched_ahead_is_soon_free_again(lone):
    world = ranking_world(lone, items=3)
    ann, bob = world.labelers
    opened, *ahead = ann.next()
    ann.open(opened)
    assert bob.ask().reason == "leased"
    world.clock.pass_(121)
    assert sorted(names(bob, bob.next())) == sorted(names(ann, ahead))
    assert ann.next() == [opened]


def test_a_sign_of_life_keeps_what_was_fetched_ahead(lone):
    world = ranking_world(lone, items=3)
    ann, bob = world.labelers
    first = ann.next()
    for rev in range(4):
        world.clock.pass_(100)
        ann.draft(first[0], rev, {"note": rev})
    assert bob.ask().reason == "leased"
    assert ann.next() == first


def test_own_expired_items_come_back_first(lone):
    world = ranking_world(lone, items=5, ahead=1, labelers=1)
    [ann] = world.labelers
    first = ann.next()
    ann.draft(first[0], 0, {"note": "half"})
    world.clock.pass_(3 * 3600)
    assert ann.next() == first
    assert ann.view(first[0])["draft"] == {"note": "half"}
    assert {row.state for row in world.assignments()} == {"open"}


def test_an_expired_item_that_somebody_else_took_does_not_come_back(lone):
    world = ranking_world(lone, items=1)
    ann, bob = world.labelers
    [id_] = ann.next()
    world.clock.pass_(121)
    [other] = bob.next()
    waiting = ann.ask()
    assert (waiting.assignments, waiting.reason) == ([], "leased")
    bob.skip(other)
    assert ann.next() == [id_]


@pytest.mark.parametrize("hand_back", ["skip", "report"])
def test_what_was_handed_back_goes_to_others_only(lone, hand_back):
    world = ranking_world(lone, items=1)
    ann, bob = world.labelers
    [id_] = ann.next()
    getattr(ann, hand_back)(id_)
    assert ann.ask().reason == "finished"
    assert names(bob, bob.next()) == names(ann, [id_])


def test_held_out_labelers_get_held_out_items_only(lone):
    world = ranking_world(lone, items=30, labelers=0, valid_fraction=0.3, ahead=9)
    hal = world.join("hal", group="heldout")
    got = [hal.item(id_).split for id_ in hal.next()]
    assert set(got) == {"valid"}
    while given := hal.next():
        hal.submit(given[0])
    answered = world.assignments(assignment.c.state == "done")
    assert len(answered) == len(world.items(item.c.split == "valid"))
    assert hal.ask().reason == "finished"


def test_nobody_ranks_replies_to_a_prompt_they_wrote_for(lone):
    writing = writing_world(lone, prompts=["Question 0?"])  # prompt p0
    [ann] = writing.labelers
    ann.submit(ann.next()[0])
    world = ranking_world(lone, items=2, labelers=0, clock=writing.clock)
    ann.world = world
    assert names(ann, ann.next()) == ["s1"]
    bob = world.join("bob")
    assert names(bob, bob.next()) == ["s0"]


def test_the_order_on_the_page_is_drawn_for_labeler_and_item(lone):
    world = ranking_world(lone, items=20, overlap_share=1, overlap_need=2, ahead=9, seed=3)
    ann, bob = world.labelers
    for id_ in ann.next():
        row = ann.item(id_)
        drawn = [ids.draw(3, "order", "ann", row.external_id, place) for place in range(4)]
        expected = [row.candidate_ids[place] for place in sorted(range(4), key=drawn.__getitem__)]
        assert [reply["id"] for reply in ann.view(id_)["replies"]] == expected
    bob.next()
    orders = {(row.item_id, tuple(row.display_order)) for row in world.assignments()}
    assert len(orders) > 15  # of 20, two labelers have the same order by chance once in 24


def test_gold_items_are_met_now_and_then(lone):
    world = ranking_world(lone, items=100, labelers=1, gold_share=0.2, ahead=0)
    gold = [gold_ranking(number) for number in range(40)]
    world.write(lambda conn, now: projects.add_gold(conn, now, world.project_id, gold))
    [ann] = world.labelers
    met = 0
    for _ in range(100):
        [id_] = ann.next()
        met += ann.item(id_).gold is not None
        ann.submit(id_)
    assert met == sum(ids.draw(0, "mix", "ann", place) < 0.2 for place in range(100))
    assert 8 <= met <= 32  # 20 +- 3 deviations


def test_gold_is_no_work_of_its_own(lone):
    world = ranking_world(lone, items=1, labelers=1, gold_share=0.5)
    world.write(lambda conn, now: projects.add_gold(conn, now, world.project_id, [gold_ranking(1)]))
    [ann] = world.labelers
    while given := ann.next():
        ann.submit(given[0])
    assert ann.ask().reason == "finished"
    found = world.read(lambda conn: projects.progress(conn, world.project_id))
    assert (found.items, found.needed, found.done) == (1, 1, 1)


def test_a_project_of_gold_items_alone_gives_them(lone):
    world = ranking_world(lone, items=0, labelers=2)
    gold = [gold_ranking(number) for number in range(3)]
    world.write(lambda conn, now: projects.add_gold(conn, now, world.project_id, gold))
    for labeler in world.labelers:
        assert len(labeler.next()) == 3


def test_repeats_come_after_twenty_answers_and_are_items_of_their_own(lone):
    world = ranking_world(lone, items=60, labelers=1, repeat_share=0.5, ahead=0)
    [ann] = world.labelers
    given = []
    for _ in range(40):
        [id_] = ann.next()
        given.append(ann.item(id_))
        ann.submit(id_)
    assert not any(row.repeat_of for row in given[:20])
    repeats = [row for row in given if row.repeat_of]
    assert repeats
    originals = {row.id: row for row in given}
    for row in repeats:
        first = originals[row.repeat_of]
        assert (row.candidate_ids, row.prompt_id) == (first.candidate_ids, first.prompt_id)
        assert (row.need, row.only_labeler) == (1, ann.person.id)
    assert repeats[0].repeat_of == given[0].id  # what was answered longest ago
    assert len({row.repeat_of for row in repeats}) == len(repeats)
    bob = world.join("bob")
    seen = []
    for _ in range(8):
        [id_] = bob.next()
        seen.append(bob.item(id_))
        bob.submit(id_)
    assert not any(row.repeat_of for row in seen)


def shape(value):
    """The keys of a JSON value at every depth."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return type(value).__name__


def test_the_view_tells_nothing_but_the_texts(lone):
    world = ranking_world(lone, items=25, k=3, labelers=1, gold_share=0.2, repeat_share=0.4)
    gold = [gold_ranking(number) for number in range(9)]
    world.write(lambda conn, now: projects.add_gold(conn, now, world.project_id, gold))
    [ann] = world.labelers
    shapes, kinds = {}, Counter()
    while given := ann.next():
        view, row = ann.view(given[0]), ann.item(given[0])
        kind = "gold" if row.gold else "repeat" if row.repeat_of else "ordinary"
        kinds[kind] += 1
        assert not any(word in str(view) for word in ("secret", "gold", "repeat", row.id))
        shapes.setdefault(str(shape(view)), set()).add(kind)
        ann.submit(given[0])
    assert set(kinds) == {"gold", "repeat", "ordinary"}
    assert list(shapes.values()) == [{"gold", "repeat", "ordinary"}]


def test_what_the_page_gets(lone):
    world = ranking_world(lone, items=0, labelers=1, strength=True)
    sets, tags = [candidate_set(1, 2)], {"p1": ["closed_domain"]}
    world.write(
        lambda conn, now: projects.add_candidate_sets(conn, now, world.project_id, sets, tags=tags)
    )
    [ann] = world.labelers
    view = ann.view(ann.next()[0])
    assert view["prompt"] == {"text": "Question 1?", "tags": ["closed_domain"]}
    assert [(reply["letter"], reply["cut"]) for reply in view["replies"]] == [
        ("A", False),
        ("B", False),
    ]
    asked = [flag["id"] for flag in view["schema"]["reply_flags"]]
    assert "hallucination" in asked
    assert "satisfies_constraint" not in asked
    assert view["settings"] == {
        "rate": True,
        "ask_prompt_flags": True,
        "strength": True,
        "both_bad": True,
        "open_prompt": False,
    }
    assert (view["state"], view["rev"], view["draft"], view["opened"]) == ("open", 0, None, False)
    assert view["amending"] is None


def test_nobody_sees_anothers_assignment(lone):
    world = ranking_world(lone, items=1)
    ann, bob = world.labelers
    [id_] = ann.next()
    with pytest.raises(Refused) as refused:
        bob.view(id_)
    assert refused.value.status == 404


def test_an_assignment_keeps_its_versions(lone):
    world = ranking_world(lone, items=3, labelers=1, ahead=0)
    [ann] = world.labelers
    [first] = ann.next()
    world.write(
        lambda conn, now: projects.add_guidelines(conn, now, world.project_id, "new", "command")
    )
    assert ann.view(first)["guidelines_version"] == 1
    ann.submit(first)
    assert ann.view(ann.next()[0])["guidelines_version"] == 2


@pytest.mark.parametrize("seed", range(3))
def test_a_random_walk_keeps_every_promise(lone, seed):
    chance = random.Random(seed)
    world = ranking_world(
        lone, items=30, labelers=5, overlap_share=0.5, overlap_need=3, gold_share=0.1
    )
    gold = [gold_ranking(number) for number in range(3)]
    world.write(lambda conn, now: projects.add_gold(conn, now, world.project_id, gold))
    acknowledged = walk(world, 250, chance)
    keeps_every_promise(world, acknowledged)


def keeps_every_promise(world, acknowledged):
    assert world.read(audit.verify) == []
    rows = world.assignments()
    assert len({(row.item_id, row.labeler_id) for row in rows}) == len(rows)
    counted = Counter((row.item_id, row.state) for row in rows)
    for row in world.items():
        assert row.done + row.leased <= row.need
        assert row.done == counted[row.id, "done"]
        assert row.leased == counted[row.id, "open"]
    table = tables.annotation.c
    query = select(table.assignment_id, table.payload).order_by(table.id)
    stored = Counter(
        (row.assignment_id, str(row.payload["bins"]))
        for row in world.read(lambda conn: conn.execute(query).all())
    )
    assert stored == Counter((id_, str(payload["bins"])) for _, id_, payload in acknowledged)
    assert acknowledged


def test_labelers_at_the_same_time_get_exact_overlap(store):
    world = ranking_world(store, items=30, labelers=6, overlap_share=1, overlap_need=2)
    faults = []

    def label(labeler):
        try:
            while True:
                given = labeler.ask()
                if given.reason == "finished":
                    return
                for id_ in given.assignments:
                    labeler.submit(id_)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=label, args=(labeler,)) for labeler in world.labelers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert faults == []
    assert [(row.done, row.leased) for row in world.items()] == [(2, 0)] * 30
    assert Counter(row.state for row in world.assignments()) == {"done": 60}
    assert world.read(audit.verify) == []


def test_one_labeler_in_many_tabs_gets_nothing_twice(store):
    world = ranking_world(store, items=12, labelers=1, overlap_share=1, overlap_need=3)
    [ann] = world.labelers
    threads = [threading.Thread(target=ann.next) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    rows = world.assignments()
    assert len({row.item_id for row in rows}) == len(rows) >= 3
    assert world.read(audit.verify) == []
