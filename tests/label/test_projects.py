import pytest
from sqlalchemy import select

from tercet.data.split import split_of
from tercet.label import ids, projects, tables
from tercet.label.errors import Refused
from tercet.label.importing import GOLD_NEED
from tercet.label.schema import DEFAULT
from tercet.label.settings import Settings
from tercet.records import Message, Prompt
from tests.label.world import START, candidate_set, gold_ranking, ranking_world, writing_world


@pytest.fixture
def store(sqlite_store):
    return sqlite_store


def do(store, function, *args, **options):
    return store.write(lambda conn: function(conn, START, *args, **options))


def add(world, *sets, **options):
    return do(world.store, projects.add_candidate_sets, world.project_id, sets, **options)


def get(store, name):
    return store.read(lambda conn: projects.get(conn, name))


def refusal(store, *args, **options):
    with pytest.raises(Refused) as refused:
        do(store, *args, **options)
    return refused.value.status, refused.value.code


def replies(world, item):
    table = tables.candidate.c
    query = select(table.id, table.text, table.policy).where(table.id.in_(item.candidate_ids))
    found = {row.id: row for row in world.read(lambda conn: conn.execute(query).all())}
    return [found[id_] for id_ in item.candidate_ids]


def test_a_project_is_found_by_name_and_by_id(store):
    settings = Settings(seed=7)
    id_ = do(store, projects.create, "one", "rank", settings=settings, guidelines="Be kind.")
    found = get(store, "one")
    assert found == get(store, id_)
    assert (found.id, found.kind, found.settings) == (id_, "rank", settings)
    assert (found.guidelines, found.guidelines_version, found.schema) == ("Be kind.", 1, DEFAULT)
    with pytest.raises(Refused) as refused:
        get(store, "two")
    assert refused.value.status == 404


def test_a_project_is_made_once(store):
    id_ = do(store, projects.create, "one", "rank")
    assert do(store, projects.create, "one", "rank", guidelines="other") == id_
    assert get(store, "one").guidelines == ""
    assert refusal(store, projects.create, "one", "evaluate") == (409, "kind")
    assert refusal(store, projects.create, " ", "rank") == (422, "name")


def test_settings_that_cannot_be():
    with pytest.raises(Refused) as refused:
        projects.parse({"overlap_share": 1.5})
    assert refused.value.status == 422
    assert refused.value.message.startswith("overlap_share: ")
    with pytest.raises(Refused):
        projects.parse({"no_such": 1})


def test_guidelines_and_schema_have_versions(store):
    id_ = do(store, projects.create, "one", "rank", guidelines="a")
    assert do(store, projects.add_guidelines, id_, "a", "command") == 1
    assert do(store, projects.add_guidelines, id_, "b", "command") == 2
    fewer = DEFAULT.model_copy(update={"rating_max": 5})
    assert do(store, projects.set_schema, id_, fewer, "command") == 2
    assert do(store, projects.set_schema, id_, fewer, "command") == 2
    found = get(store, id_)
    assert (found.guidelines, found.guidelines_version) == ("b", 2)
    assert (found.schema.rating_max, found.schema_version) == (5, 2)
    assert refusal(store, projects.add_guidelines, id_, "a\0", "command") == (422, "text")


def test_settings_and_pause_are_kept(store):
    id_ = do(store, projects.create, "one", "rank")
    do(store, projects.set_settings, id_, Settings(ahead=0), "command")
    do(store, projects.pause, id_, True, "command")
    assert get(store, id_).settings.ahead == 0
    assert get(store, id_).paused


def test_a_set_becomes_an_item(store):
    world = ranking_world(store, items=0)
    assert add(world, candidate_set(1, 3)) == projects.Imported(1, 0, 0, [])
    [item] = world.items()
    assert (item.external_id, item.need, item.done, item.leased) == ("s1", 1, 0, 0)
    assert (item.state, item.gold, item.repeat_of) == ("open", None, None)
    texts = [f"reply {i} to question 1" for i in range(3)]
    assert [reply.text for reply in replies(world, item)] == texts


def test_ids_of_replies_do_not_follow_their_policies(store):
    world = ranking_world(store, items=40, k=2)
    rising = sum(item.candidate_ids[0] < item.candidate_ids[1] for item in world.items())
    assert 5 < rising < 35  # 40 fair coins leave this range once in a million


def test_importing_again_adds_nothing(store):
    world = ranking_world(store, items=0)
    add(world, candidate_set(1), candidate_set(2))
    again = add(world, candidate_set(2), candidate_set(3), candidate_set(3))
    assert again == projects.Imported(added=1, known=2, held=0, refused=[])
    assert len(world.items()) == 3


def test_a_known_id_with_other_content_is_refused(store):
    world = ranking_world(store, items=0)
    add(world, candidate_set(1))
    other = candidate_set(1, prompt="Another question?", prompt_id="p9")
    fewer = candidate_set(1, k=3)
    result = add(world, other, fewer)
    message = "s1: is there already with other content; give the new one another id"
    assert result == projects.Imported(0, 0, 0, [message, message])


def test_a_known_prompt_with_another_text_is_refused(store):
    world = ranking_world(store, items=0)
    add(world, candidate_set(1))
    other = candidate_set(2, prompt_id="p1", prompt="Not the same?")
    [message] = add(world, other).refused
    assert message == (
        "s2: the prompt p1 is there with another text; give this one another prompt id"
    )


def test_two_sets_may_share_a_prompt(store):
    world = ranking_world(store, items=0)
    same = {"prompt_id": "p", "prompt": "Why?"}
    assert add(world, candidate_set(1, **same), candidate_set(2, **same)).added == 2
    first, second = world.items()
    assert first.prompt_id == second.prompt_id


@pytest.mark.parametrize(
    ("k", "words"),
    [
        (1, "s1: has 1 reply; 2 to 9 can be ranked, so sample more"),
        (10, "s1: has 10 replies; 2 to 9 can be ranked, so split the set"),
    ],
)
def test_too_few_or_too_many_replies(store, k, words):
    world = ranking_world(store, items=0)
    assert add(world, candidate_set(1, k), candidate_set(2, 2), candidate_set(3, 9)) == (
        projects.Imported(2, 0, 0, [words])
    )


def test_replies_with_the_same_text_are_refused(store):
    world = ranking_world(store, items=0)
    first, second, *others = candidate_set(1).candidates
    twin = second.model_copy(update={"text": f" {first.text}\n"})
    result = add(world, candidate_set(1, candidates=(first, twin, *others)))
    words = "s1: the replies s1/0 and s1/1 have the same text; keep one of them"
    assert result.refused == [words]


def test_text_that_cannot_be_stored_is_refused(store):
    world = ranking_world(store, items=0)
    [message] = add(world, candidate_set(1, prompt="a\0b")).refused
    assert message.startswith("s1: holds a character that is no text")


def test_a_dry_run_leaves_nothing(store):
    world = ranking_world(store, items=0)

    class RollBack(Exception):
        pass

    def dry_run(conn, now):
        result = projects.add_candidate_sets(conn, now, world.project_id, [candidate_set(1)])
        assert result.added == 1
        raise RollBack

    with pytest.raises(RollBack):
        world.write(dry_run)
    assert world.items() == []


def test_a_reply_that_names_its_maker_holds_its_item(store):
    world = ranking_world(store, items=0, identity_names=("Acme",))
    sets = [candidate_set(number) for number in range(4)]

    def telling(number, text):
        first, *others = sets[number].candidates
        told = first.model_copy(update={"text": text})
        return sets[number].model_copy(update={"candidates": (told, *others)})

    result = add(
        world,
        telling(0, "As an AI trained by OpenAI, I cannot."),
        telling(1, "I was made by Acme."),
        telling(2, "I am secret-policy-0."),
        sets[3],
    )
    assert (result.added, result.held) == (4, 3)
    reasons = {item.external_id: item.held_reason for item in world.items()}
    assert reasons == {
        "s0": "reply s0/0 names its maker: OpenAI",
        "s1": "reply s1/0 names its maker: Acme",
        "s2": "reply s2/0 names its maker: secret-policy-0",
        "s3": None,
    }
    states = {item.external_id: item.state for item in world.items()}
    assert states == {"s0": "held", "s1": "held", "s2": "held", "s3": "open"}


def test_the_same_prompts_are_held_out_as_by_the_label_stage(store):
    world = ranking_world(store, items=0, valid_fraction=0.3, valid_need=2, seed=5)
    users = {f"p{number}": f"user-{number // 4}" for number in range(0, 40)}
    add(world, *(candidate_set(number) for number in range(60)), users=users)
    for item in world.items():
        prompt = f"p{item.external_id[1:]}"
        key = users.get(prompt, prompt)
        assert item.split == split_of(key, {"valid": 0.3, "train": 0.7}, "label 5")
        assert item.need == (2 if item.split == "valid" else 1)
    assert {item.split for item in world.items()} == {"valid", "train"}


def test_overlap_is_a_seeded_draw(store):
    world = ranking_world(store, items=200, overlap_share=0.25, overlap_need=3, seed=2)
    for item in world.items():
        several = ids.draw(2, "overlap", item.external_id) < 0.25
        assert item.need == (3 if several else 1)
    assert 30 <= sum(item.need == 3 for item in world.items()) <= 70  # 50 +- 3.3 deviations


def test_evaluation_holds_nothing_out(store):
    world = ranking_world(store, items=20, kind="evaluate", valid_fraction=0.5)
    assert {item.split for item in world.items()} == {None}


def test_prompts_to_write_replies_to(store):
    world = writing_world(store, prompts=["Who?", ""])
    dialogue = Prompt(id="d", messages=(Message(role="user", content="Hi"),), split="valid")
    again = [Prompt(id="p0", text="Who?"), dialogue]
    result = do(store, projects.add_prompts, world.project_id, again)
    assert result == projects.Imported(added=1, known=1, held=0, refused=[])
    items = {item.external_id: item for item in world.items()}
    assert {name: item.candidate_ids for name, item in items.items()} == {
        "p0": [],
        "p1": [],
        "d": [],
    }
    assert items["d"].split == "valid"
    text = select(tables.prompt.c.text).where(tables.prompt.c.external_id == "d")
    assert world.read(lambda conn: conn.scalars(text).one()) == "\n\nHuman: Hi\n\nAssistant:"


def test_a_project_takes_only_its_kind(store):
    ranking, writing = ranking_world(store, items=0), writing_world(store)
    add_sets = projects.add_candidate_sets
    assert refusal(store, add_sets, writing.project_id, [candidate_set(1)]) == (409, "kind")
    assert refusal(store, projects.add_gold, writing.project_id, []) == (409, "kind")
    assert refusal(store, projects.add_prompts, ranking.project_id, []) == (409, "kind")


def test_gold_keeps_its_bins(store):
    world = ranking_world(store, items=0)
    result = do(store, projects.add_gold, world.project_id, [gold_ranking(1, (2, 1, 2))])
    assert result.added == 1
    [item] = world.items()
    a, b, c = item.candidate_ids
    assert item.gold == [[b], [a, c]]
    assert item.need == GOLD_NEED
    again = do(store, projects.add_gold, world.project_id, [gold_ranking(1, (2, 1, 2))])
    assert again == projects.Imported(0, 1, 0, [])
    other = do(store, projects.add_gold, world.project_id, [gold_ranking(1, (1, 2, 2))])
    assert other.refused == ["g1: is there already with other content; give the new one another id"]


def test_gold_without_an_order_is_refused(store):
    world = ranking_world(store, items=0)
    result = do(store, projects.add_gold, world.project_id, [gold_ranking(1, (1, 1))])
    assert result.refused == ["g1: all replies tie; a known answer needs an order"]


def test_held_items_are_released_with_their_reports_forgotten(store):
    world = ranking_world(store, items=1, hold_after_reports=1)
    ann, bob = world.labelers
    [id_] = ann.next()
    ann.report(id_)
    item = ann.item(id_)
    assert (item.state, item.held_reason) == ("held", "reports: 1")
    assert bob.ask().reason == "finished"
    do(store, projects.release, item.id, "command")
    item = ann.item(id_)
    assert (item.state, item.held_reason, item.reports) == ("open", None, 0)
    assert len(bob.next()) == 1
    do(store, projects.hold, item.id, "command", "odd")
    assert ann.item(id_).held_reason == "odd"
    assert refusal(store, projects.hold, "none", "command") == (404, "not-found")


def test_progress_counts_by_hand(store):
    # 3 items want 2 answers each; ann answers all, bob has one open, cho skips one.
    world = ranking_world(store, items=3, labelers=3, overlap_share=1, overlap_need=2, ahead=0)
    do(store, projects.add_gold, world.project_id, [gold_ranking(1)])
    ann, bob, cho = world.labelers
    for _ in range(3):
        ann.submit(ann.next()[0])
    bob.open(bob.next()[0])
    cho.skip(cho.next()[0])
    do(store, projects.hold, world.items()[2].id, "command")
    found = world.read(lambda conn: projects.progress(conn, world.project_id))
    assert found == projects.Progress(
        items=3, needed=6, done=3, leased=1, held=1, extra=0, skipped=1, labelers=3
    )


def test_items_of_an_empty_project(store):
    world = ranking_world(store, items=0, labelers=1)
    found = world.read(lambda conn: projects.progress(conn, world.project_id))
    assert found == projects.Progress(0, 0, 0, 0, 0, 0, 0, 0)
    assert world.labelers[0].ask().reason == "finished"
