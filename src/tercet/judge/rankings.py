"""Rankings as a judge: an arm wins on a prompt when its reply is ranked above the baseline's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tercet.judge import Judge
from tercet.records import Finish, InputError, RankedReply, Ranking, prompt_text

SHARED = "|"
"""Equal replies are shown to people once; their policies are joined by this in `policy`."""


@dataclass(frozen=True)
class Verdict:
    """One person's comparison of an arm's reply with the baseline's: 1 win, 0.5 tie, 0 loss."""

    prompt_id: str
    outcome: float
    labeler: str | None


def verdicts(rankings: Sequence[Ranking], arm: str, baseline: str) -> list[Verdict]:
    """What the rankings say about `arm` against `baseline`; rankings without both are skipped.

    Rankings made on `tercet eval`'s candidates.jsonl carry the arms as policies.
    """
    found = []
    for ranking in rankings:
        mine, theirs = _reply_of(ranking, arm), _reply_of(ranking, baseline)
        if mine is None or theirs is None:
            continue
        outcome = 0.5 if mine.rank == theirs.rank else float(mine.rank < theirs.rank)
        found.append(Verdict(ranking.prompt_id, outcome, ranking.labeler))
    return found


def check_texts(
    rankings: Sequence[Ranking], texts: Mapping[tuple[str, str], str], where: object
) -> None:
    """Raises InputError when a ranked reply is not this run's `texts[arm, prompt_id]`."""
    for ranking in rankings:
        for reply in ranking.replies:
            for arm in (reply.policy or "").split(SHARED):
                text = texts.get((arm, ranking.prompt_id))
                if text is not None and text != reply.text:
                    raise InputError(
                        f"{where}: ranking {ranking.id} judges another reply of '{arm}' than this "
                        "run has; give the replies.jsonl that was ranked as `replies`"
                    )


def judge_name(rankings: Sequence[Ranking]) -> str:
    """Who ranked, for tables and figures: "people (12)", "simulated labelers", or all kinds."""
    names = {
        "person": "people",
        "simulated": "simulated labelers",
        "reward": "reward model",
        "llm": "language model",
        "gold": "simulated gold utility",
    }
    kinds = sorted({ranking.judge for ranking in rankings})
    people = {ranking.labeler for ranking in rankings if ranking.labeler}
    who = " and ".join(names[kind] for kind in kinds)
    return f"{who} ({len(people)})" if kinds == ["person"] and people else who


def score_rankings(judge: Judge, rankings: Sequence[Ranking]) -> list[list[float]]:
    """A judge's scores of every ranking's replies, in the order of the replies."""
    prompts: list[str] = []
    texts: list[str] = []
    finishes: list[Finish] = []
    for ranking in rankings:
        prompts += [prompt_text(ranking)] * len(ranking.replies)
        texts += [reply.text for reply in ranking.replies]
        finishes.extend(reply.finish for reply in ranking.replies)
    scores = iter(judge.score(prompts, texts, finishes))
    return [[next(scores) for _ in ranking.replies] for ranking in rankings]


def _reply_of(ranking: Ranking, arm: str) -> RankedReply | None:
    return next(
        (reply for reply in ranking.replies if arm in (reply.policy or "").split(SHARED)), None
    )
