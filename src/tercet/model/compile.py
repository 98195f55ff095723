"""Decoder layers through torch.compile: one graph a kind of layer and length of a pack.

    compile_layers(model)             # on a GPU, when the model is worth it
    compile_layers(model, "on")       # always
    copy.deepcopy(model)              # a plain copy: it computes as if nothing had been compiled

Layers are compiled in place: names in `state_dict`, hooks, adapters and activation checkpointing
stay as they are. Compilation happens at the first call, again for each new pack length and
for training, scoring, precision; all layers of a kind share the graph, and masks are made outside
of it (`Layout.prepare`), so that no batch compiles anything again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from tercet.model.load import decoder_layers, unwrap
from tercet.model.support import VERIFIED
from tercet.records import InputError

When = Literal["auto", "on", "off"]

WORTH = 50_000_000
"""Parameters in the layers from which "auto" compiles: a smaller model is done before that."""
GRAPHS = 256
"""Graphs of one layer class. Policies, values and rewards of one architecture share the count."""


def compile_layers(
    model: nn.Module, when: When = "auto", backend: str | Callable[..., Any] = "inductor"
) -> bool:
    """Compile each decoder layer in place; whether it was done.

    Call it after `adapt`, and hook modules (`residual_dropout`) before the model's first call: the
    compiler does not look for hooks that come later.

    "auto" compiles on a GPU, layers of 50 million parameters or more, of verified architectures.
    A layer that cannot be compiled whole, or more than GRAPHS graphs, is an error at the call and
    never a silent fall back to slow code.
    """
    if not pays(model, when):
        return False
    if backend == "inductor" and not all(p.is_cuda for p in model.parameters()):
        raise InputError(
            'compile = "on" needs a GPU: rows of a CPU have many lengths, each compiled again; '
            'use "auto" or "off"'
        )
    lift_limits()
    for layer in decoder_layers(model):
        layer.compile(fullgraph=True, dynamic=False, backend=backend)
    return True


def pays(model: nn.Module, when: When = "auto") -> bool:
    """Whether layers of this model are compiled under the option `when`."""
    if when != "auto":
        return when == "on"
    parameters = [p for layer in decoder_layers(model) for p in layer.parameters()]
    worth = sum(p.numel() for p in parameters) >= WORTH and all(p.is_cuda for p in parameters)
    return worth and unwrap(model).config.model_type in VERIFIED


def lift_limits() -> None:
    """Let the compiler keep GRAPHS graphs of one function; beyond that it fails, loudly."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(GRAPHS, config.recompile_limit)
    config.accumulated_recompile_limit = max(4 * GRAPHS, config.accumulated_recompile_limit)
