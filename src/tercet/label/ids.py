"""Names that cannot be guessed or confused: ULIDs for rows, 256-bit tokens for people."""

import hashlib
import json
import secrets
import time
from typing import Any

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid(milliseconds: int | None = None) -> str:
    """26 characters: 48 bits of time, so that ids sort by age, then 80 random bits."""
    now = time.time_ns() // 1_000_000 if milliseconds is None else milliseconds
    number = (now << 80) | secrets.randbits(80)
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def token() -> str:
    """256 random bits for a link or a cookie; only `sha256(token)` is stored."""
    return secrets.token_urlsafe(32)


def sha256(text: str) -> str:
    """Hexadecimal SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def draw(*parts: object) -> float:
    """A number in [0, 1) that depends only on `parts`: the same draw on every server."""
    return int(sha256("\0".join(map(str, parts)))[:13], 16) / 16**13
