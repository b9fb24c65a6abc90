"""The network of the reward model and of the critic: a decoder that returns one scalar per token."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from model.transformer import Transformer
from model.transformer_config import TransformerConfig


class ScalarModel(nn.Module):
    """A decoder whose head returns one scalar per token. It is exported as `LlamaForSequenceClassification`.

    For the reward model, the scalar at the last token of a sequence is the reward of the sequence. For the critic, the
    scalar at a token is the value of the state after this token.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        # tie_embeddings=True, because an lm_head with its own weight would be a parameter that never has a gradient.
        self.config = dataclasses.replace(config, tie_embeddings=True)
        self.transformer = Transformer(self.config)
        self.score = nn.Linear(config.width, 1, bias=False)

    def forward(self, input_ids_BT: Tensor, positions_BT: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
        """Return the scalars [B, T] in float32. The arguments are those of `Transformer.forward`."""
        hidden_BTD = self.transformer(input_ids_BT, positions_BT, document_ids_BT)
        # Always in float32: in bfloat16 a reward would have less than three significant digits, and this matmul is so
        # small that its dtype does not change the speed.
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            return hidden_BTD.float() @ self.score.weight[0].float()


Model = Transformer | ScalarModel
"""The models that this package trains, shards, saves and exports."""
