"""Forms the torch.distributed process group of a group of workers."""

import datetime
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class RankContext:
    """The rank of a worker, and the number of workers in the group."""

    rank: int
    world_size: int


def join_process_group(context: RankContext, *, backend: str, address: str, timeout_s: float) -> None:
    """Initialize torch.distributed. Blocks until all ranks of the group have called this function.

    address: `host:port` at which rank 0 listens and to which all ranks connect.
    timeout_s: how long a rank waits for other ranks, here and in every later collective operation. A rank whose process
        died is noticed without this wait if the backend is gloo, because its connections are closed.
    """
    # Imported here so that the driver and Ray Train's controller do not import torch, which takes seconds.
    import torch.distributed as dist

    dist.init_process_group(
        backend,
        init_method=f"tcp://{address}",
        rank=context.rank,
        world_size=context.world_size,
        timeout=datetime.timedelta(seconds=timeout_s),
    )


def free_address() -> str:
    """Return `host:port` of an unused port on this node."""
    import ray

    host = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"
