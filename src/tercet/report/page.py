"""All pages of an evaluation: figures, report.md, samples, and what the terminal shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tercet.records import write_atomically
from tercet.report import figures, tables
from tercet.report.style import display_name

SAMPLES_SHOWN = 3

Report = Mapping[str, Any]
Metrics = Sequence[Mapping[str, float | None]]


@dataclass(frozen=True)
class Figure:
    """A drawn figure: what it shows and where it lies."""

    caption: str
    png: Path
    svg: Path


def draw(
    folder: Path, report: Report, curves: Mapping[str, Metrics], over_optimisation: Metrics = ()
) -> list[Figure]:
    """Every figure that there is data for; Figure 1 is the first.

    curves: name -> metrics of a PPO run; over_optimisation: metrics with score, kl and gold.
    """
    arms: Mapping[str, Report] = report["arms"]
    points = [
        figures.WinPoint(
            name.partition("@")[0],
            arm["win_rate"],
            arm["low"],
            arm["high"],
            arm["n"],
            arm.get("parameters"),
        )
        for name, arm in arms.items()
    ]
    baseline = display_name(report["baseline"]["name"])
    pair = figures.win_rates(points, folder / "figure1", judge=report["judge"], baseline=baseline)
    drawn = [Figure(f"Win rate against {baseline}, judge: {report['judge']}", *pair)]
    if any(row.get("score") is not None for rows in curves.values() for row in rows):
        drawn.append(Figure("PPO training", *figures.training_curves(curves, folder / "ppo")))
    judged = [row for row in over_optimisation if row.get("gold") is not None]
    if judged:
        kl, score, gold = ([row[key] or 0.0 for row in judged] for key in ("kl", "score", "gold"))
        pair = figures.over_optimisation(kl, score, gold, folder / "over_optimisation")
        drawn.append(Figure("Over-optimisation of the reward model", *pair))
    model = report.get("reward_model")
    if model and model["accuracy"] is not None:
        pair = figures.calibration(
            [(b["confidence"], b["accuracy"], b["pairs"]) for b in model["calibration"]["bins"]],
            folder / "calibration",
            ece=model["calibration"]["ece"],
            n=model["pairs"],
            judges=tables.judges(model["judge"]),
        )
        drawn.append(Figure("Calibration of the reward model", *pair))
    return drawn


def write_page(
    folder: Path, report: Report, drawn: Sequence[Figure], samples: Sequence[Report]
) -> None:
    """report.md and samples/side_by_side.md."""
    shown = [(figure.caption, figure.png.name) for figure in drawn]
    write_atomically(folder / "report.md", tables.report_markdown(report, shown).encode())
    n = report["prompts"]["n"]
    title = f"{len(samples)} of {n} prompts, drawn by seed; judge: {report['judge']}"
    text = tables.side_by_side(samples, title)
    write_atomically(folder / "samples" / "side_by_side.md", text.encode())


def show(
    folder: Path, report: Report, drawn: Sequence[Figure], samples: Sequence[Report] = ()
) -> None:
    """The tables on the terminal, a few replies side by side, and where everything lies."""
    console = Console()
    for table in tables.all_tables(report):
        console.print(table)
    for sample in samples[:SAMPLES_SHOWN]:
        console.print(tables.sample_table(sample))
    for figure in drawn:
        line = f"{figure.caption}\n  {figure.png}\n  {figure.svg}"
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"report\n  {folder / 'report.md'}", soft_wrap=True, highlight=False, markup=False
    )
