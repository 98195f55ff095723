"""Figures as PNG and SVG: win rates (Figure 1 of InstructGPT), PPO curves, over-optimisation.

Every function takes plain numbers, writes `<stem>.png` and `<stem>.svg` and returns the two paths.
The same numbers give the same SVG bytes, so that a figure can be compared and cached.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, MultipleLocator

from tercet.report.style import (
    COLOURS,
    INK,
    QUIET,
    RULE,
    canvas,
    colours_of,
    display_name,
    end_labels,
    headline,
    run_key,
    save,
    short_count,
)


@dataclass(frozen=True)
class WinPoint:
    """One point of Figure 1: a policy's win rate against the baseline with its 95% interval."""

    family: str  # gpt, gpt-prompted, sft, ppo, ppo-ptx, or any other name
    win_rate: float
    low: float
    high: float
    n: int
    parameters: int | None = None


PPO_PANELS = {
    "score": "Reward (reward model)",
    "kl": "KL to the reference (nats a reply)",
    "gold": "Gold utility (simulated)",
    "length": "Reply length (tokens)",
    "entropy": "Entropy (nats a token)",
    "frac_no_eos": "Cut by length (fraction)",
}
"""Metrics of a PPO run that are drawn, with the title of their panel."""


def win_rates(
    points: Sequence[WinPoint],
    stem: Path,
    *,
    judge: str,
    baseline: str = "SFT",
    note: str = "ties count ½ · bars are 95% intervals, bootstrap over prompts",
) -> tuple[Path, Path]:
    """Figure 1: win rate against the baseline, 95% bars, n under each point, a dashed line at 0.5.

    One point a family: families side by side. Several model sizes of a family: x = parameters on
    a log scale, one line a family, labelled at its end. `judge` says who decided, word for word.
    """
    assert points
    families = list(dict.fromkeys(point.family for point in points))
    by_size = len(points) > len(families)
    # About six names fit side by side; more arms make a wider figure.
    width = 7.6 if by_size else max(7.6, 1.2 * len(points) + 1)
    with canvas(width, 4.6) as figure:
        axes = figure.add_axes((0.09, 0.15, 0.7 if by_size else 0.79, 0.63))
        headline(figure, f"Win rate against the {baseline} baseline", f"judge: {judge}\n{note}")
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_locator(MultipleLocator(0.2))
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.axhline(0.5, color=INK, linewidth=1, dashes=(4, 3), zorder=1)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        colours = colours_of(families)
        if by_size:
            _win_lines(axes, points, families, colours)
        else:
            _win_columns(axes, points, colours, baseline)
        return save(figure, stem)


def training_curves(
    runs: Mapping[str, Sequence[Mapping[str, float | None]]],
    stem: Path,
    *,
    panels: Mapping[str, str] = PPO_PANELS,
    title: str = "PPO training",
) -> tuple[Path, Path]:
    """Small plots of what a run logged, one line a run; panels that no run logged are left out.

    `runs`: name -> rows of metrics.jsonl; `panels`: metric -> title. Rows without the metric are
    skipped, so one logged every tenth step is drawn too. More than 60 points: raw values faint, a
    running mean on top.
    """
    series = [(panel, _series(runs, key)) for key, panel in panels.items()]
    series = [(panel, lines) for panel, lines in series if lines]
    assert series, "no panel has data"
    columns = min(3, len(series))
    rows = math.ceil(len(series) / columns)
    colours = colours_of(runs)
    width, height = 3.5 * columns + 0.3, 2.2 * rows + 0.85
    with canvas(width, height) as figure:
        headline(figure, title, "")
        grid = figure.add_gridspec(
            rows,
            columns,
            left=0.55 / width,
            right=1 - 0.25 / width,
            bottom=0.55 / height,
            top=1 - 0.95 / height,
            wspace=0.27,
            hspace=0.42,
        )
        for index, (panel, lines) in enumerate(series):
            axes = figure.add_subplot(grid[index // columns, index % columns])
            axes.set_title(panel, loc="left", fontsize=9.5, color=INK, pad=6)
            axes.grid(axis="y", color=RULE, linewidth=0.8)
            axes.tick_params(length=0, labelsize=8.5)
            axes.spines["left"].set_visible(False)
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
            for name, (xs, ys) in lines.items():
                _curve(axes, xs, ys, colours[name])
            axes.margins(x=0.02, y=0.12)
            if index >= len(series) - columns:
                axes.set_xlabel("iteration", fontsize=8.5, color=QUIET)
        run_key(figure, {display_name(name): colours[name] for name in runs})
        return save(figure, stem)


def over_optimisation(
    kl: Sequence[float],
    proxy: Sequence[float],
    gold: Sequence[float],
    stem: Path,
    *,
    gold_name: str = "gold utility (simulated)",
    title: str = "Over-optimisation of the reward model",
) -> tuple[Path, Path]:
    """Proxy and gold score against sqrt(KL), each as its change from the first point [Gao 2022].

    kl: nats a reply, in the order of training; values below 0 (sampling noise) are drawn at 0.
    The highest gold value is marked: the checkpoint to keep stands there, not at the highest proxy.
    """
    assert len(kl) == len(proxy) == len(gold) >= 2
    distance = [math.sqrt(max(value, 0.0)) for value in kl]
    gains = {
        "reward model (proxy)": ([value - proxy[0] for value in proxy], COLOURS["ppo"]),
        gold_name: ([value - gold[0] for value in gold], COLOURS["sft"]),
    }
    best = max(range(len(gold)), key=lambda i: gold[i])
    with canvas(7.6, 4.6) as figure:
        axes = figure.add_axes((0.09, 0.14, 0.62, 0.66))
        headline(
            figure,
            title,
            f"gold is highest at KL {max(kl[best], 0):.1f} nats a reply; "
            f"at the end: KL {max(kl[-1], 0):.1f}",
        )
        axes.axhline(0, color=INK, linewidth=0.9, zorder=1)
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.axvline(distance[best], color=QUIET, linewidth=1, dashes=(2, 3), zorder=1)
        order = sorted(range(len(kl)), key=lambda i: distance[i])
        ends = []
        for name, (values, colour) in gains.items():
            axes.plot(
                [distance[i] for i in order],
                [values[i] for i in order],
                color=colour,
                linewidth=2,
                marker="o",
                markersize=4 if len(kl) <= 40 else 2,
            )
            ends.append((name, values[order[-1]], colour))
        axes.plot(
            [distance[best]],
            [gold[best] - gold[0]],
            "o",
            markersize=10,
            markerfacecolor="none",
            markeredgecolor=COLOURS["sft"],
            markeredgewidth=1.6,
        )
        axes.margins(x=0.02, y=0.1)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("distance from the reference, √KL (nats a reply)")
        axes.set_ylabel("change of score since the start")
        end_labels(axes, ends, max(distance))
        return save(figure, stem)


def calibration(
    bins: Sequence[tuple[float, float, int]], stem: Path, *, ece: float, n: int, judges: str
) -> tuple[Path, Path]:
    """Reward-model calibration: how often a pair predicted with confidence q is ordered rightly.

    bins: (mean confidence, fraction right, pairs), empty bins left out; dot area = pairs.
    judges: who ranked the pairs ("people", "simulated labelers").
    """
    assert bins
    with canvas(4.8, 4.8) as figure:
        axes = figure.add_axes((0.14, 0.13, 0.8, 0.69))
        headline(figure, "Calibration of the reward model", f"ECE {ece:.3f} · {n:,} held-out pairs")
        axes.plot([0.5, 1], [0.5, 1], color=INK, linewidth=1, dashes=(4, 3), zorder=1)
        most = max(count for _, _, count in bins)
        axes.plot([q for q, _, _ in bins], [right for _, right, _ in bins], color=COLOURS["sft"])
        axes.scatter(
            [q for q, _, _ in bins],
            [right for _, right, _ in bins],
            s=[20 + 160 * count / most for _, _, count in bins],
            color=COLOURS["sft"],
            edgecolor="white",
            zorder=3,
        )
        axes.set_xlim(0.48, 1.02)
        lowest = min(right for _, right, _ in bins)
        axes.set_ylim(max(0.0, min(0.45, lowest - 0.05)), 1.04)
        axes.grid(color=RULE, linewidth=0.8)
        axes.tick_params(length=0)
        axes.set_xlabel("confidence of the reward model")
        axes.set_ylabel(f"fraction ordered as {judges} did")
        return save(figure, stem)


def _win_columns(
    axes: Axes, points: Sequence[WinPoint], colours: Mapping[str, str], baseline: str
) -> None:
    for x, point in enumerate(points):
        colour = colours[point.family]
        axes.plot([x, x], [point.low, point.high], color=colour, linewidth=3.2)
        axes.plot(
            [x],
            [point.win_rate],
            "o",
            color=colour,
            markersize=9,
            markeredgecolor="white",
            markeredgewidth=1.5,
        )
        axes.text(
            x + 0.14,
            point.win_rate,
            f"{point.win_rate:.2f}",
            va="center",
            fontsize=12,
            fontweight="bold",
            color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
        )
    axes.set_xlim(-0.5, len(points) - 0.35)
    axes.set_xticks(range(len(points)), [display_name(point.family) for point in points])
    axes.tick_params(axis="x", labelsize=11, pad=6)
    for x, point in enumerate(points):
        axes.annotate(
            f"n = {point.n:,}",
            (x, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -24),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8.5,
            color=QUIET,
        )
    axes.annotate(
        f"as good as\n{baseline}",
        (1, 0.5),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        fontsize=8.5,
        color=QUIET,
        va="center",
    )


def _win_lines(
    axes: Axes, points: Sequence[WinPoint], families: Sequence[str], colours: Mapping[str, str]
) -> None:
    sizes = sorted({point.parameters for point in points if point.parameters})
    assert sizes, "points of several sizes need their parameter counts"
    axes.set_xscale("log")
    ends = []
    for index, family in enumerate(families):
        line = sorted(
            (point for point in points if point.family == family),
            key=lambda point: point.parameters or 0,
        )
        # Side by side within a size: overlapping bars of two arms would hide each other.
        shift = 1 + 0.018 * (index - (len(families) - 1) / 2)
        xs = [(point.parameters or sizes[0]) * shift for point in line]
        colour = colours[family]
        for x, point in zip(xs, line, strict=True):
            axes.plot([x, x], [point.low, point.high], color=colour, linewidth=2, alpha=0.75)
        axes.plot(
            xs,
            [point.win_rate for point in line],
            color=colour,
            linewidth=2,
            marker="o",
            markersize=6,
        )
        ends.append((display_name(family), line[-1].win_rate, colour))
    axes.set_xlim(sizes[0] * 0.85, sizes[-1] * 1.12)
    axes.set_xticks(sizes, [short_count(size) for size in sizes])
    axes.minorticks_off()
    counts = sorted({point.n for point in points})
    n = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    axes.set_xlabel(f"parameters · n = {n} prompts a point")
    end_labels(axes, ends, sizes[-1] * 1.12)


def _series(
    runs: Mapping[str, Sequence[Mapping[str, float | None]]], key: str
) -> dict[str, tuple[list[float], list[float]]]:
    """name -> (steps, values) of the runs that logged `key`; null (a NaN) is left out."""
    found = {}
    for name, rows in runs.items():
        kept = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if kept:
            found[name] = ([float(x or 0) for x, _ in kept], [float(y or 0) for _, y in kept])
    return found


def _curve(axes: Axes, xs: Sequence[float], ys: Sequence[float], colour: str) -> None:
    if len(xs) <= 60:
        axes.plot(xs, ys, color=colour, linewidth=1.8)
        return
    half = len(xs) // 40
    smooth = [
        sum(ys[max(0, i - half) : i + half + 1]) / len(ys[max(0, i - half) : i + half + 1])
        for i in range(len(ys))
    ]
    axes.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.25)
    axes.plot(xs, smooth, color=colour, linewidth=1.8)
