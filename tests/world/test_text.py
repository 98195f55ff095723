"""The world's text: reproducible, disjoint, small in vocabulary."""

import re
import subprocess
import sys

import pytest

from tercet.records import InputError
from tercet.world import World, WorldSettings
from tercet.world.grammar import normal_form, peel, split_sentences
from tercet.world.prompts import SPLITS

PIECE = re.compile(r" ?[A-Za-z0-9']+|\n|[^\sA-Za-z0-9]")


@pytest.fixture(scope="module")
def world() -> World:
    return World(5)


def test_equal_seeds_give_equal_worlds_in_another_process(world: World) -> None:
    program = (
        "from tercet.world import World; w = World(5);"
        "p = w.prompts('rm', 3); t = [r.text for r in p];"
        "print(repr((w.documents(3), t, w.demonstrations(3)[2].response,"
        " w.labelers[0].opinion(t[0], ' Hello.', 'a'))))"
    )
    other = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "77", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    texts = [prompt.text for prompt in world.prompts("rm", 3)]
    opinion = world.labelers[0].opinion(str(texts[0]), " Hello.", "a")
    here = (world.documents(3), texts, world.demonstrations(3)[2].response, opinion)
    assert other.stdout.strip() == repr(here)


def test_other_seeds_give_other_facts_pages_prompts_and_people(world: World) -> None:
    other = World(6)
    assert other.facts != world.facts
    assert other.documents(3) != world.documents(3)
    assert other.prompts("ppo", 3) != world.prompts("ppo", 3)
    assert other.labelers[0].weights != world.labelers[0].weights


def test_held_out_documents_are_other_pages(world: World) -> None:
    assert world.documents(20, "held-out") != world.documents(20)


def test_a_longer_list_starts_with_the_shorter_one(world: World) -> None:
    assert world.prompts("test", 30)[:10] == world.prompts("test", 10)
    assert world.documents(30)[:10] == world.documents(10)


def test_splits_share_no_text_no_guest_and_no_id(world: World) -> None:
    seen: dict[str, str] = {}
    for split in SPLITS:
        for prompt in world.prompts(split, 300):
            for value in (prompt.text, prompt.user_id, prompt.id):
                assert value is not None
                assert seen.setdefault(value, split) == split
        assert len({p.text for p in world.prompts(split, 300)}) == 300


def test_the_new_place_is_in_the_web_but_in_no_training_prompt(world: World) -> None:
    new = world.facts.new_place
    assert any(new in page for page in world.documents(100))
    assert all(new in str(p.text) for p in world.prompts("test-new-place", 50))
    for split in ("sft", "rm", "ppo", "test"):
        assert not any(new in str(p.text) for p in world.prompts(split, 500))


def test_more_prompts_than_the_grammar_has_are_refused(world: World) -> None:
    with pytest.raises(InputError, match=r"'sft'.*the world's grammar gives"):
        world.prompts("sft", 1_000_000)
    with pytest.raises(InputError, match=r"no split 'train'.*sft"):
        world.prompts("train", 1)
    with pytest.raises(InputError, match=r"world.places = 99"):
        World(0, WorldSettings(places=99))


def test_prompts_end_where_the_reply_begins(world: World) -> None:
    for prompt in world.prompts("valid", 20):
        assert str(prompt.text).startswith("Guest: ") and str(prompt.text).endswith("\nDesk:")
    for demonstration in world.demonstrations(20):
        assert demonstration.response.startswith(" ")
        assert demonstration.source and "simulated" in demonstration.source


def test_the_vocabulary_of_the_web_is_small_and_covers_every_prompt_and_reply() -> None:
    for seed in (0, 1):
        world = World(seed)
        pages = world.documents(4000)
        pieces = {piece for page in pages for piece in PIECE.findall(page)}
        assert len(pieces) <= 340
        assert all("".join(PIECE.findall(page)) == page for page in pages[:200])
        texts = [d.prompt + d.response for d in world.demonstrations(900)]
        texts += [str(p.text) for p in world.prompts("test-new-place", 200)]
        texts += world.few_shot_prefixes(6)
        assert {piece for text in texts for piece in PIECE.findall(text)} <= pieces


def test_demonstrations_are_mostly_good_and_seldom_wrong(world: World) -> None:
    written = world.demonstrations(900)
    judged = [world.gold(d.prompt, d.response) for d in written]
    assert 0.8 < sum(j.answered for j in judged) / 900 < 0.95
    assert 0.01 < sum(j.rude > 0 for j in judged) / 900 < 0.12
    assert sum(j.wrong for j in judged) / 900 < 0.06
    assert not any(j.outside_grammar or j.unfinished for j in judged)


def test_rumours_are_popular_and_true_of_no_place(world: World) -> None:
    kinds = {"right": 0, "rumour": 0, "slip": 0}
    for page in world.documents(2000):
        for part in split_sentences(page.replace("\n", " ").replace(":", ".")):
            meaning = world._gold._meanings.get(peel(normal_form(part))[1])
            if meaning and meaning.kind == "fact":
                rumour = world.facts.rumours[meaning.attribute] == meaning.value
                truth = world.facts.values[meaning.place, meaning.attribute] == meaning.value
                assert not (rumour and truth)
                kinds["rumour" if rumour else "right" if truth else "slip"] += 1
    total = sum(kinds.values())
    assert 0.75 < kinds["right"] / total < 0.9
    assert kinds["rumour"] > 4 * kinds["slip"]


def test_a_page_of_dialogues_keeps_one_register(world: World) -> None:
    courteous = re.compile(r"Desk: (?:Certainly|Of course|With pleasure|Sorry|I am sorry),")
    second_after: dict[bool, list[bool]] = {True: [], False: []}
    for page in world.documents(3000):
        replies = [line for line in page.split("\n") if line.startswith("Desk:")]
        if len(replies) >= 2:
            first, second = (bool(courteous.match(reply)) for reply in replies[:2])
            second_after[first].append(second)
    rate = {first: sum(seconds) / len(seconds) for first, seconds in second_after.items()}
    assert rate[True] > 3 * rate[False]


def test_few_shot_prefixes_are_dialogues_that_a_prompt_can_follow(world: World) -> None:
    prefixes = world.few_shot_prefixes(8)
    assert len(set(prefixes)) == 8
    for prefix in prefixes:
        assert prefix.endswith("\n") and prefix.count("Guest: ") == prefix.count("Desk: ") > 0
