"""Operations and bytes of a llama-shaped model, counted by hand; no torch, nothing measured.

    shape = Shape(layers=16, hidden=2048, heads=32, kv_heads=8, head=64, intermediate=8192,
                  vocabulary=128256)
    3 * forward_flops(shape, tokens=512, pairs=causal_pairs(512), scored=511)   # a training step

A multiplication with its addition is two operations. Norms, rotary tables and softmax are left out,
as is whatever an implementation recomputes: that is its cost, not the model's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; `scalar` has one number a token for a head instead of the vocabulary."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    intermediate: int
    vocabulary: int
    scalar: bool = False

    @staticmethod
    def of(config: Any, scalar: bool = False) -> Shape:
        """The sizes of a transformers LlamaConfig."""
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return Shape(
            config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            head,
            config.intermediate_size,
            config.vocab_size,
            scalar,
        )

    @property
    def layer_weights(self) -> int:
        """Weights of all layers' matrices: what MFU calls parameters without embedding."""
        attention = self.hidden * self.head * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        """Weights that turn a hidden state into logits, or into one score."""
        return self.hidden * (1 if self.scalar else self.vocabulary)

    @property
    def weights(self) -> int:
        """All weights with embedding and head tied, norms left out."""
        return self.layer_weights + self.hidden * self.vocabulary

    def kv_bytes(self, width: int = 2) -> int:
        """Bytes of one token's keys and values in all layers; `width` is a number's bytes."""
        return 2 * self.layers * self.kv_heads * self.head * width


def causal_pairs(tokens: int, before: int = 0) -> int:
    """(query, key) pairs of `tokens` causal tokens that also see `before` earlier ones.

    >>> causal_pairs(3), causal_pairs(2, before=10)
    (6, 23)
    """
    return tokens * before + tokens * (tokens + 1) // 2


def tree_pairs(prompt: int, replies: Iterable[int]) -> int:
    """Pairs of a prompt that is computed once, and of replies that see it and themselves."""
    return causal_pairs(prompt) + sum(causal_pairs(reply, before=prompt) for reply in replies)


def forward_flops(shape: Shape, tokens: int, pairs: int, scored: int) -> int:
    """One forward pass: `tokens` through the layers, `pairs` attended, `scored` through the head.

    A training step is three of these: the backward pass multiplies twice as much.
    """
    matrices = 2 * shape.layer_weights * tokens
    attention = 4 * shape.layers * shape.heads * shape.head * pairs  # q k and p v
    return matrices + attention + 2 * shape.head_weights * scored


@dataclass(frozen=True)
class Decoding:
    """What rollouts cannot do without: operations of the prompts and of the replies, and bytes."""

    prompt_flops: int
    reply_flops: int
    weight_bytes: int
    kv_bytes: int
    steps: int

    def floor_seconds(self, flops_rate: float, bandwidth: float) -> float:
        """Prompts at the matrix rate, then replies at whichever of the two limits is slower."""
        reading = (self.weight_bytes + self.kv_bytes) / bandwidth
        return self.prompt_flops / flops_rate + max(reading, self.reply_flops / flops_rate)


def decoding(
    shape: Shape, prompts: Sequence[int], replies: Sequence[int], slots: int, width: int = 2
) -> Decoding:
    """Counts for replies of these lengths, `slots` at a time, all weights read once a step.

    No schedule needs fewer steps than the longest reply, or than all tokens over the slots. Every
    reply but its last token is fed back: that is one step less than it has tokens.
    """
    steps = max(max(replies), -(-sum(replies) // slots)) - 1
    pairs = [
        causal_pairs(reply - 1, before=prompt)
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    fed = sum(replies) - len(replies)
    return Decoding(
        prompt_flops=forward_flops(
            shape, sum(prompts), sum(map(causal_pairs, prompts)), len(prompts)
        ),
        reply_flops=forward_flops(shape, fed, sum(pairs), fed),
        weight_bytes=steps * shape.weights * width,
        kv_bytes=sum(pairs) * shape.kv_bytes(width),
        steps=steps,
    )
