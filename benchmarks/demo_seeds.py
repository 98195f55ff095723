"""The demo over fresh seeds: does the whole loop show what the README says, in every world?

    python benchmarks/demo_seeds.py 31 32 33 34 35 --jobs 1 --out benchmarks/results/demo_seeds.json

Options of `tercet run` may follow, such as --world.settings '{noise = 1.15}'.
Each seed is another world, other labelers, other prompts. With --jobs above 1 the runs lie side by
side, each on its own two cores, and their times are not those of a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

from tercet.rundir import environment

ARMS = ("gpt", "gpt-prompted", "sft", "ppo", "ppo-ptx")


def one_seed(
    seed: int, cores: list[int], root: Path, recipe: Path, options: list[str]
) -> dict[str, object]:
    """Run the demo of one seed and read its report."""
    command = [sys.executable, "-m", "tercet", "run", str(recipe)]
    command += ["--seed", str(seed), "--root", str(root), "--device", "cpu", *options]
    if cores:
        command = ["taskset", "-c", ",".join(map(str, cores)), *command]
    began = time.monotonic()
    log = root / f"seed{seed}.log"
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    wall = time.monotonic() - began
    if code != 0:
        return {"seed": seed, "exit_code": code, "log": log.read_text()[-2000:]}
    report = json.loads((root / f"demo-seed{seed}" / "report.json").read_text())
    return {"seed": seed, "exit_code": 0, "wall_seconds": round(wall, 1), "report": slim(report)}


def slim(report: dict[str, dict[str, dict[str, object]]]) -> dict[str, object]:
    """The figures that the claims are about."""
    keys = ("win_rate", "low", "high", "n", "strict", "decided", "gold", "reward", "words", "world")
    model = report["reward_model"]
    return {
        "judge": report["judge"],
        "arms": {arm: {k: report["arms"][arm][k] for k in keys} for arm in ARMS},
        "tax": report["tax"],
        "reward_model": {
            k: model[k]
            for k in ("accuracy", "low", "high", "labeler_ceiling", "labeler_agreement", "tie_rate")
        },
        "stages": report["stages"],
    }


def summary(results: list[dict[str, object]]) -> str:
    """One line a seed."""
    lines = [
        "| seed | GPT | prompted | SFT | PPO [95%] | PPO-ptx [95%] | wrong facts SFT/PPO/ptx | "
        "tax PPO/ptx | RM / ceiling | agreement | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        if row["exit_code"] != 0:
            lines.append(f"| {row['seed']} | exit code {row['exit_code']} |")
            continue
        r = row["report"]
        a, m, tax = r["arms"], r["reward_model"], r["tax"]
        wrong = " / ".join(f"{a[x]['world']['wrong']:.3f}" for x in ("sft", "ppo", "ppo-ptx"))
        interval = {
            x: f"{a[x]['win_rate']:.3f} [{a[x]['low']:.3f}, {a[x]['high']:.3f}]"
            for x in ("ppo", "ppo-ptx")
        }
        seconds = sum(stage["seconds"] for stage in r["stages"].values())
        lines.append(
            f"| {row['seed']} | {a['gpt']['win_rate']:.3f} | {a['gpt-prompted']['win_rate']:.3f} | "
            f"{a['sft']['win_rate']:.3f} | {interval['ppo']} | {interval['ppo-ptx']} | {wrong} | "
            f"{tax['ppo']:+.3f} / {tax['ppo-ptx']:+.3f} | "
            f"{m['accuracy']:.3f} / {m['labeler_ceiling']:.3f} | {m['labeler_agreement']:.3f} | "
            f"{seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/demo.toml"))
    parser.add_argument("--root", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/demo_seeds.json"))
    args, options = parser.parse_known_args()
    args.root.mkdir(parents=True, exist_ok=True)
    waiting: queue.Queue[int] = queue.Queue()
    for seed in args.seeds:
        waiting.put(seed)
    results: list[dict[str, object]] = []

    def worker(number: int) -> None:
        pinned = args.jobs > 1 and platform.system() == "Linux"
        cores = [2 * number, 2 * number + 1] if pinned else []
        while True:
            try:
                seed = waiting.get_nowait()
            except queue.Empty:
                return
            results.append(one_seed(seed, cores, args.root, args.recipe, options))
            results.sort(key=lambda row: row["seed"])
            write()

    def write() -> None:
        about = environment(None, sys.argv, 2, {})
        about["hardware"].pop("host")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**about, "jobs": args.jobs, "results": results}, indent=1))

    threads = [threading.Thread(target=worker, args=(i,)) for i in range(args.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(summary(results))


if __name__ == "__main__":
    main()
