"""A reward model as a judge of text, whatever tokenizer the policy used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tercet.model.load import load_scalar, load_tokenizer
from tercet.model.reward import check_probe, encode_replies, gather_scores
from tercet.model.shard import Ranks
from tercet.records import Finish


class RewardJudge:
    """Scores replies by a reward model, re-encoded with the reward model's own tokenizer.

    Every rank must call it with the same texts; each computes its share.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, ranks: Ranks, name: str, token_budget: int = 16384
    ) -> None:
        self.model, self.tokenizer, self.ranks = model, tokenizer, ranks
        self.token_budget = token_budget
        self.name = f"reward model {name}"

    def score(
        self, prompts: Sequence[str], replies: Sequence[str], finishes: Sequence[Finish]
    ) -> list[float]:
        """Score of each reply at its last token (EOS is appended iff it finished).

        Replies to one prompt share the prompt's computation; equal replies are scored once.
        """
        keys = list(zip(prompts, replies, finishes, strict=True))
        by_prompt: dict[str, dict[tuple[str, Finish], float]] = {}
        for prompt, reply, finish in keys:
            by_prompt.setdefault(prompt, {})[reply, finish] = 0.0
        documents = [
            encode_replies(
                self.tokenizer,
                prompt,
                [text for text, _ in texts],
                [finish == "stop" for _, finish in texts],
            )
            for prompt, texts in by_prompt.items()
        ]
        scores = gather_scores(self.model, documents, self.ranks, token_budget=self.token_budget)
        for texts, values in zip(by_prompt.values(), scores, strict=True):
            texts.update(zip(list(texts), values, strict=True))
        return [by_prompt[prompt][reply, finish] for prompt, reply, finish in keys]


def load(path: Path, ranks: Ranks, token_budget: int = 16384) -> RewardJudge:
    """The reward model of a folder that `rm` wrote; the probe stored with it is checked."""
    model = load_scalar(path, device=ranks.device)
    model.eval().requires_grad_(False)
    tokenizer = load_tokenizer(path)
    check_probe(model, tokenizer, path)
    name = path.parent.name if path.name == "model" else path.name
    return RewardJudge(model, tokenizer, ranks, name, token_budget)
