import json
from collections import defaultdict
from dataclasses import replace

import pytest

from tercet.records import (
    Candidate,
    CandidateSet,
    Demonstration,
    InputError,
    Prompt,
    Ranking,
    read_records,
    write_records,
)
from tercet.stages import label, world
from tests.toy import stage

SMALL = {
    "documents": 20, "held_out_documents": 5, "demonstrations": 20, "valid_demonstrations": 6,
    "rm_prompts": 30, "ppo_prompts": 10, "valid_prompts": 6, "test_prompts": 8,
    "new_place_prompts": 4, "prefixes": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return stage(world.main, world.Config(**SMALL), tmp_path_factory.mktemp("world") / "data")


def test_the_world_writes_what_the_other_stages_read(made):
    prompts = read_records(made.path / "prompts.jsonl", Prompt)
    by_split = defaultdict(set)
    for prompt in prompts:
        by_split[prompt.split].add(prompt.user_id)
    assert {s: sum(p.split == s for p in prompts) for s in by_split} == {
        "rm": 30, "ppo": 10, "valid": 6, "test": 8, "test-new-place": 4,
    }  # fmt: skip
    assert not by_split["test"] & (by_split["rm"] | by_split["ppo"])
    for name, count in (("pretrain", 20), ("held_out", 5)):
        lines = (made.path / f"{name}.jsonl").read_text().splitlines()
        assert len(lines) == count
        assert all(json.loads(line)["text"] for line in lines)
    assert len(read_records(made.path / "prefixes.jsonl", Prompt)) == 2


def test_no_demonstrator_prompt_is_on_both_sides(made):
    demonstrations = read_records(made.path / "demonstrations.jsonl", Demonstration)
    users = {
        split: {d.user_id for d in demonstrations if d.split == split}
        for split in ("train", "valid")
    }
    assert len(demonstrations) == 26
    assert users["valid"]
    assert not users["train"] & users["valid"]


def test_one_seed_makes_one_world(made, tmp_path):
    again = stage(world.main, world.Config(**SMALL), tmp_path / "again")
    other = stage(world.main, world.Config(**SMALL, seed=1), tmp_path / "other")
    for name in ("pretrain.jsonl", "demonstrations.jsonl", "prompts.jsonl", "world.json"):
        content = (made.path / name).read_bytes()
        assert (again.path / name).read_bytes() == content
        assert (other.path / name).read_bytes() != content


def test_a_setting_that_no_world_has_is_named(tmp_path):
    with pytest.raises(InputError, match=r"\[world\] settings: unknown option 'nois'.*'noise'"):
        stage(world.main, world.Config(**SMALL, settings={"nois": 1.0}), tmp_path)


@pytest.fixture(scope="module")
def config(made, tmp_path_factory):
    prompts = [p for p in read_records(made.path / "prompts.jsonl", Prompt) if p.split == "rm"]
    texts = (" I do not know.", " Yes.", " Breakfast is at seven.")
    sets = [
        CandidateSet(
            id=f"set/{p.id}",
            prompt_id=p.id,
            prompt=p.text or "",
            candidates=tuple(
                Candidate(id=f"{k}", text=t, policy="x", temperature=1, seed=0, finish="stop")
                for k, t in enumerate(texts)
            ),
        )
        for p in prompts
    ]
    root = tmp_path_factory.mktemp("label")
    write_records(root / "candidates.jsonl", sets)
    return label.Config(
        candidates=root / "candidates.jsonl",
        prompts=made.path / "prompts.jsonl",
        world=made.path / "world.json",
        valid_fraction=0.3,
    )


def test_held_out_prompts_have_several_labelers_and_others_one(config, tmp_path):
    run = stage(label.main, config, tmp_path / "run")
    rankings = read_records(run.path / "rankings.jsonl", Ranking)
    people = defaultdict(list)
    for r in rankings:
        assert r.judge == "simulated"
        people[r.split, r.prompt_id].append(r.labeler)
    assert {len(names) for (split, _), names in people.items() if split == "train"} == {1}
    assert {len(set(names)) for (split, _), names in people.items() if split == "valid"} == {2}
    assert len(people) == 30
    done = run.done()
    assert done["held_out_rankings"] == sum(r.split == "valid" for r in rankings) > 0
    assert 0 <= done["tie_rate"] < 1


def test_no_guest_is_in_both_splits_and_the_split_is_repeatable(config, made, tmp_path):
    runs = [stage(label.main, config, tmp_path / name) for name in ("a", "b")]
    assert len({(run.path / "rankings.jsonl").read_bytes() for run in runs}) == 1
    users = {p.id: p.user_id for p in read_records(made.path / "prompts.jsonl", Prompt)}
    rankings = read_records(runs[0].path / "rankings.jsonl", Ranking)
    sides = {
        split: {users[r.prompt_id] for r in rankings if r.split == split}
        for split in ("train", "valid")
    }
    assert not sides["train"] & sides["valid"]


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_fraction_that_leaves_a_side_empty_is_refused(config, fraction):
    with pytest.raises(ValueError, match="valid_fraction"):
        replace(config, valid_fraction=fraction)


def test_rank_pairs_counts_each_pair_once():
    assert label.rank_pairs([1, 1, 2]) == [True, False, False]
