"""The scalar head, and scalar classes for architectures without one: olmo2, gemma3, opt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, Gemma3TextConfig
from transformers.modeling_layers import GenericForTokenClassification
from transformers.models.gemma3.modeling_gemma3 import Gemma3PreTrainedModel
from transformers.models.olmo2.modeling_olmo2 import Olmo2PreTrainedModel
from transformers.models.opt.modeling_opt import OPTPreTrainedModel


class ScalarHead(nn.Linear):
    """A head that computes in its own precision, also on bf16 hidden states and under autocast.

    bf16 holds 3 digits: too few for the score differences that a ranking turns on.
    """

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


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


OWN = {
    "olmo2": Olmo2ForTokenClassification,
    "gemma3_text": Gemma3TextForTokenClassification,
    "opt": OPTForTokenClassification,
}


def scalar_class(config: Any) -> Any:
    """The class that loads a scalar model of this configuration.

    Not through `AutoModelForTokenClassification.register`: transformers before 5.2x ignores it,
    silently, for configurations of its own.
    """
    return OWN.get(config.model_type, AutoModelForTokenClassification)
