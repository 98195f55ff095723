"""From scores to win rates: an arm against the baseline, with every convention shown."""

from collections.abc import Sequence
from typing import Any

from tercet.statistics import bootstrap, wilson, win_rate


def outcomes(scores: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """1 where the arm scores higher, 0.5 where equal (to 1e-9, for sums of decimals), else 0."""
    return [
        0.5 if abs(mine - theirs) <= 1e-9 else float(mine > theirs)
        for mine, theirs in zip(scores, baseline, strict=True)
    ]


def win_report(
    values: Sequence[float], prompts: Sequence[str], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Win rate with ties as half wins and its 95% interval over prompts, and the other conventions.

    strict counts ties as losses, decided leaves them out (None when all are ties). n: judgements.
    With one untied judgement a prompt there is Wilson's interval beside it, which, other than the
    bootstrap, does not shrink to a point where one side wins everything.
    """
    rate = win_rate(values)
    interval = bootstrap(values, prompts, resamples=resamples, seed=seed)
    exact = {}
    if rate.ties == 0 and len(set(prompts)) == len(values):
        low, high = wilson(rate.wins, len(values))
        exact = {"wilson_low": low, "wilson_high": high}
    return exact | {
        "win_rate": rate.rate,
        "low": interval.low,
        "high": interval.high,
        "n": len(values),
        "strict": rate.strict,
        "decided": rate.decided,
        "wins": rate.wins,
        "ties": rate.ties,
        "losses": rate.losses,
    }
