"""Models and tokenizers from a folder or the hub, and back: policies, scalar models, new models.

A policy is `AutoModelForCausalLM`. A scalar model (reward, value) is one of
`AutoModelForTokenClassification` with one label: one number a token, whose head bias stores
"demonstrations score 0". Both get the attention of `attention.py`, no dropout, and eval mode.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
)

from tercet.model import support
from tercet.model.attention import NAME
from tercet.model.classes import ScalarHead, scalar_class
from tercet.model.folders import (
    check_vocabulary,
    first_line,
    loading,
    quiet,
    read_config,
    read_tensors,
    resolve,
)
from tercet.model.tree import tree_logprobs
from tercet.records import InputError, writing

Init = Literal["normal", "zero"]
HEAD_NAMES = ("score", "classifier")
# What writes into the residual stream: attention's and the MLP's last projection, by its name.
RESIDUAL_OUTPUTS = ("o_proj", "out_proj", "attention.dense", "c_proj")
RESIDUAL_OUTPUTS += ("down_proj", "fc2", "dense_4h_to_h")


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a model folder or hub id. InputError when there is none or it has no EOS."""
    folder = resolve(path)
    try:
        with quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: no usable tokenizer in this folder ({first_line(error)})"
        ) from None
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{path}: the tokenizer has no EOS token, so no reply could ever end; "
            'set "eos_token" in its tokenizer_config.json'
        )
    return tokenizer


def load_policy(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal language model, in eval mode and without dropout.

    Raises InputError for a missing folder, a folder without configuration or safetensors, a
    vocabulary smaller than the tokenizer, or an architecture that tercet does not compute.
    """
    folder = resolve(path)
    config = read_config(path, folder, trust_remote_code)
    support.refuse(config)
    _no_dropout(config)
    check_vocabulary(path, folder, config)
    with loading(path), quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=NAME,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    model, report = loaded
    _check_complete(path, report["missing_keys"])
    model = _finish_policy(model.to(device))
    support.check_architecture(model)
    return model


def new_policy(config: Mapping[str, Any], tokenizer: Any, seed: int) -> PreTrainedModel:
    """A causal language model with random float32 weights, on CPU.

        new_policy({"model_type": "llama", "hidden_size": 64, ...}, tokenizer, seed=0)

    The vocabulary is exactly the tokenizer's; special token ids are the tokenizer's.
    """
    settings = dict(config)
    kind = settings.pop("model_type", None)
    if kind is None:
        raise InputError('a new model needs "model_type", for example "llama"')
    settings |= {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,  # an id here would zero the row of an EOS that serves as pad
    }
    try:
        built = AutoConfig.for_model(kind, **settings)
    except (ValueError, TypeError) as error:
        raise InputError(f'model_type "{kind}": {first_line(error)}') from None
    support.refuse(built)
    _no_dropout(built)
    with torch.random.fork_rng(devices=[]), loading(kind):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            built, attn_implementation=NAME, dtype=torch.float32
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    model = _finish_policy(model)
    support.check_architecture(model)
    return model


def load_scalar(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    init: Init | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A scalar model: `model(...).logits` is (R, L, 1); the head computes in float32 at least.

    `init=None` reads a saved scalar model, head included. Otherwise `path` is any model of the
    family (usually a policy), its unembedding is left behind and the head is new: "normal" draws
    weights of standard deviation 1 / sqrt(d + 1) and bias 0 (Ziegler 2019), "zero" is all zero.
    """
    folder = resolve(path)
    config = read_config(path, folder, trust_remote_code)
    support.refuse(config)
    _no_dropout(config)
    config.num_labels = 1
    config.token_classification_bias = True
    with loading(path), quiet():
        model, report = scalar_class(config).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=NAME,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # of the head; checked below
        )
    lacking = {*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}
    _check_complete(path, {name for name in lacking if name.split(".")[0] not in HEAD_NAMES})
    name, head = _head(model)
    precise = torch.promote_types(dtype, torch.float32)
    fresh = ScalarHead(head.in_features, 1, bias=True, dtype=precise)
    with torch.no_grad():
        if init is None:
            _read_head(path, folder, name, fresh)
        else:
            fresh.bias.zero_()
            fresh.weight.zero_()
            if init == "normal":
                deviation = (head.in_features + 1) ** -0.5
                generator = torch.Generator().manual_seed(seed)
                fresh.weight.normal_(0.0, deviation, generator=generator)
    setattr(model, name, fresh)
    return _finish(model.to(device))


def scalar_head(model: nn.Module) -> nn.Linear:
    """The (d -> 1) head of a scalar model, also under a LoRA adapter."""
    return _head(unwrap(model))[1]


def set_bias(model: nn.Module, value: float) -> None:
    """Set the head bias: scores shift by the difference, losses of rankings stay as they are."""
    with torch.no_grad():
        scalar_head(model).bias.fill_(value)


def unwrap(model: nn.Module) -> Any:
    """The transformers model inside a LoRA wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore


def _head(model: nn.Module) -> tuple[str, nn.Linear]:
    for name in HEAD_NAMES:
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear):
            return name, head
    raise InputError(f"{type(model).__name__} has no scalar head named score or classifier")


def _read_head(path: str | Path, folder: Path, name: str, head: nn.Linear) -> None:
    """Fill `head` from the file at full precision (loading rounds to the model's dtype)."""
    stored = read_tensors(folder, {f"{name}.weight", f"{name}.bias"})
    if f"{name}.weight" not in stored:
        raise InputError(
            f"{path}: this is no scalar model (it has no {name}.weight); train one with "
            "`tercet rm`, or give a new head an initialisation"
        )
    if stored[f"{name}.weight"].shape != head.weight.shape:
        raise InputError(f"{path}: its head gives more than one number a token")
    head.weight.copy_(stored[f"{name}.weight"])
    bias = stored.get(f"{name}.bias")
    head.bias.zero_() if bias is None else head.bias.copy_(bias)


def save_model(
    model: nn.Module, tokenizer: Any, path: str | Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write a model folder (safetensors, configuration, tokenizer), all or nothing.

    `state` replaces the model's own weights, for gathered shards or an average. A model with an
    adapter must be merged before (`adapt.merge`).
    """
    assert unwrap(model) is model, "merge the adapter before saving"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with quiet(), writing(partial):
        model.save_pretrained(partial, state_dict=None if state is None else dict(state))  # type: ignore
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
    if path.exists():
        old = path.with_name(path.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        partial.rename(path)
        shutil.rmtree(old)
    else:
        partial.rename(path)


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute each layer, and the logits, in the backward pass instead of keeping them.

    In eval mode too, in which PPO trains: the layers themselves count as training from now on, and
    what they are made of (dropout) does not.
    """
    inner = unwrap(model)
    enable = getattr(inner, "activation_checkpointing_enable", None)  # its name before 5.2x follows
    (enable or inner.gradient_checkpointing_enable)()
    inner.recomputes = True  # read by the head
    for layer in decoder_layers(model):
        layer.training = True


class Dropout:
    """Handle of `residual_dropout`: call `remove()`, or use it in a `with` statement."""

    def __init__(self, hooks: Sequence[RemovableHandle]) -> None:
        self.hooks = hooks

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def __enter__(self) -> Dropout:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def residual_dropout(model: nn.Module, p: float) -> Dropout:
    """Drop with probability p what attention and MLP add to the residual stream (InstructGPT C.1).

    Works by hooks on the two output projections of every layer, so on architectures without any
    dropout too. Takes effect at once and only in training mode (`model.train()`); with p = 0
    nothing is hooked and nothing changes.
    """
    if not 0.0 <= p < 1.0:
        raise InputError(f"dropout must be at least 0 and below 1, not {p}")
    if p == 0.0:
        return Dropout([])
    layers = decoder_layers(model)
    outputs = [
        module
        for layer in layers
        for name, module in layer.named_modules()
        if name.endswith(RESIDUAL_OUTPUTS)
    ]
    if len(outputs) != 2 * len(layers):
        kind = unwrap(model).config.model_type
        raise InputError(f'residual dropout is not known for model type "{kind}"; set it to 0')

    def drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return nn.functional.dropout(output, p, training=module.training)

    return Dropout([module.register_forward_hook(drop) for module in outputs])


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks, in order."""
    inner = unwrap(model)
    count = inner.config.num_hidden_layers
    for module in inner.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise InputError(f"no list of {count} layers in {type(inner).__name__}")


def check_context(model: nn.Module, tokens: int) -> None:
    """Raise InputError if sequences of this many tokens do not fit the model's positions."""
    config: Any = unwrap(model).config
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise InputError(
            f"sequences of {tokens} tokens do not fit this {config.model_type} model, which has "
            f"{limit} positions: lower the prompt or reply limit"
        )


def fingerprint(tokenizer: Any) -> str:
    """sha256 of what decides ids: vocabulary, merges, added tokens, normaliser, EOS.

    Two tokenizers with one fingerprint give the same ids for every text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        for irrelevant in ("version", "truncation", "padding", "decoder"):
            content.pop(irrelevant, None)
    else:
        content = {"vocabulary": tokenizer.get_vocab()}
    content["eos"] = tokenizer.eos_token_id
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def parameter_hash(model: nn.Module) -> str:
    """sha256 over the names and exact bytes of all parameters; shards are gathered first."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        value: Any = parameter.detach()
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        digest.update(name.encode())
        digest.update(value.to("cpu").contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _no_dropout(config: Any) -> None:
    """Set every dropout rate of a configuration to 0: opt and others apply it as a function."""
    for name, value in list(config.to_dict().items()):
        is_rate = "dropout" in name or name.endswith("_pdrop") or name == "layerdrop"
        if is_rate and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, name, 0.0)
    config.classifier_dropout = 0.0
    config.use_cache = False


def _check_complete(path: str | Path, lacking: Collection[str]) -> None:
    # transformers fills missing weights at random and goes on
    if lacking:
        raise InputError(
            f"{path}: {len(lacking)} weights are missing or of another shape, for example "
            f"{min(lacking)}; this folder is incomplete or holds another kind of model"
        )


def _finish_policy(model: Any) -> Any:
    model = _finish(model)
    model.tree_logprobs = MethodType(tree_logprobs, model)
    return model


def _finish(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            # torch gives a padding row no gradient; here pad may be EOS, and no pad is ever fed.
            module.padding_idx = None
    # A loaded tensor may lie anywhere in a mapped file; kernels round by alignment. Cloned, two
    # models with the same weights give the same bits.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval()
