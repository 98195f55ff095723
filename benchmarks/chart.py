"""One figure a benchmark: a bar an engine, lines for what was to be reached and for the floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from tercet.report.style import INK, QUIET, RULE, canvas, headline, save

OURS, PEER = "#1b8f6a", "#8a8f98"


@dataclass(frozen=True)
class Panel:
    title: str
    values: Mapping[str, float]
    lines: Mapping[str, float | None]
    """what is drawn across the bars, by name; None is left out"""


def bars(panels: Sequence[Panel], title: str, unit: str, stem: Path) -> None:
    """Writes `<stem>.png` and `<stem>.svg`, panels one below the other."""
    if not panels:
        return
    heights = [0.9 + 0.36 * len(panel.values) for panel in panels]
    with canvas(7.2, 0.9 + sum(heights)) as figure:
        headline(figure, title, unit)
        grid = figure.add_gridspec(
            len(panels), 1, height_ratios=heights, left=0.24, right=0.93, hspace=0.55,
            top=1 - 1.15 / figure.get_figheight(), bottom=0.35 / figure.get_figheight(),
        )  # fmt: skip
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(grid[place])
            _panel(axes, panel)
        save(figure, stem)


def _panel(axes: Axes, panel: Panel) -> None:
    ours_first = sorted(panel.values, key=lambda name: (name != "tercet", -panel.values[name]))
    names, values = ours_first, [panel.values[name] for name in ours_first]
    lines = {name: x for name, x in panel.lines.items() if x is not None}
    colours = [OURS if name.startswith("tercet") else PEER for name in names]
    axes.barh(range(len(names)), values, color=colours, height=0.62)
    right = 1.12 * max([*values, *lines.values()])
    axes.set_xlim(0, right)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_title(panel.title, loc="left", fontsize=10, color=INK, pad=20)
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    for place, value in enumerate(values):
        text = f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"
        axes.text(value + 0.008 * right, place, text, va="center", fontsize=9, color=INK)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=6)
    places = sorted(lines.values())
    crowded = len(places) > 1 and places[-1] - places[0] < 0.2 * right
    for name, x in lines.items():
        axes.axvline(x, color=QUIET, linewidth=1.2, linestyle=(0, (3, 2)))
        side = "center" if not crowded else "right" if x == places[0] else "left"
        axes.text(x, -0.62, name, ha=side, va="bottom", fontsize=8.5, color=QUIET)
