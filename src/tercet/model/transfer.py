"""Tensors from the CPU to a GPU, in one transfer that the CPU does not wait for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 512
"""Bytes, as torch itself allocates on a GPU: kernels are compiled for aligned tensors."""


def together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors on `device`, as views of one buffer; by themselves where no GPU is involved."""
    if device.type != "cuda" or any(tensor.is_cuda for tensor in tensors):
        return [tensor.to(device) for tensor in tensors]
    packed, starts = joined(tensors, pin=True)
    return parted(packed.to(device, non_blocking=True), starts, tensors)


def joined(tensors: Sequence[Tensor], pin: bool) -> tuple[Tensor, list[int]]:
    """(bytes of all tensors in one buffer, the aligned place where each starts)."""
    starts = [0]
    for tensor in tensors:
        end = starts[-1] + tensor.numel() * tensor.element_size()
        starts.append(-(-end // ALIGNMENT) * ALIGNMENT)
    buffer = torch.empty(starts.pop(), dtype=torch.uint8, pin_memory=pin)
    for view, tensor in zip(parted(buffer, starts, tensors), tensors, strict=True):
        view.copy_(tensor)
    return buffer, starts


def parted(buffer: Tensor, starts: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
    """Views of the buffer, in type and shape as the tensors of `like`."""
    return [
        buffer[start : start + tensor.numel() * tensor.element_size()]
        .view(tensor.dtype)
        .view(tensor.shape)
        for start, tensor in zip(starts, like, strict=True)
    ]
