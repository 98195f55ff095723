"""Simulated labelers: people who mostly share the hidden utility, with tastes, lapses and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tercet.records import CandidateSet, InputError, RankedReply, Ranking
from tercet.world.gold import WEIGHTS, Gold, Judgement
from tercet.world.streams import normal, stream, uniform

GROUPS = 5
"""Groups for training on some labelers and testing on others (InstructGPT E.2)."""


@dataclass(frozen=True)
class Labeler:
    """One person. `rank` depends on nothing but the world, the person, the key and the texts."""

    id: str
    group: str
    weights: Mapping[str, float]
    miss: float
    """Probability of taking a reply's wrong facts for right ones."""
    noise: float
    """Standard deviation of the mood that a reply is read in, in units of utility."""
    tie_width: float
    """Replies this close to the best of a tie group join it."""
    seed: int
    gold: Gold

    def opinion(self, prompt: str, reply: str, key: str, finish: str = "stop") -> float:
        """What this person thinks a reply is worth, in units of utility."""
        seen = self._seen(self.gold.judge(prompt, reply, finish), key, reply)
        value = sum(self.weights[name] * amount for name, amount in seen.items())
        return value + self.noise * normal(self.seed, self.id, key, "mood", reply)

    def _seen(self, judgement: Judgement, key: str, reply: str) -> dict[str, float]:
        features = dict(judgement.features)
        if judgement.wrong and uniform(self.seed, self.id, key, "check", reply) < self.miss:
            features["answer"] += features["wrong"]
            features["wrong"] = features["invented"] = 0.0
        return features

    def rank(
        self, prompt: str, replies: Sequence[str], key: str, finishes: Sequence[str] | None = None
    ) -> list[int]:
        """Dense ranks in the order of `replies`: 1 is best, equal ranks are a tie."""
        ends = finishes or ["stop"] * len(replies)
        opinions = [
            self.opinion(prompt, reply, key, finish)
            for reply, finish in zip(replies, ends, strict=True)
        ]
        return ranks_of(opinions, self.tie_width)


def ranks_of(opinions: Sequence[float], tie_width: float) -> list[int]:
    """Dense ranks; opinions within `tie_width` of the best of a tie group share its rank."""
    ranks = [0] * len(opinions)
    rank, best = 0, float("inf")
    for index in sorted(range(len(opinions)), key=lambda i: -opinions[i]):
        if rank == 0 or best - opinions[index] > tie_width:
            rank, best = rank + 1, opinions[index]
        ranks[index] = rank
    return ranks


def hire(
    seed: int, gold: Gold, count: int, noise: float, miss: float, bias: float, tie_width: float
) -> list[Labeler]:
    """`count` people, others for every seed. `bias` scales the tastes that all of them share."""
    if count < 1:
        raise InputError(f"world.labelers = {count}: choose at least 1")
    people = []
    for number in range(1, count + 1):
        random = stream(seed, "labeler", number)
        weights = {name: weight * random.uniform(0.8, 1.2) for name, weight in WEIGHTS.items()}
        weights["wrong"] *= 1.25
        # Flattery and manners please people more than they help a guest: what a reward model learns
        # from them can be over-optimised.
        weights["gushing"] += bias * random.uniform(0.3, 0.6)
        weights["courtesy"] += bias * random.uniform(0.0, 0.3)
        people.append(
            Labeler(
                id=f"simulated-{number}",
                group=f"group-{(number - 1) % GROUPS + 1}",
                weights=weights,
                miss=miss,
                noise=noise * random.uniform(0.8, 1.2),
                tie_width=tie_width,
                seed=seed,
                gold=gold,
            )
        )
    return people


def rank_set(labeler: Labeler, shown: CandidateSet, source: str, split: str | None) -> Ranking:
    """One labeler's ranking of one candidate set, with ratings 1 to 7."""
    finishes = [candidate.finish for candidate in shown.candidates]
    opinions = [
        labeler.opinion(shown.prompt, candidate.text, shown.id, finish)
        for candidate, finish in zip(shown.candidates, finishes, strict=True)
    ]
    ranks = ranks_of(opinions, labeler.tie_width)
    replies = [
        RankedReply(
            id=candidate.id,
            text=candidate.text,
            rank=rank,
            policy=candidate.policy,
            finish=candidate.finish,
            rating=min(7, max(1, round(4 + opinion))),
        )
        for candidate, rank, opinion in zip(shown.candidates, ranks, opinions, strict=True)
    ]
    return Ranking(
        id=f"{shown.id}-{labeler.id}",
        prompt_id=shown.prompt_id,
        prompt=shown.prompt,
        replies=tuple(replies),
        judge="simulated",
        labeler=labeler.id,
        group=labeler.group,
        split=split,
        source=source,
    )
