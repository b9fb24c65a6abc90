"""The network of the reward model and of the critic: a decoder with one scalar per token."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from model.transformer import Transformer
from model.transformer_config import TransformerConfig


class ScalarHead(nn.Module):
    """A decoder whose head gives one number per token; exported as `LlamaForSequenceClassification`.

    The reward of a sequence is the scalar at its last token; the critic's value of a state is the scalar at the
    last token of that state.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        # A language-model head would be a parameter without gradient; "tied" means that it has none of its own.
        self.config = dataclasses.replace(config, tie_embeddings=True)
        self.transformer = Transformer(self.config)
        self.score = nn.Linear(config.width, 1, bias=False)

    def forward(self, input_ids_BT: Tensor, positions_BT: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
        """Scalars [B, T] in float32; the arguments are those of `Transformer.forward`."""
        hidden_BTD = self.transformer(input_ids_BT, positions_BT, document_ids_BT)
        # One product per channel costs nothing, and in bfloat16 a reward would have less than three digits.
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            return hidden_BTD.float() @ self.score.weight[0].float()


Model = Transformer | ScalarHead
"""The models that this package trains, shards, saves and exports."""
