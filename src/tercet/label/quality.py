"""The quality of a project's answers: how far people agree, and what deserves a look.

Which answers count where:

- agreement, alphas, Kendall, matrix, leave-one-out: items with two or more answers, counted and
  extra, without gold items (chosen for being clear, they would raise it) and without repeats (one
  person twice);
- gold accuracy and repeat consistency: exactly those items;
- ties, position, length, contradictions, times: all items except gold and repeats;
- people and simulated labelers never mix: a report is about one or the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sqlalchemy import Connection

from tercet.label.agreement import (
    FlagAgreement,
    Kendall,
    alpha,
    among,
    beside_known,
    beside_the_others,
    compare,
    flag_agreement,
    kendall,
    matrix,
    overlapping,
    pairwise,
    rating_alpha,
    share_of,
)
from tercet.label.answers import Answers, columns, pairs_of
from tercet.label.bias import Bias, Times, bias, times
from tercet.label.collect import Collected, collect, has_people
from tercet.label.labelers import Concern, LabelerQuality, Person, concerns, per_labeler
from tercet.label.sequential import Hypotheses
from tercet.statistics import Agreement, Interval, TieConvention

Who = Literal["people", "simulated"]

PUBLISHED = {"train": (0.726, 0.015), "heldout": (0.773, 0.013)}
"""Agreement among training and among held-out labelers (Ouyang et al. 2022, section 3.4)"""


@dataclass(frozen=True)
class GroupAgreement:
    """Agreement among the labelers of one group."""

    group: str
    labelers: int
    agreement: dict[TieConvention, Agreement]


@dataclass(frozen=True)
class Alphas:
    """Krippendorff's alpha; None when there is nothing to compare or no variation."""

    ratings: float | None
    """ordinal, one unit a reply"""
    ranks: float | None
    """nominal, on the outcome (better, tie, worse) of each pair of replies"""
    ranks_ordinal: float | None
    """the same with worse < tie < better"""
    flags: list[FlagAgreement]


@dataclass(frozen=True)
class Quality:
    """Numbers of one project. None stands for what the answers cannot tell (yet)."""

    who: Who
    answers: int
    """without gold items and repeats"""
    items: int
    overlap_items: int
    """ranked items that two or more labelers answered"""
    agreement: dict[TieConvention, Agreement]
    groups: list[GroupAgreement]
    alphas: Alphas
    kendall: Kendall
    gold: Interval | None
    repeats: Interval | None
    people: list[Person]
    matrix: list[list[float | None]]
    """agreement of each two labelers, ties excluded, in the order of `people`"""
    matrix_pairs: list[list[int]]
    labelers: list[LabelerQuality]
    concerns: list[Concern]
    bias: Bias
    times: Times


def quality(
    conn: Connection,
    project_id: str,
    flags: Sequence[str] = (),
    who: Who | None = None,
    hypotheses: Hypotheses | None = None,
) -> Quality:
    """Reads and measures one project, in under a second for 10,000 answers.

    flags: ids of the reply flags whose agreement is wanted. who: by default people, or the
    simulated labelers where nobody else has answered.
    """
    who = who or ("people" if has_people(conn, project_id) else "simulated")
    return measure(collect(conn, project_id, who == "simulated"), flags, who, hypotheses)


def measure(
    collected: Collected,
    flags: Sequence[str] = (),
    who: Who = "people",
    hypotheses: Hypotheses | None = None,
) -> Quality:
    """All numbers of answers that are already read."""
    people = list(collected.people)
    ids = [person.id for person in people]
    # One index of items for all three kinds, so that their references can stand side by side.
    everything = columns([*collected.plain, *collected.gold, *collected.repeats], ids)
    kind = np.repeat(
        np.arange(3), [len(collected.plain), len(collected.gold), len(collected.repeats)]
    )
    plain, gold, repeats = (everything.take(kind == n) for n in range(3))
    pairs = pairs_of(plain)
    shared = overlapping(plain)
    shared_pairs = pairs_of(shared)
    compared = compare(shared, shared_pairs)
    others = beside_the_others(shared, shared_pairs)
    beside_gold = beside_known(gold, collected.gold_ranks)
    beside_first = beside_known(repeats, collected.first_ranks)
    rates, counts = matrix(compared, len(people))
    table = per_labeler(
        people,
        plain,
        pairs,
        others,
        beside_gold,
        beside_first,
        collected.tallies,
        hypotheses,
    )
    return Quality(
        who=who,
        answers=len(plain.item),
        items=len(np.unique(plain.item)),
        overlap_items=len(np.unique(shared.item)),
        agreement=pairwise(compared),
        groups=[
            GroupAgreement(
                group,
                sum(person.group == group for person in people),
                pairwise(among(compared, [person.group == group for person in people])),
            )
            for group in sorted({person.group for person in people})
        ],
        alphas=_alphas(shared, collected, flags),
        kendall=kendall(shared, shared_pairs, compared),
        gold=share_of(beside_gold),
        repeats=share_of(beside_first),
        people=people,
        matrix=[[None if np.isnan(rate) else float(rate) for rate in row] for row in rates],
        matrix_pairs=counts.tolist(),
        labelers=table,
        concerns=concerns(table, hypotheses),
        bias=bias(plain, pairs),
        times=times(plain.seconds),
    )


def _alphas(shared: Answers, collected: Collected, flags: Sequence[str]) -> Alphas:
    pairs = pairs_of(shared)
    # Which reply of a pair comes first is arbitrary: counted both ways, so that alpha is the same
    # for either choice, also where the item lists one policy always first.
    unit = np.concatenate([2 * pairs.unit, 2 * pairs.unit + 1])
    outcome = np.concatenate([pairs.outcome, -pairs.outcome]).astype(np.float64)
    items = {shared.items[index] for index in np.unique(shared.item)}
    answers = [answer for answer in collected.plain if answer.item in items]
    return Alphas(
        ratings=rating_alpha(shared),
        ranks=alpha(unit, outcome, "nominal"),
        ranks_ordinal=alpha(unit, outcome, "ordinal"),
        flags=flag_agreement(answers, flags),
    )
