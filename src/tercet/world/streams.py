"""Named sub-streams of one seed: the same names give the same numbers in every process."""

from __future__ import annotations

import hashlib
import random
from statistics import NormalDist

_STANDARD = NormalDist()


def stream(seed: int, *names: object) -> random.Random:
    """A generator of its own for `names`; a string seed goes through SHA-512, never `hash()`."""
    return random.Random("/".join(map(str, (seed, *names))))


def uniform(seed: int, *names: object) -> float:
    """One number in the open interval (0, 1) that depends on nothing but the seed and the names."""
    text = "\x1f".join(map(str, (seed, *names)))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return ((int.from_bytes(digest) >> 11) + 0.5) / 2**53


def normal(seed: int, *names: object) -> float:
    """One standard normal number, keyed like `uniform`."""
    return _STANDARD.inv_cdf(uniform(seed, *names))
