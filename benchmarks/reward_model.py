"""A step of reward-model training, prompts a second: tercet's K-wise trees against TRL's pairs.

    python -m benchmarks.reward_model             # one CUDA device, about 3 minutes
    python -m benchmarks.reward_model --small     # toy size, on the CPU, a minute

The same rankings, without ties: 9 replies of 128 tokens to a prompt of 512. A step covers 16
prompts. tercet computes each prompt once and takes its loss from all 36 pairs; TRL's RewardTrainer
gets the 36 pairs as rows, which is all that it takes. Both train a 1.2B llama with a scalar head,
bf16 autocast over float32 weights, with AdamW and a gradient norm of at most 1.

MFU counts what the model must do, 6 x layer weights x tokens + attention, at the measured matrix
rate; a prompt's useful tokens are those of tercet's tree, so `mfu` of TRL says how busy it keeps
the GPU with its own 27.7 times as many tokens. "loss" compares both losses of one batch at equal
weights in float32 and in training precision.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import models
from benchmarks.counting import Shape, causal_pairs, forward_flops, tree_pairs
from benchmarks.engines import Benchmark, Claim, Engine, Row, Rows, device, main
from benchmarks.measure import free_memory, peak_gib, reset_peak, spread, timed, versions
from benchmarks.peers import StepClock, largest_that_fits, liger, training_arguments
from tercet.model import load
from tercet.model.optim import StepGuard, adam, clip_gradients
from tercet.model.shard import Ranks
from tercet.model.train import fitted_budget
from tercet.model.tree import Document
from tercet.records import RankedReply, Ranking
from tercet.stages import rm

VOCABULARY = 128_256
K = 9
CLIP = 1.0


def lengths(options: argparse.Namespace) -> tuple[int, int]:
    """Tokens of a prompt and of a reply."""
    return (24, 6) if options.small else (512, 128)


def examples(count: int, options: argparse.Namespace) -> list[tuple[Ranking, Document]]:
    """Rankings without ties, in a made-up order; only the ids are ever read."""
    vocabulary = models.SMALL_VOCABULARY if options.small else VOCABULARY
    prompt, reply = lengths(options)
    orders = torch.Generator().manual_seed(3)
    made = []
    for i, ids in enumerate(models.texts([prompt] * count, vocabulary, seed=1)):
        ranks = (torch.randperm(K, generator=orders) + 1).tolist()
        replies = models.texts([reply] * K, vocabulary, seed=1000 + i)
        ranked = [RankedReply(id=f"r{k}", text="", rank=rank) for k, rank in enumerate(ranks)]
        ranking = Ranking(
            id=f"{i}", prompt_id=f"p{i}", prompt="", replies=tuple(ranked), judge="simulated"
        )
        made.append((ranking, Document(ids, replies)))
    return made


def pair_rows(made: list[tuple[Ranking, Document]]) -> list[dict[str, list[int]]]:
    """All pairs of each ranking, as TRL's preprocessed rows."""
    rows = []
    for ranking, document in made:
        order = sorted(range(K), key=lambda k: ranking.replies[k].rank)
        whole = [[*document.prompt, *document.replies[k]] for k in order]
        rows += [
            {"chosen_ids": better, "rejected_ids": worse}
            for better, worse in itertools.combinations(whole, 2)
        ]
    return rows


def step_flops(options: argparse.Namespace, trees: bool) -> int:
    """Forward and backward of one optimizer step, in tercet's form or as pairs."""
    shape = Shape.of(models.config(VOCABULARY, options.small), scalar=True)
    prompt, reply = lengths(options)
    if trees:
        one = forward_flops(shape, prompt + K * reply, tree_pairs(prompt, [reply] * K), K)
    else:
        sequences = K * (K - 1)
        length = prompt + reply
        one = forward_flops(shape, sequences * length, sequences * causal_pairs(length), sequences)
    return 3 * one * options.prompts


def tokens_of(options: argparse.Namespace, trees: bool) -> int:
    """Tokens through the model in one step."""
    prompt, reply = lengths(options)
    return options.prompts * (prompt + K * reply if trees else K * (K - 1) * (prompt + reply))


def stage_config(options: argparse.Namespace, precision: str = "auto") -> rm.Config:
    nowhere = Path("unused")
    return rm.Config(
        model=nowhere, rankings=nowhere, demonstrations=nowhere, batch=options.prompts,
        token_budget=options.token_budget, precision=precision,  # type: ignore[arg-type]
    )  # fmt: skip


# --- engines --------------------------------------------------------------------------------------


def tercet(options: argparse.Namespace) -> Iterator[Row]:
    where = device(options)
    model = models.scalar(models.config(VOCABULARY, options.small), where, torch.float32)
    if options.recompute:
        load.checkpoint_activations(model)
    compiled = models.compiled(model, options.compile)
    model.score.bias.requires_grad_(False)
    optimizer = adam(model.parameters(), 1e-5)
    guard, ranks, config = StepGuard(), Ranks(device=where), stage_config(options)
    data = examples(options.prompts, options)
    trees = [tree for _, tree in data]
    budget = fitted_budget([trees], config.token_budget, max(map(len, trees)), ranks)
    config = replace(config, token_budget=budget)
    model.train()

    def step(_: int) -> None:
        optimizer.zero_grad()
        sums = rm.backward(model, data, ranks, config)
        norm = clip_gradients(model.parameters(), CLIP)
        guard.step(optimizer, float(ranks.sum(sums)[0]), norm)

    timed(step, 3, budget=120)
    reset_peak()
    seconds = timed(step, 2 * options.repeats, options.budget)
    yield row(
        options, seconds, trees=True, versions=versions("torch", "transformers"),
        settings={"token_budget": budget, "compiled": compiled, "recompute": options.recompute},
    )  # fmt: skip


def trl(options: argparse.Namespace) -> Iterator[Row]:
    """RewardTrainer on the pairs, one optimizer step over those of as many prompts."""
    steps = options.repeats + 1
    made = pair_rows(examples(options.prompts, options))
    sizes = [size for size in options.trl_pairs if len(made) % size == 0]
    with tempfile.TemporaryDirectory() as folder:
        size, (seconds, peak) = largest_that_fits(
            sizes, lambda size: train_pairs(made * steps, len(made), size, steps, folder, options)
        )
    settings = {"pairs_in_a_micro_batch": size, "attention": "sdpa", "liger": liger()}
    yield row(
        options, seconds[1:], trees=False, peak_gib=peak, settings=settings,
        versions=versions("torch", "transformers", "trl", "liger-kernel"),
    )  # fmt: skip


def train_pairs(
    rows: list[dict[str, list[int]]], batch: int, size: int, steps: int, folder: str,
    options: argparse.Namespace,
) -> tuple[list[float], float | None]:  # fmt: skip
    timer = StepClock()
    trainer = reward_trainer(rows, size, folder, options, steps=steps, batch=batch)
    trainer.add_callback(timer)
    trainer.train()
    return timer.seconds, peak_gib()


def reward_trainer(
    rows: list[dict[str, list[int]]], size: int, folder: str, options: argparse.Namespace,
    steps: int = 1, batch: int | None = None, **more: Any,
) -> Any:  # fmt: skip
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    cuda = options.device == "cuda"
    sizes = models.config(VOCABULARY, options.small)
    model = models.classifier(sizes, device(options), torch.float32)
    shared = training_arguments(folder, cuda, steps) | more
    arguments = RewardConfig(
        per_device_train_batch_size=size,
        gradient_accumulation_steps=(batch or size) // size,
        **shared,
    )
    return RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=models.tokenizer(sizes.vocab_size),
    )


def loss(options: argparse.Namespace) -> Iterator[Row]:
    """Both losses of one batch at the same weights, by each trainer's own code."""
    cuda = options.device == "cuda"
    for name, precision in [("float32", "float32"), *([("bf16", "bf16")] if cuda else [])]:
        made = examples(2, options)
        rows = pair_rows(made)
        where = device(options)
        with tempfile.TemporaryDirectory() as folder:
            more = {"bf16": precision == "bf16", "use_liger_kernel": False}
            trainer = reward_trainer(rows, 12, folder, options, **more)
            ours = models.scalar(models.config(VOCABULARY, options.small), where, torch.float32)
            ours.score.bias.requires_grad_(False)
            models.copy_weights(ours, trainer.model)
            mine = rm.backward(ours, made, Ranks(device=where), stage_config(options, precision))
            theirs = trl_loss(trainer, rows)
        yield {
            "workload": f"same loss, {name}",
            "tercet_loss": float(mine[0]),
            "trl_loss": theirs,
            "difference": abs(float(mine[0]) - theirs),
            "versions": versions("torch", "transformers", "trl"),
        }
        del trainer, ours
        free_memory()


def trl_loss(trainer: Any, rows: list[dict[str, list[int]]]) -> float:
    """Mean over micro-batches of the same number of pairs, as the trainer's own step takes it."""
    size = 12
    parts = []
    model = trainer.model.eval()
    for start in range(0, len(rows), size):
        inputs = trainer._prepare_inputs(trainer.data_collator(rows[start : start + size]))
        with torch.no_grad(), trainer.compute_loss_context_manager():
            parts.append(float(trainer.compute_loss(model, inputs)))
    return sum(parts) / len(parts)


def row(options: argparse.Namespace, seconds: list[float], trees: bool, **more: Any) -> Row:
    return {
        "workload": f"K = {K}",
        "prompts": options.prompts,
        "tokens": tokens_of(options, trees),
        "flops": step_flops(options, trees),
        "useful_flops": step_flops(options, trees=True),
        **spread(seconds),
        "peak_gib": peak_gib(),
        **more,
    }


# --- what follows ---------------------------------------------------------------------------------


def complete(row: Row, machine: Row) -> Row:
    if "flops" not in row:
        return row
    seconds, rate = row["median_seconds"], machine["matmul_flops"]
    return row | {
        "prompts_per_second": round(row["prompts"] / seconds, 3),
        "tokens_per_second": round(row["tokens"] / seconds),
        "mfu": round(row["flops"] / seconds / rate, 4),
        "useful_mfu": round(row["useful_flops"] / seconds / rate, 4),
    }


def claims(rows: Rows) -> list[Claim]:
    ours, theirs = rows.get(f"K = {K}/tercet", {}), rows.get(f"K = {K}/trl", {})
    speeds = ours.get("prompts_per_second"), theirs.get("prompts_per_second")
    ratio = speeds[0] / speeds[1] if speeds[0] and speeds[1] else None
    difference = rows.get("same loss, float32/loss", {}).get("difference")
    return [
        Claim("times TRL's RewardTrainer in prompts/s", 10, ratio),
        Claim("MFU", 0.45, ours.get("mfu")),
        Claim("|loss - TRL's loss|, float32", 1e-5, difference, at_most=True),
    ]


def plot(rows: Rows, machine: Row, stem: Path) -> None:
    from benchmarks.chart import Panel, bars

    values = {r["engine"]: r["prompts_per_second"] for r in rows.values() if "flops" in r}
    if not values:
        return
    trl = values.get("trl")
    floor = next(
        r["prompts"] / r["useful_flops"] * machine["matmul_flops"]
        for r in rows.values()
        if "flops" in r
    )
    lines = {"10 x TRL": 10 * trl if trl else None, "45% of the matrix rate": 0.45 * floor}
    title = f"Reward model, 9 replies a prompt, 1.2B on one {machine['device']}"
    bars([Panel("one optimizer step over 16 prompts", values, lines)], title, "prompts/s", stem)


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--prompts", type=int, default=16, help="prompts in an optimizer step")
    add("--token-budget", type=int, default=16_384, help="tokens in one of tercet's packs, at most")
    add("--recompute", action="store_true", help="tercet recomputes activations to save memory")
    add("--compile", default="auto", help="auto or off, for tercet's layers")
    add("--trl-pairs", default=[16, 12, 8, 4], help="micro-batches to try, the first that fits",
        type=lambda text: [int(word) for word in text.split(",")])  # fmt: skip


BENCHMARK = Benchmark(
    name="reward_model",
    about=__doc__.splitlines()[0],
    engines={
        "tercet": Engine(tercet),
        "trl": Engine(trl, needs="trl"),
        "loss": Engine(loss, needs="trl"),
    },
    columns=[
        ("prompts/s", "prompts_per_second", "{:.2f}"),
        ("tokens/s", "tokens_per_second", "{:,.0f}"),
        ("seconds", "median_seconds", "{:.3f}"),
        ("MFU", "mfu", "{:.1%}"),
        ("useful", "useful_mfu", "{:.1%}"),
        ("peak GiB", "peak_gib", "{:.1f}"),
        ("|d loss|", "difference", "{:.2g}"),
    ],
    complete=complete,
    claims=claims,
    plot=plot,
    options=add_options,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
