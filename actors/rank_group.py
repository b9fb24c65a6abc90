"""The driver's view of a group of training actors: one call goes to every rank, and a death differs from an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

_DEATH_NOTICE_S = 15.0
"""How long Ray may take to report a dead actor: a process at once, a node after some missed heartbeats."""

T = TypeVar("T")


class RanksDied(RuntimeError):
    """A rank of a group has died, and with it the group's state since its last checkpoint."""


@dataclass(frozen=True)
class Pending(Generic[T]):
    """A call that all ranks of a group are working on."""

    group: RankGroup
    futures: Sequence[ray.ObjectRef]
    combine: Callable[[list[Any]], T]
    """Makes one result of the ranks' results, which come in the order of the ranks."""

    def wait(self) -> T:
        """The combined result. Raises RanksDied when a rank has died."""
        return self.combine(self.group.wait(self.futures))


class RankGroup:
    """A group of training actors, each of which has a `TrainingRank`.

    consumes: calls; waits for: every rank; is unblocked by: all results, or a death; produces: results by rank.
    """

    def __init__(self, make_rank: Callable[[int], ActorHandle], num_ranks: int) -> None:
        """`make_rank(rank)` starts one actor."""
        self._make_rank = make_rank
        self.num_ranks = num_ranks
        self.actors = [make_rank(rank) for rank in range(num_ranks)]

    def join(self) -> None:
        """Let the ranks meet and load their models."""
        address = self.free_address() if self.num_ranks > 1 else ""
        self.wait([rank.join.remote(address) for rank in self.actors])

    def free_address(self) -> str:
        """`host:port` on the first rank's node at which nothing listens."""
        return self.wait([self.actors[0].free_address.remote()])[0]

    def save(self) -> None:
        """Begin a checkpoint of the current state."""
        self.wait([rank.save.remote() for rank in self.actors])

    def finish_save(self) -> None:
        """Wait until the last checkpoint is whole."""
        self.wait([rank.finish_save.remote() for rank in self.actors])

    def restore(self, optimizer_step: int | None) -> None:
        """Load the checkpoint of this optimizer step; None keeps the model that training starts from."""
        self.wait([rank.restore.remote(optimizer_step) for rank in self.actors])

    def start(self, call: Callable[[ActorHandle], ray.ObjectRef], combine: Callable[[list[Any]], T]) -> Pending[T]:
        """Start a call on every rank."""
        return Pending(self, [call(rank) for rank in self.actors], combine)

    def wait(self, futures: Sequence[ray.ObjectRef]) -> list[Any]:
        """The results of futures, one of each rank. Raises RanksDied when a rank has died."""
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
        """Kill the remaining actors and start all ranks anew; they must `join` afterwards."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = [self._make_rank(rank) for rank in range(self.num_ranks)]

    def _death(self) -> RayActorError | None:
        """Ray's error about a dead rank; None when no rank is dead. A rank in a collective is silent, but alive."""
        futures: list[Any] = [actor.__ray_ready__.remote() for actor in self.actors]
        ready, _ = ray.wait(futures, num_returns=len(futures), timeout=_DEATH_NOTICE_S)
        try:
            ray.get(ready)
        except RayActorError as error:
            return error
        return None


def to_object_ref(value: Any) -> ray.ObjectRef:
    """The value in Ray's object store, so that it is sent once and not once for each rank."""
    return value if isinstance(value, ray.ObjectRef) else ray.put(value)


def rank_0_result(results: list[Any]) -> Any:
    """Rank 0's result, where all ranks have the same or only rank 0 has one."""
    return results[0]
