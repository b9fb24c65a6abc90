"""The engines of a graph as one: generation batches go to idle engines, and a dead engine's batch is done again."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError

from actors.rank_group import RanksDied
from actors.rollout import GenerationBatch, RolloutGroup
from actors.sync_check import check_loads
from actors.weight_sync import WeightSnapshot
from cluster import stage_monitor
from cluster.failures import explain

log = logging.getLogger(__name__)


class GeneratorPool:
    """The driver's view of the generators.

    consumes: generation batches; waits for: any engine; is unblocked by: a result or a death; produces: rollout groups
    in the order of the batches. Which engine did a batch does not matter: its seeds are its own, and it ran alone.
    """

    def __init__(self, make_generator: Callable[[int], ActorHandle], num_generators: int, *, max_failures: int) -> None:
        self._make_engine = make_generator
        self._failures_left = max_failures
        self.actors = [make_generator(index) for index in range(num_generators)]
        self.restarts = 0
        """How many engines died and were started again."""
        self._snapshot: WeightSnapshot | None = None

    def load(self, snapshot: WeightSnapshot) -> None:
        """Load the weights into every engine. Raises StaleWeightsError when one does not hold them afterwards."""
        self._snapshot = snapshot
        self._finish_loads({engine.load.remote(snapshot): index for index, engine in enumerate(self.actors)})

    def generate(self, batches: Sequence[GenerationBatch]) -> list[RolloutGroup]:
        """The groups of all batches, in order; engines that die are replaced, up to max_failures times in all."""
        waiting = deque(range(len(batches)))
        idle = deque(range(len(self.actors)))
        running: dict[Any, tuple[int, int | None]] = {}
        results: dict[int, list[RolloutGroup]] = {}
        while len(results) < len(batches):
            while waiting and idle:
                engine, number = idle.popleft(), waiting.popleft()
                running[self.actors[engine].generate.remote(batches[number])] = (engine, number)
            (ready,), _ = ray.wait(list(running))
            engine, number = running.pop(ready)
            try:
                if number is None:
                    self._finish_load(ready)  # a new engine is up
                else:
                    results[number] = ray.get(ready)
            except RayActorError as error:
                if number is not None:
                    waiting.appendleft(number)
                running[self._restart(engine, error)] = (engine, None)
                continue
            idle.append(engine)
        # An engine that came too late to help must hold the weights all the same.
        self._finish_loads({future: engine for future, (engine, _) in running.items()})
        return [group for number in range(len(batches)) for group in results[number]]

    def generate_on_each(self, batch: GenerationBatch) -> list[list[RolloutGroup]]:
        """The same batch from every engine, to check each of them."""
        results: dict[int, list[RolloutGroup]] = {}
        while len(results) < len(self.actors):
            futures = {
                index: engine.generate.remote(batch) for index, engine in enumerate(self.actors) if index not in results
            }
            for index, future in futures.items():
                try:
                    results[index] = ray.get(future)
                except RayActorError as error:
                    self._finish_loads({self._restart(index, error): index})
        return [results[index] for index in range(len(self.actors))]

    def close(self) -> None:
        """Kill every engine."""
        stage_monitor.ignore_exits("generator")
        for engine in self.actors:
            ray.kill(engine)

    def _finish_loads(self, loading: dict[Any, int]) -> None:
        """Wait until every loading engine holds the weights, replacing those that die meanwhile."""
        while loading:
            (ready,), _ = ray.wait(list(loading))
            index = loading.pop(ready)
            try:
                self._finish_load(ready)
            except RayActorError as error:
                loading[self._restart(index, error)] = index

    def _finish_load(self, loading: Any) -> None:
        """Wait for one engine's load.

        Raises StaleWeightsError, or RanksDied when the snapshot was lost with the learner that owned it.
        """
        try:
            report: Any = ray.get(loading)
        except ObjectLostError as error:
            raise RanksDied(f"the learner died with the weight snapshot that it had made: {error}") from error
        check_loads(self._current_snapshot, [report])

    def _restart(self, index: int, error: RayActorError) -> ray.ObjectRef:
        """Replace a dead engine by a new one; the future of the new one's load of the current weights.

        Raises RuntimeError when no restart is left, or when the engine died in its constructor, as another would.
        """
        explanation = explain(error, role="generator", index=index)
        if error.actor_init_failed:
            raise explanation.to_error() from error
        if self._failures_left == 0:
            raise explanation.to_error(
                "; no restart is left (execution.generators.max_failures; none at all with weight_transfer nccl or ipc)"
            ) from error
        self._failures_left -= 1
        self.restarts += 1
        log.warning("%s; another is started and its work done again", explanation.sentence)
        stage_monitor.ignore_exits("generator", index)
        ray.kill(self.actors[index])  # an actor that only seemed dead must not keep its resources
        self.actors[index] = self._make_engine(index)
        return self.actors[index].load.remote(self._current_snapshot)

    @property
    def _current_snapshot(self) -> WeightSnapshot:
        assert self._snapshot is not None, "engines are loaded before they generate"
        return self._snapshot
