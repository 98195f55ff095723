"""A step of supervised training, tokens a second: tercet's packs against TRL's SFTTrainer.

    python -m benchmarks.sft             # one CUDA device, about 3 minutes
    python -m benchmarks.sft --small     # toy size, on the CPU, a minute

Documents of 128 to 2,048 tokens, about 64k tokens a step, every token but a document's first a
target; a 1.2B llama with a vocabulary of 128,256, bf16 autocast over float32 weights, AdamW and a
gradient norm of at most 1. TRL runs three times: packed (its recommended "bfd" strategy, which
flattens rows without padding) with FlexAttention and with SDPA, because FlashAttention is a package
of its own, and not packed. Tokens are those of documents; padding counts as nothing.

MFU counts 6 x (layer weights + head) x tokens + attention within documents, at the measured matrix
rate. "loss" compares both losses of one batch at equal weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import models
from benchmarks.counting import Shape, causal_pairs, forward_flops
from benchmarks.engines import Benchmark, Claim, Engine, Row, Rows, device, main
from benchmarks.measure import free_memory, peak_gib, reset_peak, spread, timed, versions
from benchmarks.peers import StepClock, largest_that_fits, liger, training_arguments
from tercet.model import load
from tercet.model.optim import StepGuard, adam
from tercet.model.shard import Ranks
from tercet.model.train import fitted_budget, held_out_nll, nll_step
from tercet.model.tree import Document

VOCABULARY = 128_256
CLIP = 1.0


def longest(options: argparse.Namespace) -> int:
    """Tokens of the longest document, which is TRL's row as well."""
    return 64 if options.small else 2048


def step_tokens(options: argparse.Namespace) -> int:
    return options.tokens or (512 if options.small else 65_536)


def documents(options: argparse.Namespace, steps: int) -> list[list[list[int]]]:
    """For each step, ids of whole documents that come close to the tokens of a step."""
    vocabulary = models.SMALL_VOCABULARY if options.small else VOCABULARY
    low, high = longest(options) // 16, longest(options)
    made = []
    for step in range(steps):
        sizes: list[int] = []
        for size in models.draws(1000, low, high, seed=step):
            if sum(sizes) + size > step_tokens(options):
                break
            sizes.append(size)
        made.append(models.texts(sizes, vocabulary, seed=100 + step))
    return made


def flops(lengths: list[int], options: argparse.Namespace) -> int:
    """Forward and backward over whole documents, every token but the first a target."""
    shape = Shape.of(models.config(VOCABULARY, options.small))
    pairs = sum(map(causal_pairs, lengths))
    return 3 * forward_flops(shape, sum(lengths), pairs, sum(lengths) - len(lengths))


# --- engines --------------------------------------------------------------------------------------


def tercet(options: argparse.Namespace) -> Iterator[Row]:
    where = device(options)
    model = models.policy(models.config(VOCABULARY, options.small), where, torch.float32)
    if options.recompute:
        load.checkpoint_activations(model)
    compiled = models.compiled(model, options.compile)
    optimizer, guard, ranks = adam(model.parameters(), 1e-5), StepGuard(), Ranks(device=where)
    batches = documents(options, 2 * options.repeats)
    first = ([Document(ids, [], prompt_weight=1.0) for ids in batch] for batch in batches[:4])
    longest = max(len(ids) for batch in batches for ids in batch)
    budget = fitted_budget(first, options.token_budget, longest, ranks)
    model.train()

    def step(ids: list[list[int]]) -> None:
        nll_step(
            model, optimizer, guard, [Document(d, [], prompt_weight=1.0) for d in ids],
            ranks, lr=1e-5, clip=CLIP, token_budget=budget,
        )  # fmt: skip

    for ids in batches:  # packs have up to three lengths; each is compiled when it first comes
        step(ids)
    reset_peak()
    seconds = timed(lambda i: step(batches[i]), len(batches), options.budget)
    yield row(
        options,
        batches[: len(seconds)],
        seconds,
        versions=versions("torch", "transformers"),
        settings={"token_budget": budget, "compiled": compiled, "recompute": options.recompute},
    )  # fmt: skip


def trl(
    options: argparse.Namespace, packing: bool, attention: str, rows: tuple[int, ...]
) -> Iterator[Row]:
    """SFTTrainer over the same documents; its rows are as long as the longest of them."""
    if attention == "flex_attention" and options.device == "cpu":
        yield {"status": "absent", "why": "FlexAttention has no backward pass on a CPU"}
        return
    steps = options.repeats + 1
    made = [ids for batch in documents(options, steps) for ids in batch]
    with tempfile.TemporaryDirectory() as folder:
        size, (seconds, tokens, peak) = largest_that_fits(
            options.trl_rows or rows,
            lambda size: train(made, size, packing, attention, folder, options, steps),
        )
    # The first step warms up; documents fall into steps by chance, so rates are those of the sum.
    share = sum(tokens[1:]) / sum(map(len, made))
    yield {
        **row(options, [made], seconds[1:], peak_gib=peak),
        "tokens": sum(tokens[1:]) / len(tokens[1:]),
        "flops": flops(list(map(len, made)), options) * share / len(tokens[1:]),
        "median_seconds": sum(seconds[1:]) / len(seconds[1:]),
        "settings": {
            "packing": "bfd" if packing else None,
            "attention": attention,
            "rows_in_a_micro_batch": size,
            "liger": liger(),
        },
        "versions": versions("torch", "transformers", "trl", "liger-kernel"),
    }


def train(
    made: list[list[int]], size: int, packing: bool, attention: str, folder: str,
    options: argparse.Namespace, steps: int,
) -> tuple[list[float], list[int], float | None]:  # fmt: skip
    """(seconds, tokens of documents) of every step, and the peak of memory."""
    timer = StepClock()
    rows = step_tokens(options) // longest(options) if packing else round(len(made) / steps)
    trainer = sft_trainer(
        made, size, packing, attention, folder, options,
        gradient_accumulation_steps=max(1, round(rows / size)), max_steps=steps,
    )  # fmt: skip
    counts: list[int] = []
    loss_of = trainer.compute_loss

    def counting(model: Any, inputs: dict[str, Any], *args: Any, **more: Any) -> Any:
        if len(counts) == len(timer.seconds):
            counts.append(0)
        counts[-1] += int((inputs["input_ids"] > 2).sum())  # the pad is 0, texts begin at 3
        return loss_of(model, inputs, *args, **more)

    trainer.compute_loss = counting
    trainer.add_callback(timer)
    trainer.train()
    return timer.seconds, counts, peak_gib()


def sft_trainer(
    made: list[list[int]], size: int, packing: bool, attention: str, folder: str,
    options: argparse.Namespace, **more: Any,
) -> Any:  # fmt: skip
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    sizes = models.config(VOCABULARY, options.small)
    model = models.policy(sizes, device(options), torch.float32, attention)
    arguments = SFTConfig(
        per_device_train_batch_size=size,
        max_length=longest(options),
        packing=packing,
        # FlexAttention is compiled for each length that it meets.
        pad_to_multiple_of=longest(options) if attention == "flex_attention" else None,
        **(training_arguments(folder, options.device == "cuda", steps=1) | more),
    )
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": made}),
        processing_class=models.tokenizer(sizes.vocab_size),
    )


def loss(options: argparse.Namespace) -> Iterator[Row]:
    """Both losses of one batch at the same weights, in float32, by each trainer's own code."""
    where = device(options)
    made = documents(options, 1)[0][:8]
    for packing in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            more = {"bf16": False, "use_liger_kernel": False, "max_steps": 1}
            trainer = sft_trainer(made, 8, packing, "sdpa", folder, options, **more)
            sizes = models.config(VOCABULARY, options.small)
            ours = models.policy(sizes, where, torch.float32)
            models.copy_weights(ours, trainer.model)
            whole = [Document(ids, [], prompt_weight=1.0) for ids in made]
            mine = held_out_nll(
                ours, whole, Ranks(device=where), precision="float32",
                token_budget=options.token_budget,
            )  # fmt: skip
            theirs = trl_loss(trainer)
        yield {
            "workload": f"same loss, {'packed, sdpa' if packing else 'not packed'}",
            "tercet_loss": mine,
            "trl_loss": theirs,
            "difference": abs(mine - theirs),
            "versions": versions("torch", "transformers", "trl"),
        }
        del trainer, ours
        free_memory()


def trl_loss(trainer: Any) -> float:
    rows = list(trainer.train_dataset)
    inputs = trainer._prepare_inputs(trainer.data_collator(rows))
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model.eval(), inputs))


def row(
    options: argparse.Namespace, batches: list[list[list[int]]], seconds: list[float], **more: Any
) -> Row:
    lengths = [[len(ids) for ids in batch] for batch in batches]
    return {
        "workload": "1.2B" if not options.small else "toy",
        "tokens": sum(map(sum, lengths)) / len(lengths),
        "flops": sum(flops(sizes, options) for sizes in lengths) / len(lengths),
        **spread(seconds),
        "peak_gib": peak_gib(),
        **more,
    }


# --- what follows ---------------------------------------------------------------------------------


def complete(row: Row, machine: Row) -> Row:
    if "flops" not in row:
        return row
    seconds = row["median_seconds"]
    return row | {
        "tokens_per_second": round(row["tokens"] / seconds),
        "mfu": round(row["flops"] / seconds / machine["matmul_flops"], 4),
    }


def claims(rows: Rows) -> list[Claim]:
    ours = rows.get("1.2B/tercet", {})
    peers = [r for r in rows.values() if r["engine"].startswith("trl") and "mfu" in r]
    best = max((r["tokens_per_second"] for r in peers), default=None)
    least = min((r["peak_gib"] for r in peers if r["peak_gib"]), default=None)
    speed, peak = ours.get("tokens_per_second"), ours.get("peak_gib")
    difference = rows.get("same loss, not packed/loss", {}).get("difference")
    return [
        Claim("MFU", 0.5, ours.get("mfu")),
        Claim("times TRL's best setting in tokens/s", 1, speed / best if speed and best else None),
        Claim("peak memory over TRL's least", 1, peak / least if peak and least else None, True),
        Claim("|loss - TRL's loss|, float32", 1e-4, difference, at_most=True),
    ]


def plot(rows: Rows, machine: Row, stem: Path) -> None:
    from benchmarks.chart import Panel, bars

    measured = [r for r in rows.values() if "mfu" in r]
    if not measured:
        return
    whole = measured[0]["tokens"] / measured[0]["flops"] * machine["matmul_flops"]
    panel = Panel(
        "documents of 128 to 2,048 tokens, 64k tokens a step",
        {r["engine"]: r["tokens_per_second"] for r in measured},
        {"half the matrix rate": whole / 2},
    )
    bars([panel], f"Supervised training of 1.2B on one {machine['device']}", "tokens/s", stem)


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tokens", type=int, help="tokens of a step, at most; 65,536, or 512 of the toy")
    add("--token-budget", type=int, default=16_384, help="tokens in one of tercet's packs, at most")
    add("--recompute", action="store_true", help="tercet recomputes activations to save memory")
    add("--compile", default="auto", help="auto or off, for tercet's layers")
    add("--trl-rows", help="micro-batches to try instead of those of each engine",
        type=lambda text: [int(word) for word in text.split(",")])  # fmt: skip


BENCHMARK = Benchmark(
    name="sft",
    about=__doc__.splitlines()[0],
    engines={
        "tercet": Engine(tercet),
        **{
            name: Engine(partial(trl, packing=packing, attention=attention, rows=rows), needs="trl")
            for name, packing, attention, rows in (
                ("trl-packed-flex", True, "flex_attention", (8, 4, 2, 1)),
                ("trl-packed-sdpa", True, "sdpa", (2, 1)),  # its mask is dense, the square of them
                ("trl-padded", False, "sdpa", (8, 4, 2, 1)),
            )
        },
        "loss": Engine(loss, needs="trl"),
    },
    columns=[
        ("tokens/s", "tokens_per_second", "{:,.0f}"),
        ("seconds", "median_seconds", "{:.3f}"),
        ("MFU", "mfu", "{:.1%}"),
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
