"""Splits by person, never by row: whoever is in the validation split is in it for every stage."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from tercet.records import CandidateSet, Demonstration, Prompt, Ranking

R = TypeVar("R", Prompt, Demonstration, Ranking)

FRACTIONS: Mapping[str, float] = {"train": 0.9, "valid": 0.1}


def split_of(key: str, fractions: Mapping[str, float] = FRACTIONS, salt: str = "tercet") -> str:
    """The split that sha256(salt, key) falls into; the same in every run, file and stage.

        split_of("user-17", {"train": 0.8, "valid": 0.1, "test": 0.1})

    `fractions` sum to 1. Adding records never moves an old one.
    """
    assert abs(sum(fractions.values()) - 1) < 1e-9, f"fractions must sum to 1: {dict(fractions)}"
    digest = hashlib.sha256(f"{salt}\0{key}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64  # uniform in [0, 1)
    for name, fraction in fractions.items():
        place -= fraction
        if place < 0:
            return name
    return list(fractions)[-1]  # the fractions' rounding left a crumb


def owner(
    record: Prompt | Demonstration | Ranking | CandidateSet, users: Mapping[str, str] | None = None
) -> str:
    """The key a record is split by: its user id, else what `users` (prompt id -> user id) says,
    else its prompt id. Rankings carry no user id, so pass `users` where prompts have one."""
    prompt_id = record.id if isinstance(record, Prompt) else record.prompt_id
    user_id = record.user_id if isinstance(record, Prompt | Demonstration) else None
    return user_id or (users or {}).get(prompt_id) or prompt_id


def assign(
    records: Iterable[R],
    fractions: Mapping[str, float] = FRACTIONS,
    salt: str = "tercet",
    users: Mapping[str, str] | None = None,
) -> list[R]:
    """The records with `split` filled in; a split that a record already has is kept."""
    return [
        record
        if record.split is not None
        else record.model_copy(update={"split": split_of(owner(record, users), fractions, salt)})
        for record in records
    ]


def stable_key(name: str) -> int:
    """A whole number below 2^62 from the name alone: sampling noise is keyed by prompt ids."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 2
