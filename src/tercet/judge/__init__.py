"""Who decides which of two replies is better: the world's gold utility, a reward model, people."""

from collections.abc import Sequence
from typing import Protocol

from tercet.records import Finish


class Judge(Protocol):
    """Gives every reply a number; of two replies to a prompt the higher wins, equal is a tie."""

    name: str
    """How tables, figures and report.json name it; a simulated judge says "simulated"."""

    def score(
        self, prompts: Sequence[str], replies: Sequence[str], finishes: Sequence[Finish]
    ) -> list[float]:
        """One score a reply. A reply that was cut has finish "length"."""
        ...
