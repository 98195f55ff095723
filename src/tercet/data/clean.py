"""Cleaning of prompts and demonstrations, in the order of InstructGPT's appendices A.2 and C."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tercet.data.split import owner, split_of
from tercet.records import Demonstration, Prompt, prompt_text

R = TypeVar("R", Prompt, Demonstration)

EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
PHONE = re.compile(
    r"(?<![\w)])\+\d[\d ().-]{7,16}\d"  # +44 20 7946 0958
    r"|\(\d{3}\)[ .-]?\d{3}[ .-]\d{4}\b"  # (555) 010-4477
    r"|(?<![\d.-])\d{3}([.-])\d{3}\1\d{4}(?![\d-])"  # 555-010-4477
)
CARD = re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])")


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """What to keep."""

    pii: bool = True
    """drop training records with e-mail addresses, telephone or card numbers"""
    dedupe_prefix: int = 200
    """drop prompts that share this many first characters with an earlier one (0: off)"""
    max_per_user: int = 200
    """prompts kept of one user id (0: no limit)"""
    max_prompt_tokens: int = 1000
    """longer prompts are dropped, never cut"""
    valid_fraction: float = 0.1
    """share of users in the validation split"""
    salt: str = "tercet"
    """changes which users are in the validation split"""

    def __post_init__(self) -> None:
        if not 0 <= self.valid_fraction < 1:
            raise ValueError(
                f"valid_fraction is {self.valid_fraction}; give a share from 0 to 0.99"
            )
        for name in ("dedupe_prefix", "max_per_user"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 (off) or more")
        if self.max_prompt_tokens < 1:
            raise ValueError(f"max_prompt_tokens is {self.max_prompt_tokens}; give at least 1")


@dataclass(frozen=True)
class Cleaned(Generic[R]):
    """What was kept, in the order of prompt ids, and how many records each rule dropped."""

    records: list[R]
    dropped: dict[str, int]


def clean(
    records: Iterable[R],
    config: CleanConfig,
    count_tokens: Callable[[str], int],
    is_private: Callable[[str], bool] | None = None,
) -> Cleaned[R]:
    """PII, near-duplicates, cap per user, length, split; in this order (InstructGPT A.2, C).

    The result does not depend on the order of `records`, apart from records of the same prompt,
    which keep theirs. A split that a record already has is kept.

    Args:
        count_tokens: tokens of a prompt's text.
        is_private: another test for personal data than `contains_pii`.
    """
    fractions = {"train": 1 - config.valid_fraction, "valid": config.valid_fraction}
    # The split is a pure function of the user, so it can be known before the rules that need it.
    kept = [
        record.model_copy(
            update={"split": record.split or split_of(owner(record), fractions, config.salt)}
        )
        for record in sorted(records, key=_prompt_id)
    ]
    dropped = {}
    rules: list[tuple[str, Callable[[list[R]], list[R]]]] = [
        ("pii", lambda rs: _without_pii(rs, is_private or contains_pii) if config.pii else rs),
        ("duplicate", lambda rs: _without_duplicates(rs, config.dedupe_prefix)),
        ("per_user", lambda rs: _capped(rs, config.max_per_user)),
        ("too_long", lambda rs: [
            r for r in rs if count_tokens(prompt_text(r)) <= config.max_prompt_tokens
        ]),
    ]  # fmt: skip
    for name, rule in rules:
        before, kept = len(kept), rule(kept)
        dropped[name] = before - len(kept)
    return Cleaned(kept, dropped)


def _prompt_id(record: Prompt | Demonstration) -> str:
    return record.id if isinstance(record, Prompt) else record.prompt_id


def _without_pii(records: list[R], is_private: Callable[[str], bool]) -> list[R]:
    def texts(record: R) -> str:
        response = record.response if isinstance(record, Demonstration) else ""
        return f"{prompt_text(record)}\n{response}"

    return [r for r in records if r.split != "train" or not is_private(texts(r))]


def contains_pii(text: str) -> bool:
    """True if the text holds an e-mail address, a telephone number or a payment card number."""
    if EMAIL.search(text) or PHONE.search(text):
        return True
    return any(_luhn(re.sub(r"\D", "", match[0])) for match in CARD.finditer(text))


def _luhn(digits: str) -> bool:
    """The check digit that tells card numbers from other long numbers (ISO/IEC 7812-1)."""
    doubled = [int(d) * 2 if i % 2 else int(d) for i, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def _without_duplicates(records: list[R], prefix: int) -> list[R]:
    """Of prompts with a common prefix the first stays, with all the records that it has."""
    if not prefix:
        return records
    first: dict[str, str] = {}
    return [
        record
        for record in records
        if first.setdefault(_prefix(record, prefix), _prompt_id(record)) == _prompt_id(record)
    ]


def _prefix(record: Prompt | Demonstration, length: int) -> str:
    return " ".join(unicodedata.normalize("NFC", prompt_text(record)).split())[:length]


def _capped(records: list[R], limit: int) -> list[R]:
    """At most `limit` different prompts of one user."""
    if not limit:
        return records
    prompts: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for record in records:
        prompts[owner(record)][_prompt_id(record)] = None
    allowed = {user: set(list(ids)[:limit]) for user, ids in prompts.items()}
    return [record for record in records if _prompt_id(record) in allowed[owner(record)]]


def by_split(records: Iterable[Prompt | Demonstration]) -> Counter[str]:
    """How many records each split has, for a report."""
    return Counter(record.split or "none" for record in records)
