"""The engine's end of the weight transfer through Ray's object store, on vLLM's interface.

Imported by vLLM inside an engine's process only (`actors.vllm_plugin.register`). vLLM has engines for nccl and ipc;
this one works on any device.
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
    """Empty: the objects hold everything."""


@dataclass
class ObjectStoreUpdateInfo(WeightTransferUpdateInfo):
    """One update."""

    chunks: list[ray.ObjectRef]
    """`WeightSnapshot.chunks`."""


class ObjectStoreEngine(WeightTransferEngine[ObjectStoreInitInfo, ObjectStoreUpdateInfo]):
    """Loads weights in checkpoint format from Ray objects by vLLM's layerwise reload."""

    init_info_cls = ObjectStoreInitInfo
    update_info_cls = ObjectStoreUpdateInfo

    def init_transfer_engine(self, init_info: ObjectStoreInitInfo) -> None:
        """Nothing to connect: every process of a Ray cluster reaches the store."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class synchronizes an accelerator, which a CPU engine lacks.
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: ObjectStoreUpdateInfo) -> None:
        self.model.load_weights(read_chunks(update_info.chunks))  # pyright: ignore[reportCallIssue]

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if self.model_config.hf_config.tie_word_embeddings:
            # On CPU the head multiplies by its own packed copy of the table, which the reload of the table does
            # not renew: without this the engine keeps the old head silently.
            head: Any = self.model.lm_head
            head.quant_method.process_weights_after_loading(head)

    def shutdown(self) -> None:
        """Nothing to release."""
