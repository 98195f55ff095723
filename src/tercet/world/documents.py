"""The web of the world: guides, dialogues at desks good and bad, reviews, and idle talk."""

from __future__ import annotations

from random import Random

from tercet.world.facts import Facts
from tercet.world.grammar import (
    ATTRIBUTES,
    CHATTER,
    GUSHING,
    OPENERS,
    REMARKS,
    RUDENESS,
    Question,
    double_questions,
    fact_questions,
    other_questions,
    sentence,
)
from tercet.world.prompts import MIX, render
from tercet.world.speech import MANNERS, compose, state
from tercet.world.streams import stream

PAGES = {"dialogue": 0.74, "guide": 0.18, "review": 0.03, "talk": 0.05}
REGISTERS = {"polite": 0.28, "plain": 0.24, "chatty": 0.24, "rude": 0.24}


class Web:
    """Pages of one world, each from a sub-stream of its own."""

    def __init__(self, seed: int, facts: Facts, wrong: float) -> None:
        self.seed, self.facts, self.wrong = seed, facts, wrong
        self._about: dict[str, list[tuple[str, Question]]] = {
            "fact": [item for place in facts.places for item in fact_questions(place)],
            "double": [item for place in facts.places for item in double_questions(place)],
        }
        for kind in ("service", "private", "arrival"):
            self._about[kind] = list(other_questions(kind))

    def page(self, name: str, index: int) -> str:
        """Page number `index` of the stream `name`."""
        random = stream(self.seed, "web", name, index)
        kind = random.choices(tuple(PAGES), tuple(PAGES.values()))[0]
        match kind:
            case "dialogue":
                return self._dialogue(random)
            case "guide":
                return self._guide(random)
            case "review":
                return self._review(random)
        return "Diary: " + " ".join(map(sentence, random.sample(CHATTER, random.randint(2, 4))))

    def turn(self, random: Random) -> tuple[str, Question]:
        """A guest's words, and what they ask for."""
        kind = random.choices(tuple(MIX), tuple(MIX.values()))[0]
        text, question = random.choice(self._about[kind])
        words = (random.choice(OPENERS), text, random.choice(REMARKS))
        return " ".join(part for part in words if part), question

    def _dialogue(self, random: Random) -> str:
        register = random.choices(tuple(REGISTERS), tuple(REGISTERS.values()))[0]
        lines = []
        for _ in range(random.randint(1, 5)):
            turn, question = self.turn(random)
            lines.append(render(turn) + compose(random, self.facts, question, MANNERS[register]))
        return "\n".join(lines)

    def _guide(self, random: Random) -> str:
        lines = []
        for place in random.sample(self.facts.places, random.randint(1, 2)):
            told = random.sample(ATTRIBUTES, random.randint(2, len(ATTRIBUTES)))
            # Guides seldom invent what the hotel does not know, but some do.
            lines += [
                sentence(state(random, self.facts, place, attribute.name, self.wrong))
                for attribute in told
                if self.facts.values[place, attribute.name] is not None or random.random() < 0.3
            ]
        return "Guide: " + " ".join(lines or [sentence(random.choice(GUSHING))])

    def _review(self, random: Random) -> str:
        place, attribute = random.choice(self.facts.places), random.choice(ATTRIBUTES).name
        lines = [sentence(state(random, self.facts, place, attribute, 0.5))]
        lines += map(sentence, random.sample(RUDENESS, 2))
        random.shuffle(lines)
        return "Review: " + " ".join(lines)
