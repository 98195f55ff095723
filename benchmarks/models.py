"""The models and made-up data that all benchmarks share. Weights are random: they suit speed only.

"1.2B" is a llama of 16 layers and width 2048 with tied embeddings; `small` is a toy of its shape.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
)

from tercet.model import load
from tercet.model.attention import NAME
from tercet.model.classes import ScalarHead
from tercet.model.compile import compile_layers

SMALL_VOCABULARY = 512


def config(vocabulary: int, small: bool, positions: int = 4096) -> LlamaConfig:
    """The 1.2B llama with this vocabulary, or a toy with a vocabulary of its own."""
    sizes: dict[str, int] = {
        "vocab_size": vocabulary,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    if small:
        sizes = {
            "vocab_size": min(vocabulary, SMALL_VOCABULARY),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
    return LlamaConfig(
        **sizes,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        use_cache=False,
    )


def policy(
    sizes: LlamaConfig,
    device: torch.device,
    dtype: torch.dtype,
    attention: str = NAME,
    seed: int = 0,
) -> Any:
    """A causal model with random weights, made on the device; tercet's unless told otherwise."""
    model = build(LlamaForCausalLM, sizes, device, dtype, attention, seed)
    return load._finish_policy(model) if attention == NAME else model.eval()


def scalar(sizes: LlamaConfig, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """tercet's scalar model: a float32 head at every token, no bias to begin with."""
    sizes = _one_label(sizes)
    model = build(LlamaForTokenClassification, sizes, device, dtype, NAME, seed)
    model.score = ScalarHead(sizes.hidden_size, 1, bias=True, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    deviation = (sizes.hidden_size + 1) ** -0.5
    with torch.no_grad():
        model.score.weight.normal_(0.0, deviation, generator=generator)
        model.score.bias.zero_()
    return load._finish(model)


def classifier(
    sizes: LlamaConfig,
    device: torch.device,
    dtype: torch.dtype,
    attention: str = "sdpa",
    pad: int | None = None,
    seed: int = 0,
) -> Any:
    """The same in the form that TRL trains: one score, read at the last token that is no pad."""
    sizes = _one_label(sizes)
    model = build(LlamaForSequenceClassification, sizes, device, dtype, attention, seed)
    with torch.no_grad():
        model.score.weight.normal_(0.0, (sizes.hidden_size + 1) ** -0.5)
    model.config.pad_token_id = pad
    return model


def _one_label(sizes: LlamaConfig) -> LlamaConfig:
    sizes = copy.deepcopy(sizes)
    sizes.num_labels = 1
    sizes.classifier_dropout = 0.0  # its default is 0.1
    return sizes


def build(
    kind: Any,
    sizes: LlamaConfig,
    device: torch.device,
    dtype: torch.dtype,
    attention: str,
    seed: int,
) -> Any:
    """A transformers model whose weights are drawn on the device itself, which takes no time."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = kind._from_config(sizes, attn_implementation=attention, dtype=dtype)
    return model.to(device)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the backbone, and where both have one the score, of `source`."""
    target.model.load_state_dict(source.model.state_dict())  # type: ignore[union-attr,operator]
    if hasattr(source, "score") and hasattr(target, "score"):
        with torch.no_grad():
            target.score.weight.copy_(source.score.weight)  # type: ignore[union-attr]


def draws(count: int, low: int, high: int, seed: int) -> list[int]:
    """Whole numbers from low to high inclusive."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, (count,), generator=generator).tolist()


def texts(lengths: Sequence[int], vocabulary: int, seed: int) -> list[list[int]]:
    """Random ids of these lengths; the first three ids are left to special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def tokenizer(vocabulary: int, pad: int = 0) -> PreTrainedTokenizerFast:
    """One word an id. A pad of `vocabulary` is an id that no model draws and none can embed."""
    words = {f"w{i}": i for i in range(3, vocabulary)} | {"<unk>": 0, "<bos>": 1, "<eos>": 2}
    words |= {"<pad>": pad} if pad else {}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="<eos>",
        pad_token="<pad>" if pad else "<unk>",
    )


def compiled(model: nn.Module, when: str) -> bool:
    """Compile the layers of a model that trains, where tercet can; says whether it was done."""
    return compile_layers(model, when)  # type: ignore[arg-type]
