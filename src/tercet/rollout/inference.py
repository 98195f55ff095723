"""The copy of a policy that rollouts run on: bf16 products, fixed storage, compiled layers.

Only the weights of linear layers are copied, in the type that autocast would cast them to; all
else (embedding, norms, buffers) is the policy's own, so the copy computes what the policy computes
under autocast, and a refresh is one cast-copy. Adapters are merged on the way. Linear layers that
read the same input are stacked: one product instead of two or three.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tercet.model.compile import lift_limits
from tercet.model.load import decoder_layers, unwrap
from tercet.model.support import LLAMA_FAMILY, VERIFIED
from tercet.rollout.cache import Reader, SlotCache

PARTS = 4
"""Parts of a split product."""
LONG = 4096
"""Inner dimension from which a product with a smaller output is split."""
GROUP = 4
"""Layers compiled as one."""
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class InferenceCopy:
    """A policy's module for rollouts; `refresh` brings it up to date with the trained weights.

    copy = InferenceCopy(policy, torch.bfloat16)
    copy.model(...)     # under autocast, as the policy
    copy.refresh()      # after optimizer steps
    """

    def __init__(self, policy: Any, dtype: torch.dtype, compiled: bool = False) -> None:
        base = unwrap(policy)
        own: Iterable[Tensor] = [*base.parameters(), *base.buffers()]
        self.model = copy.deepcopy(base, {id(tensor): tensor for tensor in own}).eval()
        # A bound method of the model itself: a copy that is not compiled would outlive its last
        # reference. (One that is does, until garbage is collected: its layers refer to each other.)
        vars(self.model).pop("tree_logprobs", None)
        self._pairs: list[tuple[Tensor, partial[Tensor]]] = []
        for name, source in _linear_layers(base):
            self._pairs += _own_weights(self.model, name, source, dtype)
        for layer in decoder_layers(self.model):
            for module in list(layer.modules()):
                # Elsewhere layers of these names may read different inputs.
                for names in TOGETHER if base.config.model_type in VERIFIED else ():
                    self._pairs = _stack(module, names, self._pairs)
                _split(module)
        if compiled:
            lift_limits()
            for first, *others in _groups(self.model):
                first.forward = partial(_run_group, [first, *others])
                for layer in others:
                    layer.forward = _done_before
            for module in self.model.base_model.children():
                if any(word in type(module).__name__ for word in ("Norm", "Rotary")):
                    module.compile(dynamic=True)
        self.refresh()

    @property
    def bytes(self) -> int:
        """Memory of the copied weights."""
        return sum(target.numel() * target.itemsize for target, _ in self._pairs)

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast-copy of every linear layer's present weights."""
        plain = [(target, source()) for target, source in self._pairs if source.func is _same]
        torch._foreach_copy_([target for target, _ in plain], [value for _, value in plain])
        # One by one: a merged weight is a new tensor.
        for target, source in self._pairs:
            if source.func is not _same:
                target.copy_(source())


def _groups(model: Any) -> list[list[Any]]:
    """Layers that are compiled as one, so that what ends a layer joins what begins the next.

    Single layers where they are of several kinds, whose arguments differ, or return more than the
    hidden states.
    """
    layers = decoder_layers(model)
    kinds = set(getattr(model.config, "layer_types", None) or ())
    alike = model.config.model_type in LLAMA_FAMILY and len(kinds) < 2
    size = GROUP if alike else 1
    return [layers[i : i + size] for i in range(0, len(layers), size)]


def _linear_layers(base: nn.Module) -> list[tuple[str, Any]]:
    """(name, module) of all linear layers; one under an adapter stands for its whole."""
    found: list[tuple[str, Any]] = []
    for name, module in base.named_modules():
        inside_adapter = any(name.startswith(outer + ".") for outer, _ in found)
        adapted = hasattr(module, "base_layer") and hasattr(module, "get_delta_weight")
        if (adapted or type(module) in (nn.Linear, Conv1D)) and not inside_adapter:
            found.append((name, module))
    return found


def _own_weights(
    model: nn.Module, name: str, source: Any, dtype: torch.dtype
) -> list[tuple[Tensor, partial[Tensor]]]:
    """Give the copy's layer `name` weights of its own; (weight, its source) of each."""
    inner = source.base_layer if hasattr(source, "base_layer") else source
    layer = copy.deepcopy(inner, {id(tensor): tensor for tensor in inner.parameters()})
    pairs: list[tuple[Tensor, partial[Tensor]]] = []
    for part, values in inner.named_parameters(recurse=False):
        target = torch.empty_like(values, dtype=dtype)
        setattr(layer, part, nn.Parameter(target, requires_grad=False))
        adapted = part == "weight" and inner is not source
        pairs.append((target, partial(_merged, source) if adapted else partial(_same, values)))
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
    return pairs


def _same(values: Tensor) -> Tensor:
    return values.detach()


def _merged(adapted: Any) -> Tensor:
    """W + (alpha / r) B A of every active adapter."""
    weight = adapted.base_layer.weight.detach()
    for adapter in adapted.active_adapters:
        weight = weight + adapted.get_delta_weight(adapter)
    return weight


class _Split(nn.Linear):
    """A product over a long inner dimension, which a decode step computes in parts and adds up.

    With few rows it has too few output tiles for a GPU: 256 x 8192 x 2048 took 22 us whole and 18
    in four parts (H200). The parts are added in float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not input.is_cuda or input.dim() != 3 or input.shape[1] > 1:
            return super().forward(input)
        x_RPK = input.to(self.weight.dtype).reshape(len(input), PARTS, -1)
        weight_PKN = self.weight.view(self.out_features, PARTS, -1).permute(1, 2, 0)
        parts_PRN = torch.bmm(x_RPK.transpose(0, 1), weight_PKN, out_dtype=torch.float32)
        total_RN = parts_PRN.sum(0)
        if self.bias is not None:
            total_RN = total_RN + self.bias
        return total_RN.to(self.weight.dtype)[:, None]


class _Stack:
    """One product for several linear layers; holds it between the first of them and the last."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.output: Tensor | None = None


class _Part(nn.Module):
    """Columns `start` to `end` of a stack. The first part computes, the last one lets go.

    Relies on the parts being called in order on the same input, as the layers stacked here are.
    """

    def __init__(self, stack: _Stack, start: int, end: int, first: bool, last: bool) -> None:
        super().__init__()
        self.stack, self.start, self.end, self.first, self.last = stack, start, end, first, last

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            self.stack.output = nn.functional.linear(x, self.stack.weight, self.stack.bias)
        output = self.stack.output
        assert output is not None
        if self.last:
            self.stack.output = None
        return output[..., self.start : self.end]


def _stack(
    module: nn.Module,
    names: tuple[str, ...],
    pairs: list[tuple[Tensor, partial[Tensor]]],
) -> list[tuple[Tensor, partial[Tensor]]]:
    """Stack the linear layers `names` of a module, if it has them; the pairs with new targets."""
    layers = [getattr(module, name, None) for name in names]
    if not all(type(layer) is nn.Linear for layer in layers):
        return pairs
    biased = {layer.bias is not None for layer in layers}  # type: ignore[union-attr]
    if len(biased) > 1:
        return pairs
    sizes = [layer.out_features for layer in layers]  # type: ignore[union-attr]
    first: Any = layers[0]
    weight = first.weight.new_empty(sum(sizes), first.in_features)
    bias = first.weight.new_empty(sum(sizes)) if biased == {True} else None
    stack = _Stack(weight, bias)
    moved: dict[int, Tensor] = {}
    start = 0
    for i, (name, layer, size) in enumerate(zip(names, layers, sizes, strict=True)):
        end = start + size
        moved[layer.weight.data_ptr()] = weight[start:end]  # type: ignore[union-attr]
        if bias is not None:
            moved[layer.bias.data_ptr()] = bias[start:end]  # type: ignore[union-attr]
        setattr(module, name, _Part(stack, start, end, i == 0, i == len(names) - 1))
        start = end
    return [(moved.get(target.data_ptr(), target), source) for target, source in pairs]


def _split(module: nn.Module) -> None:
    """Split the long products among a module's children."""
    for child in module.children():
        if type(child) is nn.Linear and child.weight.dtype.itemsize == 2:
            long = child.in_features >= max(LONG, 2 * child.out_features)
            if long and child.in_features % PARTS == 0:
                child.__class__ = _Split


def _run_group(group: list[nn.Module], *args: Any, **kwargs: Any) -> Any:
    """A group of layers, compiled for what it is asked: a decode step or reading prompts."""
    view = kwargs.get("cache_view")
    if isinstance(view, SlotCache):
        return _compiled_step()(group, args, kwargs)
    if isinstance(view, Reader):
        return _compiled_reading()(group, args, kwargs)
    return _in_turn(group, args, kwargs)


def _done_before(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A layer that the first of its group has computed already."""
    return hidden


def _in_turn(group: list[Any], args: Any, kwargs: Any) -> Any:
    hidden, *rest = args
    for layer in group:
        hidden = type(layer).forward(layer, hidden, *rest, **kwargs)
    return hidden


# Two functions of the same body: the compiler keeps its graphs by function, and what it learns of
# one shape (rows of one token) must not make the other's (one long row) dynamic.
def _step_layers(group: list[Any], args: Any, kwargs: Any) -> Any:
    return _in_turn(group, args, kwargs)


def _read_layers(group: list[Any], args: Any, kwargs: Any) -> Any:
    return _in_turn(group, args, kwargs)


@cache
def _compiled_step() -> Any:
    return torch.compile(_step_layers, fullgraph=True)


@cache
def _compiled_reading() -> Any:
    return torch.compile(_read_layers, fullgraph=True, dynamic=False)
