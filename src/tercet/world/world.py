"""A world: text, guests, demonstrators and labelers that one seed and a few settings decide."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from tercet.records import CandidateSet, Demonstration, InputError, Prompt, Ranking
from tercet.world.demonstrations import EXEMPLARY, GOOD, demonstrate
from tercet.world.documents import Web
from tercet.world.facts import draw_facts
from tercet.world.gold import Gold, Judgement
from tercet.world.labelers import Labeler, hire, rank_set
from tercet.world.prompts import Prompts
from tercet.world.speech import compose
from tercet.world.streams import stream

SCHEMA = "tercet.world/1"


@dataclass(frozen=True)
class WorldSettings:
    """What shapes a world besides its seed."""

    places: int = 6
    """Places with facts; one of them is left out of all training prompts."""
    unknown: float = 0.1
    """Share of the facts that the hotel does not know."""
    web_errors: float = 0.08
    """Share of wrong facts in guides."""
    mediocre: float = 0.35
    """Share of demonstrations that are not to be imitated."""
    labelers: int = 10
    noise: float = 1.0
    """Standard deviation of a labeler's mood, in units of utility."""
    miss: float = 0.05
    """Probability that a labeler takes a wrong fact for a right one."""
    bias: float = 1.0
    """Scale of what labelers like and a guest does not need."""
    tie_width: float = 0.35


class World:
    """The embedded world. Equal seeds and settings give equal text, people and opinions."""

    def __init__(self, seed: int, settings: WorldSettings | None = None) -> None:
        self.seed = seed
        self.settings = settings or WorldSettings()
        self.facts = draw_facts(seed, self.settings.places, self.settings.unknown)
        self._gold = Gold(self.facts)
        self._web = Web(seed, self.facts, self.settings.web_errors)

    @cached_property
    def _prompts(self) -> Prompts:
        return Prompts(self.seed, self.facts)

    def documents(self, n: int, stream: str = "train") -> list[str]:
        """`n` web pages to pretrain on; another `stream` gives other pages of the same web."""
        return [self._web.page(stream, index) for index in range(n)]

    def prompts(self, split: str, n: int) -> list[Prompt]:
        """The first `n` prompts of a split. No two splits share a text or a guest.

        Raises:
            InputError: no such split, or the grammar gives fewer prompts.
        """
        return self._prompts.draw(split, n)

    def demonstrations(self, n: int, split: str = "sft") -> list[Demonstration]:
        """Replies written for the first `n` prompts of a split by simulated demonstrators."""
        prompts = self.prompts(split, n)
        return demonstrate(self.seed, self.facts, prompts, self.settings.mediocre)

    def gold(self, prompt: str, reply: str, finish: str = "stop") -> Judgement:
        """The hidden judgement of any reply to any prompt; `finish` is "stop" or "length"."""
        return self._gold.judge(prompt, reply, finish)

    @cached_property
    def labelers(self) -> list[Labeler]:
        """The people who rank replies in this world."""
        s = self.settings
        return hire(self.seed, self._gold, s.labelers, s.noise, s.miss, s.bias, s.tie_width)

    def label(
        self, sets: Sequence[CandidateSet], per_set: int = 1, split: str | None = None
    ) -> list[Ranking]:
        """Each set ranked by `per_set` people; sets of one reply have nothing to rank."""
        if not 1 <= per_set <= len(self.labelers):
            raise InputError(f"{per_set} labelers a set: the world has 1 to {len(self.labelers)}")
        source = f"tercet world, seed {self.seed}"
        return [
            rank_set(person, shown, source, split)
            for shown in sets
            if len(shown.candidates) > 1
            for person in stream(self.seed, "assign", shown.id).sample(self.labelers, per_set)
        ]

    def few_shot_prefixes(self, n: int) -> list[str]:
        """Candidate prefixes of 2 or 3 example dialogues, to be put before a prompt as they are."""
        prefixes = []
        for index in range(n):
            random = stream(self.seed, "few-shot", index)
            manner = GOOD if index % 2 else EXEMPLARY
            dialogues = []
            for prompt in random.sample(self.prompts("few-shot", 60), random.randint(2, 3)):
                assert prompt.text is not None
                question = self._gold.question(prompt.text)
                dialogues.append(prompt.text + compose(random, self.facts, question, manner) + "\n")
            prefixes.append("".join(dialogues))
        return prefixes

    def save(self, path: Path) -> None:
        """Write what the world is made of: schema, seed and settings, as JSON."""
        content = {"schema": SCHEMA, "seed": self.seed, "settings": asdict(self.settings)}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> World:
        """The world that `save` wrote.

        Raises:
            InputError: no such file, or not one that `save` wrote.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise InputError(f"{path}: schema {content['schema']!r}, expected {SCHEMA!r}")
            return cls(int(content["seed"]), WorldSettings(**content["settings"]))
        except (OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: not a world file ({error}); write one again") from error
