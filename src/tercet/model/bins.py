"""Which documents share a row or a micro-batch, by their lengths alone: bins of indices.

A GPU computes one long row at a time, of one of three lengths L, L / 2, L / 4 (multiples of 128),
because each length is compiled once. Bins are filled first-fit-decreasing, deterministically.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

Rows = Literal["cpu", "gpu"]

CPU_ROW_FACTOR = 4
CPU_FILLER = 0.05
GPU_BLOCK = 128
PER_ROW = 512
"""Tokens that a row more costs as much as: casts of the weights, sums of their gradients."""

DRAWN = 512
"""Documents by which a row length is chosen."""


def micro_batches(lengths: Sequence[int], token_budget: int, rows: Rows) -> list[list[int]]:
    """Groups of indices whose lengths sum to at most `token_budget`, ascending within a group.

    Every index is in exactly one group; a length above the budget is a group by itself. For a GPU,
    the last groups are made to fit half and quarter rows where that leaves less filler.
    """
    if rows == "cpu":
        return first_fit_decreasing(lengths, token_budget)
    whole, half, quarter = row_lengths(token_budget)
    fitting = [i for i, length in enumerate(lengths) if length <= whole]
    alone = [[i] for i, length in enumerate(lengths) if length > whole]
    full = len(first_fit_decreasing([lengths[i] for i in fitting], whole))
    for last in ([quarter], [half], [half, quarter], [whole]):
        bins = first_fit([lengths[i] for i in fitting], [whole] * (full - 1) + last)
        if bins is not None:
            return alone + [[fitting[i] for i in group] for group in bins if group]
    return alone


def row_lengths(limit: int) -> tuple[int, int, int]:
    """(L, L / 2, L / 4), each rounded up to a multiple of 128."""
    whole = round_up(limit, GPU_BLOCK)
    return whole, round_up(whole // 2, GPU_BLOCK), round_up(whole // 4, GPU_BLOCK)


def row_length(steps: Iterable[Sequence[int]], token_budget: int, longest: int = 0) -> int:
    """The L for a whole run, at most `token_budget`, by the document lengths of some of its steps.

    Nine documents of 1,664 tokens fill a row of 14,976; a row of 16,384 would hold no tenth.
    `longest` is the longest document that any step may have. It has to fit too, or it would be a
    row of a length of its own; above the budget it is one anyway.
    """
    steps = _enough([step for step in steps if step])
    most = max(GPU_BLOCK, token_budget // GPU_BLOCK * GPU_BLOCK)
    longest = longest if longest <= most else 0
    least = max(most // 4, longest, *(max(step) for step in steps), GPU_BLOCK) if steps else most

    def cost(limit: int) -> int:
        rows = [sum(step[i] for i in group) for step in steps for group in _gpu(step, limit)]
        return sum(_row(total, limit) + PER_ROW for total in rows)

    return min(range(most, min(least, most) - 1, -GPU_BLOCK), key=cost, default=most)


def _enough(steps: list[Sequence[int]]) -> list[Sequence[int]]:
    """The first steps, as many as hold some hundred documents: a hundred rows are tried on them."""
    return [
        step for i, step in enumerate(steps) if i == 0 or sum(map(len, steps[: i + 1])) <= DRAWN
    ]


def _gpu(lengths: Sequence[int], limit: int) -> list[list[int]]:
    return micro_batches(lengths, limit, "gpu")


def _row(total: int, limit: int) -> int:
    """The row that holds `total` tokens: the shortest of three, or longer than all."""
    return min(
        (length for length in row_lengths(limit) if length >= total),
        default=round_up(total, GPU_BLOCK),
    )


def gpu_rows(lengths: Sequence[int], limit: int | None) -> tuple[list[list[int]], int]:
    """(bins, row length): one row if the documents fit into `limit` tokens."""
    total = sum(lengths)
    limit = round_up(limit or total, GPU_BLOCK)
    if total <= limit:
        return [list(range(len(lengths)))], _row(total, limit)
    length = max(limit, round_up(max(lengths), GPU_BLOCK))
    return first_fit_decreasing(lengths, length), length


def cpu_rows(lengths: Sequence[int], limit: int | None) -> tuple[list[list[int]], int]:
    """(bins, row length): short rows, where attention costs the square of a row."""
    longest, total = max(lengths), sum(lengths)
    limit = max(longest, min(limit or total, CPU_ROW_FACTOR * longest))
    packings = []
    for capacity in np.linspace(longest, limit, num=8, dtype=int).tolist():
        bins = first_fit_decreasing(lengths, capacity)
        length = max(sum(lengths[i] for i in row) for row in bins)
        packings.append((len(bins) * length, bins, length))
        # Short rows are cheap rows: stop at the first that leaves little filler.
        if packings[-1][0] <= (1 + CPU_FILLER) * total:
            break
    _, bins, length = min(packings, key=lambda packing: packing[0])
    return bins, length


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of indices whose lengths sum to at most `capacity`, indices ascending within a bin.

    A length above `capacity` has a bin by itself.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for i in _decreasing(lengths):
        place = next((b for b, left in enumerate(room) if left >= lengths[i]), None)
        if place is None:
            bins.append([i])
            room.append(capacity - lengths[i])
        else:
            bins[place].append(i)
            room[place] -= lengths[i]
    return [sorted(row) for row in bins]


def first_fit(lengths: Sequence[int], capacities: Sequence[int]) -> list[list[int]] | None:
    """The same into given bins, some of which may stay empty; None if they do not suffice."""
    bins: list[list[int]] = [[] for _ in capacities]
    room = list(capacities)
    for i in _decreasing(lengths):
        place = next((b for b, left in enumerate(room) if left >= lengths[i]), None)
        if place is None:
            return None
        bins[place].append(i)
        room[place] -= lengths[i]
    return [sorted(row) for row in bins]


def _decreasing(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
