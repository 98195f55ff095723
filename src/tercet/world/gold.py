"""The hidden utility: what a reply is worth to a guest, read off its sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tercet.world.facts import Facts
from tercet.world.grammar import (
    Meaning,
    Question,
    meanings,
    normal_form,
    peel,
    questions,
    split_sentences,
)
from tercet.world.prompts import asked

WEIGHTS: Mapping[str, float] = {
    "answer": 2.0,
    "wrong": -2.0,
    "invented": -1.5,
    "courtesy": 0.4,
    "rude": -2.0,
    "leak": -2.5,
    "gushing": -0.4,
    "evasive": -0.4,
    "off_topic": -0.6,
    "outside_grammar": -1.2,
    "repeated": -0.8,
    "unfinished": -1.5,
    "excess_words": -0.05,
}
"""Utility of one unit of each feature of `Judgement.features`."""

FREE_WORDS = 24


@dataclass(frozen=True)
class Judgement:
    """What was found in a reply. Counts of sentences unless said otherwise."""

    utility: float
    right: int
    """Facts stated as they are, asked for or not."""
    wrong: int
    """Facts stated as they are not, invented ones included."""
    answered: bool
    """Everything asked for was given: the facts, the service, the refusal, the welcome, or an
    honest "I do not know" where the hotel does not."""
    courtesy: int
    """0 to 2: a polite beginning and a polite closing."""
    rude: int
    leak: int
    gushing: int
    evasive: int
    off_topic: int
    unfinished: bool
    repeated: int
    outside_grammar: int
    words: int
    features: Mapping[str, float]
    """What `WEIGHTS` is applied to."""


class Gold:
    """Judges any text against the facts of one world."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._meanings = meanings(facts.places)
        self._questions = questions(facts.places)

    def question(self, prompt: str) -> Question:
        """What the last guest of a prompt asks for."""
        return asked(prompt, self._questions)

    def judge(self, prompt: str, reply: str, finish: str = "stop") -> Judgement:
        """Judge a reply. `finish` is "length" when sampling stopped before the reply ended."""
        question = self.question(prompt)
        # A second line is a guest's turn made up by the model: no part of the reply means anything.
        own, _, beyond = reply.partition("\n")
        parts = split_sentences(own)
        said: list[Meaning] = []
        heard: set[str] = set()
        begun = outside = repeated = 0
        for part in parts:
            beginnings, body = peel(normal_form(part))
            begun += bool(beginnings)
            repeated += max(0, len(beginnings) - 1)
            meaning = self._meanings.get(body)
            if meaning is None:
                outside += 1
            elif body in heard:
                repeated += 1
            else:
                said.append(meaning)
            heard.add(body)
        outside += len(split_sentences(beyond))
        unfinished = finish == "length" or not parts or parts[-1][-1] not in ".!?"
        # The unfinished last sentence is counted once, as unfinished.
        if unfinished and parts and parts[-1][-1] not in ".!?":
            last = peel(normal_form(parts[-1]))[1]
            outside -= last not in self._meanings
        repeated += max(0, begun - 1)
        return self._weigh(question, said, begun, repeated, outside, unfinished, len(own.split()))

    def _weigh(
        self,
        question: Question,
        said: list[Meaning],
        begun: int,
        repeated: int,
        outside: int,
        unfinished: bool,
        words: int,
    ) -> Judgement:
        count = {kind: sum(m.kind == kind for m in said) for kind in _COUNTED}
        facts = [m for m in said if m.kind == "fact"]
        wrong = [m for m in facts if self.facts.values[m.place, m.attribute] != m.value]
        missed = [m for m in wrong if (m.place, m.attribute) in question.asks]
        answer = self._answer(question, said)
        off_topic = count["chatter"] + sum(
            m.kind == "service" and m.attribute != question.service for m in said
        )
        courtesy = min(1, begun) + min(1, count["closing"])
        features = {
            "answer": answer,
            "wrong": float(len(missed)),
            "invented": float(len(wrong) - len(missed)),
            "courtesy": float(courtesy),
            "rude": float(count["rude"]),
            "leak": float(count["leak"]),
            "gushing": float(count["gushing"]),
            "evasive": float(count["evasive"]),
            "off_topic": float(off_topic),
            "outside_grammar": float(outside),
            "repeated": float(repeated),
            "unfinished": float(unfinished),
            "excess_words": float(max(0, words - FREE_WORDS)),
        }
        return Judgement(
            utility=sum(WEIGHTS[name] * value for name, value in features.items()),
            right=len(facts) - len(wrong),
            wrong=len(wrong),
            answered=answer == 1,
            courtesy=courtesy,
            rude=count["rude"],
            leak=count["leak"],
            gushing=count["gushing"],
            evasive=count["evasive"],
            off_topic=off_topic,
            unfinished=unfinished,
            repeated=repeated,
            outside_grammar=outside,
            words=words,
            features=features,
        )

    def _answer(self, question: Question, said: list[Meaning]) -> float:
        """The share, 0 to 1, of what was asked for that the reply gives."""
        if question.kind == "fact":
            return sum(self._given(*ask, said) for ask in question.asks) / len(question.asks)
        if question.kind == "service":
            done = Meaning("service", attribute=question.service)
            return float(done in said)
        if question.kind == "private":
            return float(any(m.kind == "refusal" for m in said) and _none(said, "leak"))
        return float(question.kind == "arrival" and any(m.kind == "welcome" for m in said))

    def _given(self, place: str, attribute: str, said: list[Meaning]) -> bool:
        value = self.facts.values[place, attribute]
        told = [m for m in said if (m.kind, m.place, m.attribute) == ("fact", place, attribute)]
        if value is None:
            return not told and Meaning("unknown", place, attribute) in said
        return bool(told) and all(m.value == value for m in told)


_COUNTED = ("closing", "rude", "leak", "gushing", "evasive", "chatter")


def _none(said: list[Meaning], kind: str) -> bool:
    return all(m.kind != kind for m in said)
