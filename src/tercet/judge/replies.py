"""Replies of an evaluation on disk: to be judged again, compared with, or ranked by people."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tercet.judge.arms import Reply
from tercet.judge.rankings import SHARED
from tercet.records import (
    Candidate,
    CandidateSet,
    InputError,
    Prompt,
    prompt_text,
    read_lines,
    write_atomically,
)

Replies = Mapping[str, Sequence[Reply]]
"""Arm (or "baseline") -> its reply to every prompt, in the order of the prompts."""

Scores = Mapping[str, Mapping[str, Sequence[float]]]
"""Judge ("gold", "reward") -> arm -> score of every reply."""


def reply_rows(prompts: Sequence[Prompt], replies: Replies, scores: Scores) -> list[dict[str, Any]]:
    """One object a reply, prompt by prompt: the lines of replies.jsonl."""
    return [
        {
            "prompt_id": prompt.id,
            "prompt": prompt_text(prompt),
            "arm": arm,
            "text": rows[i].text,
            "ended_by": rows[i].ended_by,
            "tokens": rows[i].tokens,
            "scores": {judge: round(found[arm][i], 6) for judge, found in scores.items()},
        }
        for i, prompt in enumerate(prompts)
        for arm, rows in replies.items()
    ]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(path, text.encode())


def read_replies(
    path: Path, arms: Sequence[str], prompts: Sequence[Prompt]
) -> dict[str, list[Reply]]:
    """Those arms' replies to those prompts, from a file of `reply_rows`.

    Raises:
        InputError: a line is damaged, a reply is missing, or was given to another text.
    """
    found: dict[tuple[str, str], tuple[str, Reply]] = {}
    for number, line in read_lines(path):
        try:
            row = json.loads(line)
            reply = Reply(row["text"], row["ended_by"], row["tokens"])
            found[row["arm"], row["prompt_id"]] = row["prompt"], reply
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}:{number}: not a reply that `tercet eval` wrote ({error!r}); "
                "give its replies.jsonl or baseline.jsonl"
            ) from error
    result: dict[str, list[Reply]] = {arm: [] for arm in arms}
    for arm in arms:
        for prompt in prompts:
            text, reply = found.get((arm, prompt.id), (None, None))
            if reply is None or text != prompt_text(prompt):
                state = "has no reply" if reply is None else "answers another text than"
                raise InputError(
                    f"{path}: arm '{arm}' {state} prompt '{prompt.id}'; generate again, or "
                    "evaluate on the prompts of that file"
                )
            result[arm].append(reply)
    return result


def candidate_sets(
    prompts: Sequence[Prompt], replies: Replies, temperatures: Mapping[str, float], seed: int
) -> list[CandidateSet]:
    """All arms' replies to each prompt for people to rank blind: shuffled, equal replies once.

    Policies of equal replies are joined, so that the ranking still says that they tied. Prompts
    where all arms say the same have nothing to rank and are left out.
    """
    sets = []
    for i, prompt in enumerate(prompts):
        by_text: dict[str, list[str]] = {}
        for arm, rows in replies.items():
            by_text.setdefault(rows[i].text, []).append(arm)
        if len(by_text) < 2:
            continue
        order = sorted(by_text)
        random.Random(f"candidates {seed} {prompt.id}").shuffle(order)
        candidates = tuple(
            Candidate(
                id=f"{prompt.id}/{place}",
                text=text,
                policy=SHARED.join(by_text[text]),
                temperature=temperatures[by_text[text][0]],
                seed=seed,
                finish=replies[by_text[text][0]][i].finish,
            )
            for place, text in enumerate(order)
        )
        sets.append(
            CandidateSet(
                id=f"eval/{prompt.id}",
                prompt_id=prompt.id,
                prompt=prompt_text(prompt),
                candidates=candidates,
            )
        )
    return sets
