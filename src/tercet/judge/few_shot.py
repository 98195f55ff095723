"""The prefix of the prompted base model: candidates, and the choice by reward (InstructGPT 3.5).

Two people wrote prefixes for an hour each there; the one with the highest mean reward was used.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from tercet.judge import Judge
from tercet.judge.arms import Policy, Request, Sampling, sample
from tercet.model.shard import Ranks
from tercet.records import Demonstration, InputError, Prompt, prompt_text, read_lines, read_records


def read_prefixes(path: Path, candidates: int, shots: int, join: str, seed: int) -> list[str]:
    """Candidate prefixes from a .json list of texts, from tercet.prompt/1 records (a prefix each),
    or built from tercet.demonstration/1 records: `candidates` draws of `shots` of those that train
    (split "train" or none). A held-out prompt with its answer must not stand in a prefix.

    Raises:
        InputError: none of these, or fewer demonstrations than shots.
    """
    if path.suffix == ".json":
        try:
            prefixes = json.loads("".join(line for _, line in read_lines(path)))
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error}); give a list of texts") from error
        if not isinstance(prefixes, list) or not all(isinstance(text, str) for text in prefixes):
            raise InputError(f"{path}: not a list of texts; write one text a prefix")
    elif "tercet.demonstration/" in next((line for _, line in read_lines(path)), ""):
        shown = [d for d in read_records(path, Demonstration) if d.split in (None, "train")]
        if len(shown) < shots:
            raise InputError(
                f"{path}: {len(shown)} demonstrations of split train are fewer than {shots} shots; "
                "set few_shot_shots lower, or give more"
            )
        draws = [
            random.Random(f"few-shot {seed} {i}").sample(shown, shots) for i in range(candidates)
        ]
        prefixes = ["".join(d.prompt + d.response + join for d in draw) for draw in draws]
    else:
        prefixes = [prompt_text(record) for record in read_records(path, Prompt)]
    if not prefixes:
        raise InputError(f"{path}: no prefix in it; give at least one")
    return prefixes


def score_prefixes(
    policy: Policy,
    prefixes: Sequence[str],
    prompts: Sequence[Prompt],
    judge: Judge,
    settings: Sampling,
    temperature: float,
    ranks: Ranks,
) -> list[float]:
    """Mean score of the policy's replies to the validation prompts behind each prefix."""
    texts = [prompt_text(prompt) for prompt in prompts]
    requests = [
        Request(f"prefix {index}", prompt.id, prefix + text)
        for index, prefix in enumerate(prefixes)
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    replies = [drawn[0] for drawn in sample(policy, requests, settings, temperature, ranks)]
    scores = judge.score(
        texts * len(prefixes),
        [reply.text for reply in replies],
        [reply.finish for reply in replies],
    )
    n = len(prompts)
    return [fmean(scores[start : start + n]) for start in range(0, len(scores), n)]
