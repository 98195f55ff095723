"""The embedded world: prompts, gold utility, simulated labelers with human-like noise."""

from tercet.world.gold import Judgement
from tercet.world.labelers import Labeler
from tercet.world.world import World, WorldSettings

__all__ = ["Judgement", "Labeler", "World", "WorldSettings"]
