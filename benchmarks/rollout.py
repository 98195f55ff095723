"""Rollouts of a 1.2B llama, tokens a second: tercet, transformers `generate`, vLLM; and exactness.

    python -m benchmarks.rollout                # one CUDA device, about 4 minutes with all engines
    python -m benchmarks.rollout --small        # toy size, on the CPU, 40 seconds
    python -m benchmarks.rollout --engines tercet,check

Workloads, made up from seeds and the same for every engine (vocabulary 128,256, temperature 1):
"fixed" is 256 prompts of 64 to 512 tokens with 512 new tokens each; "drawn" is 512 such prompts
whose replies have lengths drawn from 32 to 512, at most 256 at a time. No engine knows a stop
token; vLLM and tercet are told each reply's length, `generate` runs each batch to its longest.
Log-probs are those of the sampled tokens. Time counts everything from token ids to token ids.

"tercet-master" has float32 weights under bf16 autocast, as PPO trains them, and is what the claims
are about; "tercet" has bf16 weights, as the others.

The floor is the prompts' operations at the measured matrix rate, then for every step all weights
and the live keys and values once at the measured copy rate; steps as few as the slots allow.
"check" compares tercet's log-probs with a plain forward pass of the same weights.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import models
from benchmarks.counting import Decoding, Shape, decoding
from benchmarks.engines import Benchmark, Claim, Engine, Row, Rows, device, dtype, main
from benchmarks.measure import clock, free_memory, peak_gib, reset_peak, spread, timed, versions

VOCABULARY = 128_256
LOGPROBS = "vllm, log-probs"
# How far log-probs may lie from a plain forward pass, on average.
BF16, FLOAT32 = 0.02, 1e-5


@dataclass(frozen=True)
class Workload:
    name: str
    prompts: list[list[int]]
    replies: list[int]
    slots: int

    @property
    def tokens(self) -> int:
        return sum(self.replies)

    @property
    def context(self) -> int:
        """Tokens of the longest prompt with its reply."""
        return max(len(p) + n for p, n in zip(self.prompts, self.replies, strict=True))


def workloads(options: argparse.Namespace) -> list[Workload]:
    vocabulary = models.SMALL_VOCABULARY if options.small else VOCABULARY
    count, low, high, new, least = (8, 4, 16, 12, 2) if options.small else (256, 64, 512, 512, 32)
    fixed = models.texts(models.draws(count, low, high, seed=1), vocabulary, seed=2)
    drawn = models.texts(models.draws(2 * count, low, high, seed=3), vocabulary, seed=4)
    made = [
        Workload("fixed", fixed, [new] * count, count),
        Workload("drawn", drawn, models.draws(2 * count, least, new, seed=5), count),
    ]
    return [work for work in made if work.name in options.workloads]


def counted(work: Workload, options: argparse.Namespace) -> Decoding:
    shape = Shape.of(models.config(VOCABULARY, options.small))
    width = dtype(options).itemsize
    return decoding(shape, list(map(len, work.prompts)), work.replies, work.slots, width)


def row(work: Workload, options: argparse.Namespace, seconds: list[float], **more: Any) -> Row:
    """What every engine reports of one workload."""
    return {
        "workload": work.name,
        "tokens": work.tokens,
        "prompt_tokens": sum(map(len, work.prompts)),
        "counted": asdict(counted(work, options)),
        **spread(seconds),
        "peak_gib": peak_gib(),
        **more,
    }


# --- engines --------------------------------------------------------------------------------------


def tercet(options: argparse.Namespace, master: bool = False) -> Iterator[Row]:
    """The engine on bf16 weights; with `master` on float32 ones under autocast, as PPO has them.

    Every call of `generate` begins with a fresh copy of the weights, so its time is counted.
    """
    from tercet.rollout import Engine as Rollouts

    sizes, where = models.config(VOCABULARY, options.small), device(options)
    kind = torch.float32 if master else dtype(options)
    engine = Rollouts(models.policy(sizes, where, kind), compile=options.compile)
    for work in workloads(options):
        reset_peak()

        def generate(new: Any, seed: int) -> list[Any]:
            with torch.autocast(where.type, torch.bfloat16, enabled=master):
                return engine.generate(
                    work.prompts,  # noqa: B023
                    max_new_tokens=new,
                    stop_ids=(),
                    seed=seed,
                    slots=work.slots,  # noqa: B023
                )

        began = clock()
        generate(work.replies, seed=99)
        first = clock() - began
        generate(work.replies, seed=98)
        done: list[Any] = []

        def once(repeat: int) -> None:
            done[:] = generate(work.replies, seed=repeat)  # noqa: B023

        seconds = timed(once, options.repeats, options.budget)
        expect(work, [len(rollout.tokens) for rollout in done])
        prompts = timed(lambda _: generate(1, seed=0), 2)
        yield row(
            work, options, seconds, logprobs=True, prompt_seconds=min(prompts),
            first_run_seconds=round(first, 2), versions=versions("torch", "transformers"),
            settings={"compile": options.compile, "weights": str(kind).removeprefix("torch.")},
        )  # fmt: skip


def transformers(options: argparse.Namespace, static: bool = False) -> Iterator[Row]:
    """`generate` on all slots at once, padded on the left; it returns no log-probs here."""
    sizes = models.config(VOCABULARY, options.small)
    model = models.policy(sizes, device(options), dtype(options), attention="sdpa")
    settings: dict[str, Any] = {"attention": "sdpa", "cache": "dynamic"}
    if static:
        settings |= {"cache": "static", "compile": "by generate"}
    for work in workloads(options):
        reset_peak()
        batches = [
            (work.prompts[i : i + work.slots], max(work.replies[i : i + work.slots]))
            for i in range(0, len(work.prompts), work.slots)
        ]
        for prompts, new in batches:  # a static cache of another length is compiled again
            generate(model, prompts, new if static else min(new, 8), static)

        def once(_: int) -> None:
            for prompts, new in batches:  # noqa: B023
                generate(model, prompts, new, static)

        seconds = timed(once, options.repeats, options.budget)
        yield row(
            work, options, seconds, logprobs=False, settings=settings,
            versions=versions("torch", "transformers"),
        )  # fmt: skip


@torch.no_grad()
def generate(model: Any, prompts: Sequence[list[int]], new: int, static: bool) -> torch.Tensor:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor(
        [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device
    )
    out = model.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=new,
        use_cache=True,
        pad_token_id=0,
        **({"cache_implementation": "static"} if static else {}),
    )
    assert out.shape[1] == width + new, "generate stopped early"
    return out


def vllm(options: argparse.Namespace) -> Iterator[Row]:
    """vLLM's offline engine with its defaults (CUDA graphs, compilation), with random weights."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    works = workloads(options)
    with tempfile.TemporaryDirectory() as folder:
        sizes = models.config(VOCABULARY, options.small)
        sizes.architectures = ["LlamaForCausalLM"]
        sizes.use_cache = True
        sizes.save_pretrained(folder)
        settings: dict[str, Any] = {
            "dtype": "bfloat16",
            "max_model_len": max(work.context for work in works),
            "max_num_seqs": works[0].slots,
            "gpu_memory_utilization": options.vllm_memory,
            "enable_prefix_caching": False,
        }
        llm = LLM(
            model=folder, load_format="dummy", skip_tokenizer_init=True, seed=0,
            generation_config="vllm", **settings,
        )  # fmt: skip
        for work in works:
            prompts = [{"prompt_token_ids": ids} for ids in work.prompts]
            for logprobs in (0, None):  # 0: the sampled token's own
                sampling = partial(
                    SamplingParams, temperature=1.0, ignore_eos=True, detokenize=False,
                    logprobs=logprobs,
                )  # fmt: skip
                wanted = [sampling(max_tokens=n) for n in work.replies]
                done: list[Any] = []

                def once(_: int) -> None:
                    done[:] = llm.generate(prompts, wanted, use_tqdm=False)  # noqa: B023

                once(0)
                seconds = timed(once, options.repeats, options.budget)
                expect(work, [len(output.outputs[0].token_ids) for output in done])
                brief = [sampling(max_tokens=1)] * len(prompts)
                first = timed(lambda _: llm.generate(prompts, brief, use_tqdm=False), 2)  # noqa: B023
                yield row(
                    work, options, seconds, engine=LOGPROBS if logprobs == 0 else "vllm",
                    logprobs=logprobs == 0, prompt_seconds=min(first), peak_gib=None,
                    settings=settings, versions=versions("torch", "transformers", "vllm"),
                )  # fmt: skip


def expect(work: Workload, lengths: Sequence[int]) -> None:
    """Tokens a second mean nothing when some replies were shorter."""
    assert list(lengths) == work.replies, "an engine gave replies of other lengths"


def check(options: argparse.Namespace) -> Iterator[Row]:
    """Mean |difference| of the engine's log-probs from a plain forward pass of the same weights."""
    yield difference(options, "exact, bf16 as in PPO", torch.float32, options.small, half=True)
    yield difference(options, "exact, bf16 weights", torch.bfloat16, options.small)
    yield difference(options, "exact, float32", torch.float32, True)


def difference(
    options: argparse.Namespace, name: str, kind: torch.dtype, small: bool, half: bool = False
) -> Row:
    """`half`: engine and plain pass both under bf16 autocast of these weights."""
    from tercet.rollout import Engine as Rollouts

    sizes = models.config(VOCABULARY, small)
    work = workloads(argparse.Namespace(small=small, workloads=["drawn"]))[0]
    model = models.policy(sizes, device(options), kind)
    engine = Rollouts(model, compile=options.compile)
    count = min(64, len(work.prompts))
    precision = partial(torch.autocast, device(options).type, torch.bfloat16, enabled=half)
    with precision():
        rollouts = engine.generate(
            work.prompts[:count],
            max_new_tokens=work.replies[:count],
            stop_ids=(),
            slots=max(2, count // 2),
            seed=7,
        )
    engine.release()
    plain = models.policy(sizes, device(options), kind, attention="sdpa")
    models.copy_weights(model, plain)
    del model, engine
    free_memory()
    with precision():
        apart = torch.cat([against_plain(plain, work, rollout) for rollout in rollouts[:32]])
    return {
        "workload": name,
        "dtype": str(kind).removeprefix("torch."),
        "mean_difference": float(apart.mean()),
        "largest_difference": float(apart.max()),
        "compared_tokens": apart.numel(),
    }


@torch.no_grad()
def against_plain(plain: Any, work: Workload, rollout: Any) -> torch.Tensor:
    """|log-prob of the engine - log-prob of one unpadded forward pass|, a token each."""
    prompt = work.prompts[rollout.prompt]
    ids = torch.tensor([prompt + rollout.tokens], device=plain.device)
    logits = plain(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    logp = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
    return (logp.cpu() - torch.tensor(rollout.logprobs)).abs()


# --- what follows ---------------------------------------------------------------------------------


def complete(row: Row, machine: Row) -> Row:
    if "counted" not in row:
        return row
    counts = Decoding(**row["counted"])
    floor = counts.floor_seconds(machine["matmul_flops"], machine["copy_bytes"])
    seconds = row["median_seconds"]
    prompt = row.get("prompt_seconds")
    more = {
        "tokens_per_second": round(row["tokens"] / seconds),
        "floor_seconds": round(floor, 5),
        "floor_tokens_per_second": round(row["tokens"] / floor),
        "share_of_floor": round(floor / seconds, 4),
        "steps": counts.steps,
    }
    if prompt is not None:
        more["ms_per_step"] = round((seconds - prompt) / counts.steps * 1e3, 3)
    return row | more


def claims(rows: Rows) -> list[Claim]:
    def speed(name: str) -> float | None:
        return rows.get(name, {}).get("tokens_per_second")

    def ratio(work: str, peer: str) -> float | None:
        ours, theirs = speed(f"{work}/tercet-master"), speed(f"{work}/{peer}")
        return ours / theirs if ours and theirs else None

    def apart(work: str) -> float | None:
        return rows.get(f"{work}/check", {}).get("mean_difference")

    return [
        Claim("tokens/s with log-probs, fixed", 80_000, speed("fixed/tercet-master")),
        Claim("times vLLM with log-probs, fixed", 3, ratio("fixed", LOGPROBS)),
        Claim("times vLLM with log-probs, drawn", 2, ratio("drawn", LOGPROBS)),
        Claim("times vLLM without log-probs, fixed", 1, ratio("fixed", "vllm")),
        Claim("mean |log-prob - plain|, bf16", BF16, apart("exact, bf16 as in PPO"), at_most=True),
        Claim("mean |log-prob - plain|, float32", FLOAT32, apart("exact, float32"), at_most=True),
    ]


def plot(rows: Rows, machine: Row, stem: Path) -> None:
    from benchmarks.chart import Panel, bars

    titles = {"fixed": "256 replies of 512 tokens", "drawn": "512 replies of 32 to 512 tokens"}
    panels = []
    for name, title in titles.items():
        measured = [r for r in rows.values() if r["workload"] == name and "tokens_per_second" in r]
        if measured:
            floor = measured[0]["floor_tokens_per_second"]
            target = 80_000 if name == "fixed" else None
            values = {r["engine"]: r["tokens_per_second"] for r in measured}
            panels.append(Panel(title, values, {"to reach": target, "floor": floor}))
    bars(panels, f"Rollouts of a 1.2B llama on one {machine['device']}", "tokens a second", stem)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--compile", default="auto", help="how tercet's engine compiles")
    parser.add_argument("--vllm-memory", type=float, default=0.85, help="share that vLLM may take")
    parser.add_argument("--workloads", default="fixed,drawn", type=lambda text: text.split(","))


BENCHMARK = Benchmark(
    name="rollout",
    about=__doc__.splitlines()[0],
    engines={
        "tercet": Engine(tercet),
        "tercet-master": Engine(partial(tercet, master=True)),
        "generate": Engine(transformers),
        "generate-static": Engine(partial(transformers, static=True), usual=False),
        "vllm": Engine(vllm, needs="vllm"),
        "check": Engine(check),
    },
    columns=[
        ("tokens/s", "tokens_per_second", "{:,.0f}"),
        ("log-probs", "logprobs", "{!s:}"),
        ("seconds", "median_seconds", "{:.3f}"),
        ("ms/step", "ms_per_step", "{:.2f}"),
        ("of floor", "share_of_floor", "{:.1%}"),
        ("peak GiB", "peak_gib", "{:.1f}"),
        ("mean |d logp|", "mean_difference", "{:.2g}"),
    ],
    complete=complete,
    claims=claims,
    plot=plot,
    options=add_options,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
