"""How far labelers agree on the items that two or more of them answered.

Intervals treat the answers to one item as one cluster: the pairs of a ranking are not independent.
Items with a single answer never enter, they would count as perfect agreement.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from tercet.label.answers import MOST_REPLIES, Answer, Answers, Floats, Ints, Pairs, pairs_of
from tercet.statistics import (
    Agreement,
    AlphaLevel,
    Interval,
    TieConvention,
    clustered_wilson,
    krippendorff_alpha,
    pairwise_agreement,
)

CONVENTIONS: tuple[TieConvention, ...] = ("excluded", "half", "exact")


@dataclass(frozen=True)
class Comparisons:
    """Two labelers on one pair of replies: one row for each two labelers who both answered."""

    first: Ints
    second: Ints
    """the two labelers' indices, first < second"""
    item: Ints
    a: Ints
    b: Ints
    """their outcomes, +1, 0 or -1"""


@dataclass(frozen=True)
class Kendall:
    tau_b: float | None
    """mean over items and couples of labelers; 1 the same order, 0 unrelated, -1 reversed"""
    w: float | None
    """mean over items of Kendall's W: 1 when all rank alike; about 1/m for m unrelated rankings"""
    items: int


@dataclass(frozen=True)
class FlagAgreement:
    name: str
    alpha: float | None
    answered: int
    """answers that are yes or no, on items that two or more labelers answered"""
    yes_rate: float | None


@dataclass(frozen=True)
class Reference:
    """Each labeler beside what the others say: item by item the share of pairs in agreement."""

    labeler: Ints
    item: Ints
    at: Ints
    share: Floats
    """0 to 1; a tie where the others decide counts half"""
    pairs: Ints
    """pairs that the reference decides"""
    replies: Ints
    """how many replies the item has"""


def overlapping(answers: Answers) -> Answers:
    """Only the ranked items that two or more labelers answered."""
    ranked = answers.replies >= 2
    counts = np.bincount(answers.item[ranked], minlength=int(answers.item.max(initial=0)) + 1)
    return answers.take(ranked & (counts[answers.item] >= 2))


def compare(answers: Answers, pairs: Pairs) -> Comparisons:
    """Every couple of labelers on every pair of replies that both judged."""
    labeler = answers.labeler[pairs.answer]
    order = np.lexsort((labeler, pairs.unit))
    unit, labeler, outcome = pairs.unit[order], labeler[order], pairs.outcome[order]
    _, start, count = np.unique(unit, return_index=True, return_counts=True)
    rows: list[tuple[Ints, ...]] = []
    for n in np.unique(count[count >= 2]):
        judged = start[count == n][:, None] + np.arange(n)
        i, j = np.triu_indices(n, k=1)
        one, two = judged[:, i].ravel(), judged[:, j].ravel()
        item = unit[one] // MOST_REPLIES**2
        rows.append((labeler[one], labeler[two], item, outcome[one], outcome[two]))
    if not rows:
        none = np.zeros(0, dtype=np.int64)
        return Comparisons(none, none, none, none, none)
    return Comparisons(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def pairwise(comparisons: Comparisons) -> dict[TieConvention, Agreement]:
    """The rate of agreement under the three conventions for ties, each with its interval."""
    if not len(comparisons.a):
        return {name: Agreement(None, None, None, 0, 0.0) for name in CONVENTIONS}
    return {
        name: pairwise_agreement(
            comparisons.a, comparisons.b, comparisons.item, name, method="wilson"
        )
        for name in CONVENTIONS
    }


def among(comparisons: Comparisons, members: Sequence[bool]) -> Comparisons:
    """Only the comparisons of two labelers who are both members."""
    inside = np.asarray(members, dtype=bool)
    keep = inside[comparisons.first] & inside[comparisons.second]
    return Comparisons(
        comparisons.first[keep],
        comparisons.second[keep],
        comparisons.item[keep],
        comparisons.a[keep],
        comparisons.b[keep],
    )


def matrix(comparisons: Comparisons, labelers: int) -> tuple[Floats, Ints]:
    """Rates of agreement (ties excluded) of each two labelers, and on how many pairs of replies.

    Both are symmetric (labelers, labelers); a rate without pairs is NaN.
    """
    decided = (comparisons.a != 0) & (comparisons.b != 0)
    cell = comparisons.first[decided] * labelers + comparisons.second[decided]
    same = (comparisons.a == comparisons.b)[decided].astype(np.float64)
    pairs = np.bincount(cell, minlength=labelers**2).reshape(labelers, labelers)
    agreed = np.bincount(cell, weights=same, minlength=labelers**2).reshape(labelers, labelers)
    pairs, agreed = pairs + pairs.T, agreed + agreed.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return agreed / pairs, pairs


def alpha(unit: Ints, value: Floats, level: AlphaLevel) -> float | None:
    """Krippendorff's alpha of values given to units, NaN left out; None when nothing varies."""
    unit, value = unit[~np.isnan(value)], value[~np.isnan(value)]
    _, unit, count = np.unique(unit, return_inverse=True, return_counts=True)
    keep = (count >= 2)[unit]
    if not keep.any():
        return None
    _, unit, count = np.unique(unit[keep], return_inverse=True, return_counts=True)
    # The n-th value of each unit: alpha does not ask who gave it.
    order = np.argsort(unit, kind="stable")
    place = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
    table = np.full((int(count.max()), len(count)), np.nan)
    table[place, unit[order]] = value[keep][order]
    return krippendorff_alpha(table, level)


def rating_alpha(answers: Answers) -> float | None:
    """Ordinal alpha of the overall ratings, one unit a reply."""
    place = np.arange(len(answers.rank)) - np.repeat(answers.start, answers.replies)
    unit = np.repeat(answers.item, answers.replies) * MOST_REPLIES + place
    return alpha(unit, answers.rating, "ordinal")


def flag_agreement(answers: Sequence[Answer], names: Sequence[str]) -> list[FlagAgreement]:
    """Nominal alpha of each yes/no question; "not answered" is no answer.

    answers: those of items that two or more labelers answered.
    """
    items: dict[object, int] = {}
    given: Mapping[str, tuple[list[int], list[float]]] = {name: ([], []) for name in names}
    for answer in answers:
        item = items.setdefault(answer.item, len(items)) * MOST_REPLIES
        for place, flags in enumerate(answer.flags):
            for name, value in flags.items():
                if value is not None and name in given:
                    given[name][0].append(item + place)
                    given[name][1].append(float(value))
    return [
        FlagAgreement(
            name,
            alpha(np.array(unit, dtype=np.int64), np.array(value, dtype=np.float64), "nominal"),
            len(value),
            sum(value) / len(value) if value else None,
        )
        for name, (unit, value) in given.items()
    ]


def kendall(answers: Answers, pairs: Pairs, comparisons: Comparisons) -> Kendall:
    """Rank correlation of whole rankings, ties allowed (Kendall 1945; Kendall & Smith 1939)."""
    if not len(comparisons.a):
        return Kendall(None, None, 0)
    couple = (comparisons.item * (len(answers.labelers) + 1) + comparisons.first) * (
        len(answers.labelers) + 1
    ) + comparisons.second
    _, couple = np.unique(couple, return_inverse=True)
    both = np.bincount(couple, weights=comparisons.a * comparisons.b)
    norm = np.sqrt(
        np.bincount(couple, weights=comparisons.a**2)
        * np.bincount(couple, weights=comparisons.b**2)
    )
    tau = both[norm > 0] / norm[norm > 0]
    w = _concordance(answers, pairs)
    return Kendall(
        float(tau.mean()) if len(tau) else None,
        float(w.mean()) if len(w) else None,
        len(np.unique(comparisons.item)),
    )


def _concordance(answers: Answers, pairs: Pairs) -> Floats:
    """Kendall's W of each item whose rankings are not all one tie.

    With r the ranks about their mean, W = sum_replies (sum_labelers r)^2 / (m sum sum r^2): that
    is the usual 12 S / (m^2 (K^3 - K) - m T), since ties shorten sum r^2 by T / 12.
    """
    start = answers.start[pairs.answer]
    a, b = np.divmod(pairs.unit % MOST_REPLIES**2, MOST_REPLIES)
    rows = len(answers.rank)
    # Half of (replies below - replies above) is the distance of a mean rank from the middle.
    centred = (
        np.bincount(start + a, weights=pairs.outcome / 2, minlength=rows)
        - np.bincount(start + b, weights=pairs.outcome / 2, minlength=rows)
    )  # fmt: skip
    item = np.repeat(answers.item, answers.replies)
    place = np.arange(rows) - np.repeat(answers.start, answers.replies)
    items = int(item.max()) + 1
    total = np.bincount(item * MOST_REPLIES + place, weights=centred, minlength=items * 9)
    agreed = (total.reshape(items, MOST_REPLIES) ** 2).sum(1)
    labelers = np.bincount(answers.item, minlength=items)
    spread = np.bincount(item, weights=centred**2, minlength=items)
    known = (labelers >= 2) & (spread > 0)
    return agreed[known] / (labelers[known] * spread[known])


def beside_the_others(answers: Answers, pairs: Pairs) -> Reference:
    """Each labeler's share of agreement with the majority of the others, item by item.

    Pairs on which the others are split evenly, or all tie, say nothing and are left out.
    """
    _, unit = np.unique(pairs.unit, return_inverse=True)
    total = np.bincount(unit, weights=pairs.outcome)
    return beside(answers, pairs, np.sign(total[unit] - pairs.outcome))


def beside(answers: Answers, pairs: Pairs, reference: Floats | Ints) -> Reference:
    """Shares of agreement with a reference outcome for each row of `pairs`; 0: it is silent."""
    decided = reference != 0
    agree = np.where(pairs.outcome == 0, 0.5, pairs.outcome == reference)[decided]
    chosen, row, count = np.unique(pairs.answer[decided], return_inverse=True, return_counts=True)
    share = np.bincount(row, weights=agree) / count if len(row) else np.zeros(0)
    return Reference(
        answers.labeler[chosen],
        answers.item[chosen],
        answers.at[chosen],
        share,
        count.astype(np.int64),
        answers.replies[chosen],
    )


def beside_known(answers: Answers, known: Mapping[Hashable, Sequence[int]]) -> Reference:
    """Shares of agreement with known ranks (gold, or an earlier answer of the same person).

    known: item -> ranks in the item's order.
    """
    pairs = pairs_of(answers)
    item = answers.item[pairs.answer]
    a, b = np.divmod(pairs.unit % MOST_REPLIES**2, MOST_REPLIES)
    ranks = np.zeros((len(answers.items) + 1, MOST_REPLIES), dtype=np.int64)
    for index in np.unique(answers.item):
        given = known[answers.items[index]]
        ranks[index, : len(given)] = given
    return beside(answers, pairs, np.sign(ranks[item, b] - ranks[item, a]))


def share_of(reference: Reference, labeler: int | None = None) -> Interval | None:
    """Share of decided pairs in agreement, of one labeler or of all; clusters are items."""
    mine = np.ones(len(reference.item), bool) if labeler is None else reference.labeler == labeler
    if not mine.any():
        return None
    return weighted_share(reference.share[mine], reference.pairs[mine], reference.item[mine])


def weighted_share(share: Floats, pairs: Ints, item: Ints) -> Interval:
    """Mean over pairs of shares that are given item by item."""
    # Each pair of an item at the item's mean: the item's total, and so the interval, is the same.
    return clustered_wilson(cast(Floats, np.repeat(share, pairs)), np.repeat(item, pairs))
