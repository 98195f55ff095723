"""Triton kernels of a decode step: attention over the slots, and the choice of a token.

`operators.py` launches them. The same is computed by plain torch in `cache.py` and `sampling.py`,
which the tests compare with. A GPU build of torch brings Triton; nothing else imports this file.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _capped(score, softcap):
    """softcap * tanh(score / softcap)"""
    return softcap * (2 / (1 + tl.exp2(score * (-2 * LOG2E) / softcap)) - 1)


@triton.jit
def attend(
    query, new_key, new_value, storage, position, out, partial, weight,
    query_row, query_head, key_row, key_head, value_row, value_head,
    kind_stride, slot_stride, head_stride, scale, softcap,
    G: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
    WINDOW: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One (row, key/value head, part of its positions): online softmax over blocks of keys."""
    head, part, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    place = tl.load(position + row).to(tl.int32)  # of the new token; -1 on an idle slot
    g, d = tl.arange(0, GROUP), tl.arange(0, WIDTH)
    in_head = d < D
    q = tl.load(
        query + row * query_row + (head * G + g)[:, None] * query_head + d[None],
        mask=(g < G)[:, None] & in_head[None],
        other=0.0,
    )
    keys = storage + row.to(tl.int64) * slot_stride + head * head_stride
    values = keys + kind_stride
    first = tl.maximum(place + 1 - WINDOW, 0) if WINDOW > 0 else 0
    first_block = first // BLOCK
    per_part = tl.cdiv(tl.cdiv(place, BLOCK) - first_block, SPLITS)
    low = (first_block + part * per_part) * BLOCK
    high = tl.minimum(place, low + per_part * BLOCK)

    best = tl.full([GROUP], -1.0e30, tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    acc = tl.zeros([GROUP, WIDTH], tl.float32)
    if (part == 0) & (place >= 0):
        # The new token: from registers into the sum, and into the slot for later steps.
        k = tl.load(new_key + row * key_row + head * key_head + d, mask=in_head, other=0.0)
        v = tl.load(new_value + row * value_row + head * value_head + d, mask=in_head, other=0.0)
        tl.store(keys + place * D + d, k, mask=in_head)
        tl.store(values + place * D + d, v, mask=in_head)
        score = tl.sum(q.to(tl.float32) * k.to(tl.float32)[None], 1) * scale
        if CAPPED:
            score = _capped(score, softcap)
        best = score * LOG2E
        total += 1.0
        acc += v.to(tl.float32)[None]
    for start in range(low, high, BLOCK):
        t = start + tl.arange(0, BLOCK)
        seen = (t < high) & (t >= first)
        entry = t[:, None] * D + d[None]
        readable = seen[:, None] & in_head[None]
        k = tl.load(keys + entry, mask=readable, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if CAPPED:
            score = _capped(score, softcap)
        score = tl.where(seen[None], score * LOG2E, -1.0e30)
        higher = tl.maximum(best, tl.max(score, 1))
        p = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(values + entry, mask=readable, other=0.0)
        acc = acc * shrink[:, None]
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        best = higher

    held = tl.where(total > 0, total, 1.0)
    result = acc / held[:, None]
    if SPLITS == 1:
        tl.store(
            out + (row * H * G + head * G + g)[:, None] * D + d[None],
            result.to(out.dtype.element_ty),
            mask=(g < G)[:, None] & in_head[None],
        )
    else:
        index = ((row * H + head) * SPLITS + part) * GROUP + g
        tl.store(partial + index[:, None] * WIDTH + d[None], result)
        tl.store(weight + index, tl.where(total > 0, best + tl.log2(held), -1.0e30))


@triton.jit
def join(
    partial, weight, out,
    G: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """The parts of one (row, key/value head) in one softmax."""
    row, head = tl.program_id(0), tl.program_id(1)
    g, d = tl.arange(0, GROUP), tl.arange(0, WIDTH)
    first = (row * H + head) * SPLITS * GROUP
    best = tl.full([GROUP], -1.0e30, tl.float32)
    for part in range(SPLITS):
        best = tl.maximum(best, tl.load(weight + first + part * GROUP + g))
    total = tl.zeros([GROUP], tl.float32)
    acc = tl.zeros([GROUP, WIDTH], tl.float32)
    for part in range(SPLITS):
        index = first + part * GROUP + g
        w = tl.exp2(tl.load(weight + index) - best)
        acc += w[:, None] * tl.load(partial + index[:, None] * WIDTH + d[None])
        total += w
    tl.store(
        out + (row * H * G + head * G + g)[:, None] * D + d[None],
        (acc / total[:, None]).to(out.dtype.element_ty),
        mask=(g < G)[:, None] & (d < D)[None],
    )


@triton.jit
def sums(
    logits, best, total, row_stride, inverse_temperature, V, B,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Largest logit of one block of one row, and the sum of exp(logit - largest)."""
    row, block = tl.program_id(0), tl.program_id(1)
    v = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row.to(tl.int64) * row_stride + v, mask=v < V, other=-float("inf"))
    x = x.to(tl.float32) * inverse_temperature
    high = tl.max(x, 0)
    # A block of nothing but -inf weighs nothing; NaN goes through to the log-prob.
    high = tl.where(high == -float("inf"), -1.0e30, high)
    tl.store(best + row * B + block, high)
    tl.store(total + row * B + block, tl.sum(tl.exp(x - high), 0))


@triton.jit
def pick(
    logits, best, total, uniform, token, logprob, row_stride, inverse_temperature, V, B,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The block that uniform x total falls in, then the token inside it."""
    row = tl.program_id(0)
    b = tl.arange(0, BLOCKS)
    high_b = tl.load(best + row * B + b, mask=b < B, other=-1.0e30)
    sum_b = tl.load(total + row * B + b, mask=b < B, other=0.0)
    high = tl.max(high_b, 0)
    weight_b = (sum_b * tl.exp(high_b - high)).to(tl.float64)
    cumulative_b = tl.cumsum(weight_b, 0)
    # max drops NaN, a sum does not.
    mass = tl.max(cumulative_b, 0) + 0.0 * tl.sum(weight_b, 0)
    target = tl.load(uniform + row) * mass
    inside_b = (cumulative_b > target) & (weight_b > 0)
    last_b = tl.max(tl.where(weight_b > 0, b, 0), 0)
    block = tl.minimum(tl.min(tl.where(inside_b, b, BLOCKS), 0), last_b)
    before = tl.sum(tl.where(b < block, weight_b, 0.0), 0)
    rest = (target - before).to(tl.float32)

    i = tl.arange(0, BLOCK)
    v = block * BLOCK + i
    x = tl.load(logits + row.to(tl.int64) * row_stride + v, mask=v < V, other=-float("inf"))
    x = x.to(tl.float32) * inverse_temperature
    p = tl.exp(x - high)
    # A parallel sum may stand still or step back in its last bit where p is 0: such never count.
    inside = (tl.cumsum(p, 0) > rest) & (p > 0)
    last = tl.max(tl.where(p > 0, i, 0), 0)
    index = tl.minimum(tl.min(tl.where(inside, i, BLOCK), 0), last)
    chosen = tl.sum(tl.where(i == index, x, 0.0), 0)
    tl.store(token + row, (block * BLOCK + index).to(tl.int64))
    tl.store(logprob + row, chosen - high - tl.log(mass.to(tl.float32)))


@triton.jit
def copy_tokens(
    source, target, slot, place, row, column,
    source_part, source_row, source_head, source_token,
    target_part, target_slot, target_head, M,
    H: tl.constexpr, D: tl.constexpr, TOKENS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """Keys or values of some tokens in one layer, from a pack of prompts into slots."""
    part = tl.program_id(1).to(tl.int64)
    m = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    known = m < M
    i = tl.arange(0, VALUES)
    head, d = i // D, i % D
    here = known[:, None] & (i < H * D)[None]
    old = tl.load(row + m, mask=known, other=0) * source_row
    old += tl.load(column + m, mask=known, other=0) * source_token
    new = tl.load(slot + m, mask=known, other=0) * target_slot
    new += tl.load(place + m, mask=known, other=0) * D
    inner = (head * source_head + d)[None]
    values = tl.load(source + part * source_part + old[:, None] + inner, mask=here)
    inner = (head * target_head + d)[None]
    tl.store(target + part * target_part + new[:, None] + inner, values, mask=here)
