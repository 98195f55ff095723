"""How figures look: palette, names, canvas, headline, direct labels, reproducible files."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {
    "gpt": "#8a8f98",
    "gpt-prompted": "#7a68b3",
    "sft": "#2f6fb0",
    "ppo": "#d1671f",
    "ppo-ptx": "#1b8f6a",
}
SPARE_COLOURS = ("#b03a5b", "#8c6d1f", "#3f8fa3", "#6b4f3a")
NAMES = {
    "gpt": "GPT",
    "gpt-prompted": "GPT (prompted)",
    "sft": "SFT",
    "ppo": "PPO",
    "ppo-ptx": "PPO-ptx",
}
INK, QUIET, RULE = "#22262b", "#6b7280", "#e3e6ea"
STYLE: dict[str, Any] = {
    "svg.hashsalt": "tercet",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.solid_capstyle": "round",
}


def display_name(family: str) -> str:
    """The name printed for a policy: `ppo-ptx` -> `PPO-ptx`, `bon:16` -> `best of 16`."""
    if family.startswith("bon:"):
        return f"best of {family[4:]}"
    return NAMES.get(family, family)


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches in this style; without pyplot nothing global is kept."""
    with matplotlib.rc_context(STYLE):  # pyright: ignore[reportArgumentType]
        yield Figure(figsize=(width, height))


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Writes `<stem>.png` and `<stem>.svg`; equal figures give equal bytes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    figure.savefig(png, dpi=200, metadata={"Software": "tercet"})
    figure.savefig(svg, metadata={"Date": None, "Creator": "tercet"})
    return png, svg


def headline(figure: Figure, title: str, subtitle: str) -> None:
    """Title and quiet subtitle, at the top left."""
    height = figure.get_figheight()
    left = 0.18 / figure.get_figwidth()
    figure.text(left, 1 - 0.14 / height, title, fontsize=13, fontweight="bold", va="top")
    figure.text(
        left, 1 - 0.46 / height, subtitle, fontsize=9, color=QUIET, va="top", linespacing=1.5
    )


def run_key(figure: Figure, colours: Mapping[str, str]) -> None:
    """Run names in their colours under the title: the legend of all panels at once."""
    width, height = figure.get_figwidth(), figure.get_figheight()
    x = 0.18
    for name, colour in colours.items():
        figure.text(
            x / width,
            1 - 0.46 / height,
            name,
            fontsize=10,
            fontweight="bold",
            color=colour,
            va="top",
        )
        x += 0.1 * len(name) + 0.25


def colours_of(families: Iterable[str]) -> dict[str, str]:
    """A colour a family: its fixed one, or a spare one in order."""
    spare = iter(SPARE_COLOURS * 8)
    return {family: COLOURS.get(family) or next(spare) for family in families}


def end_labels(axes: Axes, ends: Sequence[tuple[str, float, str]], x: float) -> None:
    """Names at the right end of their lines, moved apart where two would overlap."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.06
    placed = -math.inf
    for name, y, colour in sorted(ends, key=lambda end: end[1]):
        placed = max(y, placed + gap)
        axes.annotate(
            name,
            (x, placed),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold",
            annotation_clip=False,
        )


def short_count(number: int) -> str:
    """247,000 -> `247k`; 1,300,000,000 -> `1.3B`."""
    for unit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{suffix}"
    return str(number)
