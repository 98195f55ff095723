"""One PPO iteration, episodes a second: tercet against TRL's PPOTrainer on equal models and data.

    python -m benchmarks.ppo                            # one CUDA device, about 5 minutes
    python -m benchmarks.ppo --replies 256              # without replies of 1,024 tokens, 3 minutes
    python -m benchmarks.ppo --small                    # toy size, on the CPU, a minute

128 episodes: prompts of 256 tokens, replies of 256 (and, as a second workload, of 1,024) at
temperature 1 without a stop token, so that every reply has its full length. Policy, value, reward
and reference are llamas of 1.2B with a vocabulary of 50,304; 2 minibatches, 1 epoch. tercet runs
what its stage `ppo` runs: `roll_out`, `measure`, `judge_batch`, `update`, with float32 weights and
optimizer states, bf16 autocast, frozen models in bf16.

TRL runs at several rollout batches, without gradient checkpointing where that fits, its largest
micro-batch by a memory estimate. Its weights are bf16 throughout, the optimizer's states too,
unless --trl-weights float32: less exact than tercet's, but its fastest way, since its generation
and scoring do not run under autocast.

The floor is the operations that the algorithm must do at the measured matrix rate (one scoring pass
of each model, a training step of policy and value) and the decoding floor of benchmarks.rollout.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import models
from benchmarks.counting import Decoding, Shape, causal_pairs, decoding, forward_flops
from benchmarks.engines import Benchmark, Claim, Engine, Row, Rows, device, dtype, main
from benchmarks.measure import (
    GIB,
    clock,
    free_memory,
    peak_gib,
    reset_peak,
    spread,
    timed,
    versions,
)
from tercet.model import load
from tercet.model.frozen import halve
from tercet.model.optim import Learner, adam
from tercet.model.shard import Ranks
from tercet.rollout import Engine as Rollouts
from tercet.rollout.experience import Sampling, Scorer, judge_batch, measure, roll_out
from tercet.rollout.monitor import summarise
from tercet.rollout.phases import Phases, Room
from tercet.rollout.update import Learning, fitted, update
from tercet.stages import ppo

VOCABULARY = 50_304
MINIBATCHES = 2
# What one token leaves behind in one 1.2B model until the backward pass, without checkpointing.
ACTIVATION_BYTES = 2.6e6


@dataclass(frozen=True)
class Workload:
    episodes: int
    prompt: int
    reply: int

    @property
    def name(self) -> str:
        return f"{self.prompt} + {self.reply}"

    def prompts(self, vocabulary: int, seed: int) -> list[list[int]]:
        return models.texts([self.prompt] * self.episodes, vocabulary, seed)


def workloads(options: argparse.Namespace) -> list[Workload]:
    if options.small:
        return [Workload(4, 8, 8)]
    return [Workload(128, 256, reply) for reply in options.replies]


def sizes(options: argparse.Namespace) -> Any:
    return models.config(VOCABULARY, options.small)


# --- tercet ---------------------------------------------------------------------------------------


@dataclass
class Trained:
    """Models and optimizers of a run, and the options of the stage."""

    policy: Learner
    value: Learner
    reference: Any
    reward: Any
    config: ppo.Config
    ranks: Ranks
    tokenizer: Any
    engine: Rollouts
    room: Room
    phases: Phases


def prepare(work: Workload, options: argparse.Namespace) -> Trained:
    where, nowhere = device(options), Path("unused")
    config = ppo.Config(
        policy=nowhere, reward=nowhere, prompts=nowhere, episodes=work.episodes,
        rollout_batch=work.episodes, minibatch=work.episodes // MINIBATCHES, inner_epochs=1,
        max_new_tokens=work.reply, ema=None, slots=work.episodes,
        token_budget=options.token_budget or token_budget(where),
    )  # fmt: skip
    policy = models.policy(sizes(options), where, torch.float32, seed=0)
    reference = models.policy(sizes(options), where, torch.float32, seed=0)
    reward = models.scalar(sizes(options), where, torch.float32, seed=1)
    value = models.scalar(sizes(options), where, torch.float32, seed=1)
    for frozen in (reference, reward):
        frozen.requires_grad_(False)
        if where.type == "cuda":
            halve(frozen)
    for model in (policy, value, reference, reward):
        models.compiled(model, options.compile)
    if options.recompute:
        for model in (policy, value):
            load.checkpoint_activations(model)
    engine = Rollouts(policy, length=work.prompt + work.reply, compile=options.compile)
    learners = [
        Learner(model, adam(model.parameters(), 1e-6, eps=config.adam_eps))
        for model in (policy, value)
    ]
    return Trained(
        *learners, reference, reward, config, Ranks(device=where),
        models.tokenizer(sizes(options).vocab_size), engine, Room(engine), Phases(where),
    )  # fmt: skip


def token_budget(where: torch.device) -> int:
    """Tokens of a pack: two models with optimizer states leave a small GPU room for 8,192."""
    roomy = where.type == "cpu" or torch.cuda.get_device_properties(where).total_memory > 100 * GIB
    return 16_384 if roomy else 8_192


def iterate(run: Trained, work: Workload, number: int) -> float | None:
    """One iteration as in the stage; the peak of memory in it. Seconds add up in `run.phases`."""
    config, ranks, phases = run.config, run.ranks, run.phases
    sampling = Sampling(
        config.samples, config.max_new_tokens, config.temperature, (), config.truncate_after,
        config.slots, config.token_budget, config.precision,
    )  # fmt: skip
    learning = Learning(**{f.name: getattr(config, f.name) for f in fields(Learning)})
    ids = work.prompts(run.policy.model.config.vocab_size, seed=number)
    mine = [("", prompt, i) for i, prompt in enumerate(ids)]
    scorer = Scorer(run.reward, run.tokenizer, same_tokenizer=True)
    reset_peak()
    with phases("rollout"):
        rolled = roll_out(run.engine, mine, sampling, number)
    peak = peak_gib()
    if number == 0:
        budget = fitted(mine, rolled, [], work.prompt + work.reply, learning, ranks)
        sampling, learning = ppo.packing(sampling, learning, budget)
        run.config = replace(config, token_budget=budget)
    run.room.make()  # resets the peak
    with phases("score"):
        groups = measure(
            run.policy.model, run.reference, run.value.model, scorer, run.tokenizer, mine, rolled,
            sampling, ranks,
        )  # fmt: skip
    assert all(len(reply) == work.reply for group in groups for reply in group.replies)
    with phases("advantages"):
        batch = judge_batch(
            groups, beta=config.beta, kl_kind=config.kl_estimator,
            missing_eos=config.missing_eos, missing_eos_penalty=config.missing_eos_penalty,
            score_clip=config.score_clip, whiten_rewards=config.whiten_rewards,
            whiten_advantages=config.whiten_advantages, gamma=config.gamma, lam=config.lam,
            algorithm=config.algorithm, device=ranks.device,
        )  # fmt: skip
        summarise(batch, config.beta)
    with phases("update"):
        update(
            run.policy, run.value, batch, [], number, learning, ranks,
        )  # fmt: skip
    run.room.remember()
    last = peak_gib()
    return None if peak is None or last is None else max(peak, last)


def tercet(options: argparse.Namespace) -> Iterator[Row]:
    for work in workloads(options):
        yield iterations(work, options)
        free_memory()


def iterations(work: Workload, options: argparse.Namespace) -> Row:
    run = prepare(work, options)
    for number in range(2):  # the engine learns in the first whether it may keep its storage
        iterate(run, work, number)
    run.phases.take()
    peaks: list[float | None] = []
    seconds = timed(
        lambda i: peaks.append(iterate(run, work, 10 + i)), options.repeats, options.budget
    )
    phases = {name.removeprefix("seconds/"): s for name, s in run.phases.take().items()}
    settings = {
        "token_budget": run.config.token_budget,
        "compile": options.compile,
        "recompute": options.recompute,
    }
    return row(
        work, options, seconds, phases, settings=settings,
        peak_gib=max((peak for peak in peaks if peak), default=None),
        versions=versions("torch", "transformers"),
    )  # fmt: skip


# --- TRL ------------------------------------------------------------------------------------------


def trl(options: argparse.Namespace, rollout_batch: int) -> Iterator[Row]:
    """PPOTrainer at one rollout batch; long replies only at those of --trl-long."""
    for work in workloads(options):
        if work.reply > 256 and rollout_batch not in options.trl_long:
            continue
        batch = min(rollout_batch, work.episodes)
        for attempt in attempts(work, options):
            reset_peak()
            try:
                seconds, phases = train(work, options, batch, **attempt)
            except torch.cuda.OutOfMemoryError:
                print(f"{work.name}: {attempt} does not fit", file=sys.stderr, flush=True)
            else:
                yield row(
                    work, options, seconds, phases,
                    settings={"rollout_batch": batch, "weights": trl_weights(options), **attempt},
                    versions=versions("torch", "transformers", "trl"),
                )  # fmt: skip
                break
            free_memory()  # outside the handler: the traceback holds the models
        else:
            raise MemoryError(f"{work.name}: out of memory at rollout batch {batch}")
        free_memory()


def trl_weights(options: argparse.Namespace) -> str:
    return options.trl_weights if options.device == "cuda" else "float32"


def attempts(work: Workload, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Micro-batches to try, fastest first; the first without checkpointing is an estimate."""
    most = work.episodes // MINIBATCHES
    if options.trl_micro:
        return [{"micro_batch": options.trl_micro, "checkpointing": options.trl_checkpointing}]
    if options.device == "cpu":
        return [{"micro_batch": most, "checkpointing": False}]
    model_bytes = (2 if options.trl_weights == "bfloat16" else 4) * 1.08e9
    logits = work.reply * VOCABULARY * 4
    taken = 10 * model_bytes + work.episodes * logits + 6e9
    one = 2 * (work.prompt + work.reply) * ACTIVATION_BYTES + 5 * logits
    room = torch.cuda.get_device_properties(0).total_memory - taken
    fits = max((m for m in (1, 2, 4, 8, 16, 32) if m * one < room and m <= most), default=1)
    plain = [{"micro_batch": m, "checkpointing": False} for m in (fits, fits // 2) if m]
    return [*plain, *({"micro_batch": m, "checkpointing": True} for m in (16, 4))]


def train(
    work: Workload, options: argparse.Namespace, rollout_batch: int, micro_batch: int,
    checkpointing: bool,
) -> tuple[list[float], dict[str, float]]:  # fmt: skip
    """(seconds of each update, seconds by phase over all of them), after a short warm-up."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.ppo import ppo_trainer

    updates = options.repeats if work.reply <= 256 else max(1, options.repeats // 2)
    updates = min(updates, options.trl_updates)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(work, options, rollout_batch, micro_batch, checkpointing, folder)
        arguments = trainer.args
        arguments.response_length, arguments.num_total_batches = min(16, work.reply), 1
        trainer.train()
        free_memory()
        arguments.response_length, arguments.num_total_batches = work.reply, updates
        generation: list[float] = []
        marks: list[float] = []
        whiten, generate = ppo_trainer.masked_whiten, ppo_trainer.batch_generation

        def rolled(*args: Any, **more: Any) -> Any:
            began = clock()
            found = generate(*args, **more)
            generation.append(clock() - began)
            return found

        def scored(*args: Any, **more: Any) -> Any:
            marks.append(clock())  # advantages are whitened once an update, between the halves
            return whiten(*args, **more)

        with (
            mock.patch.object(ppo_trainer, "batch_generation", rolled),
            mock.patch.object(ppo_trainer, "masked_whiten", scored),
            ends_of(trainer) as ends,
        ):
            began = clock()
            trainer.train()
            whole = clock() - began
    ends[-1] = began + whole  # what follows the last update is part of it
    training = sum(end - mark for end, mark in zip(ends, marks, strict=True))
    rollout = sum(generation)
    found = {"rollout": rollout, "score": whole - training - rollout, "update": training}
    return [end - start for start, end in itertools.pairwise([began, *ends])], found


@contextmanager
def ends_of(trainer: Any) -> Iterator[list[float]]:
    """When each update ended."""
    ends: list[float] = []
    log: Callable[..., Any] = trainer.log
    trainer.log = lambda *args, **more: (ends.append(clock()), log(*args, **more))[1]
    yield ends
    trainer.log = log


def trl_trainer(
    work: Workload, options: argparse.Namespace, rollout_batch: int, micro_batch: int,
    checkpointing: bool, folder: str,
) -> Any:  # fmt: skip
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    cuda = options.device == "cuda"
    where, made = device(options), sizes(options)
    kind = getattr(torch, trl_weights(options))
    policy, reference = (models.policy(made, where, kind, "sdpa", seed=0) for _ in range(2))
    value, reward = (models.classifier(made, where, kind, seed=1) for _ in range(2))
    for model in (policy, reference):
        model.config.use_cache = True
        model.generation_config.use_cache = True
    arguments = PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=work.episodes // micro_batch,
        num_mini_batches=MINIBATCHES,
        num_ppo_epochs=1,
        total_episodes=work.episodes,
        local_rollout_forward_batch_size=rollout_batch,
        response_length=work.reply,
        temperature=1.0,
        num_sample_generations=0,
        gradient_checkpointing=checkpointing,
        bf16=cuda,
        use_cpu=not cuda,
        learning_rate=1e-6,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    data = Dataset.from_dict({"input_ids": work.prompts(made.vocab_size, seed=1)})
    if checkpointing:
        policy.gradient_checkpointing_enable()
        value.gradient_checkpointing_enable()
    return PPOTrainer(
        args=arguments,
        processing_class=models.tokenizer(made.vocab_size, pad=made.vocab_size),
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        eval_dataset=data,
    )


# --- what follows ---------------------------------------------------------------------------------


def row(
    work: Workload, options: argparse.Namespace, seconds: list[float], phases: dict[str, float],
    **more: Any,
) -> Row:  # fmt: skip
    return {
        "workload": work.name,
        "episodes": work.episodes,
        "counted": counted(work, options),
        **spread(seconds),
        "phases": {name: round(s / len(seconds), 4) for name, s in phases.items()},
        "peak_gib": peak_gib(),
        **more,
    }


def counted(work: Workload, options: argparse.Namespace) -> dict[str, int]:
    """Operations of scoring and training, and operations and bytes of the rollouts."""
    writer, scorer = Shape.of(sizes(options)), Shape.of(sizes(options), scalar=True)
    length = work.prompt + work.reply
    pairs = causal_pairs(length)
    texts = forward_flops(writer, length, pairs, work.reply)
    values = forward_flops(scorer, length, pairs, work.reply)
    rewards = forward_flops(scorer, length, pairs, 1)
    decoded = decoding(
        writer, [work.prompt] * work.episodes, [work.reply] * work.episodes, work.episodes,
        dtype(options).itemsize,
    )  # fmt: skip
    return {
        "scoring_flops": work.episodes * (2 * texts + values + rewards),
        "training_flops": work.episodes * 3 * (texts + values),
        **decoded.__dict__,
    }


def complete(row: Row, machine: Row) -> Row:
    counts = dict(row["counted"])
    passes = counts.pop("scoring_flops") + counts.pop("training_flops")
    rate = machine["matmul_flops"]
    floor = passes / rate + Decoding(**counts).floor_seconds(rate, machine["copy_bytes"])
    seconds = row["median_seconds"]
    phases = "  ".join(f"{name} {spent:.2f}" for name, spent in row["phases"].items())
    return row | {
        "episodes_per_second": round(row["episodes"] / seconds, 3),
        "floor_seconds": round(floor, 4),
        "floor_episodes_per_second": round(row["episodes"] / floor, 2),
        "share_of_floor": round(floor / seconds, 4),
        "phases_line": phases,
    }


def best_trl(rows: Rows, work: str) -> float | None:
    """Episodes a second of TRL's fastest update at any rollout batch: the first ones are slower."""
    speeds = [
        r["episodes"] / min(r["seconds"])
        for r in rows.values()
        if r["workload"] == work and r["engine"].startswith("trl") and "episodes_per_second" in r
    ]
    return max(speeds, default=None)


def claims(rows: Rows) -> list[Claim]:
    def ratio(work: str) -> float | None:
        ours = rows.get(f"{work}/tercet", {}).get("episodes_per_second")
        theirs = best_trl(rows, work)
        return ours / theirs if ours and theirs else None

    ours = rows.get("256 + 256/tercet", {}).get("episodes_per_second")
    return [
        Claim("episodes/s, 256 + 256", 30, ours),
        Claim("times TRL's best rollout batch, 256 + 256", 2.5, ratio("256 + 256")),
        Claim("times TRL's best rollout batch, 256 + 1024", 5, ratio("256 + 1024")),
    ]


def plot(rows: Rows, machine: Row, stem: Path) -> None:
    from benchmarks.chart import Panel, bars

    panels = []
    for work in dict.fromkeys(r["workload"] for r in rows.values() if "floor_seconds" in r):
        here = [r for r in rows.values() if r["workload"] == work and "floor_seconds" in r]
        trl, times = best_trl(rows, work), {"256 + 256": 2.5, "256 + 1024": 5}.get(work)
        lines = {
            "floor": here[0]["floor_episodes_per_second"],
            f"{times} x TRL": trl * times if trl and times else None,
        }
        values = {r["engine"]: r["episodes_per_second"] for r in here}
        panels.append(Panel(f"prompt + reply tokens: {work}", values, lines))
    bars(panels, f"A PPO iteration, 4 x 1.2B on one {machine['device']}", "episodes/s", stem)


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--replies", type=numbers, default=[256, 1024], help="tokens of a reply, one a workload")
    add("--token-budget", type=int, help="tokens of one of tercet's packs; by memory if not given")
    add("--compile", default="auto", help="auto or off, for tercet's layers")
    add("--recompute", action="store_true", help="tercet recomputes activations to save memory")
    add("--trl-weights", choices=("bfloat16", "float32"), default="bfloat16")
    add("--trl-updates", type=int, default=2, help="timed updates of TRL, at most")
    add("--trl-long", type=numbers, default=[128], help="TRL's rollout batches for long replies")
    add("--trl-micro", type=int, help="TRL's micro-batch; by a memory estimate if not given")
    add("--trl-checkpointing", action="store_true", help="with --trl-micro")


BENCHMARK = Benchmark(
    name="ppo",
    about=__doc__.splitlines()[0],
    engines={
        "tercet": Engine(tercet),
        **{
            f"trl-{batch}": Engine(partial(trl, rollout_batch=batch), needs="trl")
            for batch in (128, 64, 32)
        },
    },
    columns=[
        ("episodes/s", "episodes_per_second", "{:.2f}"),
        ("seconds", "median_seconds", "{:.2f}"),
        ("of floor", "share_of_floor", "{:.1%}"),
        ("peak GiB", "peak_gib", "{:.1f}"),
        ("seconds by phase", "phases_line", "{}"),
    ],
    complete=complete,
    claims=claims,
    plot=plot,
    options=add_options,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
