"""Which parameters train: all, some, or a low-rank adapter (Hu et al. 2021) through peft.

Modes, as recipes write them:

    full                      every parameter
    last_n_layers:2           the last 2 blocks, the final norm, and the head unless it is tied
    bitfit                    all bias vectors (Ben Zaken et al. 2021)
    norms                     all LayerNorm / RMSNorm parameters
    embeddings                token and position embeddings (and the head when tied)
    head                      the language-model head (the embeddings when tied)
    regex:layers\\.1\\..*mlp  parameters whose qualified name has a match
    lora:8                    W + (alpha / r) B A with r = 8 on every linear layer of the blocks
    lora:8,alpha=32,dropout=0.1,targets=q_proj+v_proj

A scalar head always trains: it is new, and no partial mode makes sense around random weights.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tercet.model.load import HEAD_NAMES, decoder_layers, scalar_head, unwrap
from tercet.records import InputError

MODES = "full, last_n_layers:N, bitfit, norms, embeddings, head, regex:PATTERN, lora:R"


def adapt(model: Any, mode: str, seed: int = 0) -> Any:
    """Set which parameters require a gradient; with "lora:R", wrap the model in an adapter.

    Frozen parameters have `requires_grad=False` and belong in no optimizer. An adapter starts as
    the identity, bit for bit. Raises InputError for an unknown mode or one that selects nothing.
    """
    kind, _, argument = mode.partition(":")
    if kind == "lora":
        return _lora(model, argument, seed)
    choose = SELECTIONS.get(kind)
    if choose is None or bool(argument) != (kind in ("last_n_layers", "regex")):
        raise InputError(f'adapt = "{mode}" is not one of {MODES}')
    chosen = {id(parameter) for parameter in choose(model, argument)}
    if not chosen:
        kind = model.config.model_type
        raise InputError(f'adapt = "{mode}" selects no parameter of this {kind} model')
    for parameter in model.parameters():  # a tied tensor occurs once
        parameter.requires_grad_(id(parameter) in chosen)
    _train_scalar_head(model)
    return model


def merge(model: Any) -> Any:
    """A plain model with the adapter added into its weights; the given one stays as it is.

    Without an adapter, the model itself.
    """
    if unwrap(model) is model:
        return model
    return copy.deepcopy(model).merge_and_unload()


def _full(model: Any, argument: str) -> Iterable[nn.Parameter]:
    return model.parameters()


def _last_n_layers(model: Any, argument: str) -> Iterable[nn.Parameter]:
    layers = decoder_layers(model)
    if not argument.isdecimal() or not 1 <= int(argument) <= len(layers):
        raise InputError(f"last_n_layers:{argument}: give a number from 1 to {len(layers)}")
    for layer in layers[-int(argument) :]:
        yield from layer.parameters()
    inside = {id(module) for layer in layers for module in layer.modules()}
    for module in model.modules():
        if _is_norm(module) and id(module) not in inside:
            yield from module.parameters()
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        yield from head.parameters()


def _bitfit(model: Any, argument: str) -> Iterable[nn.Parameter]:
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and name.split(".")[0] not in HEAD_NAMES:
            yield parameter


def _norms(model: Any, argument: str) -> Iterable[nn.Parameter]:
    for module in model.modules():
        if _is_norm(module):
            yield from module.parameters(recurse=False)


def _embeddings(model: Any, argument: str) -> Iterable[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield from module.parameters()


def _head(model: Any, argument: str) -> Iterable[nn.Parameter]:
    head = model.get_output_embeddings()
    return (head if head is not None else scalar_head(model)).parameters()


def _regex(model: Any, argument: str) -> Iterable[nn.Parameter]:
    try:
        pattern = re.compile(argument)
    except re.error as error:
        raise InputError(f"regex:{argument}: not a regular expression ({error})") from None
    # A tied tensor has two names and may be asked for by either.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if pattern.search(name):
            yield parameter


SELECTIONS: dict[str, Callable[[Any, str], Iterable[nn.Parameter]]] = {
    "full": _full,
    "last_n_layers": _last_n_layers,
    "bitfit": _bitfit,
    "norms": _norms,
    "embeddings": _embeddings,
    "head": _head,
    "regex": _regex,
}


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


def _train_scalar_head(model: Any) -> None:
    inner = unwrap(model)
    if any(hasattr(inner, name) for name in HEAD_NAMES):
        scalar_head(model).requires_grad_(True)


def _lora(model: Any, argument: str, seed: int) -> Any:
    # peft takes a second to import, and only adapters need it
    from peft import LoraConfig, get_peft_model

    rank, *rest = argument.split(",")
    options = {name: text for name, _, text in (item.partition("=") for item in rest)}
    if unknown := set(options) - {"alpha", "dropout", "targets"}:
        raise InputError(f'lora has no option "{min(unknown)}"; it has alpha, dropout, targets')
    try:
        r = int(rank)
        alpha = float(options.get("alpha", 2 * r))
        dropout = float(options.get("dropout", 0.0))
    except ValueError:
        raise InputError(f'"lora:{argument}": write it like lora:8,alpha=16,dropout=0.1') from None
    if r < 1 or not 0.0 <= dropout < 1.0:
        raise InputError(f'"lora:{argument}": the rank is at least 1, dropout in [0, 1)')
    linear = {
        name.rpartition(".")[2]
        for layer in decoder_layers(model)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    targets = set(options["targets"].split("+")) if "targets" in options else linear
    if missing := targets - linear:
        raise InputError(
            f'lora targets "{min(missing)}", which is no linear layer of this model\'s blocks; '
            f"it has {', '.join(sorted(linear))}"
        )
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=sorted(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    _train_scalar_head(adapted)
    return adapted.train(model.training)
