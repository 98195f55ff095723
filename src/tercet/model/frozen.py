"""Models that never train: half the memory, and weights that wait on the CPU between phases.

reference = halve(load_policy(path, device="cuda"))    # the numbers of bf16 autocast, bit by bit
parked = Parked(reference)                             # weights in pinned CPU memory now
with parked.on(device) as reference:                   # on the GPU in here
    logprobs(reference, tree)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tercet.model.transfer import joined, parted


def halve(model: Any) -> Any:
    """Keep the weights of plain linear layers in bf16, in place, as bf16 autocast casts them.

    For a model that never trains and always runs under bf16 autocast: the numbers stay the same to
    the bit. Embeddings, norms, a scalar head and a head tied to the embedding stay as they are;
    gradients are turned off.
    """
    model.requires_grad_(False)
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        # Exactly these: a subclass, like the scalar head, may compute in its own precision.
        if type(module) in (nn.Linear, Conv1D) and id(module.weight) not in embedded:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)
    return model


class Parked:
    """A frozen model whose weights lie in CPU memory, and on a device inside `on`.

    They never change, so leaving drops the device's copy and copies nothing back. `on` may be
    entered again inside itself. Outside of it the model is not to be used: halved weights compute
    under autocast alone, and graphs would hold addresses that are gone.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.inside = False
        tensors = self._tensors()
        here = [tensor.data.cpu() for tensor in tensors]
        # One pinned buffer, so that one transfer at full speed brings the model.
        self.buffer, self.starts = joined(here, pin=torch.cuda.is_available())
        self.host = parted(self.buffer, self.starts, here)
        self._set(self.host)

    @contextmanager
    def on(self, device: torch.device | str) -> Iterator[Any]:
        """The model, on `device` inside the `with`."""
        if self.inside:
            yield self.model
            return
        moved = self.buffer.to(device, non_blocking=True)
        self.inside = True
        try:
            self._set(parted(moved, self.starts, self.host))
            del moved  # from here on the weights alone hold it
            yield self.model
        finally:
            self.inside = False
            self._set(self.host)

    def _tensors(self) -> list[Tensor]:
        model: nn.Module = self.model
        return [*model.parameters(), *model.buffers()]  # a tied tensor occurs once

    def _set(self, values: list[Tensor]) -> None:
        for tensor, value in zip(self._tensors(), values, strict=True):
            tensor.data = value


@contextmanager
def present(model: Any, device: torch.device) -> Iterator[Any]:
    """The model of a `Parked` on the device, any other model as it is."""
    if isinstance(model, Parked):
        with model.on(device) as here:
            yield here
    else:
        yield model
