"""Operators of a decode step on a GPU, in a form that compiled layers and CUDA graphs hold.

Shape suffixes: R rows (slots of this step), S slots stored, H key/value heads, G query heads of one
of them, T positions stored, D head width, V vocabulary.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

KEYS = 64
"""Positions that one iteration of the attention kernel reads."""
WORDS = 2048
"""Logits that one program of the choice reads."""
TOKENS = 8
"""Tokens that one program copies."""
PROGRAMS = 1024
"""Programs wanted a launch: a few on each multiprocessor, to hide that replies differ in length."""
SPLITS = 16
"""Parts of one slot's positions at most."""


@torch.library.custom_op("tercet::slot_attention", mutates_args={"storage"}, device_types="cuda")
def slot_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    storage: Tensor,
    position: Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """Attention of one new token a slot, whose key and value go into the slot.

    query (R, H * G, 1, D), key and value (R, H, 1, D), storage (2, S, H, T, D) of one layer,
    position (R,) int64: where the token stands, -1 on an idle slot (nothing read or written, output
    0). window and softcap: 0 for none. Returns (R, 1, H * G, D).
    """
    kernels = _kernels()
    rows, heads, _, width = query.shape
    shared = key.shape[1]
    group = heads // shared
    assert query.stride(3) == key.stride(3) == value.stride(3) == 1 and storage.is_contiguous()
    out = query.new_empty(rows, 1, heads, width)
    padded_group, padded_width = max(16, _power(group)), max(16, _power(width))
    splits = 1
    while rows * shared * splits < PROGRAMS and splits < SPLITS:
        splits *= 2
    partial = weight = out
    if splits > 1:
        shape = (rows, shared, splits, padded_group)
        partial = query.new_empty(*shape, padded_width, dtype=torch.float32)
        weight = query.new_empty(shape, dtype=torch.float32)
    # Rows vary slowest: they come longest first, so the last programs to start are short ones.
    grid = (shared, splits, rows)
    # Wide heads: two stages of 32 keys, or they would not fit into shared memory.
    wide = padded_width * query.itemsize > 256
    with torch.cuda.device_of(query):
        kernels.attend[grid](
            query, key, value, storage, position, out, partial, weight,
            query.stride(0), query.stride(1), key.stride(0), key.stride(1),
            value.stride(0), value.stride(1),
            storage.stride(0), storage.stride(1), storage.stride(2), scale, softcap or 1.0,
            G=group, H=shared, D=width, GROUP=padded_group, WIDTH=padded_width,
            BLOCK=KEYS // 2 if wide else KEYS, SPLITS=splits, WINDOW=window, CAPPED=softcap > 0,
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
            num_warps=2, num_stages=2 if wide else 3,
        )  # fmt: skip
        if splits > 1:
            kernels.join[rows, shared](
                partial, weight, out, G=group, H=shared, D=width, GROUP=padded_group,
                WIDTH=padded_width, SPLITS=splits,
            )  # fmt: skip
    return out


@slot_attention.register_fake
def _(query, key, value, storage, position, scale, window, softcap):  # type: ignore[no-untyped-def]
    rows, heads, _, width = query.shape
    return query.new_empty(rows, 1, heads, width)


@torch.library.custom_op("tercet::choose_token", mutates_args=(), device_types="cuda")
def choose_token(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`sampling.choose` without filters: (R,) int64 tokens and (R,) float32 log-probs.

    logits (R, V), uniform (R,) float64 in [0, 1). Reads the logits once, one block of them twice.
    """
    kernels = _kernels()
    rows, vocabulary = logits.shape
    assert logits.stride(1) == 1
    blocks = -(-vocabulary // WORDS)
    best = logits.new_empty(rows, blocks, dtype=torch.float32)
    total = torch.empty_like(best)
    token = torch.empty(rows, dtype=torch.int64, device=logits.device)
    logprob = logits.new_empty(rows, dtype=torch.float32)
    shape = (logits.stride(0), 1.0 / temperature, vocabulary, blocks)
    with torch.cuda.device_of(logits):
        kernels.sums[rows, blocks](logits, best, total, *shape, BLOCK=WORDS, num_warps=2)
        kernels.pick[rows,](
            logits, best, total, uniform, token, logprob, *shape,
            BLOCK=WORDS, BLOCKS=max(2, _power(blocks)), num_warps=8,
        )  # fmt: skip
    return token, logprob


@choose_token.register_fake
def _(logits, uniform, temperature):  # type: ignore[no-untyped-def]
    rows = logits.shape[0]
    return uniform.new_empty(rows, dtype=torch.int64), uniform.new_empty(rows, dtype=torch.float32)


def copy_tokens(storage: Tensor, entries: Tensor, index_4M: Tensor) -> None:
    """Entries of M tokens in all layers, from a pack into slots, in place.

    storage (layers, 2, S, H, T, D), entries (layers, 2, rows, H, length, D), both contiguous;
    index: slot, position, row of the pack, column of it, int64.
    """
    heads, _, width = storage.shape[3:]
    tokens = index_4M.shape[1]
    source, target = entries.flatten(0, 1), storage.flatten(0, 1)
    grid = (-(-tokens // TOKENS), len(source))
    with torch.cuda.device_of(storage):
        _kernels().copy_tokens[grid](
            source, target, *index_4M, source.stride(0), source.stride(1), source.stride(2),
            source.stride(3), target.stride(0), target.stride(1), target.stride(2), tokens,
            H=heads, D=width, TOKENS=TOKENS, VALUES=_power(heads * width), num_warps=4,
        )  # fmt: skip


def _power(value: int) -> int:
    return 1 << (value - 1).bit_length()


@cache
def _kernels() -> Any:
    from tercet.rollout import kernels  # needs Triton, which a GPU build of torch brings

    return kernels
