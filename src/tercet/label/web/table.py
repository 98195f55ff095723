"""The order of the table of labelers."""

from collections.abc import Callable, Sequence
from typing import Any

from tercet.label.labelers import LabelerQuality
from tercet.statistics import Interval


def _estimate(share: Interval | None) -> float | None:
    return share.estimate if share else None


KEYS: dict[str, Callable[[LabelerQuality], Any]] = {
    "name": lambda row: row.person.name.casefold(),
    "group": lambda row: (row.person.group, row.person.name.casefold()),
    "answers": lambda row: row.answers,
    "seconds": lambda row: row.median_seconds,
    "agreement": lambda row: _estimate(row.agreement),
    "gold": lambda row: _estimate(row.gold),
    "repeats": lambda row: _estimate(row.repeats),
    "ties": lambda row: row.ties.rate,
    "first": lambda row: _estimate(row.shown_first),
    "longer": lambda row: _estimate(row.longer),
    "contradictions": lambda row: row.contradictions.rate,
    "outliers": lambda row: row.fast + row.slow,
    "skipped": lambda row: row.skipped + row.reported,
}


def sorted_rows(
    rows: Sequence[LabelerQuality], key: str, down: bool = False
) -> list[LabelerQuality]:
    """By one of KEYS, else by name; rows without a value stand last either way."""
    value = KEYS.get(key, KEYS["name"])
    known = [row for row in rows if value(row) is not None]
    missing = [row for row in rows if value(row) is None]
    return sorted(known, key=value, reverse=down) + missing
