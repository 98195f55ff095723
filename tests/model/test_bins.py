"""Which documents share a row or a micro-batch."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.model.bins import (
    first_fit,
    first_fit_decreasing,
    gpu_rows,
    micro_batches,
    row_length,
    row_lengths,
)

LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=60)


def rows_of(lengths: list[int], limit: int) -> list[tuple[int, int]]:
    """(tokens, row length) of every micro-batch on a GPU."""
    result = []
    for group in micro_batches(lengths, limit, "gpu"):
        mine = [lengths[i] for i in group]
        bins, length = gpu_rows(mine, limit)
        assert len(bins) == 1
        result.append((sum(mine), length))
    return result


def filler(lengths: list[int], limit: int) -> float:
    return 1 - sum(lengths) / sum(length for _, length in rows_of(lengths, limit))


def test_first_fit_decreasing_by_hand() -> None:
    assert first_fit_decreasing([3, 7, 4, 6, 2], 10) == [[0, 1], [2, 3], [4]]
    assert first_fit([3, 7, 4, 6, 2], [10, 10, 2]) == [[0, 1], [2, 3], [4]]
    assert first_fit([3, 7, 4, 6, 2], [10, 10, 1]) is None


def test_micro_batches_by_hand() -> None:
    # 20 is above the budget and alone; 5 leaves room for 3, 4 for 2 and 1
    assert micro_batches([3, 4, 2, 20, 1, 5], 8, "cpu") == [[3], [0, 5], [1, 2, 4]]


def test_the_rest_of_a_step_goes_into_half_and_quarter_rows() -> None:
    assert row_lengths(1024) == (1024, 512, 256)
    assert rows_of([100] * 10, 1024) == [(1000, 1024)]
    assert rows_of([100] * 12, 1024) == [(1000, 1024), (200, 256)]
    assert rows_of([100] * 15, 1024) == [(1000, 1024), (500, 512)]
    assert rows_of([100] * 17, 1024) == [(1000, 1024), (500, 512), (200, 256)]
    assert rows_of([100] * 19, 1024) == [(1000, 1024), (900, 1024)]
    assert rows_of([2000, 100], 1024) == [(2000, 2048), (100, 256)]


@given(lengths=LENGTHS, limit=st.integers(1, 5000), rows=st.sampled_from(["cpu", "gpu"]))
def test_every_document_is_in_one_micro_batch_within_the_budget(
    lengths: list[int], limit: int, rows: str
) -> None:
    groups = micro_batches(lengths, limit, rows)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    most = limit if rows == "cpu" else row_lengths(limit)[0]
    for group in groups:
        assert group == sorted(group)
        assert len(group) == 1 or sum(lengths[i] for i in group) <= most


@given(lengths=LENGTHS, limit=st.integers(3000, 20_000))
def test_gpu_rows_have_at_most_three_lengths(lengths: list[int], limit: int) -> None:
    assert {length for _, length in rows_of(lengths, limit)} <= set(row_lengths(limit))


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(5.0, 0.8), (6.0, 0.5), (6.5, 0.3), (7.0, 0.1)]),
    limit=st.sampled_from([8192, 16384, 32768]),
)
def test_many_documents_leave_little_filler(
    seed: int, shape: tuple[float, float], limit: int
) -> None:
    draw = random.Random(seed)
    lengths = [min(2000, 10 + int(draw.lognormvariate(*shape))) for _ in range(600)]
    assert filler(lengths, row_length([lengths], limit)) <= 0.05


@pytest.mark.parametrize(
    ("step", "limit", "length"),
    [
        ([1664] * 54, 16384, 14976),  # nine a row to the token
        ([128] * 1024, 16384, 16384),
        ([5000] * 3, 4096, 4096),  # above the budget: nothing to choose
    ],
)
def test_row_length_by_hand(step: list[int], limit: int, length: int) -> None:
    assert row_length([step], limit) == length


def test_small_steps_get_rows_that_they_fill() -> None:
    """32 demonstrations of some 300 tokens would fill 60% of a row of 16,384."""
    draw = random.Random(0)
    steps = [[draw.randint(200, 400) for _ in range(32)] for _ in range(8)]
    length = row_length(steps, 16384)
    rows = [row for step in steps for row in rows_of(step, length)]
    assert 1 - sum(total for total, _ in rows) / sum(size for _, size in rows) <= 0.1
    assert len(rows) <= 2 * len(steps)


def test_the_longest_document_of_a_run_fits() -> None:
    assert row_length([[100] * 12], 2048) == 1280
    assert row_length([[100] * 12], 2048, longest=1500) >= 1500
    assert row_length([[100] * 12], 2048, longest=5000) == 1280  # a row by itself in any case


def test_without_documents_the_budget_stays() -> None:
    assert row_length([[]], 16384) == 16384
    assert row_length([], 1000) == 896
