"""One labeler's numbers, and what in them deserves a look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tercet.label.agreement import Reference, share_of
from tercet.label.answers import Answers, Pairs
from tercet.label.bias import longer_wins, shown_first_wins, time_outliers
from tercet.label.sequential import Check, Hypotheses, check
from tercet.statistics import Interval


@dataclass(frozen=True)
class Person:
    """Who a row is about; what `labeler` holds."""

    id: str
    name: str
    group: str = "train"
    fold: int = 0
    simulated: bool = False
    status: str = "active"


@dataclass(frozen=True)
class Rate:
    """A count of cases among others; `rate` is None without any."""

    count: int
    of: int

    @property
    def rate(self) -> float | None:
        return self.count / self.of if self.of else None


@dataclass(frozen=True)
class LabelerQuality:
    person: Person
    answers: int
    """items answered, late ones too, gold and repeats not"""
    extra: int
    skipped: int
    reported: int
    median_seconds: float | None
    fast: int
    slow: int
    """answers whose time lies far outside of all labelers' times"""
    ties: Rate
    """tied pairs of replies"""
    shown_first: Interval | None
    longer: Interval | None
    contradictions: Rate
    """pairs ranked against their ratings, among pairs with two different ratings and no tie"""
    rating_entropy: float | None
    """bits; 0 when every rating is the same"""
    agreement: Interval | None
    """with the majority of the others, on items that others answered too; a tie counts half"""
    gold: Interval | None
    """with the known answers of gold items; a tie counts half"""
    repeats: Interval | None
    """with the same person's earlier answer"""
    check: Check


@dataclass(frozen=True)
class Tally:
    """Counts of assignments that no answer shows."""

    extra: int = 0
    skipped: int = 0
    reported: int = 0


@dataclass(frozen=True)
class Concern:
    """Something for a person to look at, in words."""

    labeler: str
    text: str


def per_labeler(
    people: Sequence[Person],
    answers: Answers,
    pairs: Pairs,
    others: Reference,
    gold: Reference,
    repeats: Reference,
    tallies: Mapping[str, Tally],
    hypotheses: Hypotheses | None = None,
) -> list[LabelerQuality]:
    """The table of labelers, in the order of `people` (the indices of `answers.labelers`).

    answers, pairs: without gold items and repeats.
    """
    outliers = time_outliers(answers.seconds)
    owner = answers.labeler[pairs.answer]
    rated = np.repeat(answers.labeler, answers.replies)
    rows = []
    for n, person in enumerate(people):
        mine = answers.labeler == n
        own = pairs.take(owner == n)
        contrary = (own.outcome != 0) & (own.rated != 0)
        tally = tallies.get(person.id, Tally())
        rows.append(
            LabelerQuality(
                person=person,
                answers=int(mine.sum()),
                extra=tally.extra,
                skipped=tally.skipped,
                reported=tally.reported,
                median_seconds=float(np.median(answers.seconds[mine])) if mine.any() else None,
                fast=int((outliers[mine] < 0).sum()),
                slow=int((outliers[mine] > 0).sum()),
                ties=Rate(int((own.outcome == 0).sum()), len(own.outcome)),
                shown_first=shown_first_wins(answers, own),
                longer=longer_wins(answers, own),
                contradictions=Rate(
                    int((own.outcome[contrary] != own.rated[contrary]).sum()), int(contrary.sum())
                ),
                rating_entropy=_entropy(answers.rating[rated == n]),
                agreement=share_of(others, n),
                gold=share_of(gold, n),
                repeats=share_of(repeats, n),
                check=_check(n, others, gold, hypotheses),
            )
        )
    return rows


def _entropy(ratings: np.ndarray) -> float | None:
    _, counts = np.unique(ratings[~np.isnan(ratings)], return_counts=True)
    if not len(counts):
        return None
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0


def _check(
    labeler: int,
    others: Reference,
    gold: Reference,
    hypotheses: Hypotheses | None,
) -> Check:
    """Items shared with others and gold items, in the order in which they were answered."""
    mine = [reference.labeler == labeler for reference in (others, gold)]

    def both(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return np.concatenate([one[mine[0]], two[mine[1]]])

    order = np.argsort(both(others.at, gold.at), kind="stable")
    share, replies = both(others.share, gold.share), both(others.replies, gold.replies)
    return check(share[order], replies[order], hypotheses)


def concerns(rows: Sequence[LabelerQuality], hypotheses: Hypotheses | None = None) -> list[Concern]:
    """Flags in words, labeler by labeler. None of them proves anything: read the answers."""
    h = hypotheses or Hypotheses()
    usual = [row.median_seconds for row in rows if row.answers >= 10 and row.median_seconds]
    typical = float(np.median(usual)) if usual else None
    return [
        Concern(row.person.name, text) for row in rows for text in _concerns_of(row, h, typical)
    ]


def _concerns_of(row: LabelerQuality, h: Hypotheses, typical: float | None) -> list[str]:
    found = []
    if row.check.verdict == "flagged":
        found.append(
            f"agrees with others and with known answers less than {h.good:.0%} of the time; "
            f"the sequential check was sure after {row.check.flagged_after} items"
        )
    if row.gold and row.gold.high < 0.8:
        found.append(
            f"orders {row.gold.estimate:.0%} of the known pairs rightly "
            f"({row.gold.clusters} gold items)"
        )
    # Beyond the interval, since among many labelers some exceed it by chance.
    if row.shown_first and (row.shown_first.low > 0.53 or row.shown_first.high < 0.47):
        side = "first" if row.shown_first.estimate > 0.5 else "later"
        share = max(row.shown_first.estimate, 1 - row.shown_first.estimate)
        found.append(f"prefers the reply shown {side}: it wins {share:.0%} of the pairs")
    if row.contradictions.of >= 20 and (row.contradictions.rate or 0) > 0.1:
        found.append(
            f"ranks against the own ratings in {row.contradictions.count} of "
            f"{row.contradictions.of} pairs"
        )
    if row.ties.of >= 50 and (row.ties.rate or 0) > 0.6:
        found.append(f"ties {row.ties.rate:.0%} of all pairs")
    if row.repeats and row.repeats.clusters >= 3 and row.repeats.estimate < 0.65:
        found.append(
            f"repeats {row.repeats.estimate:.0%} of the own decisions "
            f"({row.repeats.clusters} repeated items)"
        )
    if typical and row.answers >= 10 and (row.median_seconds or 0) < typical / 3:
        found.append(
            f"takes {row.median_seconds:.0f} s for an item; the usual labeler {typical:.0f} s"
        )
    if row.answers >= 20 and row.rating_entropy is not None and row.rating_entropy < 0.5:
        found.append("gives nearly every reply the same rating")
    if row.answers + row.skipped >= 20 and row.skipped > row.answers:
        found.append(f"skips more than every second item ({row.skipped})")
    return found
