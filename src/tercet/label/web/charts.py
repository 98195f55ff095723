"""Coordinates of the small charts; the templates draw them with attributes and classes only."""

from collections.abc import Sequence
from dataclasses import dataclass

from tercet.label.bias import Bar, Times

STEP, HEIGHT = 56, 120
"""Pixels of one column, and of the area between 0 and the top."""


@dataclass(frozen=True)
class Column:
    """A bar or a point with its interval; y grows downwards, as in SVG."""

    x: int
    """left edge"""
    y: float
    height: float
    low: float
    high: float
    """y of the interval's ends; for a bar the same as `y`"""
    label: str
    value: str


@dataclass(frozen=True)
class Chart:
    width: int
    columns: list[Column]


def histogram(times: Times) -> Chart:
    """Answers by the time they took."""
    top = max([b.answers for b in times.bins] + [1])
    columns = []
    for n, b in enumerate(times.bins):
        height = round(HEIGHT * b.answers / top, 1)
        label = f"{b.low}-{b.high}" if b.high else f"{b.low}+"
        y = round(HEIGHT - height, 1)
        columns.append(Column(n * STEP, y, height, y, y, label, str(b.answers)))
    return Chart(len(columns) * STEP, columns)


def shares(bars: Sequence[Bar]) -> Chart:
    """Shares from 0 to 1 as points with intervals; those without a case are left out."""
    columns = []
    for bar in bars:
        if bar.share is None:
            continue
        y, low, high = (
            round(HEIGHT * (1 - share), 1)
            for share in (bar.share.estimate, bar.share.low, bar.share.high)
        )
        value = f"{bar.share.estimate:.0%}"
        columns.append(Column(len(columns) * STEP, y, 0, low, high, bar.label, value))
    return Chart(max(len(columns), 1) * STEP, columns)
