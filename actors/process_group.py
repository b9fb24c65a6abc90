"""The process group of training actors: how its ranks meet.

Ray Train has no step-by-step call, which an actor graph needs, so learner and critic form their own process groups.
"""

from __future__ import annotations

import datetime
import socket

import ray
import torch.distributed as dist

from cluster.worker_group import RankContext

_COLLECTIVE_TIMEOUT_S = 300
"""How long a rank waits for another. A dead peer is noticed at once, by its closed connection."""


def join_process_group(context: RankContext, *, backend: str, address: str) -> None:
    """Join the process group that meets at `address` (`host:port`); a group of one rank needs none."""
    if context.world_size > 1:
        dist.init_process_group(
            backend,
            init_method=f"tcp://{address}",
            rank=context.rank,
            world_size=context.world_size,
            timeout=datetime.timedelta(seconds=_COLLECTIVE_TIMEOUT_S),
        )


def free_address() -> str:
    """`host:port` on this node at which nothing listens."""
    host = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"
