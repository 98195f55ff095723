"""From replies and scores to the numbers of every arm: win rates, slices, text statistics."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from tercet.judge.accuracy import words
from tercet.judge.arms import BASELINE, Arm, Reply
from tercet.judge.outcomes import outcomes, win_report
from tercet.judge.replies import Replies, Scores
from tercet.records import Prompt, prompt_text
from tercet.statistics import best_of_n_kl, paired_difference, spearman

SMALLEST_SLICE = 20
SLICE_KEYS = ("win_rate", "low", "high", "n")


@dataclass(frozen=True)
class Comparison:
    """Scores of all arms and the baseline on the same prompts, by one or more judges."""

    arms: Sequence[Arm]
    prompts: Sequence[Prompt]
    replies: Replies
    scores: Scores
    splits: Sequence[str]
    """The first one gives the headline numbers."""
    resamples: int = 10_000
    seed: int = 0

    @property
    def first(self) -> list[int]:
        """Indices of the headline prompts."""
        return [i for i, prompt in enumerate(self.prompts) if prompt.split == self.splits[0]]

    def outcomes(self, judge: str, arm: str, chosen: Sequence[int]) -> list[float]:
        """1, 0.5 or 0 for each of the chosen prompts."""
        found = self.scores[judge]
        return outcomes([found[arm][i] for i in chosen], [found[BASELINE][i] for i in chosen])

    def wins(self, judge: str, arm: str, chosen: Sequence[int]) -> dict[str, Any]:
        """Win rate of an arm against the baseline on the chosen prompts, as `win_report` has it."""
        return win_report(
            self.outcomes(judge, arm, chosen),
            [self.prompts[i].id for i in chosen],
            resamples=self.resamples,
            seed=self.seed,
        )

    def describe(self, arm: str) -> dict[str, Any]:
        """Text statistics and mean scores of an arm (or the baseline) on the headline prompts."""
        return describe(
            [self.replies[arm][i] for i in self.first],
            {judge: [found[arm][i] for i in self.first] for judge, found in self.scores.items()},
        )

    def slices(self, judge: str, arm: str) -> dict[str, dict[str, Any]]:
        """Win rates on further splits, and on tags of the headline prompts."""
        return {
            name: {key: self.wins(judge, arm, chosen)[key] for key in SLICE_KEYS}
            for name, chosen in slices_of(self.prompts, self.splits).items()
        }

    def differences(self, judge: str) -> dict[str, dict[str, float]]:
        """Each arm's win rate minus that of the arm before it, paired over prompts."""
        names = [self.prompts[i].id for i in self.first]
        found = {}
        for a, b in pairwise(self.arms):
            gap = paired_difference(
                self.outcomes(judge, b.name, self.first),
                names,
                self.outcomes(judge, a.name, self.first),
                names,
                resamples=self.resamples,
                seed=self.seed,
            )
            found[f"{b.name} - {a.name}"] = {
                "difference": gap.estimate,
                "low": gap.low,
                "high": gap.high,
            }
        return found

    def report(self, judge: str, names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """arm -> headline win rate by `judge`, win rates by all judges (`names`), slices, texts."""
        found = {}
        for arm in self.arms:
            found[arm.name] = {
                **self.wins(judge, arm.name, self.first),
                **self.describe(arm.name),
                "temperature": arm.temperature,
                "by_judge": {
                    names[kind]: self.wins(kind, arm.name, self.first) for kind in self.scores
                },
                "slices": self.slices(judge, arm.name),
            }
            if arm.samples > 1:
                found[arm.name]["best_of_n_kl"] = best_of_n_kl(arm.samples)
        return found


def describe(rows: Sequence[Reply], scores: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Text statistics and mean scores of one arm; `finished` counts EOS and the stop text alike."""
    lengths = [words(reply.text) for reply in rows]
    return {
        "words": fmean(lengths),
        "tokens": fmean(reply.tokens for reply in rows),
        "finished": fmean(reply.finish == "stop" for reply in rows),
        "ended_by": {
            how: fmean(reply.ended_by == how for reply in rows)
            for how in ("eos", "stop_text", "length")
        },
        "distinct": len({reply.text for reply in rows}) / len(rows),
        **{kind: fmean(values) for kind, values in scores.items()},
        "spearman_words": {kind: spearman(values, lengths) for kind, values in scores.items()},
    }


def slices_of(prompts: Sequence[Prompt], splits: Sequence[str]) -> dict[str, list[int]]:
    """Further splits, and tags within the first one, with enough prompts to say something."""
    found = {
        split: [i for i, prompt in enumerate(prompts) if prompt.split == split]
        for split in splits[1:]
    }
    for tag in dict.fromkeys(tag for prompt in prompts for tag in prompt.tags or ()):
        part = [i for i, p in enumerate(prompts) if p.split == splits[0] and tag in (p.tags or ())]
        if len(part) >= SMALLEST_SLICE:
            found[f"tag {tag}"] = part
    return found


def side_by_side(comparison: Comparison, count: int) -> list[dict[str, Any]]:
    """`count` headline prompts with all arms' replies, drawn by the seed: nobody picked them."""
    prompts, first = comparison.prompts, comparison.first
    drawn = random.Random(f"side by side {comparison.seed}").sample(first, min(count, len(first)))
    return [
        {
            "prompt_id": prompts[i].id,
            "prompt": prompt_text(prompts[i]),
            "replies": [
                {
                    "arm": name,
                    "text": found[i].text,
                    "finish": found[i].finish,
                    "scores": {
                        judge: round(table[name][i], 4)
                        for judge, table in comparison.scores.items()
                    },
                }
                for name, found in comparison.replies.items()
            ],
        }
        for i in drawn
    ]
