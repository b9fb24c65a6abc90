"""The engines of a graph as one: lots go to whichever is idle, and a dead engine's lot is done again whole."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError

from actors.proof import check_loads
from actors.ranks import RanksDied
from actors.rollout import Lot, RolloutGroup
from actors.weights import Publication
from cluster import stage_monitor
from cluster.failures import explain

log = logging.getLogger(__name__)


class GeneratorPool:
    """The driver's view of the generators.

    consumes: lots; waits for: any engine; is unblocked by: an answer or a death; produces: groups in the lots' order.
    Which engine did a lot does not matter: a lot is a whole batch, its seeds are its own, and its engine was idle.
    """

    def __init__(self, make_engine: Callable[[int], ActorHandle], num_engines: int, *, max_failures: int) -> None:
        self._make_engine = make_engine
        self._failures_left = max_failures
        self.engines = [make_engine(index) for index in range(num_engines)]
        self.restarts = 0
        """How many engines died and were started again."""
        self._publication: Publication | None = None

    def load(self, publication: Publication) -> None:
        """Give every engine the weights. Raises StaleWeightsError when one does not hold them afterwards."""
        self._publication = publication
        self._settle({engine.load.remote(publication): index for index, engine in enumerate(self.engines)})

    def generate(self, lots: Sequence[Lot]) -> list[RolloutGroup]:
        """The groups of all lots, in order; engines that die are replaced, up to max_failures times in all."""
        waiting = deque(range(len(lots)))
        idle = deque(range(len(self.engines)))
        running: dict[Any, tuple[int, int | None]] = {}
        done: dict[int, list[RolloutGroup]] = {}
        while len(done) < len(lots):
            while waiting and idle:
                index, lot = idle.popleft(), waiting.popleft()
                running[self.engines[index].generate.remote(lots[lot])] = (index, lot)
            (ready,), _ = ray.wait(list(running))
            index, lot = running.pop(ready)
            try:
                if lot is None:
                    self._finish_load(ready)  # a new engine is up
                else:
                    done[lot] = ray.get(ready)
            except RayActorError as error:
                if lot is not None:
                    waiting.appendleft(lot)
                running[self._restart(index, error)] = (index, None)
                continue
            idle.append(index)
        # An engine that came too late to help must hold the weights all the same.
        self._settle({future: index for future, (index, _) in running.items()})
        return [group for lot in range(len(lots)) for group in done[lot]]

    def generate_on_each(self, lot: Lot) -> list[list[RolloutGroup]]:
        """The same lot from every engine, for a proof of each."""
        answers: dict[int, list[RolloutGroup]] = {}
        while len(answers) < len(self.engines):
            futures = {
                index: engine.generate.remote(lot) for index, engine in enumerate(self.engines) if index not in answers
            }
            for index, future in futures.items():
                try:
                    answers[index] = ray.get(future)
                except RayActorError as error:
                    self._settle({self._restart(index, error): index})
        return [answers[index] for index in range(len(self.engines))]

    def _settle(self, loading: dict[Any, int]) -> None:
        """Wait until every engine that is loading holds the weights, replacing those that die over it."""
        while loading:
            (ready,), _ = ray.wait(list(loading))
            index = loading.pop(ready)
            try:
                self._finish_load(ready)
            except RayActorError as error:
                loading[self._restart(index, error)] = index

    def _finish_load(self, loading: Any) -> None:
        """Wait for an engine's load. Raises StaleWeightsError, or RanksDied when the weights went with their owner."""
        try:
            report: Any = ray.get(loading)
        except ObjectLostError as error:
            raise RanksDied(f"the learner died with the weights that it had published: {error}") from error
        check_loads(self._held(), [report])

    def _restart(self, index: int, error: RayActorError) -> ray.ObjectRef:
        """A new engine in the place of a dead one; the future of its load of the current weights.

        Raises RuntimeError when no restart is left, or when the engine could not even be made, as no other could.
        """
        found = explain(error, role="generator", index=index)
        if error.actor_init_failed:
            raise found.error() from error
        if self._failures_left == 0:
            raise found.error(
                "; no restart is left (execution.generators.max_failures; none at all with weight_transfer nccl or ipc)"
            ) from error
        self._failures_left -= 1
        self.restarts += 1
        log.warning("%s; another is started and its work done again", found.sentence)
        stage_monitor.expect_end("generator", index)
        ray.kill(self.engines[index])  # what only seemed dead must not keep the place
        self.engines[index] = self._make_engine(index)
        return self.engines[index].load.remote(self._held())

    def _held(self) -> Publication:
        assert self._publication is not None, "engines are loaded before they generate"
        return self._publication
