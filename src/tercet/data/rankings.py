"""Rankings made ready for training: one reply per text, one prompt at most once a batch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from tercet.records import Ranking


@dataclass(frozen=True)
class Cleaned:
    """Rankings whose replies differ in text, and what was met on the way."""

    rankings: list[Ranking]
    all_tied: int
    duplicate_replies: int
    contradictions: int


def distinct_replies(rankings: Sequence[Ranking]) -> Cleaned:
    """Merge replies of equal text: they get equal scores, so their own pair says nothing.

    Copies with different ranks contradict each other; that pair is dropped, and the merged reply
    takes the mean of their (dense) ranks. Rankings left with one reply are dropped; all-tied ones
    are only counted, because they hold no pair but may still count for tie rates.
    """
    cleaned, tied, duplicates, contradictions = [], 0, 0, 0
    for ranking in rankings:
        dense = {rank: i for i, rank in enumerate(sorted({r.rank for r in ranking.replies}))}
        groups: dict[str, list[int]] = {}
        for place, reply in enumerate(ranking.replies):
            groups.setdefault(reply.text.strip(), []).append(place)
        duplicates += len(ranking.replies) - len(groups)
        if len(groups) < len(ranking.replies):
            means = []
            for places in groups.values():
                ranks = [dense[ranking.replies[p].rank] for p in places]
                contradictions += len(set(ranks)) > 1
                means.append(Fraction(sum(ranks), len(ranks)))
            order = sorted(set(means))
            replies = [
                ranking.replies[places[0]].model_copy(update={"rank": order.index(mean) + 1})
                for places, mean in zip(groups.values(), means, strict=True)
            ]
            if len(replies) < 2:
                continue
            ranking = ranking.model_copy(update={"replies": tuple(replies)})
        tied += not has_pairs(ranking)
        cleaned.append(ranking)
    return Cleaned(cleaned, tied, duplicates, contradictions)


def has_pairs(ranking: Ranking) -> bool:
    """False when all replies are tied."""
    return len({reply.rank for reply in ranking.replies}) > 1


def pair_count(ranking: Ranking) -> int:
    """C(K,2) less the tied pairs."""
    ranks = [reply.rank for reply in ranking.replies]
    return sum(a != b for i, a in enumerate(ranks) for b in ranks[i + 1 :])


def as_pairs(ranking: Ranking) -> list[Ranking]:
    """Each untied pair as a ranking of its own: the ablation of InstructGPT's footnote 5."""
    replies = ranking.replies
    return [
        ranking.model_copy(
            update={"id": f"{ranking.id}#{i}-{j}", "replies": (replies[i], replies[j])}
        )
        for i in range(len(replies))
        for j in range(i + 1, len(replies))
        if replies[i].rank != replies[j].rank
    ]


def batches(
    rankings: Sequence[Ranking], size: int, seed: int, distinct: bool = True
) -> list[list[int]]:
    """A shuffled pass in batches of at most `size` and of nearly equal size; every ranking once.

    With `distinct`, no prompt occurs twice in one batch: rankings of one prompt by several labelers
    are dealt to different batches, of which there are then at least as many.
    """
    groups: dict[str, list[int]] = {}
    for i, ranking in enumerate(rankings):
        groups.setdefault(ranking.prompt_id if distinct else str(i), []).append(i)
    order = list(groups.values())
    random.Random(f"rm {seed}").shuffle(order)
    count = max(-(-len(rankings) // size), max(map(len, order), default=0))
    result: list[list[int]] = [[] for _ in range(count)]
    # A prompt's rankings are neighbours here, and at most `count`, so that none meets another.
    for place, i in enumerate(i for group in order for i in group):
        result[place % count].append(i)
    return result


def labeler_group(labeler: str, groups: int) -> int:
    """Which of `groups` a labeler belongs to, for tests on held-out labelers (InstructGPT 4.1)."""
    digest = hashlib.sha256(labeler.encode()).digest()
    return int.from_bytes(digest[:8], "big") % groups
