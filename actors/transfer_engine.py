"""A weight transfer engine for vLLM that loads weights from Ray's object store.

It implements vLLM's interface `WeightTransferEngine` and runs inside a vLLM engine, as the receiving side of
`actors.weight_sync`. vLLM's own implementations use nccl or ipc and need GPUs; this one works on any device.
Only processes with an engine import this module, because it imports vllm at its top. `actors.vllm_plugin.register`
gives its name to vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.weight_sync import read_chunks


@dataclass
class ObjectStoreInitInfo(WeightTransferInitInfo):
    """The arguments of `init_transfer_engine`. None are needed."""


@dataclass
class ObjectStoreUpdateInfo(WeightTransferUpdateInfo):
    """The arguments of one weight update."""

    chunks: list[ray.ObjectRef]
    """The chunks of the snapshot to load (`WeightSnapshot.chunks`)."""


class ObjectStoreEngine(WeightTransferEngine[ObjectStoreInitInfo, ObjectStoreUpdateInfo]):
    """Loads weights with Hugging Face names and shapes from Ray objects, with vLLM's layerwise reload."""

    init_info_cls = ObjectStoreInitInfo
    update_info_cls = ObjectStoreUpdateInfo

    def init_transfer_engine(self, init_info: ObjectStoreInitInfo) -> None:
        """Do nothing. Every process of a Ray cluster can read the object store without a connection of its own."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # Overrides the method of the base class, because that method always synchronizes an accelerator, which fails on
        # CPU.
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: ObjectStoreUpdateInfo) -> None:
        self.model.load_weights(read_chunks(update_info.chunks))  # pyright: ignore[reportCallIssue]

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self.model_config.hf_config.tie_word_embeddings:
            # With tied embeddings on CPU, the output head (lm_head) computes with a packed copy of the embedding table.
            # vLLM's reload does not update this copy, so without the next lines the engine would silently keep the old
            # head.
            head: Any = self.model.lm_head
            head.quant_method.process_weights_after_loading(head)

    def shutdown(self) -> None:
        """Do nothing. There is nothing to release."""
