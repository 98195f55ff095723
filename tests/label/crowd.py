"""Scripted labelers of known skill who fill a store with rankings.

world = crowd(store, labelers=20, items=1200, answers=2000)
"""

import random
from typing import Any

from tercet.label import projects
from tercet.label.errors import Refused
from tests.label.world import Labeler, World, candidate_set, gold_ranking, ranking_world

HURRIED, RANDOM, FIRST = "hurried", "random", "first"
"""Names of labelers with a fault: too fast, at random, the first reply shown wins."""


def crowd(
    store: Any,
    *,
    labelers: int = 8,
    items: int = 40,
    answers: int = 120,
    k: int = 4,
    **settings: Any,
) -> World:
    """A ranking project that `labelers` people worked on, three of them badly if there are six.

    The reply whose external id ends in 0 is the best, then 1, and so on.
    """
    given = {"overlap_share": 0.4, "overlap_need": 3, "gold_share": 0.08, **settings}
    world = ranking_world(store, items=0, labelers=0, **given)
    sets = [candidate_set(number, k) for number in range(items)]
    gold = [gold_ranking(number, range(1, k + 1)) for number in range(max(items // 20, 2))]
    world.write(lambda conn, now: projects.add_candidate_sets(conn, now, world.project_id, sets))
    world.write(lambda conn, now: projects.add_gold(conn, now, world.project_id, gold))
    bad = [HURRIED, RANDOM, FIRST] if labelers >= 6 else []
    names = [f"labeler {n + 1}" for n in range(labelers - len(bad))] + bad
    for number, name in enumerate(names):
        world.join(name, group="research" if number % 5 == 4 and name not in bad else "train")
    chance = random.Random(0)
    done = 0
    while done < answers:
        before = done
        for labeler in world.labelers:
            done += _one(world, labeler, chance)
        if done == before:
            break
    return world


def _one(world: World, labeler: Labeler, chance: random.Random) -> int:
    """The labeler's next item, mostly answered; how many answers were given."""
    found = labeler.next()
    if not found:
        return 0
    view = labeler.view(found[0])
    if chance.random() < 0.02:
        labeler.skip(found[0])
        return 0
    seconds = chance.lognormvariate(1.2 if labeler.person.name == HURRIED else 4.2, 0.5)
    world.clock.pass_(20)
    try:
        world.write(lambda conn, now: _submit(conn, now, labeler, found[0], view, chance, seconds))
    except Refused as refused:
        assert refused.status == 409, refused
        return 0
    return 1


def _submit(conn, now, labeler, assignment_id, view, chance, seconds):
    from tercet.label import work

    replies = view["replies"]
    scores = {reply["id"]: _score(labeler.person.name, reply, chance) for reply in replies}
    order = sorted(scores, key=lambda id_: -scores[id_])
    bins = [[order[0]]]
    for id_ in order[1:]:
        (bins[-1].append(id_) if chance.random() < 0.12 else bins.append([id_]))
    payload = {
        "bins": bins,
        "ratings": {id_: max(1, min(7, round(4 + 1.3 * scores[id_]))) for id_ in order},
        "flags": {id_: {"fails_task": scores[id_] < -1, "harmful_advice": False} for id_ in order},
    }
    key = f"{chance.getrandbits(64):x}"
    return work.submit(conn, now, labeler.person, assignment_id, key, payload, int(seconds * 1000))


def _score(name: str, reply: dict[str, Any], chance: random.Random) -> float:
    digits = [c for c in reply["text"].partition(" of ")[0].partition(" to ")[0] if c.isdigit()]
    noise = chance.gauss(0, 0.8)
    if name == RANDOM:
        return 2 * noise
    if name == FIRST:
        return -float("ABCDEFGHI".index(reply["letter"])) + noise
    return 1.2 - 0.8 * int("".join(digits)) + noise
