"""The process group of a group of workers: how its ranks meet."""

import datetime
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class RankContext:
    """A worker's place in the group."""

    rank: int
    world_size: int


def join_process_group(context: RankContext, *, backend: str, address: str, timeout_s: float) -> None:
    """Join the process group that meets at `address` (`host:port`).

    timeout_s: how long a rank waits for another. A dead peer is noticed at once, by its closed connection.
    """
    import torch.distributed as dist  # late: the driver and Ray Train's controller need no torch, which takes seconds

    dist.init_process_group(
        backend,
        init_method=f"tcp://{address}",
        rank=context.rank,
        world_size=context.world_size,
        timeout=datetime.timedelta(seconds=timeout_s),
    )


def free_address() -> str:
    """`host:port` on this node at which nothing listens."""
    import ray

    host = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"
