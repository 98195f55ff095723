import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tercet.data.tokens import train_tokenizer
from tercet.model.load import load_scalar, new_policy, save_model
from tercet.model.shard import Ranks
from tercet.records import (
    Candidate,
    CandidateSet,
    InputError,
    RankedReply,
    Ranking,
    read_records,
    write_records,
)
from tercet.rundir import RunDir
from tercet.stages.evaluate import Config, main
from tercet.world import World

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Random models of 5 arms in a world of 24 test prompts; ppo-ptx is a copy of gpt."""
    root = tmp_path_factory.mktemp("eval")
    world = World(seed=4)
    world.save(root / "world.json")
    prompts = [p for split, n in (("test", 24), ("valid", 4)) for p in world.prompts(split, n)]
    write_records(root / "prompts.jsonl", prompts)
    (root / "prefixes.json").write_text(json.dumps(world.few_shot_prefixes(2)))
    pages = world.documents(20)
    lines = [json.dumps({"text": page}) + "\n" for page in pages]
    (root / "held_out.jsonl").write_text("".join(lines))
    texts = [p.text or "" for p in prompts] + world.few_shot_prefixes(2)
    tokenizer = train_tokenizer([*pages, *texts], kind="word")
    for seed, name in enumerate(("gpt", "sft", "ppo")):
        save_model(new_policy(TINY, tokenizer, seed), tokenizer, root / name / "model")
    save_model(new_policy(TINY, tokenizer, 0), tokenizer, root / "ppo-ptx" / "model")
    reward = load_scalar(root / "sft" / "model", init="normal", seed=0)
    save_model(reward, tokenizer, root / "rm" / "model")
    sets = [
        CandidateSet(
            id=d.id,
            prompt_id=d.prompt_id,
            prompt=d.prompt,
            candidates=tuple(
                Candidate(id=str(k), text=t, policy="x", temperature=1, seed=0, finish="stop")
                for k, t in enumerate((d.response, " I do not know.", " Yes."))
            ),
        )
        for d in world.demonstrations(12)
    ]
    write_records(root / "rankings.jsonl", world.label(sets, per_set=2, split="valid"))
    return Config(
        prompts=root / "prompts.jsonl",
        arms=(
            f"gpt={root}/gpt/model",
            "gpt-prompted",
            f"sft={root}/sft/model",
            f"ppo={root}/ppo/model",
            f"ppo-ptx={root}/ppo-ptx/model",
        ),
        world=root / "world.json",
        reward=root / "rm" / "model",
        held_out_rankings=root / "rankings.jsonl",
        few_shot=root / "prefixes.json",
        pretrain_held_out=root / "held_out.jsonl",
        stop_text="\n",
        max_new_tokens=8,
        side_by_side=3,
        resamples=200,
    )


def evaluate(config: Config, folder: Path) -> dict[str, Any]:
    run = RunDir(folder)
    run.start(config, [], ["tercet", "eval"])
    main(config, run, Ranks.start("cpu"))
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def folder(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    evaluate(config, path)
    return path


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().split("\n") if line]


def test_the_report_has_the_agreed_keys(report: dict[str, Any]) -> None:
    assert list(report["arms"]) == ["gpt", "gpt-prompted", "sft", "ppo", "ppo-ptx"]
    for arm in report["arms"].values():
        assert 0 <= arm["low"] <= arm["win_rate"] <= arm["high"] <= 1
        assert arm["n"] == 24
        assert arm["wins"] + arm["ties"] + arm["losses"] == 24
    model = report["reward_model"]
    assert model["low"] <= model["accuracy"] <= model["high"]
    assert model["labeler_ceiling"] > 0.5
    assert model["labeler_agreement"] > 0.5
    assert report["judge"] == "simulated gold utility"


def test_tax_is_zero_for_the_base_and_for_equal_weights(report: dict[str, Any]) -> None:
    assert set(report["tax"]) == {"gpt", "gpt-prompted", "sft", "ppo", "ppo-ptx"}
    assert report["tax"]["gpt"] == report["tax"]["gpt-prompted"] == report["tax"]["ppo-ptx"] == 0
    assert report["tax"]["ppo"] != 0


def test_the_sft_arm_is_another_sample_than_the_baseline(folder: Path) -> None:
    texts = {(row["arm"], row["prompt_id"]): row["text"] for row in rows(folder, "replies.jsonl")}
    ids = {prompt for _, prompt in texts}
    assert any(texts["sft", prompt] != texts["baseline", prompt] for prompt in ids)


def test_arms_of_equal_weights_still_draw_their_own_replies(folder: Path) -> None:
    texts = {(row["arm"], row["prompt_id"]): row["text"] for row in rows(folder, "replies.jsonl")}
    ids = {prompt for _, prompt in texts}
    assert any(texts["gpt", prompt] != texts["ppo-ptx", prompt] for prompt in ids)


def test_every_reply_obeys_the_stop_rule(folder: Path) -> None:
    for row in rows(folder, "replies.jsonl"):
        assert "\n" not in row["text"]
        assert row["tokens"] <= 8


def test_the_prefix_with_the_highest_mean_reward_is_used(report: dict[str, Any]) -> None:
    candidates = report["few_shot"]["candidates"]
    best = max(candidates, key=lambda candidate: candidate["mean_reward"])
    assert report["few_shot"]["prefix"] == best["prefix"]


def test_the_same_seed_gives_the_same_bytes(config: Config, folder: Path, tmp_path: Path) -> None:
    evaluate(config, tmp_path)
    for name in ("report.json", "replies.jsonl", "report.md", "figure1.svg", "candidates.jsonl"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_samples_show_all_arms_on_the_same_prompts(folder: Path) -> None:
    shown = rows(folder, "samples/side_by_side.jsonl")
    assert len(shown) == 3
    arms = [reply["arm"] for reply in shown[0]["replies"]]
    assert arms == ["baseline", "gpt", "gpt-prompted", "sft", "ppo", "ppo-ptx"]


def test_kept_replies_are_judged_without_models(
    config: Config, folder: Path, report: dict[str, Any], tmp_path: Path
) -> None:
    again = replace(
        config,
        replies=folder / "replies.jsonl",
        pretrain_held_out=None,
        judge="reward",
        arms=("gpt=gone", "sft=gone", "ppo=gone"),
    )
    found = evaluate(again, tmp_path)
    assert found["judge"] == "reward model rm"
    assert found["arms"]["ppo"]["gold"] == report["arms"]["ppo"]["gold"]
    assert found["arms"]["ppo"]["by_judge"] == report["arms"]["ppo"]["by_judge"]


def test_a_kept_baseline_is_compared_with(
    config: Config, folder: Path, report: dict[str, Any], tmp_path: Path
) -> None:
    later = replace(
        config,
        baseline_replies=folder / "baseline.jsonl",
        arms=tuple(arm for arm in config.arms if arm.startswith(("gpt=", "ppo="))),
    )
    found = evaluate(later, tmp_path)
    assert found["baseline"]["replies_sha256"] == report["baseline"]["replies_sha256"]
    assert found["arms"]["ppo"]["win_rate"] == report["arms"]["ppo"]["win_rate"]


def test_equal_replies_tie_by_the_reward_model(
    config: Config, folder: Path, tmp_path: Path
) -> None:
    kept = rows(folder, "replies.jsonl")
    words = {row["prompt_id"]: row["text"] for row in kept if row["arm"] == "baseline"}
    for place, row in enumerate(kept):
        if row["arm"] == "sft" and place % 18 < 12:
            row |= {"text": words[row["prompt_id"]], "ended_by": "eos"}
        elif row["arm"] == "baseline":
            row["ended_by"] = "eos"
    equal = sum(r["arm"] == "sft" and r["text"] == words[r["prompt_id"]] for r in kept)
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    judged = replace(config, replies=tmp_path / "r.jsonl", judge="reward", pretrain_held_out=None)
    assert equal > 12
    assert evaluate(judged, tmp_path / "run")["arms"]["sft"]["ties"] == equal


def test_people_can_decide(config: Config, folder: Path, tmp_path: Path) -> None:
    """Whoever ranks ppo first everywhere makes it win everywhere."""
    ranked = [
        Ranking(
            id=f"r/{shown.prompt_id}",
            prompt_id=shown.prompt_id,
            prompt=shown.prompt,
            judge="person",
            labeler="ann",
            replies=tuple(
                RankedReply(
                    id=c.id, text=c.text, policy=c.policy, rank=2 - ("ppo" in c.policy.split("|"))
                )
                for c in shown.candidates
            ),
        )
        for shown in read_records(folder / "candidates.jsonl", CandidateSet)
    ]
    write_records(tmp_path / "verdicts.jsonl", ranked)
    people = replace(
        config,
        judge="rankings",
        verdicts=tmp_path / "verdicts.jsonl",
        replies=folder / "replies.jsonl",
        pretrain_held_out=None,
        arms=("sft=gone", "ppo=gone"),
    )
    found = evaluate(people, tmp_path / "run")
    assert found["judge"] == "people (1)"
    assert found["arms"]["ppo"]["losses"] == 0
    assert found["arms"]["ppo"]["win_rate"] > 0.9
    assert found["arms"]["sft"]["wins"] == 0 or found["arms"]["sft"]["win_rate"] <= 0.5


def test_best_of_n_scores_higher_than_one_sample(config: Config, tmp_path: Path) -> None:
    found = evaluate(
        replace(config, arms=(config.arms[2], "bon:8"), pretrain_held_out=None), tmp_path
    )
    assert found["arms"]["bon:8"]["reward"] > found["arms"]["sft"]["reward"]
    assert found["arms"]["bon:8"]["best_of_n_kl"] == pytest.approx(1.204442)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": ("tset",)}, "no prompt has split 'tset'; it has test, valid"),
        ({"reward": None, "held_out_rankings": None}, "chosen by a reward model"),
        ({"few_shot": None}, "gpt-prompted needs candidate prefixes"),
        ({"base": "gtp"}, "no arm is called 'gtp'"),
        ({"held_out_split": "test"}, "no ranking has split 'test'"),
    ],
)
def test_wrong_input_is_named(
    config: Config, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(replace(config, **change), tmp_path)


def test_a_judge_needs_its_files(config: Config) -> None:
    with pytest.raises(ValueError, match='judge = "gold" needs world'):
        replace(config, world=None)
