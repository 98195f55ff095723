"""The language-model head over chosen tokens, in chunks that are recomputed in the backward pass.

Shape suffixes: M tokens, C tokens of a chunk, V vocabulary, D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tercet.records import InputError

# Logits up to this many elements are simply kept: recomputing them costs more than their memory.
KEEP_ELEMENTS = 2**22
CHUNK_ELEMENTS = 2**27


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
        if hidden_MD.shape[0] * head.weight.shape[0] <= KEEP_ELEMENTS:
            z_MV = _logits(*operands, steps)
            return _from_logits(z_MV, target_M, entropy)[:2]
        logp_M, entropy_M = _ChunkedHead.apply(*operands, target_M, steps, entropy)
    return logp_M, entropy_M if entropy else None


def _logits(
    hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, steps: Transform
) -> Tensor:
    raw_CV = nn.functional.linear(hidden_CD, weight_VD, bias_V)
    # Cast before every reduction: bf16 logsumexp over a vocabulary loses two digits.
    return steps.forward(raw_CV.to(torch.promote_types(raw_CV.dtype, torch.float32)))


def _from_logits(
    z_CV: Tensor, target_C: Tensor, entropy: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    lse_C = torch.logsumexp(z_CV, dim=-1)
    logp_C = z_CV.gather(-1, target_C[:, None]).squeeze(-1) - lse_C
    if not entropy:
        return logp_C, None, lse_C
    # H = lse - sum p z, with -inf logits contributing nothing
    p_CV = torch.exp(z_CV - lse_C[:, None])
    return logp_C, lse_C - torch.where(p_CV > 0, p_CV * z_CV, 0.0).sum(-1), lse_C


class _ChunkedHead(torch.autograd.Function):
    """Log-probs without ever holding (M, V): the forward keeps only logsumexp and entropy."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_M: Tensor,
        steps: Transform,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.chunk = max(1, CHUNK_ELEMENTS // weight_VD.shape[0])
        ctx.steps, ctx.entropy = steps, entropy
        parts: list[Any] = [
            _from_logits(_logits(hidden_CD, weight_VD, bias_V, steps), target_C, entropy)
            for hidden_CD, target_C in zip(
                hidden_MD.split(ctx.chunk), target_M.split(ctx.chunk), strict=True
            )
        ]
        logp_M = torch.cat([part[0] for part in parts])
        lse_M = torch.cat([part[2] for part in parts])
        entropy_M = torch.cat([part[1] for part in parts]) if entropy else torch.zeros_like(lse_M)
        ctx.save_for_backward(hidden_MD, weight_VD, bias_V, target_M, lse_M, entropy_M)
        if not entropy:
            ctx.mark_non_differentiable(entropy_M)
        return logp_M, entropy_M

    @staticmethod
    def backward(ctx: Any, grad_logp_M: Tensor, grad_entropy_M: Tensor) -> Any:
        hidden_MD, weight_VD, bias_V, target_M, lse_M, entropy_M = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden_MD) if need_hidden else None
        # Sums over chunks in float32: bf16 partial sums would lose the small ones.
        precise = torch.promote_types(weight_VD.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight_VD, dtype=precise) if need_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=precise) if need_bias else None
        for start in range(0, hidden_MD.shape[0], ctx.chunk):
            here = slice(start, start + ctx.chunk)
            hidden_CD = hidden_MD[here]
            z_CV = _logits(hidden_CD, weight_VD, bias_V, ctx.steps)
            logp_CV = z_CV - lse_M[here, None]
            p_CV = logp_CV.exp()
            grad_CV = p_CV * -grad_logp_M[here, None]
            grad_CV.scatter_add_(1, target_M[here, None], grad_logp_M[here, None])
            if ctx.entropy:
                # dH/dz = -p (log p + H)
                inner = torch.where(p_CV > 0, logp_CV + entropy_M[here, None], 0.0)
                grad_CV -= grad_entropy_M[here, None] * p_CV * inner
            grad_CV = ctx.steps.backward(grad_CV, z_CV).to(weight_VD.dtype)
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
        return grad_hidden, grad_weight, grad_bias, None, None, None
