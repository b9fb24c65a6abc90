"""Groups of training ranks as plain actors: they form their own process group and train the same `TrainState`.

Ray Train has no step-by-step call, which an actor graph needs; so learner and critic are groups of these. The
optimizer step itself is `model.train.train_step`, as everywhere.
"""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from cluster.storage import Storage
from model.checkpoint import Checkpoints
from model.heads import ScalarHead
from model.optim import adamw, constant_schedule
from model.parallel import shard
from model.precision import ComputePrecision, autocast_dtype
from model.train import TrainState
from model.transformer import Transformer

_COLLECTIVE_TIMEOUT_S = 300
"""How long a rank waits for another. A dead peer is noticed at once, by its closed connection."""
_DEATH_NOTICE_S = 15.0
"""How long Ray may take to say that an actor is dead: a process at once, a node after some missed heartbeats."""


class RanksDied(RuntimeError):
    """A rank of a group is gone, and with it the group's state since its last checkpoint."""


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    """How a group trains; the same on every rank."""

    num_ranks: int
    backend: Literal["gloo", "nccl"]
    lr: float
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises to `lr`, where it stays."""
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    precision: ComputePrecision = "float32"
    micro_batch_rows: int
    """Sequences of one forward and backward pass on one rank."""
    checkpoints: Storage


def join_group(*, rank: int, num_ranks: int, backend: str, address: str) -> None:
    """Become rank `rank` of a process group that meets at `address` (`host:port`); a group of one needs none."""
    if num_ranks > 1:
        dist.init_process_group(
            backend,
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=num_ranks,
            timeout=datetime.timedelta(seconds=_COLLECTIVE_TIMEOUT_S),
        )


def free_address() -> str:
    """`host:port` on this node at which nothing listens."""
    host = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def make_state(model: Transformer | ScalarHead, settings: RankSettings) -> TrainState:
    """The training state of a whole model, sharded over the group when it has more than one rank."""
    device = own_device()
    model.to(device)
    if settings.num_ranks > 1:
        shard(model, mesh=init_device_mesh(device.type, (settings.num_ranks,)))
    return TrainState(
        model,
        adamw(model, lr=settings.lr, weight_decay=settings.weight_decay),
        constant_schedule(settings.lr, warmup_steps=settings.warmup_steps),
        clip_norm=settings.clip_norm,
        autocast_dtype=autocast_dtype(settings.precision),
    )


def own_device() -> torch.device:
    """The GPU that Ray gave this actor, or the CPU."""
    on_gpu = ray.is_initialized() and bool(ray.get_gpu_ids())  # outside Ray the second would start one
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")


def open_checkpoints(storage: Storage) -> Checkpoints:
    """The group's checkpoints; call it on all ranks together."""
    return Checkpoints(storage.fs, storage.root, keep=2)


class RankGroup:
    """The driver's view of a group: one call goes to every rank together."""

    def __init__(self, make_rank: Callable[[int], ActorHandle], num_ranks: int) -> None:
        """`make_rank(rank)` starts one actor; it has `free_address`, `join` and `pid` beside its own methods."""
        self._make_rank = make_rank
        self._num_ranks = num_ranks
        self.actors = [make_rank(rank) for rank in range(num_ranks)]

    def form(self) -> None:
        """Let the ranks meet; their models are loaded when this returns."""
        self.call("join", self.free_address() if self._num_ranks > 1 else "")

    def free_address(self) -> str:
        """`host:port` on the first rank's node at which nothing listens."""
        return self.wait([self.actors[0].free_address.remote()])[0]

    def start(self, method: str, *arguments: Any) -> list[ray.ObjectRef]:
        """The futures of a call to every rank."""
        # Stored once, not once for each rank.
        stored = [a if isinstance(a, ray.ObjectRef) else ray.put(a) for a in arguments]
        return [getattr(actor, method).remote(*stored) for actor in self.actors]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Every rank's answer, by rank. Raises RanksDied when a rank is gone."""
        return self.wait(self.start(method, *arguments))

    def wait(self, futures: Sequence[ray.ObjectRef]) -> list[Any]:
        """The answers of futures from `start`. Raises RanksDied when a rank is gone."""
        try:
            return ray.get(list(futures))
        except RayTaskError:
            # A rank that outlives another fails in a collective, and its error may arrive first.
            if (death := self._death()) is None:
                raise
            raise RanksDied(str(death)) from death
        except RayActorError as error:
            raise RanksDied(str(error)) from error

    def restart(self) -> None:
        """End what is left of the group and start all ranks anew; `form` them afterwards."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = [self._make_rank(rank) for rank in range(self._num_ranks)]

    def _death(self) -> RayActorError | None:
        """What Ray says of a rank that is dead; None when it says so of none.

        One that sits in a collective does not answer, but lives.
        """
        futures: list[Any] = [actor.pid.remote() for actor in self.actors]
        ready, _ = ray.wait(futures, num_returns=len(futures), timeout=_DEATH_NOTICE_S)
        try:
            ray.get(ready)
        except RayActorError as error:
            return error
        return None


def pid() -> int:
    """This process's id."""
    return os.getpid()


def whole_rows(parts: Sequence[Tensor]) -> Tensor:
    """Rows that the ranks computed in equal parts, in order again."""
    return torch.cat(list(parts))
