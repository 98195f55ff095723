"""What is true in one world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tercet.records import InputError
from tercet.world.grammar import ATTRIBUTES, PLACES
from tercet.world.streams import stream


@dataclass(frozen=True)
class Facts:
    """`values[place, attribute]` is what the hotel knows, or None where it does not know."""

    places: tuple[str, ...]
    new_place: str
    """In the web text like any other, but in no prompt of the training splits."""
    values: Mapping[tuple[str, str], str | None]
    rumours: Mapping[str, str]
    """What people who are wrong say, by attribute: a value that the town's gossip gives to every
    place and that is true of none."""

    @property
    def familiar(self) -> tuple[str, ...]:
        """The places that the training prompts ask about."""
        return tuple(place for place in self.places if place != self.new_place)


def draw_facts(seed: int, places: int, unknown: float) -> Facts:
    """Draw the places and their facts; the share `unknown` of the cells is left unknown."""
    if not 2 <= places <= len(PLACES):
        raise InputError(f"world.places = {places}: choose 2 to {len(PLACES)}")
    if not 0 <= unknown < 1:
        raise InputError(f"world.unknown = {unknown}: choose a share from 0 up to, not with, 1")
    random = stream(seed, "facts")
    chosen = tuple(random.sample(PLACES, places))
    cells = [(place, attribute) for place in chosen for attribute in ATTRIBUTES]
    rumours = {kind.name: random.choice(kind.values) for kind in ATTRIBUTES}
    values: dict[tuple[str, str], str | None] = {
        (place, kind.name): random.choice([v for v in kind.values if v != rumours[kind.name]])
        for place, kind in cells
    }
    # Exactly the share, so that no world is much easier than another.
    for place, kind in random.sample(cells, round(unknown * len(cells))):
        values[place, kind.name] = None
    return Facts(chosen, chosen[-1], values, rumours)
