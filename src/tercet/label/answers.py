"""Ranked answers as columns of numbers, and every pair of replies in them: what quality is made of.

An `Answer` is one labeler's latest revision on one item. `Answers` holds many of them as arrays;
replies stand in the item's own order, not in the order in which they were shown.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_REPLIES = 9


@dataclass(frozen=True, slots=True)
class Answer:
    """One labeler's answer to one item; a demonstration has no ranks."""

    item: Hashable
    labeler: str
    ranks: Sequence[int] = ()
    """1 is best, equal is a tie; one a reply, in the item's order"""
    ratings: Sequence[float | None] = ()
    shown: Sequence[int] = ()
    """place on the labeler's screen, 0 first; empty: in the item's order"""
    lengths: Sequence[int] = ()
    """characters of each reply; empty: not known"""
    flags: Sequence[Mapping[str, bool | None]] = ()
    """the yes/no questions of each reply; empty: none answered"""
    seconds: float = 0.0
    at: int = 0
    """milliseconds UTC of the submission"""


@dataclass(frozen=True, slots=True)
class Answers:
    """Columns: A answers, and R replies of all of them, one answer after the other."""

    labelers: tuple[str, ...]
    items: tuple[Hashable, ...]
    item: Ints  # (A,) index into `items`
    labeler: Ints  # (A,) index into `labelers`
    seconds: Floats  # (A,)
    at: Ints  # (A,)
    replies: Ints  # (A,) how many replies
    rank: Ints  # (R,)
    rating: Floats  # (R,) NaN: not rated
    shown: Ints  # (R,)
    length: Ints  # (R,)

    @property
    def start(self) -> Ints:
        """(A,) where the replies of each answer begin."""
        return np.cumsum(self.replies) - self.replies

    def take(self, mask: NDArray[np.bool_]) -> "Answers":
        """Only those answers; the indices of items and labelers stay."""
        rows = np.repeat(mask, self.replies)
        return Answers(
            labelers=self.labelers,
            items=self.items,
            item=self.item[mask],
            labeler=self.labeler[mask],
            seconds=self.seconds[mask],
            at=self.at[mask],
            replies=self.replies[mask],
            rank=self.rank[rows],
            rating=self.rating[rows],
            shown=self.shown[rows],
            length=self.length[rows],
        )


def columns(answers: Iterable[Answer], labelers: Sequence[str] | None = None) -> Answers:
    """Answers as arrays. `labelers` fixes the index of each labeler; else by first appearance."""
    who = {name: n for n, name in enumerate(labelers or ())}
    items: dict[Hashable, int] = {}
    item, labeler, seconds, at, replies = [], [], [], [], []
    rank, rating, shown, length = [], [], [], []
    for answer in answers:
        k = len(answer.ranks)
        item.append(items.setdefault(answer.item, len(items)))
        labeler.append(who.setdefault(answer.labeler, len(who)))
        seconds.append(answer.seconds)
        at.append(answer.at)
        replies.append(k)
        rank.extend(answer.ranks)
        rating.extend(answer.ratings or (None,) * k)
        shown.extend(answer.shown or range(k))
        length.extend(answer.lengths or (0,) * k)
    return Answers(
        labelers=tuple(who),
        items=tuple(items),
        item=np.array(item, dtype=np.int64),
        labeler=np.array(labeler, dtype=np.int64),
        seconds=np.array(seconds, dtype=np.float64),
        at=np.array(at, dtype=np.int64),
        replies=np.array(replies, dtype=np.int64),
        rank=np.array(rank, dtype=np.int64),
        rating=np.array(rating, dtype=np.float64),  # None becomes NaN
        shown=np.array(shown, dtype=np.int64),
        length=np.array(length, dtype=np.int64),
    )


@dataclass(frozen=True, slots=True)
class Pairs:
    """Every pair of replies (a before b in the item's order) of every answer: M rows."""

    answer: Ints
    """index of the answer"""
    unit: Ints
    """the same number for the same pair of the same item"""
    outcome: Ints
    """+1 a is better, 0 tie, -1 b is better"""
    shown: Ints
    """+1 a stood before b on the screen, -1 after it"""
    longer: Ints
    """+1 a is longer, 0 equally long, -1 b is longer"""
    ratio: Floats
    """characters of the longer reply by those of the shorter one, at least 1"""
    rated: Ints
    """+1 a has the higher rating, -1 b has, 0 the same or not both rated"""

    def take(self, mask: NDArray[np.bool_]) -> "Pairs":
        """Only those rows."""
        return Pairs(
            self.answer[mask],
            self.unit[mask],
            self.outcome[mask],
            self.shown[mask],
            self.longer[mask],
            self.ratio[mask],
            self.rated[mask],
        )


def pairs_of(answers: Answers) -> Pairs:
    """All pairs of all answers, K by K; answers with fewer than two replies have none."""
    blocks: list[tuple[NDArray, ...]] = []
    for k in np.unique(answers.replies[answers.replies >= 2]):
        chosen = np.flatnonzero(answers.replies == k)
        rows = answers.start[chosen][:, None] + np.arange(k)
        a, b = np.triu_indices(k, k=1)
        rank, shown = answers.rank[rows], answers.shown[rows]
        length, rating = answers.length[rows], answers.rating[rows]
        unit = answers.item[chosen][:, None] * MOST_REPLIES**2 + a * MOST_REPLIES + b
        rated = np.nan_to_num(np.sign(rating[:, a] - rating[:, b])).astype(np.int64)
        short = np.maximum(np.minimum(length[:, a], length[:, b]), 1)
        blocks.append(
            (
                np.repeat(chosen, len(a)),
                unit.ravel(),
                np.sign(rank[:, b] - rank[:, a]).ravel(),
                np.sign(shown[:, b] - shown[:, a]).ravel(),
                np.sign(length[:, a] - length[:, b]).ravel(),
                np.maximum(np.maximum(length[:, a], length[:, b]) / short, 1).ravel(),
                rated.ravel(),
            )
        )
    if not blocks:
        none = np.zeros(0, dtype=np.int64)
        return Pairs(none, none, none, none, none, none.astype(np.float64), none)
    return Pairs(*(np.concatenate(column) for column in zip(*blocks, strict=True)))
