"""Win rates, intervals, agreement, ratings and calibration: numpy only, no torch is loaded.

Outcomes are seen from the first arm: 1 preferred, 0.5 tie, 0 not preferred; a verdict averaged over
both orders may lie between. A number that the data cannot give (agreement without any variation, a
correlation with a constant) is None, never NaN; wrong input raises ValueError.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
TieConvention = Literal["excluded", "half", "exact"]
AlphaLevel = Literal["nominal", "ordinal", "interval"]
IntervalMethod = Literal["bootstrap", "wilson"]


def _floats(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: needs a non-empty list of numbers, not shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {(~np.isfinite(array)).sum()} values are not finite")
    return array


def _groups(labels: Sequence[Any] | NDArray[Any] | None, n: int, name: str) -> NDArray[np.int64]:
    """Labels -> 0..C-1; None makes each row its own group."""
    if labels is None:
        return np.arange(n)
    if len(labels) != n:
        raise ValueError(f"{name}: {len(labels)} labels for {n} values")
    array = np.asarray(labels)
    if array.dtype.kind in "iu" and n and array.min() >= 0 and array.max() < 10 * n:
        present = np.bincount(array) > 0  # the same numbers as below, without sorting
        return (np.cumsum(present) - 1)[array]
    return np.unique(array, return_inverse=True)[1].reshape(-1)


# --- win rate -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class WinRate:
    rate: float
    """(wins + ties / 2) / n, the headline"""
    strict: float
    """wins / n: ties count as losses, so an arm against itself does not reach 0.5"""
    decided: float | None
    """wins / (wins + losses); None when all are ties"""
    wins: int
    ties: int
    losses: int


def win_rate(outcomes: ArrayLike) -> WinRate:
    """Win rate of the first arm with ties as half a win, and the two other conventions beside it.

    >>> win_rate([1, 1, 0.5, 0]).rate
    0.625
    """
    values = _floats(outcomes, "outcomes")
    if values.min() < 0 or values.max() > 1:
        raise ValueError("outcomes: must lie between 0 (first arm loses) and 1 (first arm wins)")
    wins, losses = int((values > 0.5).sum()), int((values < 0.5).sum())
    return WinRate(
        rate=float(values.mean()),
        strict=wins / len(values),
        decided=wins / (wins + losses) if wins + losses else None,
        wins=wins,
        ties=len(values) - wins - losses,
        losses=losses,
    )


@dataclass(frozen=True)
class BothOrders:
    outcomes: Floats
    """mean of the two verdicts, one a prompt"""
    flip_rate: float
    """share of prompts whose verdict changes with the order"""
    first_position_rate: float
    """how often the reply shown first wins; 0.5 without position bias"""


def both_orders(shown_first: ArrayLike, shown_second: ArrayLike) -> BothOrders:
    """Joins a judge's two verdicts a prompt: the arm's outcome when shown first, and second."""
    first, second = _floats(shown_first, "shown_first"), _floats(shown_second, "shown_second")
    if len(first) != len(second):
        raise ValueError(f"both orders: {len(first)} verdicts beside {len(second)}")
    return BothOrders(
        outcomes=(first + second) / 2,
        flip_rate=float((first != second).mean()),
        first_position_rate=float((first + 1 - second).mean() / 2),
    )


# --- intervals ----------------------------------------------------------------------------------


def wilson(wins: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion, for one judgement a prompt and no ties (Wilson 1927).

    >>> tuple(round(x, 4) for x in wilson(60, 100))
    (0.502, 0.6906)
    """
    if not 0 <= wins <= n:
        raise ValueError(f"wilson: {wins} wins of {n}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p, shrink = wins / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Exact ends: rounding would leave 1e-17 for no wins.
    return (centre - half if wins > 0 else 0.0), (centre + half if wins < n else 1.0)


@dataclass(frozen=True)
class Interval:
    estimate: float
    low: float
    high: float
    clusters: int


def _cluster_sums(
    x: Floats, clusters: Sequence[Any] | NDArray[Any] | None
) -> tuple[Floats, Floats]:
    """How many values each cluster has, and their sum."""
    cluster = _groups(clusters, len(x), "clusters")
    sums = np.bincount(cluster, weights=x).astype(np.float64)
    return np.bincount(cluster).astype(np.float64), sums


def bootstrap(
    values: ArrayLike,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean that resamples whole clusters, usually prompts.

    values: one number a judgement; clusters: its prompt's label. Judgements of one prompt are
    alike: resampling them one by one gives intervals that are too narrow. Same seed, same interval,
    whatever the order of the rows and the names of the clusters.
    """
    x = _floats(values, "values")
    counts, sums = _cluster_sums(x, clusters)
    order = np.lexsort((counts, sums))
    counts, sums = counts[order], sums[order]
    n = len(counts)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    chunk = max(1, 2_000_000 // n)
    for start in range(0, resamples, chunk):
        drawn = generator.integers(0, n, size=(min(chunk, resamples - start), n))
        means[start : start + chunk] = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(x.mean()), float(low), float(high), n)


def clustered_wilson(
    values: ArrayLike,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    level: float = 0.95,
) -> Interval:
    """Wilson interval of a mean of numbers in [0, 1] that come in clusters, without resampling.

    The number of judgements is replaced by the number of independent ones that would have the same
    variance as the clusters show (Korn & Graubard 1998); when all agree, by that of clusters. For
    yes/no judgements, one a cluster, it is `wilson`.
    """
    x = _floats(values, "values")
    if x.min() < 0 or x.max() > 1:
        raise ValueError("clustered_wilson: values must lie between 0 and 1")
    counts, sums = _cluster_sums(x, clusters)
    n, c, p = len(x), len(counts), float(x.mean())
    effective = float(c)
    if c > 1 and 0 < p < 1:
        scatter = float(((sums - p * counts) ** 2).sum())
        variance = scatter / n**2 * (1 if c == n else c / (c - 1))
        effective = min(p * (1 - p) / variance, n) if variance > 0 else float(n)
    low, high = wilson(p * effective, effective, level)
    return Interval(p, low, high, c)


def paired_difference(
    first: ArrayLike,
    first_prompts: Sequence[Any],
    second: ArrayLike,
    second_prompts: Sequence[Any],
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of mean(first - second) over the prompts that both have.

    Several judgements of one prompt are averaged first. Raises ValueError without a common prompt.
    """

    def by_prompt(values: ArrayLike, prompts: Sequence[Any], name: str) -> dict[Any, float]:
        x = _floats(values, name)
        cluster = _groups(prompts, len(x), name)
        means = np.bincount(cluster, weights=x) / np.bincount(cluster)
        return dict(zip(np.unique(np.asarray(prompts)).tolist(), means.tolist(), strict=True))

    a, b = by_prompt(first, first_prompts, "first"), by_prompt(second, second_prompts, "second")
    common = [prompt for prompt in a if prompt in b]
    if not common:
        raise ValueError("paired difference: the two arms have no prompt in common")
    return bootstrap([a[p] - b[p] for p in common], common, level, resamples, seed)


def best_of_n_kl(n: int) -> float:
    """KL(best of n || policy) = ln n - (n - 1) / n; with ties an upper bound (Stiennon 2020)."""
    if n < 1:
        raise ValueError(f"best of {n}: n must be at least 1")
    return math.log(n) - (n - 1) / n


# --- agreement ----------------------------------------------------------------------------------


def pair_outcomes(ranks: Sequence[int]) -> NDArray[np.int64]:
    """One of +1 (a before b), 0 (tie), -1 for each pair a < b of one ranking, in a fixed order."""
    rank = np.asarray(ranks)
    a, b = np.triu_indices(len(rank), k=1)
    return np.sign(rank[b] - rank[a]).astype(np.int64)


@dataclass(frozen=True)
class Agreement:
    rate: float | None
    low: float | None
    high: float | None
    pairs: int
    """pairs that count under the tie convention"""
    tie_rate: float
    """share of single judgements that are ties"""


def pairwise_agreement(
    first: ArrayLike,
    second: ArrayLike,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    ties: TieConvention = "excluded",
    seed: int = 0,
    method: IntervalMethod = "bootstrap",
) -> Agreement:
    """How often two labelers give the same pair the same direction, with a 95 % interval.

    first, second: +1, 0 (tie) or -1 a pair (`pair_outcomes`); clusters: its prompt. ties:
    "excluded" counts pairs that neither labeler tied (InstructGPT 3.4); "half" gives 1/2 when
    exactly one tied; "exact" asks for the same of the three outcomes. In both of these two ties
    agree. method: resampling of clusters, or `clustered_wilson`, which is fast.
    """
    a, b = _floats(first, "first"), _floats(second, "second")
    if len(a) != len(b):
        raise ValueError(f"agreement: {len(a)} outcomes beside {len(b)}")
    a, b = np.sign(a), np.sign(b)
    agree = (a == b).astype(np.float64)
    kept = np.ones(len(a), dtype=bool)
    if ties == "excluded":
        kept = (a != 0) & (b != 0)
    elif ties == "half":
        agree[(a == 0) != (b == 0)] = 0.5
    elif ties != "exact":
        raise ValueError(f"ties: {ties!r} is not one of excluded, half, exact")
    tie_rate = float(((a == 0).mean() + (b == 0).mean()) / 2)
    if not kept.any():
        return Agreement(None, None, None, 0, tie_rate)
    cluster = _groups(clusters, len(a), "clusters")
    if method == "wilson":
        interval = clustered_wilson(agree[kept], cluster[kept])
    else:
        interval = bootstrap(agree[kept], cluster[kept], seed=seed)
    return Agreement(interval.estimate, interval.low, interval.high, int(kept.sum()), tie_rate)


def krippendorff_alpha(ratings: ArrayLike, level: AlphaLevel = "nominal") -> float | None:
    """Krippendorff's alpha: 1 agreement, 0 chance, below 0 worse than chance (Krippendorff 2011).

    ratings: (raters, units) numbers, NaN = not rated. None when fewer than two ratings can be
    compared, or all of them are equal.
    """
    table = np.asarray(ratings, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"alpha: ratings must be raters x units, not shape {table.shape}")
    values = np.unique(table[~np.isnan(table)])
    counts = (table[:, :, None] == values).sum(0).astype(np.float64)  # (units, values)
    counts = counts[counts.sum(1) >= 2]
    raters = counts.sum(1)[:, None]
    # Ordered pairs of ratings of one unit, none beside itself, each weighted 1 / (raters - 1).
    weighted = counts / (raters - 1)
    coincidence = weighted.T @ counts - np.diag(weighted.sum(0))
    margin = coincidence.sum(1)
    if level == "nominal":
        distance = 1.0 - np.eye(len(values))
    elif level == "interval":
        distance = (values[:, None] - values[None, :]) ** 2
    elif level == "ordinal":
        # Ratings that lie between the two values, each end counting half.
        middle = np.cumsum(margin) - margin / 2
        distance = (middle[:, None] - middle[None, :]) ** 2
    else:
        raise ValueError(f"level: {level!r} is not one of nominal, ordinal, interval")
    expected = float((np.outer(margin, margin) * distance).sum())
    if expected == 0:
        return None
    return 1 - (float(margin.sum()) - 1) * float((coincidence * distance).sum()) / expected


# --- ratings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BradleyTerry:
    strengths: Floats
    """log strengths, mean 0"""
    tie: float
    """Davidson's nu: P(tie) of two equals is nu / (2 + nu)"""

    def probability(self, a: int, b: int) -> tuple[float, float, float]:
        """P(a wins), P(tie), P(b wins)."""
        gap = (self.strengths[a] - self.strengths[b]) / 2
        weights = np.array([math.exp(gap), self.tie, math.exp(-gap)])
        return tuple((weights / weights.sum()).tolist())


def bradley_terry(wins: ArrayLike, ties: ArrayLike | None = None) -> BradleyTerry:
    """Maximum-likelihood Bradley-Terry strengths, with Davidson's ties (Davidson 1970).

    wins[i, j]: how often i beat j; ties: (M, M) symmetric, how often i and j tied. Raises
    ValueError when no finite estimate exists: an arm never wins, even indirectly, against another.
    """
    won = np.asarray(wins, dtype=np.float64)
    tied = np.zeros_like(won) if ties is None else np.asarray(ties, dtype=np.float64)
    if won.ndim != 2 or won.shape[0] != won.shape[1] or won.shape != tied.shape:
        raise ValueError(f"bradley_terry: wins {won.shape} and ties {tied.shape} must be square")
    if won.min() < 0 or tied.min() < 0 or not np.array_equal(tied, tied.T):
        raise ValueError("bradley_terry: counts must not be negative and ties must be symmetric")
    _require_connected(won + tied)
    arms = len(won)
    i, j = np.triu_indices(arms, k=1)
    observed = np.stack([won[i, j], tied[i, j], won[j, i]], 1)  # (pairs, 3)
    games = observed.sum(1, keepdims=True)
    # Log-linear: score of each of the three outcomes = features @ [strengths, log nu].
    features = np.zeros((len(i), 3, arms + 1))
    pair = np.arange(len(i))
    features[pair, 0, i] = features[pair, 2, j] = 1
    features[pair, 1, i] = features[pair, 1, j] = 0.5
    features[pair, 1, arms] = 1
    has_ties = tied.sum() > 0
    offset = np.zeros(3) if has_ties else np.array([0, -np.inf, 0])
    free = np.arange(1, arms + 1) if has_ties else np.arange(1, arms)  # arm 0 is the origin

    def outcome_probabilities(parameters: Floats) -> Floats:
        score = features @ parameters + offset
        score = np.exp(score - score.max(1, keepdims=True))
        return score / score.sum(1, keepdims=True)

    def log_likelihood(parameters: Floats) -> float:
        probability = outcome_probabilities(parameters)
        return float((observed * np.log(np.where(observed > 0, probability, 1))).sum())

    parameters = np.zeros(arms + 1)
    for _ in range(200):
        probability = outcome_probabilities(parameters)
        gradient = np.einsum("pkf,pk->f", features, observed - games * probability)[free]
        if np.abs(gradient).max(initial=0) < 1e-9 * games.sum() or np.abs(parameters).max() > 30:
            break
        centred = features - np.einsum("pkf,pk->pf", features, probability)[:, None, :]
        information = np.einsum("pkf,pk,pkg->fg", centred, games * probability, centred)
        step = np.zeros(arms + 1)
        step[free] = np.linalg.lstsq(information[np.ix_(free, free)], gradient, rcond=None)[0]
        before, size = log_likelihood(parameters), 1.0
        while size > 1e-6 and log_likelihood(parameters + size * step) < before:
            size /= 2
        parameters = parameters + size * step
    if np.abs(parameters).max() > 15:
        raise ValueError("bradley_terry: no finite estimate, some arm only ever wins or only loses")
    strengths = parameters[:arms] - parameters[:arms].mean()
    return BradleyTerry(strengths, math.exp(parameters[arms]) if has_ties else 0.0)


def _require_connected(beats: Floats) -> None:
    """Each arm must reach each other arm along wins (ties go both ways) (Ford 1957)."""
    reach = (beats > 0) | np.eye(len(beats), dtype=bool)
    for _ in range(len(beats).bit_length()):
        reach = (reach.astype(np.int64) @ reach.astype(np.int64)) > 0
    if not reach.all():
        a, b = np.argwhere(~reach)[0]
        raise ValueError(
            f"bradley_terry: arm {a} never beats arm {b}, not even indirectly, so their distance "
            "has no finite estimate; collect more comparisons or leave one out"
        )


# --- reward model -------------------------------------------------------------------------------


def pair_margins(
    scores: ArrayLike, ranks: ArrayLike, prompts: Sequence[Any] | NDArray[Any]
) -> tuple[Floats, NDArray[np.int64]]:
    """Winner's score minus loser's for every decided pair, and the pair's prompt as 0..C-1.

    scores, ranks (1 = best, equal = tie), prompts: one entry a reply. The margins feed accuracy,
    calibration and, with the prompts as clusters, `bootstrap`.
    """
    score, rank = _floats(scores, "scores"), _floats(ranks, "ranks")
    if len(score) != len(rank):
        raise ValueError(f"pair margins: {len(score)} scores for {len(rank)} ranks")
    prompt = _groups(prompts, len(score), "prompts")
    order = np.argsort(prompt, kind="stable")
    margins: list[Floats] = []
    for rows in np.split(order, np.cumsum(np.bincount(prompt))[:-1]):
        winner, loser = np.nonzero(rank[rows][:, None] < rank[rows][None, :])
        margins.append(score[rows][winner] - score[rows][loser])
    pair_prompt = np.repeat(np.arange(len(margins)), [len(m) for m in margins])
    return np.concatenate(margins), pair_prompt


def pair_accuracy(
    scores: ArrayLike,
    ranks: ArrayLike,
    prompts: Sequence[Any] | NDArray[Any],
    weighting: Literal["prompt", "pair"] = "prompt",
) -> float | None:
    """Share of decided pairs that the scores order as the ranks do; equal scores count half.

    weighting: mean over prompts of their mean over pairs, or over all pairs. None without a decided
    pair.
    """
    margins, prompt = pair_margins(scores, ranks, prompts)
    if margins.size == 0:
        return None
    correct = (np.sign(margins) + 1) / 2
    if weighting == "pair":
        return float(correct.mean())
    counts = np.bincount(prompt)
    return float((np.bincount(prompt, weights=correct)[counts > 0] / counts[counts > 0]).mean())


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))


@dataclass(frozen=True)
class CalibrationBin:
    low: float
    high: float
    pairs: int
    confidence: float
    accuracy: float


def calibration_bins(margins: ArrayLike, bins: int = 10) -> list[CalibrationBin]:
    """Pairs by confidence sigma(|margin|), in equal-width bins on [0.5, 1]; empty ones left out.

    margins: winner minus loser; positive is correct, 0 counts half.
    """
    margin = _floats(margins, "margins")
    confidence = _sigmoid(np.abs(margin))
    correct = (np.sign(margin) + 1) / 2
    edges = np.linspace(0.5, 1, bins + 1)
    place = np.clip(np.floor((confidence - 0.5) * 2 * bins).astype(np.int64), 0, bins - 1)
    return [
        CalibrationBin(
            low=float(edges[k]),
            high=float(edges[k + 1]),
            pairs=int((place == k).sum()),
            confidence=float(confidence[place == k].mean()),
            accuracy=float(correct[place == k].mean()),
        )
        for k in np.unique(place)
    ]


def expected_calibration_error(margins: ArrayLike, bins: int = 10) -> float:
    """Mean |accuracy - confidence| over `calibration_bins`, weighted by pairs (Guo 2017)."""
    filled = calibration_bins(margins, bins)
    n = sum(b.pairs for b in filled)
    return sum(b.pairs / n * abs(b.accuracy - b.confidence) for b in filled)


def brier(margins: ArrayLike) -> float:
    """Mean of (1 - sigma(margin))^2: 0 when right and sure, 0.25 when all margins are 0."""
    return float((_sigmoid(-_floats(margins, "margins")) ** 2).mean())


def fit_temperature(margins: ArrayLike) -> float:
    """T that minimises the mean of -log sigma(margin / T), searched in [0.001, 1000] (Guo 2017).

    1 is calibrated, above 1 overconfident. Margins that are all positive end at the lower bound.
    """
    margin = _floats(margins, "margins")
    low, high = 1e-3, 1e3  # 1 / T; the loss is convex in it, so its slope changes sign once
    for _ in range(100):
        middle = math.sqrt(low * high)
        falling = float((margin * _sigmoid(-middle * margin)).sum()) > 0
        low, high = (middle, high) if falling else (low, middle)
    return 1 / math.sqrt(low * high)


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Rank correlation with mean ranks for ties; None when one side is constant."""
    a, b = _floats(x, "x"), _floats(y, "y")
    if len(a) != len(b):
        raise ValueError(f"spearman: {len(a)} values beside {len(b)}")
    a, b = _mean_ranks(a), _mean_ranks(b)
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0 else None


def _mean_ranks(x: Floats) -> Floats:
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place.reshape(-1)]
