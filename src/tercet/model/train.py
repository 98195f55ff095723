"""One optimizer step of likelihood training: what pretraining, SFT and ptx have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tercet.data.importers import read_texts
from tercet.data.tokens import windows
from tercet.model.bins import Rows, micro_batches, row_length
from tercet.model.optim import StepGuard, clip_gradients, set_lr
from tercet.model.shard import Ranks
from tercet.model.tree import Document, TokenTree, logprobs, pack
from tercet.records import about


def precision_context(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast for "bf16" (weights, optimizer and losses stay float32); nothing for "float32".

    "auto" is bf16 on a GPU and float32 on the CPU.
    """
    if precision == "bf16" or (precision == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def target_count(documents: Sequence[Document]) -> float:
    """Sum of target weights, the N of a token mean. A document's first token is never a target."""
    total = 0.0
    for document in documents:
        total += document.prompt_weight * (len(document.prompt) - 1)
        total += document.reply_weight * sum(len(reply) for reply in document.replies)
    return total


def window_documents(cut: list[list[int]]) -> list[Document]:
    """Windows as documents whose every token but the first is a target."""
    return [Document(ids, [], prompt_weight=1.0) for ids in cut]


def read_windows(path: Path | None, tokenizer: Any, context: int) -> list[Document]:
    """The text of a file as training windows, [] without one. InputError for an empty file."""
    if path is None:
        return []
    with about(str(path)):
        return window_documents(windows(tokenizer, read_texts(path), context))


def batch_indices(n: int, batch: int, step: int, seed: int) -> list[int]:
    """Which of n items a step takes: a new permutation each epoch, equal on every rank and resume.

    With fewer items than `batch`, all of them.
    """
    per_epoch = n // batch if n >= batch else 1
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return order[place * batch : (place + 1) * batch].tolist()


Packed = list[tuple[list[int], TokenTree]]


def trees(documents: Sequence[Document], token_budget: int, device: torch.device) -> Packed:
    """Packed micro-batches of at most `token_budget` tokens, each with the indices it holds.

    Documents come in no order: read results by the indices. On a GPU every pack is one row of
    `token_budget` tokens, or a half or a quarter of it.
    """
    rows: Rows = "cpu" if device.type == "cpu" else "gpu"
    return [
        (group, pack([documents[i] for i in group], token_budget, rows, device))
        for group in micro_batches([len(d) for d in documents], token_budget, rows)
    ]


def fitted_budget(
    steps: Iterable[Sequence[Document]], token_budget: int, longest: int, ranks: Ranks
) -> int:
    """The token budget, at most the given one, with which steps like these leave little filler.

    `longest` is the number of tokens of the longest document that a step may have. Call it once a
    run: another budget is another length of packs, which is compiled again. On the CPU, where
    lengths do not matter, the given one.
    """
    if ranks.device.type == "cpu":
        return token_budget
    mine = ([len(d) for d in step[:: ranks.size]] for step in steps)
    return row_length(mine, token_budget, longest)


def filler(packed: Packed) -> float:
    """Share of the tokens of all packs that are filler."""
    tokens = sum(tree.tokens.numel() for _, tree in packed)
    return 1 - sum(tree.filled for _, tree in packed) / tokens if tokens else 0.0


def nll_backward(
    model: nn.Module,
    documents: Sequence[Document],
    total: float,
    ranks: Ranks,
    *,
    token_budget: int,
    coefficient: float = 1.0,
    precision: str = "auto",
) -> Tensor:
    """Add the gradient of coefficient * sum(w * nll) / total over my documents.

    `total` is the target count of the whole optimizer batch on all ranks, so that micro-batches and
    ranks do not change the step (InstructGPT App. C). Returns my part of sum(w * nll) / total.
    """
    packed = trees(documents, token_budget, ranks.device)
    return _nll_backward(model, packed, total, ranks, coefficient, precision)


def _nll_backward(
    model: nn.Module, packed: Packed, total: float, ranks: Ranks, coefficient: float, precision: str
) -> Tensor:
    loss = torch.zeros((), device=ranks.device, dtype=torch.float64)
    for _, tree in packed:
        with precision_context(ranks.device, precision):
            logp_RL = logprobs(model, tree, where="weighted")
        part = -(tree.weight * logp_RL).sum() / total
        (coefficient * part).backward()
        loss += part.detach()
    return loss


def nll_step(
    model: nn.Module,
    optimizer: Optimizer,
    guard: StepGuard,
    batch: Sequence[Document],
    ranks: Ranks,
    *,
    lr: float,
    clip: float,
    token_budget: int,
    precision: str = "auto",
) -> dict[str, float]:
    """One optimizer step on the token mean of `batch`, of which each rank takes its share.

    Returns loss, grad_norm (before clipping), lr, and the filler share of this rank's packs.
    `guard` skips a step that is not finite.
    """
    set_lr(optimizer, lr)
    optimizer.zero_grad()
    packed = trees(ranks.share(batch), token_budget, ranks.device)
    loss = _nll_backward(model, packed, target_count(batch), ranks, 1.0, precision)
    ranks.sum_gradients(model.parameters())
    norm = clip_gradients(model.parameters(), clip)
    value = float(ranks.sum(loss))
    guard.step(optimizer, value, norm)
    return {"loss": value, "grad_norm": norm, "lr": lr, "filler": filler(packed)}


@torch.no_grad()
def held_out_nll(
    model: nn.Module,
    documents: Sequence[Document],
    ranks: Ranks,
    *,
    token_budget: int,
    precision: str = "auto",
) -> float:
    """Token mean of the negative log-likelihood in nats; every rank gives the same documents."""
    was_training = model.training
    model.eval()
    loss = torch.zeros((), device=ranks.device, dtype=torch.float64)
    for _, tree in trees(ranks.share(documents), token_budget, ranks.device):
        with precision_context(ranks.device, precision):
            logp_RL = logprobs(model, tree, where="weighted")
        loss -= (tree.weight * logp_RL).sum().double()
    model.train(was_training)
    return float(ranks.sum(loss)) / target_count(documents)
