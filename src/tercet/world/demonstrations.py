"""Demonstrations: replies that simulated demonstrators write, most of them good."""

from __future__ import annotations

from collections.abc import Sequence

from tercet.records import Demonstration, Prompt
from tercet.world.facts import Facts
from tercet.world.grammar import questions
from tercet.world.prompts import asked
from tercet.world.speech import Manner, compose
from tercet.world.streams import stream

EXEMPLARY = Manner(courtesy=1.0, closing=0.6)
"""What the writer of a few-shot prefix takes pains to show."""
GOOD = Manner(courtesy=0.6, closing=0.45, wrong=0.03, invent=0.05, leak=0.02)

MEDIOCRE = {
    "rude": (0.2, Manner(rude=1.0, wrong=0.06, invent=0.1, leak=0.1)),
    "rambling": (0.33, Manner(chatter=1.0, extra=0.5, courtesy=0.2, wrong=0.06, invent=0.1)),
    "evasive": (0.2, Manner(evasive=1.0, courtesy=0.2, closing=0.3)),
    "gushing": (0.2, Manner(gushing=1.0, courtesy=0.3, closing=0.3, wrong=0.06, invent=0.1)),
    "careless": (0.07, Manner(courtesy=0.4, closing=0.3, wrong=0.4, invent=0.6, leak=0.4)),
}
"""Share among the mediocre, and how they talk. Most are mediocre in manner, few in facts, so that
a model trained on them has much to gain and little to unlearn."""

DEMONSTRATORS = 12


def demonstrate(
    seed: int, facts: Facts, prompts: Sequence[Prompt], mediocre: float
) -> list[Demonstration]:
    """One demonstration for each prompt; the share `mediocre` of them is not to be imitated."""
    table = questions(facts.places)
    shares = [share for share, _ in MEDIOCRE.values()]
    written = []
    for prompt in prompts:
        random = stream(seed, "demonstration", prompt.id)
        kind = random.choices(tuple(MEDIOCRE), shares)[0]
        manner = MEDIOCRE[kind][1] if random.random() < mediocre else GOOD
        assert prompt.text is not None
        written.append(
            Demonstration(
                id=f"demonstration-{prompt.id}",
                prompt_id=prompt.id,
                prompt=prompt.text,
                response=compose(random, facts, asked(prompt.text, table), manner),
                labeler=f"demonstrator-{random.randint(1, DEMONSTRATORS)}",
                user_id=prompt.user_id,
                source=f"{prompt.source}, simulated demonstrator",
                split=prompt.split,
            )
        )
    return written
