"""Keys and values of live replies, and the attention that reads them.

An object of this file is given to the model as the keyword `cache_view`; the registered attention
hands every layer's query, key and value to its `attend`. Index j of a slot holds position j, so a
sliding window by position is a window on the index.

Legend: R rows (live slots), H key/value heads, G query heads of one of them, L positions read,
T positions stored, D head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PromptReader:
    """Keeps the keys and values of a batch of prompts, padded on the right, while they are read."""

    def __init__(self, layers: int) -> None:
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self._bias: dict[int | None, Tensor] = {}

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
        """Causal attention of (R, heads, length, D) queries; returns (R, length, heads, D)."""
        self.layers[module.layer_idx] = key, value  # type: ignore[index]
        length = query.shape[2]
        if sliding_window is not None and sliding_window >= length:
            sliding_window = None
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        if softcap is None and sliding_window is None:
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        else:
            if sliding_window not in self._bias:
                index = torch.arange(length, device=query.device)
                behind = index[:, None] - index
                seen = (behind >= 0) & (behind < (sliding_window or length))
                self._bias[sliding_window] = _bias(seen, query.dtype)
            out = _attention(query, key, value, self._bias[sliding_window], scaling, softcap)
        return out.transpose(1, 2)


class SlotCache:
    """Fixed storage (layers, 2, slots, H, T, D) for replies that grow by one token a step.

    The first `rows` slots are live. Storage is allocated by the first layer that runs, which knows
    H, D and the dtype, and is zero at first: 0 x NaN of fresh memory would leak through the mask.
    """

    def __init__(self, layers: int, slots: int, length: int, device: torch.device) -> None:
        # On a GPU a few lengths recur, so its allocator reuses blocks and kernels stay aligned.
        self.unit = 64 if device.type == "cuda" else 1
        self.length = _round_up(length, self.unit)
        self.layers, self.slots, self.device = layers, slots, device
        self._storage: Tensor | None = None

    def begin_step(self, position_R: Tensor, lowest: int, highest: int) -> None:
        """Says where each live slot writes next: `position_R` int64, `lowest` to `highest`."""
        self._rows = len(position_R)
        self._position = position_R
        self._written: Tensor | None = None
        self._read = _round_up(highest + 1, self.unit)
        self._equal = highest if lowest == highest else None
        self._bias: dict[int | None, Tensor] = {}

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
        rows, heads, _, width = query.shape
        storage = self._allocated(key)[module.layer_idx]  # type: ignore[index]
        written = self._entries(key)
        storage[0].view(-1, width).index_copy_(0, written, key.reshape(-1, width))
        storage[1].view(-1, width).index_copy_(0, written, value.reshape(-1, width))
        keys, values = storage[:, :rows, :, : self._read]
        # The query heads of one key/value head are G queries at the same position.
        query = query.view(rows, keys.shape[1], -1, width)
        bias = self._seen(sliding_window, query.dtype)
        out = _attention(query, keys, values, bias, scaling, softcap)
        return out.reshape(rows, 1, heads, width)

    def fill(self, slots: list[int], reader: PromptReader, rows: list[int]) -> None:
        """Copies prompts `rows` of `reader` into `slots`."""
        assert len(slots) == len(rows)
        slots_R = torch.tensor(slots, device=self.device)
        rows_R = torch.tensor(rows, device=self.device)
        for layer, pair in enumerate(reader.layers):
            assert pair is not None, "a layer of the model did not run the tercet attention"
            for part, source in enumerate(pair):
                length = source.shape[2]
                self._allocated(source)[layer, part, :, :, :length].index_copy_(
                    0, slots_R, source.index_select(0, rows_R)
                )

    def move(self, sources: list[int], targets: list[int], length: int) -> None:
        """Copies the first `length` positions of slots `sources` to slots `targets`."""
        if self._storage is not None:
            used = self._storage[:, :, :, :, :length]
            used[:, :, targets] = used[:, :, sources]

    def _allocated(self, key: Tensor) -> Tensor:
        if self._storage is None:
            shape = (self.layers, 2, self.slots, key.shape[1], self.length, key.shape[3])
            self._storage = torch.zeros(shape, dtype=key.dtype, device=key.device)
        return self._storage

    def _entries(self, key: Tensor) -> Tensor:
        """Where the step's entries go, (R * H,), in one layer's storage seen as rows of width D."""
        if self._written is None:
            heads = key.shape[1]
            first_R = torch.arange(self._rows, device=self.device) * heads
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
            self._bias[window] = _bias(seen, dtype)[:, None, None]
        return self._bias[window]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -math.inf)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """Attention of (R, H, Q, D) queries over (R, H, L, D) keys under an additive `bias`.

    SDPA on a GPU; on a CPU, and under a soft-cap, which SDPA has not, two batched products: they
    read the slots in place and take about half of SDPA's time for a single query.
    """
    if query.is_cuda and softcap is None:
        if bias is not None:
            bias = bias.expand(len(query), 1, query.shape[2], -1)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling)
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
