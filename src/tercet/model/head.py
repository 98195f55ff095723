"""The language-model head over chosen tokens, in chunks that are recomputed in the backward pass.

On a GPU the elementwise work of a chunk is compiled: it reads and writes the head's own type once
or twice, where separate operations would pass over float32 copies of the logits ten times.

Shape suffixes: M tokens, C tokens of a chunk, V vocabulary, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tercet.records import InputError


class Sizes(NamedTuple):
    whole: int
    """logits up to this many elements make no chunks: autograd keeps all, in float32"""
    chunk: int
    """elements of a chunk at most"""
    kept: int
    """bytes of logits, in the head's type, up to which the backward pass need not recompute them"""


CPU = Sizes(whole=2**22, chunk=2**27, kept=0)
# Long chunks: each adds the whole weight gradient once. 16,384 tokens of 128,256 words are kept.
GPU = Sizes(whole=2**26, chunk=2**29, kept=2**32)


def sizes(device: torch.device) -> Sizes:
    return GPU if device.type == "cuda" else CPU


@dataclass(frozen=True)
class Transform:
    """What turns the head's output into logits: z = cap * tanh(scale * y / cap) / temperature."""

    scale: float
    softcap: float | None
    temperature: float

    def forward(self, raw: Tensor) -> Tensor:
        z = raw if self.scale == 1.0 else raw * self.scale
        if self.softcap is not None:
            z = self.softcap * torch.tanh(z / self.softcap)
        return z if self.temperature == 1.0 else z / self.temperature

    def backward(self, grad_z: Tensor, z: Tensor) -> Tensor:
        """dL/dy given dL/dz and the z of `forward`."""
        grad = grad_z * (self.scale / self.temperature)
        if self.softcap is not None:
            capped = z * (self.temperature / self.softcap)  # tanh(scale * y / cap)
            grad = grad * (1 - capped * capped)
        return grad


def transform(model: Any, temperature: float) -> Transform:
    """What `model.forward` applies to its logits, after its head: soft-cap (gemma), scales."""
    config = model.config
    scale = float(getattr(config, "logit_scale", None) or 1.0)  # cohere
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # granite
    return Transform(scale, getattr(config, "final_logit_softcapping", None), temperature)


def head_logprobs(
    model: Any, hidden_MD: Tensor, target_M: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """log p(target) and, if asked, the entropy of p, each (M,), float32 at least.

    `hidden_MD` is the backbone's output at the tokens that predict `target_M`.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"the head of {type(model).__name__} is a {type(head).__name__}, not a linear layer: "
            "leave it out of the adapter's targets"
        )
    steps = transform(model, temperature)
    device = hidden_MD.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else head.weight.dtype
    # Casts are explicit: autocast would end before the backward pass recomputes the logits.
    bias_V = None if head.bias is None else head.bias.to(dtype)
    operands = hidden_MD.to(dtype), head.weight.to(dtype), bias_V
    with torch.autocast(device, enabled=False):
        if hidden_MD.shape[0] * head.weight.shape[0] <= sizes(hidden_MD.device).whole:
            raw_MV = nn.functional.linear(*operands)
            return _reduced(raw_MV, target_M, steps, entropy)[:2]
        # Who recomputes layers to save memory recomputes logits too.
        keep = torch.is_grad_enabled() and not getattr(model, "recomputes", False)
        logp_M, entropy_M = _ChunkedHead.apply(*operands, target_M, steps, entropy, keep)
    return logp_M, entropy_M if entropy else None


def _reduced(
    raw_CV: Tensor, target_C: Tensor, steps: Transform, entropy: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(log p(target), entropy or None, logsumexp), each (C,), of the head's output."""
    # Cast before every reduction: bf16 logsumexp over a vocabulary loses two digits.
    z_CV = steps.forward(raw_CV.to(torch.promote_types(raw_CV.dtype, torch.float32)))
    lse_C = torch.logsumexp(z_CV, dim=-1)
    logp_C = z_CV.gather(-1, target_C[:, None]).squeeze(-1) - lse_C
    if not entropy:
        return logp_C, None, lse_C
    # H = lse - sum p z, with -inf logits contributing nothing
    p_CV = torch.exp(z_CV - lse_C[:, None])
    return logp_C, lse_C - torch.where(p_CV > 0, p_CV * z_CV, 0.0).sum(-1), lse_C


def _gradient(
    raw_CV: Tensor,
    target_C: Tensor,
    lse_C: Tensor,
    entropy_C: Tensor,
    grad_logp_C: Tensor,
    grad_entropy_C: Tensor,
    steps: Transform,
    entropy: bool,
) -> Tensor:
    """dL/dy (C, V) of the head's output y, in its type."""
    z_CV = steps.forward(raw_CV.to(torch.promote_types(raw_CV.dtype, torch.float32)))
    logp_CV = z_CV - lse_C[:, None]
    p_CV = logp_CV.exp()
    words_V = torch.arange(raw_CV.shape[1], device=raw_CV.device)
    # Not a scatter, which a compiler cannot fuse.
    chosen_CV = torch.where(words_V == target_C[:, None], grad_logp_C[:, None], 0.0)
    grad_CV = p_CV * -grad_logp_C[:, None] + chosen_CV
    if entropy:
        # dH/dz = -p (log p + H)
        inner = torch.where(p_CV > 0, logp_CV + entropy_C[:, None], 0.0)
        grad_CV = grad_CV - grad_entropy_C[:, None] * p_CV * inner
    return steps.backward(grad_CV, z_CV).to(raw_CV.dtype)


def _fast(function: Callable[..., Any], *tensors: Tensor) -> Callable[..., Any]:
    """`function`, compiled if its tensors are on a GPU: any number of rows, each vocabulary."""
    if not fuses(tensors[0].device):
        return function
    for tensor in tensors:
        # Rows differ from batch to batch. The vocabulary is compiled in: it decides alignment.
        if tensor.shape[0] > 1:  # the compiler takes 1 for a constant
            torch._dynamo.mark_dynamic(tensor, 0)
        if tensor.ndim == 2:
            torch._dynamo.mark_static(tensor, 1)
    return _compiled(function)


def fuses(device: torch.device) -> bool:
    return device.type == "cuda"


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # A variant for each vocabulary, type, temperature, with or without entropy, and a last row.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    return torch.compile(function, fullgraph=True)


class _ChunkedHead(torch.autograd.Function):
    """Log-probs of chunk after chunk: the forward keeps logsumexp and entropy, and few logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_M: Tensor,
        steps: Transform,
        entropy: bool,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        vocabulary = weight_VD.shape[0]
        size = sizes(hidden_MD.device)
        ctx.chunk = _chunk(hidden_MD.shape[0], max(1, size.chunk // vocabulary))
        ctx.steps, ctx.entropy = steps, entropy
        all_bytes = hidden_MD.shape[0] * vocabulary * weight_VD.element_size()
        keep = keep and all_bytes <= size.kept
        parts: list[Any] = []
        kept: list[Tensor] = []
        for hidden_CD, target_C in zip(
            hidden_MD.split(ctx.chunk), target_M.split(ctx.chunk), strict=True
        ):
            raw_CV = nn.functional.linear(hidden_CD, weight_VD, bias_V)
            parts.append(_fast(_reduced, raw_CV, target_C)(raw_CV, target_C, steps, entropy))
            if keep:
                kept.append(raw_CV)
        logp_M = torch.cat([part[0] for part in parts])
        lse_M = torch.cat([part[2] for part in parts])
        entropy_M = torch.cat([part[1] for part in parts]) if entropy else torch.zeros_like(lse_M)
        ctx.save_for_backward(hidden_MD, weight_VD, bias_V, target_M, lse_M, entropy_M, *kept)
        if not entropy:
            ctx.mark_non_differentiable(entropy_M)
        return logp_M, entropy_M

    @staticmethod
    def backward(ctx: Any, grad_logp_M: Tensor, grad_entropy_M: Tensor) -> Any:
        hidden_MD, weight_VD, bias_V, target_M, lse_M, entropy_M, *kept = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden_MD) if need_hidden else None
        # Sums over chunks in float32: bf16 partial sums would lose the small ones.
        precise = torch.promote_types(weight_VD.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight_VD, dtype=precise) if need_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=precise) if need_bias else None
        # A sum gives expanded gradients, which would be compiled once more.
        grads_M = (grad_logp_M.contiguous(), grad_entropy_M.contiguous())
        rows_M = (target_M, lse_M, entropy_M, *grads_M)
        for i, hidden_CD in enumerate(hidden_MD.split(ctx.chunk)):
            here = slice(i * ctx.chunk, i * ctx.chunk + hidden_CD.shape[0])
            raw_CV = kept[i] if kept else nn.functional.linear(hidden_CD, weight_VD, bias_V)
            chunk = (raw_CV, *(row[here] for row in rows_M))
            grad_CV = _fast(_gradient, *chunk)(*chunk, ctx.steps, ctx.entropy)
            if grad_hidden is not None:
                grad_hidden[here] = grad_CV @ weight_VD
            if grad_weight is not None:
                grad_weight += grad_CV.T @ hidden_CD
            if grad_bias is not None:
                grad_bias += grad_CV.sum(0, dtype=precise)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_VD.dtype)
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias_V.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _chunk(count: int, most: int) -> int:
    """Rows of a chunk, at most `most`, so that `count` rows make chunks of nearly one size."""
    even = -(-count // -(-count // most))
    return min(most, -(-even // 128) * 128)
