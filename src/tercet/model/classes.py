"""Scalar-model classes for architectures that transformers gives none: olmo2, gemma3, opt."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn
from transformers import AutoModelForTokenClassification, Gemma3TextConfig, Olmo2Config, OPTConfig
from transformers.modeling_layers import GenericForTokenClassification
from transformers.models.gemma3.modeling_gemma3 import Gemma3PreTrainedModel
from transformers.models.olmo2.modeling_olmo2 import Olmo2PreTrainedModel
from transformers.models.opt.modeling_opt import OPTPreTrainedModel


class Olmo2ForTokenClassification(GenericForTokenClassification, Olmo2PreTrainedModel):
    pass


class Gemma3TextForTokenClassification(GenericForTokenClassification, Gemma3PreTrainedModel):
    config_class = Gemma3TextConfig
    config: Gemma3TextConfig


class OPTForTokenClassification(GenericForTokenClassification, OPTPreTrainedModel):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        # opt-350m projects its output to a narrower space than hidden_size
        self.score = nn.Linear(config.word_embed_proj_dim, config.num_labels)


@cache
def register() -> None:
    """Tell transformers' auto class about them; without exist_ok it silently does nothing."""
    for config, model in (
        (Olmo2Config, Olmo2ForTokenClassification),
        (Gemma3TextConfig, Gemma3TextForTokenClassification),
        (OPTConfig, OPTForTokenClassification),
    ):
        AutoModelForTokenClassification.register(config, model, exist_ok=True)
