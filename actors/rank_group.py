"""The driver's interface to a group of training actors, with one actor for each rank (like a worker group in verl).

Each call runs on all ranks. The group also distinguishes the death of a rank from an exception that a rank raised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

_DEATH_NOTICE_S = 15.0
"""How long to wait for Ray's report of a dead actor, in seconds. Ray reports a dead process at once, but a dead node
only after several missed heartbeats."""

T = TypeVar("T")


class RanksDied(RuntimeError):
    """A rank of a group has died. The group's training state since its last checkpoint is lost."""


@dataclass(frozen=True)
class Pending(Generic[T]):
    """The future result of a call that runs on all ranks of a group."""

    group: RankGroup
    futures: Sequence[ray.ObjectRef]
    """The future of each rank's result, in the order of the ranks."""
    combine: Callable[[list[Any]], T]
    """Combines the list of the ranks' results, in the order of the ranks, into one result."""

    def wait(self) -> T:
        """Wait for all ranks and return the combined result. Raises RanksDied when a rank has died."""
        return self.combine(self.group.wait(self.futures))


class RankGroup:
    """A group of training actors. Each actor has a `TrainingRank`.

    A call of the group runs on every rank, and only `free_address` asks rank 0 alone. Waiting for a call ends when all
    ranks have returned, or when one has died or raised an exception.
    """

    def __init__(self, start_rank: Callable[[int], ActorHandle], num_ranks: int) -> None:
        """Start all ranks. `start_rank(rank)` must start the actor of one rank."""
        self._start_rank = start_rank
        self.num_ranks = num_ranks
        self.actors = [start_rank(rank) for rank in range(num_ranks)]

    def load_models(self) -> None:
        """Make the ranks form a process group and load their models."""
        address = self.free_address() if self.num_ranks > 1 else ""
        self.wait([actor.load_model.remote(address) for actor in self.actors])

    def free_address(self) -> str:
        """Return a free `host:port` on the node of rank 0."""
        return self.wait([self.actors[0].free_address.remote()])[0]

    def save(self) -> None:
        """Start saving a checkpoint of the current training state. The files are written in the background."""
        self.wait([actor.save.remote() for actor in self.actors])

    def finish_save(self) -> None:
        """Wait until the checkpoint that `save` started last is complete."""
        self.wait([actor.finish_save.remote() for actor in self.actors])

    def restore(self, optimizer_step: int) -> str | None:
        """Load the checkpoint of this optimizer step. Returns None, or what is wrong with the checkpoint
        (`TrainingRank.restore`)."""
        return rank_0_result(self.wait([actor.restore.remote(optimizer_step) for actor in self.actors]))

    def call(self, start_call: Callable[[ActorHandle], ray.ObjectRef], combine: Callable[[list[Any]], T]) -> Pending[T]:
        """Call a method of every rank. `start_call(actor)` starts the call and returns its future.

        Returns the pending result: `combine` of the results of all ranks, in order.
        """
        return Pending(self, [start_call(actor) for actor in self.actors], combine)

    def wait(self, futures: Sequence[ray.ObjectRef]) -> list[Any]:
        """Wait for all futures and return their results in order.

        Raises RanksDied when a rank has died. Otherwise an exception that a rank raised is raised again.
        """
        try:
            return ray.get(list(futures))
        except RayTaskError:
            # When a rank dies, the surviving ranks fail in a collective, and their error may arrive first.
            if (death := self._death()) is None:
                raise
            raise RanksDied(str(death)) from death
        except RayActorError as error:
            raise RanksDied(str(error)) from error

    def restart(self) -> None:
        """Kill the remaining actors and start all ranks again. Call `load_models` and `restore` afterwards."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = [self._start_rank(rank) for rank in range(self.num_ranks)]

    def _death(self) -> RayActorError | None:
        """Return Ray's error about a dead rank, or None when no rank is dead.

        A rank that waits in a collective does not answer in time, but it counts as alive.
        """
        futures: list[Any] = [actor.__ray_ready__.remote() for actor in self.actors]
        ready, _ = ray.wait(futures, num_returns=len(futures), timeout=_DEATH_NOTICE_S)
        try:
            ray.get(ready)
        except RayActorError as error:
            return error
        return None


def to_object_ref(value: Any) -> ray.ObjectRef:
    """Put a value into Ray's object store, so that it is sent once and not once for each rank.

    A value that is an object reference already is returned unchanged.
    """
    return value if isinstance(value, ray.ObjectRef) else ray.put(value)


def rank_0_result(results: list[Any]) -> Any:
    """Return the result of rank 0. Used for calls whose results are equal on all ranks or exist on rank 0 only."""
    return results[0]
