"""A sequential test of one labeler's agreement: a flag for a person to look at, never a ban.

Each item gives one number x in [0, 1]: the share of pairs on which the labeler agrees with the
reference (the majority of the others, or the known answer). Two hypotheses about its mean: at least
`good`, at most `poor`.

Evidence against "at least good" is a product of one likelihood ratio an item. For a single pair
(x is 0 or 1) the factor 1 + stake * (good - x) is Bernoulli(q) / Bernoulli(good) with
q = good - stake * good * (1 - good), Wald's sequential probability ratio test; for several pairs
the same line is used for the shares between. Its expectation is at most 1 for every distribution
on [0, 1] with mean `good` or more, whatever the dependence of pairs inside an item, so by Ville's
inequality P(the product ever reaches 1 / alpha) <= alpha: looking after each item costs nothing.
(Wald 1945; Ville 1939; Waudby-Smith & Ramdas 2023.) The evidence against "at most poor" mirrors it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Verdict = Literal["flagged", "clear", "open"]


@dataclass(frozen=True)
class Hypotheses:
    good: float = 0.65
    """agreement of an acceptable labeler; InstructGPT's agreed at 0.73 (ties excluded)"""
    poor: float = 0.5
    """agreement of answers at random"""
    alpha: float = 0.01
    """probability that an acceptable labeler is ever flagged, at most"""
    beta: float = 0.05
    """probability that a poor labeler is ever called clear, at most"""


@dataclass(frozen=True)
class Check:
    verdict: Verdict
    items: int
    flagged_after: int | None
    """how many items it took"""
    evidence: float
    """log of the evidence against "at least good", its largest value; flagged at -log(alpha)"""


def check(shares: ArrayLike, replies: ArrayLike, hypotheses: Hypotheses | None = None) -> Check:
    """Tests one labeler's shares of agreement, in the order in which they were given.

    replies: K of each item. Rankings of more replies say more, so they stake more: the stake is the
    one that grows fastest when a labeler ranks at random.
    """
    h = hypotheses or Hypotheses()
    x = np.asarray(shares, dtype=np.float64)
    k = np.asarray(replies, dtype=np.float64)
    if not len(x):
        return Check("open", 0, None, 0.0)
    gap = h.good - h.poor
    # Variance of the share of agreeing pairs between a random order of K replies and a fixed one.
    variance = (2 * k + 5) / (18 * k * (k - 1))
    stake = gap / (variance + gap**2)
    against_good = np.log1p(np.minimum(stake, 0.75 / (1 - h.good)) * (h.good - x)).cumsum()
    against_poor = np.log1p(np.minimum(stake, 0.75 / h.poor) * (x - h.poor)).cumsum()
    strongest = float(against_good.max())
    if strongest >= -np.log(h.alpha):
        after = int(np.argmax(against_good >= -np.log(h.alpha))) + 1
        return Check("flagged", len(x), after, strongest)
    clear = against_poor.max() >= -np.log(h.beta)
    return Check("clear" if clear else "open", len(x), None, strongest)
