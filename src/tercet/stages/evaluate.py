"""eval: all arms' replies to held-out prompts, who wins against the SFT baseline, and the tax.

The baseline's replies are drawn once and kept; the arm of the same model draws its own, so that
its win rate is measured like any other's and not 0.5 by construction (InstructGPT 3.6, Figure 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tercet.data.importers import read_texts
from tercet.data.tokens import windows
from tercet.judge import Judge, few_shot, gold, rankings, reward
from tercet.judge.accuracy import reward_report
from tercet.judge.arms import (
    BASELINE,
    Arm,
    Policy,
    Reply,
    Request,
    Sampling,
    baseline_arm,
    best_of,
    parse_arms,
    sample,
)
from tercet.judge.outcomes import win_report
from tercet.judge.replies import candidate_sets, read_replies, reply_rows, write_rows
from tercet.judge.summary import Comparison, side_by_side
from tercet.model.load import fingerprint
from tercet.model.shard import Ranks
from tercet.model.train import held_out_nll, window_documents
from tercet.records import InputError, Prompt, Ranking, prompt_text, read_records, write_records
from tercet.report import page
from tercet.report.report_json import write_report
from tercet.rundir import RunDir, content_hash, progress
from tercet.world import World


@dataclass(frozen=True, kw_only=True)
class Config:
    prompts: Path
    """tercet.prompt/1 records."""
    splits: tuple[str, ...] = ("test",)
    """Held-out splits. The first one gives the headline, each other one a slice of its own."""
    arms: tuple[str, ...]
    """Policies as "name=model folder": gpt, gpt-prompted, sft, ppo, ppo-ptx, or other names.
    Without a folder, gpt-prompted takes gpt's and "bon:16" (best of 16 by the reward model) sft's.
    "ppo@1.3b=..." names one of several sizes; Figure 1 then has the parameters as its x axis."""
    baseline: str = "sft"
    """The arm whose model the others are compared with."""
    baseline_replies: Path | None = None
    """baseline.jsonl of an earlier evaluation: compare with those replies instead of new ones."""
    replies: Path | None = None
    """replies.jsonl of an earlier evaluation: judge those instead of generating."""
    judge: Literal["gold", "reward", "rankings"] = "gold"
    """Who decides the headline: the world's utility (simulated), the reward model, or rankings."""
    world: Path | None = None
    """world.json, for the gold utility and counts of wrong facts, rudeness, broken grammar."""
    reward: Path | None = None
    """Reward model folder, for scores, the choice of the few-shot prefix, and best-of-n."""
    verdicts: Path | None = None
    """Rankings made on candidates.jsonl of an earlier evaluation, for judge = "rankings"."""
    held_out_rankings: Path | None = None
    """Rankings that the reward model was not trained on, for its accuracy and calibration."""
    held_out_criterion: str | None = None
    """Use only those of this criterion."""
    held_out_split: str | None = "valid"
    """Use only those rankings of this split."""
    few_shot: Path | None = None
    """Prefixes for gpt-prompted: a .json list of texts, tercet.prompt/1 records (a prefix each), or
    tercet.demonstration/1 records to build prefixes from. The highest mean reward on validation
    prompts wins."""
    few_shot_candidates: int = 8
    """Prefixes to build from demonstrations."""
    few_shot_shots: int = 3
    """Demonstrations in a built prefix."""
    few_shot_join: str = "\n"
    """Text after each demonstration of a built prefix."""
    few_shot_split: str = "valid"
    """Prompts of this split choose the prefix."""
    few_shot_prompts: int = 48
    """So many of them."""
    temperature: float = 1.0
    """Sampling temperature of every arm; 0 is greedy."""
    temperatures: tuple[str, ...] = ()
    """Exceptions as "arm=temperature", "baseline=..." included."""
    max_new_tokens: int = 64
    stop_text: str = ""
    """A reply also ends where this text begins ("\\n": one-line replies), for all arms alike."""
    pretrain_held_out: Path | None = None
    """Held-out pretraining text: its loss minus the base model's is the alignment tax."""
    base: str = "gpt"
    """The arm that the tax is counted from."""
    context: int = 128
    """Tokens in a window of that text."""
    max_texts: int | None = 1000
    """Use only the first so many texts."""
    curves: tuple[str, ...] = ()
    """PPO run folders as "name=folder", for the figure of training curves."""
    over_optimisation: Path | None = None
    """A PPO run folder that logged a gold score, for the figure of proxy and gold over KL."""
    max_prompts: int | None = None
    """Use only the first so many prompts of each split."""
    side_by_side: int = 20
    """Prompts in samples/side_by_side.md, drawn by `seed`, not chosen."""
    resamples: int = 10_000
    """Bootstrap resamples over prompts."""
    slots: int = 128
    """Replies decoded at a time on one rank."""
    token_budget: int = 16384
    """Tokens in one forward pass of one rank."""
    seed: int = 0

    def __post_init__(self) -> None:
        needs = {"gold": self.world, "reward": self.reward, "rankings": self.verdicts}
        option = {"gold": "world", "reward": "reward", "rankings": "verdicts"}[self.judge]
        if needs[self.judge] is None:
            raise ValueError(f'judge = "{self.judge}" needs {option}')
        if not self.splits or not self.arms:
            raise ValueError("splits and arms need at least one entry")
        if self.held_out_rankings and not self.reward:
            raise ValueError("held_out_rankings needs reward")


@dataclass
class Passed:
    """What one pass over the models gave."""

    replies: dict[str, list[Reply]] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    """Held-out pretraining loss by arm, nats a token; not for another tokenizer than base's."""
    few_shot: dict[str, Any] | None = None


def main(config: Config, run: RunDir, ranks: Ranks) -> None:
    """Generate, judge, count, draw; leaves report.json, report.md, figure1, samples, replies."""
    arms = parse_arms(config.arms, config.temperatures, config.temperature)
    prompts = held_out_prompts(config)
    judges: dict[str, Judge] = {}
    if config.world:
        judges["gold"] = gold.GoldJudge(World.load(config.world))
    if config.reward:
        judges["reward"] = reward.load(config.reward, ranks, config.token_budget)

    passed = pass_over_models(config, arms, prompts, judges.get("reward"), ranks)
    texts = [prompt_text(prompt) for prompt in prompts]
    scores = {kind: all_scores(judge, texts, passed.replies) for kind, judge in judges.items()}
    reward_model = held_out_report(config, judges)
    if not ranks.main:
        return
    comparison = Comparison(
        arms, prompts, passed.replies, scores, config.splits, config.resamples, config.seed
    )
    write_replies(config, run.path, comparison)
    report = build_report(config, comparison, passed, judges)
    report["baseline"]["replies_sha256"] = content_hash(run.path / "baseline.jsonl")
    report["reward_model"] = reward_model
    drawn = page.draw(run.path, report, *ppo_metrics(config))
    write_report(run.path / "report.json", report)
    samples = side_by_side(comparison, config.side_by_side)
    write_rows(run.path / "samples" / "side_by_side.jsonl", samples)
    page.write_page(run.path, report, drawn, samples)
    page.show(run.path, report, drawn, samples)
    run.finish({key: report[key] for key in ("judge", "arms", "tax")})


def held_out_prompts(config: Config) -> list[Prompt]:
    """Prompts of the configured splits, split after split."""
    records = read_records(config.prompts, Prompt)
    found: list[Prompt] = []
    for split in config.splits:
        part = [record for record in records if record.split == split][: config.max_prompts]
        if not part:
            known = ", ".join(sorted({record.split or "(none)" for record in records}))
            raise InputError(f"{config.prompts}: no prompt has split '{split}'; it has {known}")
        found += part
    if len({prompt.id for prompt in found}) < len(found):
        raise InputError(f"{config.prompts}: two prompts have the same id; ids must differ")
    return found


def pass_over_models(
    config: Config,
    arms: Sequence[Arm],
    prompts: Sequence[Prompt],
    scorer: Judge | None,
    ranks: Ranks,
) -> Passed:
    """Every arm's replies, and its loss on pretraining text; each model is loaded once."""
    passed = Passed()
    if config.replies:
        passed.replies = read_replies(config.replies, [BASELINE, *(a.name for a in arms)], prompts)
    elif config.baseline_replies:
        passed.replies = read_replies(config.baseline_replies, [BASELINE], prompts)
    missing = [arm for arm in arms if arm.name not in passed.replies]
    if BASELINE not in passed.replies:
        missing.append(baseline_arm(config.baseline, arms, config.temperatures))
    if scorer is None and any(arm.prompted or arm.samples > 1 for arm in missing):
        raise InputError("arms gpt-prompted and bon:N are chosen by a reward model; give `reward`")
    base = next((arm.model for arm in arms if arm.name == config.base), None)
    if config.pretrain_held_out and base is None:
        raise InputError(f"base: no arm is called '{config.base}', so there is no tax; name one")

    measured = arms if config.pretrain_held_out else []
    by_model = dict.fromkeys(arm.model for arm in [*measured, *missing])
    base_tokenizer: str | None = None
    total = len(prompts) * sum(arm.samples for arm in missing)
    with progress(total, "eval", "sample", show=ranks.main) as bar:
        # The base model first: a loss with another tokenizer than its own cannot be compared.
        for model in sorted(by_model, key=lambda path: path != base):
            policy = Policy.load(model, ranks)
            users = [arm.name for arm in arms if arm.model == model]
            count = sum(parameter.numel() for parameter in policy.model.parameters())
            passed.parameters |= dict.fromkeys(users, count)
            if config.pretrain_held_out:
                base_tokenizer = base_tokenizer or fingerprint(policy.tokenizer)
                if fingerprint(policy.tokenizer) == base_tokenizer:
                    loss = pretraining_loss(config, policy, ranks)
                    passed.losses |= dict.fromkeys(users, loss)
            wanted = [arm for arm in missing if arm.model == model]
            generate(config, policy, wanted, prompts, scorer, passed, ranks, bar)
    order = [BASELINE, *(arm.name for arm in arms)]
    passed.replies = {name: passed.replies[name] for name in order}
    return passed


def generate(
    config: Config, policy: Policy, wanted: Sequence[Arm], prompts: Sequence[Prompt],
    scorer: Judge | None, passed: Passed, ranks: Ranks, bar: Any,
) -> None:  # fmt: skip
    """Replies of all arms of one model, one call for each temperature."""
    settings = Sampling(config.max_new_tokens, config.stop_text, config.seed, config.slots)
    for heat in sorted({arm.temperature for arm in wanted}):
        part = [arm for arm in wanted if arm.temperature == heat]
        prefix = ""
        if any(arm.prompted for arm in part):
            assert scorer is not None
            passed.few_shot = choose_prefix(config, policy, scorer, settings, heat, ranks)
            prefix = passed.few_shot["prefix"]
        requests = [
            Request(arm.name, p.id, prefix * arm.prompted + prompt_text(p), arm.samples)
            for arm in part
            for p in prompts
        ]
        drawn = iter(
            sample(policy, requests, settings, heat, ranks, lambda _: bar.advance(ranks.size))
        )
        for arm in part:
            rows = [next(drawn) for _ in prompts]
            passed.replies[arm.name] = best_of(rows, [prompt_text(p) for p in prompts], scorer)


def choose_prefix(
    config: Config, policy: Policy, scorer: Judge, settings: Sampling, heat: float, ranks: Ranks
) -> dict[str, Any]:
    """The candidate prefix with the highest mean reward on validation prompts, and all scores."""
    if config.few_shot is None:
        raise InputError("gpt-prompted needs candidate prefixes; give `few_shot`")
    prefixes = few_shot.read_prefixes(
        config.few_shot,
        config.few_shot_candidates,
        config.few_shot_shots,
        config.few_shot_join,
        config.seed,
    )
    valid = [p for p in read_records(config.prompts, Prompt) if p.split == config.few_shot_split]
    if not valid:
        raise InputError(f"{config.prompts}: no prompt has split '{config.few_shot_split}'")
    valid = valid[: config.few_shot_prompts]
    means = few_shot.score_prefixes(policy, prefixes, valid, scorer, settings, heat, ranks)
    best = means.index(max(means))
    return {
        "chosen": best,
        "prefix": prefixes[best],
        "judge": scorer.name,
        "prompts": len(valid),
        "candidates": [
            {"mean_reward": mean, "prefix": prefix}
            for mean, prefix in zip(means, prefixes, strict=True)
        ],
    }


def pretraining_loss(config: Config, policy: Policy, ranks: Ranks) -> float:
    """Token-mean loss in nats on the held-out pretraining text."""
    assert config.pretrain_held_out is not None
    texts = read_texts(config.pretrain_held_out, config.max_texts)
    documents = window_documents(windows(policy.tokenizer, texts, config.context))
    return held_out_nll(policy.model, documents, ranks, token_budget=config.token_budget)


def all_scores(
    judge: Judge, prompts: Sequence[str], replies: Mapping[str, Sequence[Reply]]
) -> dict[str, list[float]]:
    """Scores of every arm, asked for in one call, so that equal replies to a prompt tie.

    Scored in batches of their own, a reward model would tell them apart by rounding.
    """
    rows = [reply for part in replies.values() for reply in part]
    scores = iter(
        judge.score(list(prompts) * len(replies), [r.text for r in rows], [r.finish for r in rows])
    )
    return {arm: [next(scores) for _ in part] for arm, part in replies.items()}


def held_out_report(config: Config, judges: Mapping[str, Judge]) -> dict[str, Any] | None:
    """The reward model on rankings it was not trained on; with a world also the ceiling."""
    if config.held_out_rankings is None:
        return None
    records = [
        record
        for record in read_records(config.held_out_rankings, Ranking)
        if (config.held_out_split is None or record.split == config.held_out_split)
        and (config.held_out_criterion is None or record.criterion == config.held_out_criterion)
    ]
    if not records:
        raise InputError(
            f"{config.held_out_rankings}: no ranking has split '{config.held_out_split}'"
            + (f" and criterion '{config.held_out_criterion}'" if config.held_out_criterion else "")
            + "; set held_out_split"
        )
    found = {kind: rankings.score_rankings(judge, records) for kind, judge in judges.items()}
    return reward_report(
        found["reward"], records, found.get("gold"), resamples=config.resamples, seed=config.seed
    )


def build_report(
    config: Config, comparison: Comparison, passed: Passed, judges: Mapping[str, Judge]
) -> dict[str, Any]:
    """Everything in report.json that comes from the arms; headline numbers on the first split."""
    first = comparison.first
    names = {kind: judge.name for kind, judge in judges.items()}
    report: dict[str, Any] = {
        "judge": names.get(config.judge),
        "prompts": {"file": config.prompts.name, "split": config.splits[0], "n": len(first)},
        "baseline": {"name": config.baseline, **comparison.describe(BASELINE)},
    }
    if config.judge == "rankings":
        report["judge"], wins = people_wins(config, comparison)
        report["arms"] = {name: won | comparison.describe(name) for name, won in wins.items()}
    else:
        report["arms"] = comparison.report(config.judge, names)
        report["differences"] = comparison.differences(config.judge)
    for name, arm in report["arms"].items():
        arm["parameters"] = passed.parameters.get(name)
    if isinstance(judge := judges.get("gold"), gold.GoldJudge):
        for name, rows in comparison.replies.items():
            judged = judge.judgements(
                [prompt_text(comparison.prompts[i]) for i in first],
                [rows[i].text for i in first],
                [rows[i].finish for i in first],
            )
            described = report["baseline"] if name == BASELINE else report["arms"][name]
            described["world"] = gold.summary(judged)
    base = passed.losses.get(config.base)
    report["tax"] = {name: loss - base for name, loss in passed.losses.items() if base is not None}
    report["pretraining_loss"] = passed.losses
    report["few_shot"] = passed.few_shot
    return report


def people_wins(config: Config, comparison: Comparison) -> tuple[str, dict[str, dict[str, Any]]]:
    """(who ranked, arm -> win report) from rankings of this evaluation's replies."""
    assert config.verdicts is not None
    in_split = {comparison.prompts[i].id for i in comparison.first}
    records = [r for r in read_records(config.verdicts, Ranking) if r.prompt_id in in_split]
    texts = {
        (name, prompt.id): row.text
        for name, rows in comparison.replies.items()
        for prompt, row in zip(comparison.prompts, rows, strict=True)
    }
    rankings.check_texts(records, texts, config.verdicts)
    wins = {}
    for arm in comparison.arms:
        found = rankings.verdicts(records, arm.name, BASELINE)
        if not found:
            raise InputError(
                f"{config.verdicts}: no ranking compares '{arm.name}' with the baseline; "
                "rank the candidates.jsonl of an evaluation with this arm"
            )
        wins[arm.name] = win_report(
            [verdict.outcome for verdict in found],
            [verdict.prompt_id for verdict in found],
            resamples=config.resamples,
            seed=config.seed,
        )
    return rankings.judge_name(records), wins


def ppo_metrics(config: Config) -> tuple[dict[str, list[Any]], list[Any]]:
    """Metrics of the PPO runs to draw, and of the run that shows over-optimisation."""
    curves = {}
    for text in config.curves:
        name, _, folder = text.partition("=")
        curves[name] = RunDir(Path(folder)).metrics()
    if config.over_optimisation is None:
        return curves, []
    rows = RunDir(config.over_optimisation).metrics()
    if sum(row.get("gold") is not None for row in rows) < 2:
        raise InputError(
            f"{config.over_optimisation}: no gold scores in its metrics.jsonl; run ppo with `world`"
        )
    return curves, rows


def write_replies(config: Config, folder: Path, comparison: Comparison) -> None:
    """replies.jsonl, baseline.jsonl to compare with later, candidates.jsonl for people to rank."""
    rows = reply_rows(comparison.prompts, comparison.replies, comparison.scores)
    write_rows(folder / "replies.jsonl", rows)
    write_rows(folder / "baseline.jsonl", [row for row in rows if row["arm"] == BASELINE])
    heat = {arm.name: arm.temperature for arm in comparison.arms}
    heat[BASELINE] = heat.get(config.baseline, config.temperature)
    sets = candidate_sets(comparison.prompts, comparison.replies, heat, config.seed)
    write_records(folder / "candidates.jsonl", sets)
