"""What should not decide a ranking: where a reply stood, how long it is, how long it took."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tercet.label.answers import MOST_REPLIES, Answers, Floats, Ints, Pairs
from tercet.statistics import Interval, clustered_wilson

RATIOS = (1.25, 1.5, 2.0, 4.0)
"""Steps of "the longer reply has so many times the characters" """
SECONDS = (5, 10, 20, 40, 80, 160, 320, 640)


@dataclass(frozen=True)
class Bar:
    """One column of a chart: a share with its interval, None without any case."""

    label: str
    share: Interval | None


@dataclass(frozen=True)
class Bin:
    """Answers that took `low` to `high` seconds; None: no upper end."""

    low: int
    high: int | None
    answers: int


@dataclass(frozen=True)
class Times:
    median: float | None
    """seconds of active time"""
    p90: float | None
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Bias:
    shown_first: Interval | None
    """how often the reply shown earlier wins a pair; 0.5 without position bias"""
    longer: Interval | None
    """how often the longer reply wins a pair"""
    places: tuple[Bar, ...]
    """how often the reply at each place (A, B, ...) wins its pairs"""
    ratios: tuple[Bar, ...]
    """how often the longer reply wins, by how much longer it is"""


def shown_first_wins(answers: Answers, pairs: Pairs) -> Interval | None:
    """How often the reply shown earlier is ranked higher, among pairs that are no tie."""
    return _wins(answers, pairs, pairs.shown)


def longer_wins(answers: Answers, pairs: Pairs) -> Interval | None:
    """How often the longer reply is ranked higher, among pairs that are no tie."""
    return _wins(answers, pairs, pairs.longer)


def bias(answers: Answers, pairs: Pairs) -> Bias:
    """Position and length preference of all answers together."""
    steps = np.digitize(pairs.ratio, RATIOS)
    names = ["up to 1.25", *(f"{a:g} to {b:g}" for a, b in pairwise(RATIOS))]
    return Bias(
        shown_first=shown_first_wins(answers, pairs),
        longer=longer_wins(answers, pairs),
        places=_places(answers, pairs),
        ratios=tuple(
            Bar(name, _wins(answers, pairs.take(steps == n), pairs.longer[steps == n]))
            for n, name in enumerate([*names, f"over {RATIOS[-1]:g}"])
        ),
    )


def _wins(answers: Answers, pairs: Pairs, favoured: Ints) -> Interval | None:
    keep = (pairs.outcome != 0) & (favoured != 0)
    if not keep.any():
        return None
    won = pairs.outcome[keep] == favoured[keep]
    return clustered_wilson(won.astype(np.float64), answers.item[pairs.answer[keep]])


def _places(answers: Answers, pairs: Pairs) -> tuple[Bar, ...]:
    """Both replies of a decided pair, each at its place, one winning."""
    keep = pairs.outcome != 0
    a, b = np.divmod(pairs.unit % MOST_REPLIES**2, MOST_REPLIES)
    start = answers.start[pairs.answer]
    place = np.concatenate([answers.shown[start + a][keep], answers.shown[start + b][keep]])
    won = np.concatenate([pairs.outcome[keep] > 0, pairs.outcome[keep] < 0]).astype(np.float64)
    item = np.tile(answers.item[pairs.answer[keep]], 2)
    return tuple(
        Bar("ABCDEFGHI"[n], clustered_wilson(won[place == n], item[place == n]))
        for n in np.unique(place)
    )


def times(seconds: Floats) -> Times:
    """Distribution of the active time an answer took; steps double from 5 s."""
    edges = (0, *SECONDS)
    counts = np.bincount(np.digitize(seconds, SECONDS), minlength=len(edges))
    return Times(
        median=float(np.median(seconds)) if len(seconds) else None,
        p90=float(np.quantile(seconds, 0.9)) if len(seconds) else None,
        bins=tuple(
            Bin(low, high, int(n))
            for low, high, n in zip(edges, (*SECONDS, None), counts, strict=True)
        ),
    )


def time_outliers(seconds: Floats) -> NDArray[np.int64]:
    """-1 far too fast, +1 far too slow, 0 neither: modified z-score of log time beyond 3.5.

    (Iglewicz & Hoaglin 1993.) All 0 when more than half of the times are equal.
    """
    if not len(seconds):
        return np.zeros(0, dtype=np.int64)
    log = np.log(np.maximum(seconds, 0.1))
    distance = log - np.median(log)
    scale = float(np.median(np.abs(distance))) / 0.6745
    if scale == 0:
        return np.zeros(len(seconds), dtype=np.int64)
    return np.sign(distance).astype(np.int64) * (np.abs(distance) > 3.5 * scale)
