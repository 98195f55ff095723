"""Which architectures are computed exactly, and the check at load for the others."""

from __future__ import annotations

from typing import Any

import torch

from tercet.model.attention import NAME
from tercet.model.tree import Document, TokenTree, logprobs, pack
from tercet.records import InputError

LLAMA_FAMILY = {"llama", "mistral", "phi3", "qwen2", "qwen3", "olmo2", "smollm3"}
VERIFIED = LLAMA_FAMILY | {"gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "opt"}


def known() -> str:
    return ", ".join(sorted(VERIFIED))


def refuse(config: Any) -> None:
    """Raise InputError for configurations that no causal packed forward pass can serve."""
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f'model type "{kind}" is an encoder-decoder; supported: {known()}')
    if getattr(config, "vision_config", None) is not None:
        raise InputError(f'model type "{kind}" has a vision tower; use its text-only form')
    if getattr(config, "use_bidirectional_attention", None):
        raise InputError(f'this "{kind}" model attends in both directions; it cannot write text')
    layers = set(getattr(config, "layer_types", None) or ())
    if other := layers - {"full_attention", "sliding_attention"}:
        raise InputError(
            f'model type "{kind}" has layers of type {", ".join(sorted(other))}, which tercet does '
            f"not compute; supported: {known()}"
        )


def check_architecture(model: Any) -> None:
    """For an architecture outside VERIFIED: compare a packed pass with the model's own, or refuse.

    The comparison covers branches, the head and everything after it. A sliding window wider than
    the sample cannot show in the numbers, so the attention must at least have been told of it.
    """
    config = model.config
    if config.model_type in VERIFIED:
        return
    vocabulary = config.vocab_size
    ids = [(7 * i + 3) % vocabulary for i in range(24)]
    document = Document(ids[:8], [ids[8:12], ids[12:18], ids[18:]])
    with torch.no_grad():
        tree = pack([document], device=model.device)
        ours = tree.replies(logprobs(model, tree, where="replies"))
        theirs = _separate(model, document, tree)
    _check_window(model, document)
    tolerance = 1e-3 if ours.dtype == theirs.dtype == model.dtype else 0.1
    difference = float((ours - theirs).abs().max())
    if not difference <= tolerance:
        raise InputError(
            f'model type "{config.model_type}" gives other log-probabilities in a packed batch '
            f"than by itself (they differ by {difference:.2g}); supported: {known()}"
        )


def _separate(model: Any, document: Document, tree: TokenTree) -> torch.Tensor:
    """(N, T) log-probs of each reply from the model's own forward pass, one sequence at a time."""
    rows = []
    model.set_attn_implementation("eager")
    try:
        for reply in document.replies:
            ids = torch.tensor([[*document.prompt, *reply]], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0]
            precise = torch.promote_types(logits.dtype, torch.float32)
            start = len(document.prompt)
            logp = logits[start - 1 : -1].to(precise).log_softmax(-1)
            chosen = logp.gather(-1, ids[0, start:, None]).squeeze(-1)
            rows.append(torch.nn.functional.pad(chosen, (0, tree.longest - len(reply))))
    finally:
        model.set_attn_implementation(NAME)
    return torch.stack(rows)


def _check_window(model: Any, document: Document) -> None:
    config = model.config
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    expected = window is not None and (layers is None or "sliding_attention" in layers)
    tree = pack([document], device=model.device)
    with torch.no_grad():
        model.base_model(**tree.inputs)  # not `logprobs`, which prepares masks by the config
    seen = {key[1] for key in tree.layout.masks}
    if expected and getattr(config, "use_sliding_window", True) and window not in seen:
        raise InputError(
            f'model type "{config.model_type}" has a sliding window of {window} tokens but does '
            "not pass it to attention; it cannot be packed"
        )
