"""The attention function "tercet": trees of tokens for training, a cache for rollouts.

Importing this module registers the function with transformers. Models receive what they should
attend to as a keyword argument of `model(...)`, which transformers hands down unchanged:

    model(**tree.inputs)                                      # TokenTree, see tree.py
    model(input_ids=..., position_ids=..., cache_view=view)   # a rollout engine's own cache

transformers builds no mask for it, because the name is unknown to its mask registry.

Shape suffixes: R rows, L row length, H heads, K key-value heads, G = H / K, D head width.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from tercet.records import InputError

NAME = "tercet"

# Keywords that reach every attention function and change nothing in it.
HARMLESS = {
    "position_ids",
    "position_embeddings",
    "cache_position",
    "use_cache",
    "output_attentions",
}
HARMLESS |= {"is_causal", "output_hidden_states", "return_dict", "num_items_in_batch"}


# Tiles of the FlexAttention kernels for bf16 and heads of at most 128. torch's own choice suits
# long full rows; on packed documents it took 2.1 to 2.4 times as long forward (1.13 ms in place of
# 0.50 for 14 documents in 16,384 tokens, 32 heads of 64) and 1.1 to 1.2 times backward (H200).
TILES: Any = {
    "fwd_BLOCK_M": 64,
    "fwd_BLOCK_N": 64,
    "fwd_num_warps": 4,
    "fwd_num_stages": 3,
    "bwd_BLOCK_M1": 64,
    "bwd_BLOCK_N1": 64,
    "bwd_BLOCK_M2": 64,
    "bwd_BLOCK_N2": 64,
    "bwd_num_warps": 4,
    "bwd_num_stages": 2,
}


class Layout:
    """Who sees whom in a packed batch, and the masks made from it, one a window.

    Not a dataclass: FSDP2 copies dataclasses on their way into each layer, and the masks with them.
    """

    def __init__(
        self, document: Tensor, branch: Tensor, position: Tensor, branches: int | None = None
    ) -> None:
        self.document = document
        self.branch = branch
        self.position = position
        # Above every branch number. Given when known: asking a GPU for it would wait for the GPU.
        self.branches = int(branch.max()) + 1 if branches is None else branches
        self.masks: dict[tuple[str, int | None], Any] = {}

    def prepare(self, model: Any) -> None:
        """Make the masks that this model's layers will ask for, before any of them runs.

        A compiled layer then only looks them up, and its guards hold from batch to batch.
        """
        make = self.block_mask if fused(self.document.device, model.dtype) else self.dense_mask
        for window in windows(model.config):
            make(window)

    def dense_mask(self, window: int | None) -> Tensor:
        """(R, 1, L, L) bool: row token i sees column token j."""
        key = ("dense", window)
        if key not in self.masks:
            document, branch, position = self.document, self.branch, self.position
            length = document.shape[1]
            causal = torch.ones(length, length, dtype=torch.bool, device=document.device).tril()
            branch_i, branch_j = branch[:, :, None], branch[:, None, :]
            mask = causal & (document[:, :, None] == document[:, None, :])
            mask &= (branch_j == 0) | (branch_i == branch_j)
            if window is not None:
                mask &= position[:, :, None] - position[:, None, :] < window
            self.masks[key] = mask[:, None]
        return self.masks[key]

    def block_mask(self, window: int | None) -> Any:
        """The same visibility as a FlexAttention BlockMask."""
        key = ("block", window)
        if key not in self.masks:
            from tercet.model.blocks import block_mask

            self.masks[key] = block_mask(
                self.document, self.branch, self.position, window, self.branches
            )
        return self.masks[key]


def windows(config: Any) -> set[int | None]:
    """The sliding windows that the layers of a model give to attention; None is the whole past."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return {window}
    return {window if kind == "sliding_attention" else None for kind in kinds}


def fused(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether FlexAttention computes: it knows no float64, and no backward pass on the CPU."""
    return device.type == "cuda" and dtype != torch.float64


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    tree: Any = None,
    cache_view: Any = None,
    **unknown: Any,
) -> tuple[Tensor, None]:
    """Attention of a transformers model over a `TokenTree` or a rollout engine's cache.

    query is (B, H, q, D), key and value (B, K, q, D); returns ((B, q, H, D), None).

    With `cache_view`, delegates to `cache_view.attend(module, query, key, value, scaling,
    sliding_window, softcap)`. Otherwise `tree` (a TokenTree or its Layout) says who sees whom; a
    sliding window counts positions, so it holds on branches.

    Raises InputError for whatever a model asks and this function cannot honour.
    """
    refuse_unknown(module, attention_mask, dropout, unknown)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.is_autocast_enabled(query.device.type):
        # Rotary tables leave float32 queries beside bf16 values, which neither FlexAttention
        # nor a cache of one type takes.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if cache_view is not None:
        return cache_view.attend(module, query, key, value, scale, sliding_window, softcap), None
    layout: Layout | None = getattr(tree, "layout", tree)
    if layout is None:
        raise InputError(
            "this model was loaded for tercet, whose attention needs tree= or cache_view=; "
            'for other uses call model.set_attn_implementation("sdpa") first'
        )
    if fused(query.device, query.dtype):
        output = _flex(query, key, value, layout.block_mask(sliding_window), scale, softcap)
    elif softcap is not None:
        output = _capped(query, key, value, layout.dense_mask(sliding_window), scale, softcap)
    else:
        grouped = query.shape[1] != key.shape[1]
        mask = layout.dense_mask(sliding_window)
        output = scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped
        )
    return output.transpose(1, 2), None


def refuse_unknown(
    module: nn.Module, attention_mask: Tensor | None, dropout: float, unknown: dict[str, Any]
) -> None:
    """Raise InputError if the model asks for attention that "tercet" does not compute."""
    extra = [
        name
        for name, value in unknown.items()
        if name not in HARMLESS and value is not None and value is not False
    ]
    if attention_mask is not None:
        extra.append("attention_mask")
    if dropout:
        extra.append(f"attention dropout {dropout}")
    causal = unknown.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        extra.append("attention that is not causal")
    if extra:
        config = getattr(module, "config", None)
        kind = getattr(config, "model_type", type(module).__name__)
        raise InputError(
            f'model type "{kind}" asks attention for {", ".join(extra)}, which tercet does not '
            "compute; use one of the supported architectures"
        )


def _capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float
) -> Tensor:
    """Soft-capped attention, which SDPA lacks: scores c * tanh(s / c), softmax in float32+."""
    rows, heads, length, width = query.shape
    shared = key.shape[1]
    folded = query.reshape(rows, shared, heads // shared * length, width)
    scores = (folded @ key.transpose(-1, -2)) * scaling
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.view(rows, shared, heads // shared, length, length)
    scores = scores.masked_fill(~mask[:, :, None], float("-inf"))
    precise = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=precise).to(value.dtype)
    output = weights.view(rows, shared, -1, length) @ value
    return output.view(rows, heads, length, value.shape[-1])


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # One kernel a combination of window, soft-cap, dtype and gradient; beyond the limit torch would
    # fall back to an unfused L * L attention, so fail instead.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, fullgraph=True)


def _capped_by(softcap: float) -> Any:
    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


# One function object a value: a new closure at every layer would be compiled again.
_cap = cache(_capped_by)


def _flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_mask: Any,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    if torch.compiler.is_compiling():
        # Part of a compiled layer: the kernel joins its graph. Caches are not looked into there.
        from torch.nn.attention.flex_attention import flex_attention as flex

        cap = _capped_by
    else:
        flex, cap = _compiled_flex(), _cap
    return flex(
        query,
        key,
        value,
        score_mod=None if softcap is None else cap(softcap),
        block_mask=block_mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=TILES if _tiles_fit(query) else None,
    )


def _tiles_fit(query: Tensor) -> bool:
    return query.is_cuda and query.dtype.itemsize == 2 and query.shape[-1] <= 128


AttentionInterface.register(NAME, tree_attention)
