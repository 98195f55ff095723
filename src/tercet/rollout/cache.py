"""Keys and values of prompts and of live replies, and the attention that reads them.

An object of this file is given to the model as the keyword `cache_view`; the registered attention
hands every layer's query, key and value to its `attend`. Index j of a slot holds position j, so a
sliding window by position is a window on the index. What belongs to one layer hangs on its
attention module: looked up by a number, it would have every layer compiled by itself.

Shape suffixes: R rows (live slots), S slots, H key/value heads, G query heads of one of them, L
positions read, T positions stored, D head width, M tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tercet.model.attention import tree_attention
from tercet.model.load import unwrap
from tercet.model.tree import Document, pack
from tercet.rollout.operators import copy_tokens, slot_attention

UNIT = 64
"""On a GPU, stored positions are a multiple of this: few lengths, aligned rows."""


@dataclass(frozen=True)
class Layers:
    """The attention modules of a model in order, and what each keeps of a token."""

    modules: list[nn.Module]
    heads: int
    width: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token in all layers."""
        return len(self.modules) * 2 * self.heads * self.width * self.dtype.itemsize


class _Probe:
    """Meets every attention module once, with one token."""

    def __init__(self) -> None:
        self.met: list[tuple[nn.Module, Tensor]] = []

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: object
    ) -> Tensor:
        self.met.append((module, key))
        return value.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(1, 2)


@torch.no_grad()
def attention_layers(model: PreTrainedModel) -> Layers:
    """Found by running the model on one token, under the caller's autocast."""
    probe = _Probe()
    ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    unwrap(model).base_model(input_ids=ids, position_ids=ids, use_cache=False, cache_view=probe)
    shapes = {(key.shape[1], key.shape[3], key.dtype) for _, key in probe.met}
    assert len(shapes) == 1, f"layers keep different things of a token: {shapes}"
    (heads, width, dtype) = shapes.pop()
    return Layers([module for module, _ in probe.met], heads, width, dtype)


class Reader:
    """Packed prompts under the attention of trees; every layer's keys and values stay behind."""

    def __init__(self, layout: object) -> None:
        self.layout = layout

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Tensor:
        module.read_key, module.read_value = key, value  # type: ignore[assignment]
        return tree_attention(
            module,
            query,
            key,
            value,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            tree=self.layout,
        )[0]


@dataclass(frozen=True, eq=False)
class Prompts:
    """Keys and values of prompts that were read together.

    `entries` is (layers, 2, rows, H, length, D) of the pack; prompt i begins at `start[i]` of the
    flattened (rows * length) tokens and has `size[i]` of them.
    """

    entries: Tensor
    start: np.ndarray
    size: np.ndarray


@torch.no_grad()
def read_prompts(
    model: PreTrainedModel, layers: Layers, prompts: Sequence[Sequence[int]], length: int
) -> Prompts:
    """Run the model over prompts in a pack of `length`; each has at least one token."""
    rows = "cpu" if model.device.type == "cpu" else "gpu"
    tree = pack([Document(prompt) for prompt in prompts], length, rows)
    # Found on the CPU: the device need not be waited for.
    first = (tree.document >= 0) & (tree.offset == 0)
    place = first.flatten().nonzero()[:, 0]
    start = dict(zip(tree.document.flatten()[place].tolist(), place.tolist(), strict=True))
    tree = tree.to(model.device)
    tree.layout.prepare(model)
    parts = []
    try:
        # Without the head, which an adapter's own base would run over every token.
        unwrap(model).base_model(
            input_ids=tree.tokens,
            position_ids=tree.position,
            use_cache=False,
            cache_view=Reader(tree.layout),
        )
        for module in layers.modules:
            parts += [module.read_key, module.read_value]
    finally:
        for module in layers.modules:
            vars(module).pop("read_key", None)
            vars(module).pop("read_value", None)
    entries = torch.stack(parts).unflatten(0, (-1, 2))  # type: ignore[arg-type]
    size = np.array(list(map(len, prompts)))
    return Prompts(entries, np.array([start[i] for i in range(len(prompts))]), size)


class SlotCache:
    """Fixed storage (layers, 2, S, H, T, D) for replies that grow by one token a step."""

    def __init__(self, layers: Layers, slots: int, length: int, device: torch.device) -> None:
        self.layers, self.slots, self.device = layers, slots, device
        self.length = stored_length(length, device)
        # Zeros: 0 x NaN of fresh memory would leak through the masks of the plain path.
        shape = (len(layers.modules), 2, slots, layers.heads, self.length, layers.width)
        self.storage = torch.zeros(shape, dtype=layers.dtype, device=device)
        self.fused = device.type == "cuda" and layers.dtype != torch.float64
        """Attention by the Triton kernel, which looks at `place` alone."""
        self.place = torch.empty(0)
        self._position = torch.empty(0)
        self._read = self.length
        self._equal: int | None = None
        self._written: Tensor | None = None
        self._bias: dict[int | None, Tensor] = {}

    def attach(self) -> None:
        """Give every attention module its layer of the storage."""
        for module, storage in zip(self.layers.modules, self.storage, strict=True):
            assert not hasattr(module, "slots"), "these layers are sampling already"
            module.slots = storage  # type: ignore[assignment]

    def detach(self) -> None:
        """Leave the modules as they were found."""
        for module in self.layers.modules:
            if hasattr(module, "slots"):
                del module.slots

    def begin_step(
        self, position_R: Tensor, live_R: Tensor, span: tuple[int, int] | None = None
    ) -> None:
        """Says where each slot writes next: `position_R` int64, within `span` where it is known."""
        if self.fused:
            self.place = torch.where(live_R, position_R, -1)
            return
        self._position = position_R
        self._written = None
        self._read = span[1] + 1 if span else self.length
        self._equal = span[1] if span and span[0] == span[1] else None
        self._bias = {}

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Attention of one new token a slot, (R, heads, 1, D); returns (R, 1, heads, D)."""
        if self.fused:
            return slot_attention(
                query, key, value, module.slots, self.place,
                scaling, sliding_window or 0, softcap or 0.0,
            )  # fmt: skip
        rows, heads, _, width = query.shape
        storage: Tensor = module.slots  # type: ignore[assignment]
        written = self._entries(key)
        storage[0].view(-1, width).index_copy_(0, written, key.reshape(-1, width))
        storage[1].view(-1, width).index_copy_(0, written, value.reshape(-1, width))
        keys, values = storage[:, :rows, :, : self._read]
        # The query heads of one key/value head are G queries at the same position.
        query = query.reshape(rows, keys.shape[1], -1, width)
        bias = self._seen(sliding_window, query.dtype)
        return _attention(query, keys, values, bias, scaling, softcap).view(rows, 1, heads, width)

    def fill(self, slots: list[int], prompts: Prompts, chosen: list[int]) -> None:
        """Copies prompts `chosen` into `slots`, all layers at once."""
        size = prompts.size[chosen]
        place = np.concatenate([np.arange(count) for count in size])
        token = np.repeat(prompts.start[chosen], size) + place
        row, column = np.divmod(token, prompts.entries.shape[4])
        index = np.stack([np.repeat(slots, size), place, row, column])
        index_4M = torch.from_numpy(index).to(self.device)
        if self.device.type == "cuda":
            copy_tokens(self.storage, prompts.entries, index_4M)
        else:
            slot_M, place_M, row_M, column_M = index_4M
            self.storage[:, :, slot_M, :, place_M] = prompts.entries[:, :, row_M, :, column_M]

    def move(self, sources: list[int], targets: list[int], length: int) -> None:
        """Copies the first `length` positions of slots `sources` to slots `targets`."""
        used = self.storage[:, :, :, :, :length]
        for i in range(0, len(sources), 8):  # each part has a copy of its own on the way
            used[:, :, targets[i : i + 8]] = used[:, :, sources[i : i + 8]]

    def _entries(self, key: Tensor) -> Tensor:
        """Where the step's entries go, (R * H,), in one layer's storage seen as rows of width D."""
        if self._written is None:
            heads = key.shape[1]
            first_R = torch.arange(len(self._position), device=self.device) * heads
            entry_RH = first_R[:, None] + torch.arange(heads, device=self.device)
            self._written = (entry_RH * self.length + self._position[:, None]).flatten()
        return self._written

    def _seen(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        if window is not None and window >= self._read:
            window = None
        if window is None and self._equal is not None and self._read == self._equal + 1:
            return None
        if window not in self._bias:
            index = torch.arange(self._read, device=self.device)
            behind = self._position[:, None] - index
            seen = (behind >= 0) & (behind < (window or self._read))
            bias = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -math.inf)
            self._bias[window] = bias[:, None, None]
        return self._bias[window]


def stored_length(length: int, device: torch.device) -> int:
    """Positions that a slot stores for `length` tokens."""
    unit = UNIT if device.type == "cuda" else 1
    return -(-length // unit) * unit


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """Attention of (R, H, G, D) queries over (R, H, L, D) keys under an additive `bias`.

    Two batched products: on a CPU they read the slots in place and take about half of SDPA's time
    for a single query.
    """
    rows, heads, queries, width = query.shape
    key = key.reshape(rows * heads, -1, width)
    scores = torch.bmm((query * scaling).reshape(rows * heads, queries, width), key.mT)
    scores = scores.view(rows, heads, queries, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores += bias
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=wide).to(value.dtype).view(rows * heads, queries, -1)
    return torch.bmm(weights, value.reshape(rows * heads, -1, width)).view(
        rows, heads, queries, width
    )
