"""Scores of whole replies by a reward model, and the probe that shows it is still itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tercet.data.tokens import encode_prompt, encode_reply
from tercet.model.shard import Ranks
from tercet.model.train import precision_context, trees
from tercet.model.tree import Document, scalars
from tercet.records import InputError

PROBE = "probe.json"


@torch.no_grad()
def score_documents(
    model: nn.Module, documents: Sequence[Document], *, token_budget: int, precision: str = "auto"
) -> Tensor:
    """(N,) scores of all replies in order, each read at its last token (InstructGPT 3.5).

    The last token is EOS when the reply ended itself, else the last token before the cut.
    """
    device = next(model.parameters()).device
    scores: dict[int, Tensor] = {}
    for group, tree in trees(documents, token_budget, device):
        with precision_context(device, precision):
            values_RL = scalars(model, tree)
        sizes = [len(documents[i].replies) for i in group]
        for i, score in zip(group, tree.at_last(values_RL).split(sizes), strict=True):
            scores[i] = score
    return torch.cat([scores[i] for i in range(len(documents))])


def encode_replies(
    tokenizer: Any, prompt: str, replies: Sequence[str], stopped: Sequence[bool]
) -> Document:
    """One prompt with all its replies as ids: EOS is appended iff the reply ended itself.

    A cut reply without text (nothing but special tokens) has no ids of its own; it reads as EOS.
    """
    return Document(
        encode_prompt(tokenizer, prompt),
        [
            encode_reply(tokenizer, text, end or not text)
            for text, end in zip(replies, stopped, strict=True)
        ],
    )


def write_probe(
    model: nn.Module, tokenizer: Any, samples: Sequence[tuple[str, str]], folder: Path
) -> None:
    """Store scores of a few (prompt, reply) texts beside the model, for a check at every load."""
    documents = [encode_replies(tokenizer, prompt, [reply], [True]) for prompt, reply in samples]
    scores = score_documents(model, documents, token_budget=4096, precision="float32")
    rows = [
        {"prompt": prompt, "reply": reply, "score": float(score)}
        for (prompt, reply), score in zip(samples, scores, strict=True)
    ]
    (folder / PROBE).write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


def check_probe(
    model: nn.Module, tokenizer: Any, folder: Path, tolerance: float = 1e-3
) -> float | None:
    """Largest |score now - score stored|, None without a probe.

    Raises InputError beyond `tolerance`: tokenizer, head or weights are not those trained.
    """
    path = folder / PROBE
    if not path.exists():
        return None
    rows = json.loads(path.read_text(encoding="utf-8"))
    documents = [encode_replies(tokenizer, row["prompt"], [row["reply"]], [True]) for row in rows]
    scores = score_documents(model, documents, token_budget=4096, precision="float32").tolist()
    worst = max(abs(score - row["score"]) for score, row in zip(scores, rows, strict=True))
    if not worst <= tolerance:
        raise InputError(
            f"{path}: the reward model's scores differ from those stored with it by {worst:.3g}: "
            "weights or tokenizer are not the trained ones; train it again, or delete this file if "
            "you changed the model on purpose"
        )
    return worst


def gather_scores(
    model: nn.Module,
    documents: Sequence[Document],
    ranks: Ranks,
    *,
    token_budget: int,
    precision: str = "auto",
) -> list[list[float]]:
    """Scores of every document's replies on every rank, each rank computing its share."""
    mine = ranks.share(documents)
    if mine:
        flat = score_documents(model, mine, token_budget=token_budget, precision=precision)
        parts = [part.tolist() for part in flat.split([len(d.replies) for d in mine])]
    else:
        parts = []
    return ranks.gather(parts)
