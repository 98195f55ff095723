"""Rollouts of a tiny policy on one CPU thread: tercet's engine against transformers' `generate`.

    python benchmarks/rollout_cpu.py --out benchmarks/results/rollout_cpu.json

Both sample at temperature 1 from the same random weights and count the same thing, reply tokens up
to and with the stop token, per second of this process's own CPU time on one thread, which a busy
machine disturbs less than the clock. They take turns. `generate` gets its best setting: SDPA,
dynamic cache, prompts sorted by length in batches padded on the left, every batch size of
`--batches`; it returns no log-probs, the engine does.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tercet.model.attention import NAME
from tercet.rollout import generate
from tercet.rundir import environment

MEAN_REPLY = 40  # one token in this many stops a reply


def policy(vocabulary: int, attention: str) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def made_up_prompts(vocabulary: int, count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(8, 33, (count,), generator=generator).tolist()
    return [torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def with_engine(
    model: Any, prompts: list[list[int]], stops: list[int], new: int, slots: int
) -> int:
    found = generate(model, prompts, max_new_tokens=new, stop_ids=stops, slots=slots)
    return sum(len(rollout.tokens) for rollout in found)


def with_transformers(
    model: Any, prompts: list[list[int]], stops: list[int], new: int, batch: int
) -> int:
    ordered = sorted(prompts, key=len)
    total = 0
    for start in range(0, len(ordered), batch):
        rows = ordered[start : start + batch]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=new,
            eos_token_id=stops,
            pad_token_id=0,
        )[:, width:]
        stopped = torch.isin(out, torch.tensor(stops))
        before = (stopped.cumsum(-1) - stopped.long() == 0).sum().item()
        total += int(before)
    return total


def rate(run: Callable[[], int]) -> float:
    start = time.process_time()
    tokens = run()
    return tokens / (time.process_time() - start)


def measure(vocabulary: int, options: argparse.Namespace) -> dict[str, Any]:
    prompts = made_up_prompts(vocabulary, options.rollouts)
    stops = list(range(max(1, vocabulary // MEAN_REPLY)))
    ours, theirs = policy(vocabulary, NAME), policy(vocabulary, "sdpa")
    new = options.max_new_tokens
    runs: dict[str, list[float]] = {}
    for repeat in range(options.repeats + 1):
        for batch in options.batches:
            engine = rate(lambda: with_engine(ours, prompts, stops, new, batch))  # noqa: B023
            other = rate(lambda: with_transformers(theirs, prompts, stops, new, batch))  # noqa: B023
            if repeat:  # the first is a warm-up
                runs.setdefault(f"engine, {batch} slots", []).append(round(engine))
                runs.setdefault(f"generate, batch {batch}", []).append(round(other))
    medians = {name: statistics.median(rates) for name, rates in runs.items()}
    best = {
        kind: max(value for name, value in medians.items() if name.startswith(kind))
        for kind in ("engine", "generate")
    }
    return {
        "vocabulary": vocabulary,
        "tokens_per_cpu_second": runs,
        "median": medians,
        "best": best,
        "ratio": round(best["engine"] / best["generate"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[300, 4000])
    parser.add_argument("--rollouts", type=int, default=512)
    parser.add_argument("--max-new-tokens", type=int, default=60)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    torch.set_num_threads(1)

    facts = environment(None, ["python", *sys.argv], 1, {})
    facts["hardware"] = {k: v for k, v in facts["hardware"].items() if k != "host"}
    facts["hardware"]["cpu"] = processor()
    settings = {k: v for k, v in vars(options).items() if k != "out"}
    results = [measure(vocabulary, options) for vocabulary in options.vocabulary]
    text = json.dumps({"environment": facts, "settings": settings, "results": results}, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


def processor() -> str:
    """The processor's name, which `platform` leaves out on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
