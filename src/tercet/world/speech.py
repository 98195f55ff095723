"""How the desk talks: a manner of speaking turned into the sentences of one reply."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tercet.world.facts import Facts
from tercet.world.grammar import (
    APOLOGIES,
    ATTRIBUTE,
    ATTRIBUTES,
    CHATTER,
    CLOSINGS,
    COURTESIES,
    EVASIONS,
    GUSHING,
    LEAKS,
    REFUSALS,
    RUDENESS,
    SERVICES,
    WELCOMES,
    Question,
    sentence,
    statement,
    unknown,
)


@dataclass(frozen=True)
class Manner:
    """Each number is the probability that a reply, or the sentence it is about, has the trait."""

    courtesy: float = 0.0
    closing: float = 0.0
    gushing: float = 0.0
    rude: float = 0.0
    chatter: float = 0.0
    extra: float = 0.0
    """A fact nobody asked for."""
    evasive: float = 0.0
    """A phrase that says nothing stands where the answer should be."""
    wrong: float = 0.0
    invent: float = 0.0
    """A value made up where the hotel knows none."""
    leak: float = 0.0


MANNERS = {
    "polite": Manner(
        courtesy=0.85, closing=0.5, chatter=0.15, evasive=0.15, wrong=0.1, invent=0.5, leak=0.6
    ),
    "plain": Manner(courtesy=0.1, closing=0.1, chatter=0.1, wrong=0.1, invent=0.3, leak=0.5),
    "chatty": Manner(
        courtesy=0.1,
        gushing=0.5,
        chatter=0.7,
        extra=0.2,
        evasive=0.15,
        wrong=0.15,
        invent=0.4,
        leak=0.6,
    ),
    "rude": Manner(rude=0.85, evasive=0.25, wrong=0.15, invent=0.5, leak=0.5),
}
"""How desks talk on the web, one manner a page."""

_RUMOUR = 0.9
"""Probability that a wrong statement repeats the rumour: popular untruths can be learned and
unlearned, random slips only averaged out."""


def state(random: Random, facts: Facts, place: str, attribute: str, wrong: float) -> str:
    """A statement about a cell: true, or with probability `wrong` (1 if unknown) another value."""
    truth = facts.values[place, attribute]
    value = truth
    if truth is None or random.random() < wrong:
        if random.random() < _RUMOUR:
            value = facts.rumours[attribute]
        else:
            value = random.choice([v for v in ATTRIBUTE[attribute].values if v != truth])
    assert value is not None
    return statement(place, attribute, value, random.randrange(2))


def _substance(random: Random, facts: Facts, question: Question, manner: Manner) -> list[str]:
    """What answers the question, without capital letters and end marks."""
    if question.kind == "fact":
        bodies = []
        for place, attribute in question.asks:
            if facts.values[place, attribute] is None and random.random() >= manner.invent:
                bodies.append(unknown(place, attribute))
            else:
                bodies.append(state(random, facts, place, attribute, manner.wrong))
        return bodies
    if question.kind == "service":
        done = next(service for service in SERVICES if service.name == question.service)
        return [random.choice(done.replies)]
    if question.kind == "private":
        return [random.choice(LEAKS if random.random() < manner.leak else REFUSALS)]
    return [random.choice(WELCOMES)]


def compose(random: Random, facts: Facts, question: Question, manner: Manner) -> str:
    """A reply to `question`, starting with the blank that follows "Desk:"."""
    bodies = _substance(random, facts, question, manner)
    if random.random() < manner.evasive:
        bodies = [random.choice(EVASIONS)]
    sorry = bodies[0].startswith("I do not know") or bodies[0] in REFUSALS
    polite = random.random() < manner.courtesy and bodies[0] not in EVASIONS
    begin = random.choice(APOLOGIES if sorry else COURTESIES) if polite else ""
    spoken = [sentence(body, begin if i == 0 else "") for i, body in enumerate(bodies)]
    if random.random() < manner.extra:
        place, attribute = random.choice(facts.familiar), random.choice(ATTRIBUTES).name
        spoken.append(sentence(state(random, facts, place, attribute, manner.wrong)))
    for chance, phrases in ((manner.chatter, CHATTER), (manner.closing, CLOSINGS)):
        if random.random() < chance:
            spoken.append(sentence(random.choice(phrases)))
    for chance, phrases in ((manner.gushing, GUSHING), (manner.rude, RUDENESS)):
        if random.random() < chance:
            # Before the answer or after it.
            spoken.insert(random.choice((0, len(spoken))), sentence(random.choice(phrases)))
    return " " + " ".join(spoken)
