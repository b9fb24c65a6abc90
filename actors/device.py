"""The device on which an actor computes."""

from __future__ import annotations

import ray
import torch


def assigned_device() -> torch.device:
    """Return the GPU that Ray assigned to this actor, or the CPU if Ray assigned none."""
    # `ray.get_gpu_ids` would start a Ray session if the process had none, so `ray.is_initialized` is checked first.
    # Ray makes only the assigned GPUs visible to the actor's process, so the index of the GPU is 0.
    on_gpu = ray.is_initialized() and bool(ray.get_gpu_ids())
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")
