"""Simulated labelers: repeatable opinions that agree about as often as people do."""

from pathlib import Path

import pytest

from tercet.records import Candidate, CandidateSet, InputError
from tercet.world import World, WorldSettings
from tercet.world.demonstrations import GOOD, MEDIOCRE
from tercet.world.labelers import ranks_of
from tercet.world.speech import compose
from tercet.world.streams import stream


def candidate_sets(world: World, n: int) -> list[CandidateSet]:
    """What a supervised model would say: demonstrations' manners, some cut off or garbled."""
    manners = [manner for _, manner in MEDIOCRE.values()]
    sets = []
    for prompt in world.prompts("rm", n):
        random = stream(1, prompt.id)
        assert prompt.text is not None
        question = world._gold.question(prompt.text)
        replies: list[str] = []
        for _ in range(random.randint(4, 9)):
            manner = random.choice(manners) if random.random() < 0.3 else GOOD
            reply = compose(random, world.facts, question, manner)
            if random.random() < 0.06:
                words = reply.split(" ")
                words.insert(random.randrange(1, len(words)), "the museum")
                reply = " ".join(words)
            if reply not in replies:
                replies.append(reply)
        if len(replies) < 2:
            continue
        candidates = tuple(
            Candidate(id=str(i), text=text, policy="sft", temperature=1, seed=0, finish="stop")
            for i, text in enumerate(replies)
        )
        sets.append(
            CandidateSet(
                id=f"set-{prompt.id}",
                prompt_id=prompt.id,
                prompt=prompt.text,
                candidates=candidates,
            )
        )
    return sets


@pytest.mark.parametrize("seed", [0, 1])
def test_two_labelers_agree_on_73_percent_of_pairs_and_tie_10(seed: int) -> None:
    world = World(seed)
    both = same = ties = pairs = 0
    rankings = iter(world.label(candidate_sets(world, 400), per_set=2))
    for one, two in zip(rankings, rankings, strict=True):
        assert one.labeler != two.labeler and one.prompt_id == two.prompt_id
        a, b = ([reply.rank for reply in ranking.replies] for ranking in (one, two))
        for i in range(len(a)):
            for j in range(i):
                pairs += 1
                ties += a[i] == a[j]
                if a[i] != a[j] and b[i] != b[j]:
                    both += 1
                    same += (a[i] < a[j]) == (b[i] < b[j])
    assert 0.70 <= same / both <= 0.76
    assert 0.06 <= ties / pairs <= 0.14


def test_opinions_do_not_depend_on_the_order_of_replies() -> None:
    world = World(2)
    person = world.labelers[3]
    for shown in candidate_sets(world, 20):
        texts = [candidate.text for candidate in shown.candidates]
        ranks = person.rank(shown.prompt, texts, shown.id)
        assert person.rank(shown.prompt, texts[::-1], shown.id) == ranks[::-1]
        assert world.label([shown]) == World(2).label([shown])


def test_opinions_depend_on_person_key_and_world() -> None:
    world = World(2)
    prompt, reply = "Guest: Hello.\nDesk:", " Enjoy your visit."
    first, second = world.labelers[:2]
    opinions = {
        first.opinion(prompt, reply, "a"),
        first.opinion(prompt, reply, "b"),
        second.opinion(prompt, reply, "a"),
        World(3).labelers[0].opinion(prompt, reply, "a"),
    }
    assert len(opinions) == 4


def test_without_noise_lapses_and_bias_the_order_is_nearly_the_gold_order() -> None:
    world = World(2, WorldSettings(noise=0, miss=0, bias=0, tie_width=0))
    for shown in candidate_sets(world, 30):
        gold = [world.gold(shown.prompt, c.text).utility for c in shown.candidates]
        ranks = [reply.rank for reply in world.label([shown])[0].replies]
        for i, one in enumerate(gold):
            for j, two in enumerate(gold):
                # Personal weights differ by a fifth: only clear differences are sure.
                if one > two + 2.5:
                    assert ranks[i] < ranks[j]


def test_a_missed_wrong_fact_passes_for_an_answer() -> None:
    settings = WorldSettings(noise=0, bias=0)
    world, blind = World(4, settings), World(4, WorldSettings(noise=0, bias=0, miss=1))
    place = world.facts.familiar[0]
    prompt = f"Guest: How do we get to the {place}?\nDesk:"
    ways = ("by tram", "by bus", "by boat", "on foot")
    replies = [f" You can reach the {place} {way}." for way in ways]
    assert len(set(blind.labelers[0].rank(prompt, replies, "k"))) == 1
    wrong = [world.gold(prompt, reply).wrong for reply in replies]
    assert sorted(wrong) in ([0, 1, 1, 1], [1, 1, 1, 1])


def test_ties_reach_from_the_best_of_a_group() -> None:
    assert ranks_of([3.0, 2.8, 2.6, 1.0], 0.35) == [1, 1, 2, 3]
    assert ranks_of([1.0, 5.0, 1.0], 0.0) == [2, 1, 2]


def test_a_ranking_keeps_candidates_labeler_and_group() -> None:
    world = World(2)
    shown = candidate_sets(world, 1)[0]
    ranking = world.label([shown], split="train")[0]
    assert [r.text for r in ranking.replies] == [c.text for c in shown.candidates]
    assert (ranking.judge, ranking.split) == ("simulated", "train")
    assert ranking.labeler in {person.id for person in world.labelers}
    assert ranking.group in {f"group-{number}" for number in range(1, 6)}


def test_worlds_are_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "world.json"
    world = World(9, WorldSettings(places=7, noise=0.9))
    world.save(path)
    again = World.load(path)
    assert (again.seed, again.settings, again.facts) == (9, world.settings, world.facts)
    assert again.documents(5) == world.documents(5)


def test_a_broken_world_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "world.json"
    for content in ("{", "{}", '{"schema": "x"}', '{"schema": "tercet.world/1", "seed": 1}'):
        path.write_text(content)
        with pytest.raises(InputError, match=r"world\.json"):
            World.load(path)


def test_impossible_numbers_of_labelers_are_refused() -> None:
    with pytest.raises(InputError, match=r"11 labelers a set"):
        World(0).label([], per_set=11)
    with pytest.raises(InputError, match=r"world.labelers = 0"):
        _ = World(0, WorldSettings(labelers=0)).labelers
