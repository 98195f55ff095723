"""Attention over slots in plain operations: stands in for the kernel, and judges it."""

import torch
from torch import Tensor


def attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    storage: Tensor,
    position: Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """What `operators.slot_attention` says, row by row, in the precision of `query`.

    Writes the new tokens into `storage`, as the operator does.
    """
    rows, heads, _, width = query.shape
    group = heads // key.shape[1]
    out = query.new_zeros(rows, 1, heads, width)
    for row, place in enumerate(position.tolist()):
        if place < 0:
            continue
        storage[0, row, :, place] = key[row, :, 0]
        storage[1, row, :, place] = value[row, :, 0]
        first = max(0, place + 1 - window) if window else 0
        kept = storage[:, row, :, first : place + 1].to(query.dtype)
        keys, values = kept.repeat_interleave(group, 1)
        score = torch.einsum("hd,htd->ht", query[row, :, 0], keys) * scale
        if softcap:
            score = softcap * torch.tanh(score / softcap)
        out[row, 0] = torch.einsum("ht,htd->hd", score.softmax(-1), values)
    return out
