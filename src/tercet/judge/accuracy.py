"""How well scores order what people ranked: accuracy, calibration, length, agreement, ceiling.

Pure: scores and rankings in, a dict for done.json and report.json out (InstructGPT 4.1, E.2).
A prompt's pairs are alike, so every interval resamples prompts.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from tercet.objectives import ranking_pairs
from tercet.records import RankedReply, Ranking
from tercet.statistics import (
    bootstrap,
    brier,
    calibration_bins,
    expected_calibration_error,
    fit_temperature,
    pairwise_agreement,
    spearman,
)

Report = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """One pair that a judge decided. margin = score of the winner minus score of the loser."""

    prompt_id: str
    margin: float
    k: int
    gap: int  # difference of dense ranks, 1 = neighbours
    winner: RankedReply
    loser: RankedReply

    @property
    def longer(self) -> int:
        """Words of the winner minus words of the loser."""
        return words(self.winner.text) - words(self.loser.text)


def words(text: str) -> int:
    """White-space separated words: the length that a reader feels, the same for every tokenizer."""
    return len(text.split())


def reward_report(
    scores_by_ranking: Sequence[Sequence[float]],
    rankings: Sequence[Ranking],
    gold_by_ranking: Sequence[Sequence[float]] | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Report:
    """Everything about a reward model on held-out rankings.

    scores_by_ranking: one score a reply, in the rankings' order. Tied pairs and pairs of equal
    text are left out; equal scores count 1/2. `accuracy` is the mean over prompts of the mean over
    a prompt's pairs, `pair_accuracy` the mean over all pairs. `gold_by_ranking`: the world's
    utility of the same replies; its accuracy on the same noisy rankings is `labeler_ceiling`.
    Numbers that the rankings cannot give (agreement without a second labeler) are None.

        reward_report([[1.2, 0.3]], [ranking])["accuracy"]   # 1.0 when reply 0 was ranked first
    """
    pairs = decided_pairs(scores_by_ranking, rankings)
    report: Report = {
        "judge": " and ".join(sorted({ranking.judge for ranking in rankings})) or None,
        "rankings": len(rankings),
        "prompts": len({ranking.prompt_id for ranking in rankings}),
        "pairs": len(pairs),
        "tie_rate": _tie_rate(rankings),
        "labeler_ceiling": None,
    }
    report |= _prefixed("labeler_agreement", labeler_agreement(rankings, seed))
    if not pairs:
        return {"accuracy": None, "low": None, "high": None, **report}

    def accuracy(chosen: Sequence[Pair], margin: Callable[[Pair], float]) -> Report:
        return prompt_accuracy(chosen, margin, resamples=resamples, seed=seed)

    def accuracy_or_none(chosen: Sequence[Pair]) -> Report | None:
        return accuracy(chosen, _margin) | {"pairs": len(chosen)} if chosen else None

    report = accuracy(pairs, _margin) | report
    report |= {
        "pair_accuracy": float(np.mean([_right(pair.margin) for pair in pairs])),
        "log_loss": float(np.mean([np.logaddexp(0, -pair.margin) for pair in pairs])),
        "calibration": calibration([pair.margin for pair in pairs]),
        "by_k": _sliced(pairs, lambda pair: str(pair.k)),
        "by_rank_gap": _sliced(pairs, lambda pair: str(pair.gap) if pair.gap < 4 else "4+"),
        "by_word_difference": _sliced(pairs, lambda pair: _word_bin(abs(pair.longer))),
        "by_finish": _sliced(pairs, _finishes),
        "length": {
            "longer_wins": accuracy(pairs, lambda pair: pair.longer),
            "shorter_wins": accuracy(pairs, lambda pair: -pair.longer),
            "accuracy_where_longer_loses": accuracy_or_none(
                [pair for pair in pairs if pair.longer < 0]
            ),
            "accuracy_where_longer_wins": accuracy_or_none(
                [pair for pair in pairs if pair.longer > 0]
            ),
            "spearman_score_words": score_length_correlation(scores_by_ranking, rankings),
        },
    }
    if gold_by_ranking is not None:
        truth = decided_pairs(gold_by_ranking, rankings)
        report |= _prefixed("labeler_ceiling", accuracy(truth, _margin))
        agrees = [
            _right(a.margin * math.copysign(1, b.margin))
            for a, b in zip(pairs, truth, strict=True)
            if b.margin != 0
        ]
        report["accuracy_against_gold"] = float(np.mean(agrees)) if agrees else None
    return report


def decided_pairs(
    scores_by_ranking: Sequence[Sequence[float]], rankings: Sequence[Ranking]
) -> list[Pair]:
    """All pairs that the rankings decide, but for those of equal text: they say nothing."""
    pairs = []
    for ranking, scores in zip(rankings, scores_by_ranking, strict=True):
        replies = ranking.replies
        assert len(scores) == len(replies), ranking.id
        dense = {rank: place for place, rank in enumerate(sorted({r.rank for r in replies}))}
        pairs += [
            Pair(
                ranking.prompt_id,
                float(scores[a] - scores[b]),
                len(replies),
                dense[replies[b].rank] - dense[replies[a].rank],
                replies[a],
                replies[b],
            )
            for a, b in ranking_pairs([reply.rank for reply in replies])
            if replies[a].text.strip() != replies[b].text.strip()
        ]
    return pairs


def prompt_accuracy(
    pairs: Sequence[Pair],
    margin: Callable[[Pair], float] = lambda pair: pair.margin,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Report:
    """{accuracy, low, high}: mean over prompts of the mean over their pairs, 95% over prompts."""
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        by_prompt[pair.prompt_id].append(_right(margin(pair)))
    interval = bootstrap(
        [float(np.mean(values)) for values in by_prompt.values()],
        list(by_prompt),
        resamples=resamples,
        seed=seed,
    )
    return {"accuracy": interval.estimate, "low": interval.low, "high": interval.high}


def calibration(margins: Sequence[float]) -> Report:
    """ECE, Brier score, the temperature that would calibrate, bins of the reliability plot."""
    return {
        "ece": expected_calibration_error(margins),
        "brier": brier(margins),
        "temperature": fit_temperature(margins),
        "bins": [
            {"confidence": bin_.confidence, "accuracy": bin_.accuracy, "pairs": bin_.pairs}
            for bin_ in calibration_bins(margins)
        ],
    }


def labeler_agreement(rankings: Sequence[Ranking], seed: int = 0) -> Report | None:
    """{accuracy: rate, low, high, pairs} over pairs of replies that two labelers judged.

    Pairs that either tied are left out (InstructGPT 3.4). None when no pair was judged twice.
    """
    by_prompt: dict[str, list[dict[str, int]]] = defaultdict(list)
    for ranking in rankings:
        by_prompt[ranking.prompt_id].append({r.text.strip(): r.rank for r in ranking.replies})
    first: list[int] = []
    second: list[int] = []
    prompts: list[str] = []
    for prompt, tables in by_prompt.items():
        for one, other in combinations(tables, 2):
            for a, b in combinations([text for text in one if text in other], 2):
                first.append(one[b] - one[a])
                second.append(other[b] - other[a])
                prompts.append(prompt)
    if not first:
        return None
    found = pairwise_agreement(first, second, prompts, seed=seed)
    return {
        "accuracy": found.rate,
        "low": found.low,
        "high": found.high,
        "pairs": found.pairs,
    }


def score_length_correlation(
    scores_by_ranking: Sequence[Sequence[float]], rankings: Sequence[Ranking]
) -> float | None:
    """Spearman correlation of score and words over all replies."""
    scores = [score for scores in scores_by_ranking for score in scores]
    lengths = [words(reply.text) for ranking in rankings for reply in ranking.replies]
    return spearman(scores, lengths) if scores else None


def _right(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


def _margin(pair: Pair) -> float:
    return pair.margin


def _sliced(pairs: Sequence[Pair], name: Callable[[Pair], str]) -> dict[str, Report]:
    slices: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        slices[name(pair)].append(pair)
    return {
        key: {"accuracy": float(np.mean([_right(p.margin) for p in part])), "pairs": len(part)}
        for key, part in sorted(slices.items())
    }


def _word_bin(difference: int) -> str:
    for low, high in ((0, 0), (1, 2), (3, 5), (6, 10), (11, 20), (21, 50)):
        if difference <= high:
            return f"{low:02d}-{high:02d}"
    return "51+"


def _finishes(pair: Pair) -> str:
    names = {pair.winner.finish, pair.loser.finish}
    return "both stopped" if names == {"stop"} else "one cut" if len(names) == 2 else "both cut"


def _tie_rate(rankings: Sequence[Ranking]) -> float | None:
    ties = [a.rank == b.rank for r in rankings for a, b in combinations(r.replies, 2)]
    return float(np.mean(ties)) if ties else None


def _prefixed(name: str, found: Report | None) -> Report:
    """{accuracy, low, high} -> {name, name_low, name_high}; None where nothing was found."""
    found = found or {"accuracy": None, "low": None, "high": None}
    return {name if key == "accuracy" else f"{name}_{key}": value for key, value in found.items()}
