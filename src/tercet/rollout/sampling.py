"""One reply token from one row of logits: filters, noise, choice, log-prob.

The noise is counter-based: a token's uniform number is a hash of (seed, prompt key, sample,
position), so a reply does not depend on which slot, batch or machine produced it.

Legend: R rows (live replies), V vocabulary.
"""

import math

import torch
from torch import Tensor

from tercet.rollout.operators import choose_token

GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's increment and multipliers [Steele, Lea, Flood 2014]
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
WORD = 1 << 64


def stream(seed: int, key: int, sample: int) -> int:
    """The signed 64-bit number that names one reply's noise."""
    state = 0
    for part in (seed, key, sample):
        state = _mix((state ^ (part % WORD)) + GOLDEN)
    return _signed(state)


def uniforms(streams_R: Tensor, position_R: Tensor) -> Tensor:
    """One float64 in [0, 1) a row, a pure function of its stream and position (both int64)."""
    bits = streams_R + (position_R + 1) * _signed(GOLDEN)
    bits = (bits ^ _shift(bits, 30)) * _signed(MULTIPLIERS[0])
    bits = (bits ^ _shift(bits, 27)) * _signed(MULTIPLIERS[1])
    bits = bits ^ _shift(bits, 31)
    return _shift(bits, 11).double() * 2.0**-53


def keep_likely(logits_RV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with -inf outside the `top_k` best and outside the smallest set of mass `top_p`.

    `top_k = 0` and `top_p = 1` keep everything. The nucleus [Holtzman 2020] is taken after the
    top-k filter; the best token always stays, and so do tokens tied with the k-th.
    """
    if 0 < top_k < logits_RV.shape[-1]:
        kth = logits_RV.topk(top_k, dim=-1).values[:, -1:]
        logits_RV = logits_RV.masked_fill(logits_RV < kth, -math.inf)
    if top_p < 1.0:
        ordered, index = logits_RV.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(-1)
        mass_before = probability.cumsum(-1) - probability
        ordered[:, 1:].masked_fill_(mass_before[:, 1:] >= top_p, -math.inf)
        logits_RV = torch.empty_like(ordered).scatter_(-1, index, ordered)
    return logits_RV


def choose(
    logits_RV: Tensor,
    uniform_R: Tensor,
    temperature: float = 1.0,
    greedy: bool = False,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The next token of each row, (R,) int64, and its log-prob, (R,) float32 at least.

    The log-prob is that of the distribution sampled from: softmax(logits / temperature), after the
    filters when there are any. `uniform_R` decides alone, by inverting the cumulative distribution;
    greedy takes the best token and ignores the noise and the filters.
    """
    filtered = 0 < top_k < logits_RV.shape[-1] or top_p < 1.0
    if logits_RV.is_cuda and logits_RV.dtype != torch.float64 and not greedy and not filtered:
        return choose_token(logits_RV, uniform_R, temperature)
    logits_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    if temperature != 1.0:
        logits_RV = logits_RV / temperature
    if not greedy:
        logits_RV = keep_likely(logits_RV, top_k, top_p)
    probability_RV = logits_RV.softmax(-1)
    token_R = logits_RV.argmax(-1) if greedy else _invert(probability_RV, uniform_R)
    return token_R, probability_RV.gather(1, token_R[:, None])[:, 0].log()


def _invert(weight_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds uniform x total.

    In two levels, block then token, with float64 sums: exact for tail tokens that a float32 running
    sum over 128k tokens would lose, and cheaper than one such sum. A token of weight 0 never comes.
    """
    vocabulary = weight_RV.shape[-1]
    width = 1 << math.ceil(math.log2(vocabulary) / 2)
    whole = vocabulary // width * width
    blocks = weight_RV[:, :whole].unflatten(1, (-1, width)).sum(-1)
    blocks = torch.cat([blocks, weight_RV[:, whole:].sum(-1, keepdim=True)], dim=-1)
    block_R, uniform_R = _search(blocks, uniform_R)
    index = block_R[:, None] * width + torch.arange(width, device=block_R.device)
    inside = weight_RV.gather(1, index.clamp(max=vocabulary - 1))
    inside.masked_fill_(index >= vocabulary, 0.0)
    return block_R * width + _search(inside, uniform_R)[0]


def _search(weight_RN: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the entry that uniform x total falls in, and where inside it, again in [0, 1)."""
    cumulative = weight_RN.cumsum(-1, dtype=torch.float64)
    # In float64 a uniform of at most 1 - 2^-53 never rounds `target` up to the total.
    target = uniform_R[:, None] * cumulative[:, -1:]
    index = (cumulative <= target).sum(-1, keepdim=True)
    size = weight_RN.gather(1, index).double()
    inside = (target - (cumulative.gather(1, index) - size)) / size
    return index[:, 0], inside[:, 0].clamp(0.0, 1.0 - 2.0**-53)


def _shift(bits: Tensor, count: int) -> Tensor:
    """Logical right shift: torch's own keeps the sign of an int64."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(state: int) -> int:
    state = ((state ^ (state % WORD >> 30)) * MULTIPLIERS[0]) % WORD
    state = ((state ^ (state >> 27)) * MULTIPLIERS[1]) % WORD
    return state ^ (state >> 31)


def _signed(word: int) -> int:
    return word - WORD if word >= WORD // 2 else word
