"""Tiny random models of every architecture, in which window, soft-cap and grouping matter."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tercet.model.load import save_model

VOCABULARY = 61
WINDOW = 4
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
GATED = COMMON | {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16}
ONE_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA2_CAPS = {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 3.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": GATED,
    "qwen2": GATED | ONE_SLIDING | {"use_sliding_window": True},
    "qwen3": GATED | ONE_SLIDING | {"use_sliding_window": True},
    "mistral": GATED | {"sliding_window": WINDOW},
    "phi3": GATED | {"sliding_window": WINDOW},
    "olmo2": GATED,
    "smollm3": GATED | ONE_SLIDING | {"use_sliding_window": True, "no_rope_layers": [1, 0]},
    "gemma": GATED,
    "gemma2": GATED | ONE_SLIDING | GEMMA2_CAPS | {"query_pre_attn_scalar": 16},
    "gemma3_text": GATED | ONE_SLIDING | {"query_pre_attn_scalar": 16},
    "gpt2": COMMON | {"tie_word_embeddings": True},
    "gpt_neox": COMMON | {"intermediate_size": 96},
    "opt": COMMON | {"ffn_dim": 96, "word_embed_proj_dim": 32},
}
ARCHITECTURES = sorted(CONFIGS)
WINDOWED = [name for name in ARCHITECTURES if "sliding_window" in CONFIGS[name]]
REFERENCE = {"gemma2": "eager"}  # SDPA has no soft-cap


def tiny(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A random causal model with the reference attention of transformers."""
    config = AutoConfig.for_model(name, **(CONFIGS[name] | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.set_attn_implementation(REFERENCE.get(name, "sdpa"))
    return model.to(dtype).eval()


def saved(name: str, folder: Any, **changes: Any) -> Any:
    """A folder holding `tiny(name)`."""
    path = folder / name
    save_model(tiny(name, torch.float32, **changes), None, path)
    return path
