"""Prompts: what guests say, dealt to splits that share no text and no guest."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from tercet.records import InputError, Prompt
from tercet.world.facts import Facts
from tercet.world.grammar import (
    OPENERS,
    REMARKS,
    RUDE_GUEST,
    Question,
    double_questions,
    fact_questions,
    normal_form,
    other_questions,
    split_sentences,
)
from tercet.world.streams import stream

SHARES = {
    "sft": 0.15,
    "rm": 0.35,
    "rm-valid": 0.08,
    "ppo": 0.22,
    "valid": 0.08,
    "test": 0.10,
    "few-shot": 0.02,
}
"""The part of all prompts about familiar places that each split may draw from."""

NEW_PLACE = "test-new-place"
SPLITS = (*SHARES, NEW_PLACE)

MIX = {"fact": 0.62, "double": 0.10, "service": 0.12, "private": 0.10, "arrival": 0.06}
"""The part of a split that each kind of question makes up, until a rare kind has no more."""

_GUEST_PROMPTS = 3


def render(turn: str) -> str:
    """A guest's words as a prompt; the desk's reply continues it with " ..."."""
    return f"Guest: {turn}\nDesk:"


def asked(prompt: str, table: Mapping[str, Question]) -> Question:
    """What the last guest of a prompt wants; `kind` is "other" when the grammar does not know."""
    turn = prompt.rsplit("Guest:", 1)[-1].rsplit("\nDesk:", 1)[0]
    found = [table[key] for part in split_sentences(turn) if (key := normal_form(part)) in table]
    if not found:
        return Question("other")
    asks = tuple(ask for question in found for ask in question.asks)
    return Question(found[0].kind, asks, found[0].service)


class Prompts:
    """All prompts of a world, in a shuffled order of which each split owns a slice."""

    def __init__(self, seed: int, facts: Facts) -> None:
        self.seed = seed
        about = {
            "fact": [text for place in facts.familiar for text, _ in fact_questions(place)],
            "double": [text for place in facts.familiar for text, _ in double_questions(place)],
        }
        for kind in ("service", "private", "arrival"):
            about[kind] = [text for text, _ in other_questions(kind)]
        self._slices: dict[str, dict[str, list[tuple[str, ...]]]] = {split: {} for split in SPLITS}
        for kind, texts in about.items():
            turns = self._shuffled(kind, texts)
            start = 0.0
            for split, share in SHARES.items():
                low, high = round(start * len(turns)), round((start + share) * len(turns))
                self._slices[split][kind] = turns[low:high]
                start += share
        new = facts.new_place
        self._slices[NEW_PLACE] = {
            "fact": self._shuffled("new", [text for text, _ in fact_questions(new)]),
            "double": self._shuffled("new-double", [text for text, _ in double_questions(new)]),
        }

    def _shuffled(self, name: str, texts: list[str]) -> list[tuple[str, ...]]:
        turns = list(product(OPENERS, texts, REMARKS))
        stream(self.seed, "prompts", name).shuffle(turns)
        return turns

    def draw(self, split: str, n: int) -> list[Prompt]:
        """The first `n` prompts of a split; a longer list starts with the shorter one.

        Raises:
            InputError: unknown split, or the grammar has fewer prompts for this split.
        """
        if split not in self._slices:
            raise InputError(f"no split {split!r} in the world: choose one of {', '.join(SPLITS)}")
        random = stream(self.seed, "mix", split)
        left = {kind: turns[::-1] for kind, turns in self._slices[split].items()}
        total = sum(map(len, left.values()))
        if n > total:
            raise InputError(
                f"{n} prompts asked of split {split!r}, but the world's grammar gives {total}: "
                "ask for fewer, or raise world.places"
            )
        prompts: list[Prompt] = []
        for index in range(n):
            kinds = [kind for kind, turns in left.items() if turns]
            kind = random.choices(kinds, [MIX[kind] for kind in kinds])[0]
            prompts.append(self._prompt(split, index, kind, left[kind].pop()))
        return prompts

    def _prompt(self, split: str, index: int, kind: str, turn: tuple[str, ...]) -> Prompt:
        text = render(" ".join(part for part in turn if part))
        rude = ("rude-guest",) if RUDE_GUEST & set(turn) else ()
        return Prompt(
            id=f"{split}-{index:05d}",
            text=text,
            user_id=f"{split}-guest-{index // _GUEST_PROMPTS:04d}",
            source=f"tercet world, seed {self.seed}",
            split=split,
            tags=(kind, *rude),
        )
