"""Which device an actor computes on."""

from __future__ import annotations

import ray
import torch


def assigned_device() -> torch.device:
    """The GPU that Ray assigned to this actor, or the CPU."""
    on_gpu = ray.is_initialized() and bool(ray.get_gpu_ids())  # outside Ray the second would start a session
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")
