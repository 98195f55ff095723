"""The embedded world's hidden utility as a judge. It is simulated, and its name says so."""

from collections.abc import Sequence
from statistics import fmean

from tercet.records import Finish
from tercet.world import Judgement, World

NAME = "simulated gold utility"


class GoldJudge:
    """Scores replies by the world's utility: facts, courtesy, refusals, grammar, completeness."""

    name = NAME

    def __init__(self, world: World) -> None:
        self.world = world

    def judgements(
        self, prompts: Sequence[str], replies: Sequence[str], finishes: Sequence[Finish]
    ) -> list[Judgement]:
        """What the world finds in each reply."""
        return [
            self.world.gold(prompt, reply, finish)
            for prompt, reply, finish in zip(prompts, replies, finishes, strict=True)
        ]

    def score(
        self, prompts: Sequence[str], replies: Sequence[str], finishes: Sequence[Finish]
    ) -> list[float]:
        """Utility of each reply; a demonstrator's good answer is worth about 2 to 3."""
        return [judged.utility for judged in self.judgements(prompts, replies, finishes)]


def summary(judgements: Sequence[Judgement]) -> dict[str, float]:
    """What an arm's replies contain: counts a reply, `answered` a share of replies.

    `wrong_share` is wrong / (wrong + right) over all facts stated: the honest companion of a win
    rate, because politeness alone can win while facts get worse.
    """
    right = sum(judged.right for judged in judgements)
    wrong = sum(judged.wrong for judged in judgements)
    return {
        "answered": fmean(judged.answered for judged in judgements),
        "right": right / len(judgements),
        "wrong": wrong / len(judgements),
        "wrong_share": wrong / (wrong + right) if wrong + right else 0.0,
        "rude": fmean(judged.rude for judged in judgements),
        "leak": fmean(judged.leak for judged in judgements),
        "gushing": fmean(judged.gushing for judged in judgements),
        "off_topic": fmean(judged.off_topic for judged in judgements),
        "repeated": fmean(judged.repeated for judged in judgements),
        "outside_grammar": fmean(judged.outside_grammar for judged in judgements),
        "unfinished": fmean(judged.unfinished for judged in judgements),
    }
