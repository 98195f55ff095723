"""FlexAttention's block mask of a token tree, from summaries of blocks of 128 tokens.

`create_block_mask` would evaluate all L * L pairs; minima and maxima of each block decide which
blocks are empty, full or mixed in (L / 128)^2 work, and mixed ones are masked inside the kernel.

Shape suffixes: R rows, L row length, K blocks of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
FILLER = 2**31


def block_mask(
    document: Tensor, branch: Tensor, position: Tensor, window: int | None, branches: int
) -> BlockMask:
    """Visibility of `TokenTree` tokens; documents must ascend along each row, filler (-1) last.

    `branches` is above every branch number. Nothing here waits for the GPU.
    """
    visible, full = block_kinds(document, branch, position, window)
    root = (document * branches).to(torch.int32)
    group = (document * branches + branch).to(torch.int32)
    place = position.to(torch.int32)
    # The last position out of sight; a tensor, because a captured number would be compiled in.
    hidden = None if window is None else place - window

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (k <= q) & ((group[b, k] == group[b, q]) | (group[b, k] == root[b, q]))
        return seen if hidden is None else seen & (place[b, k] > hidden[b, q])

    length = document.shape[1]
    return BlockMask.from_kv_blocks(
        *_listed(visible & ~full),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(length, length),
    )


def block_kinds(
    document: Tensor, branch: Tensor, position: Tensor, window: int | None
) -> tuple[Tensor, Tensor]:
    """(R, K, K) bool twice: blocks that may hold a visible pair, and those visible throughout."""
    document = torch.where(document < 0, FILLER, document)
    first, final = _extremes(document, FILLER)
    low, high = _extremes(branch, 0)
    early, late = _extremes(position, 0)
    blocks = torch.arange(first.shape[1], device=document.device)

    def q(x: Tensor) -> Tensor:
        return x[:, :, None]

    def k(x: Tensor) -> Tensor:
        return x[:, None, :]

    single = first == final
    one_document = q(single) & k(single) & (q(first) == k(first))
    visible = (blocks[None, :] <= blocks[:, None]) & (q(first) <= k(final)) & (k(first) <= q(final))
    related = (k(low) == 0) | ((q(low) <= k(high)) & (k(low) <= q(high)))
    visible &= related | ~one_document
    same_branch = (q(low) == q(high)) & (k(low) == k(high)) & (q(low) == k(low))
    full = one_document & (blocks[None, :] < blocks[:, None]) & ((k(high) == 0) | same_branch)
    if window is not None:
        visible &= q(early) - k(late) < window
        full &= q(late) - k(early) < window
    return visible, full


def _extremes(values_RL: Tensor, fill: int) -> tuple[Tensor, Tensor]:
    """(R, K) minimum and maximum of each block."""
    rows, length = values_RL.shape
    padded = torch.nn.functional.pad(values_RL, (0, -length % BLOCK), value=fill)
    return padded.view(rows, -1, BLOCK).aminmax(dim=-1)


def _listed(blocks_RKK: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (R, 1, K) and indices (R, 1, K, K) of each query block's true blocks, in order."""
    counts = blocks_RKK.sum(-1, dtype=torch.int32)
    order = blocks_RKK.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return counts[:, None], order.to(torch.int32)[:, None]
