"""The pool of generators: assigns generation batches to idle generators, and replaces generators that die."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError

from actors.rank_group import RanksDied
from actors.rollout import GenerationBatch, RolloutGroup
from actors.sync_check import check_load
from actors.weight_sync import WeightSnapshot
from cluster import stage_monitor
from cluster.failures import explain

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _RunningCall:
    """A call that one generator is working on."""

    generator: int
    """Index of the generator in `GeneratorPool.actors`."""
    batch: int | None
    """Index of the generation batch that the call completes. None if the call loads the current weights into a new
    generator."""


class GeneratorPool:
    """The driver's interface to all generators.

    Every idle generator gets the next generation batch. A batch has the same completions on every generator, because
    the batch determines the seeds and an engine runs no other batch at the same time. So when a generator dies, another
    generator repeats its batch.
    """

    def __init__(
        self, start_generator: Callable[[int], ActorHandle], num_generators: int, *, max_restarts: int
    ) -> None:
        """Start all generators. `start_generator(index)` must start the actor of one generator.

        `max_restarts` is the number of generators that the pool may replace in its lifetime.
        """
        self._start_generator = start_generator
        self._restarts_left = max_restarts
        self.actors = [start_generator(index) for index in range(num_generators)]
        self.restarts = 0
        """Number of generators that died and were replaced."""
        self._snapshot: WeightSnapshot | None = None

    def load(self, snapshot: WeightSnapshot) -> None:
        """Load the weights into all engines. Replaces generators that die.

        Raises StaleWeightsError when an engine does not have the weights afterwards, RuntimeError when a generator dies
        and no restart is left, and RanksDied when the learner that owned the snapshot has died.
        """
        self._snapshot = snapshot
        self._finish_loads({actor.load.remote(snapshot): index for index, actor in enumerate(self.actors)})

    def generate(self, batches: Sequence[GenerationBatch]) -> list[RolloutGroup]:
        """Return the rollout groups of all batches in one list, in the order of the batches and their prompts.

        Replaces generators that die. Raises RuntimeError when a generator dies and no restart is left, and the other
        errors of `load` when a new generator cannot load the weights.
        """
        waiting = deque(range(len(batches)))
        idle = deque(range(len(self.actors)))
        running: dict[Any, _RunningCall] = {}
        results: dict[int, list[RolloutGroup]] = {}
        while len(results) < len(batches):
            while waiting and idle:
                generator, batch = idle.popleft(), waiting.popleft()
                future: Any = self.actors[generator].generate.remote(batches[batch])
                running[future] = _RunningCall(generator, batch)
            (ready,), _ = ray.wait(list(running))
            call = running.pop(ready)
            try:
                if call.batch is None:
                    self._finish_load(ready, call.generator)
                else:
                    results[call.batch] = ray.get(ready)
            except RayActorError as error:
                if call.batch is not None:
                    waiting.appendleft(call.batch)
                running[self._restart(call.generator, error)] = _RunningCall(call.generator, None)
                continue
            idle.append(call.generator)
        # A new generator may still be loading the weights after the last batch is done. The next call of this method
        # assumes that all generators have the weights.
        self._finish_loads({future: call.generator for future, call in running.items()})
        return [group for batch in range(len(batches)) for group in results[batch]]

    def generate_on_each(self, batch: GenerationBatch) -> list[list[RolloutGroup]]:
        """Run the same batch on every generator, so that each engine can be checked.

        Returns the rollout groups of each generator. Replaces generators that die, as `generate` does.
        """
        results: dict[int, list[RolloutGroup]] = {}
        while len(results) < len(self.actors):
            futures = {
                index: actor.generate.remote(batch) for index, actor in enumerate(self.actors) if index not in results
            }
            for index, future in futures.items():
                try:
                    results[index] = ray.get(future)
                except RayActorError as error:
                    self._finish_loads({self._restart(index, error): index})
        return [results[index] for index in range(len(self.actors))]

    def close(self) -> None:
        """Kill all generators."""
        stage_monitor.ignore_exits("generator")
        for actor in self.actors:
            ray.kill(actor)

    def _finish_loads(self, loads: dict[Any, int]) -> None:
        """Wait until the generators in `loads` have loaded the weights. Replaces generators that die during loading.

        The keys of `loads` are futures of `Generator.load`, and its values are the indices of the generators.
        """
        while loads:
            (ready,), _ = ray.wait(list(loads))
            index = loads.pop(ready)
            try:
                self._finish_load(ready, index)
            except RayActorError as error:
                loads[self._restart(index, error)] = index

    def _finish_load(self, load: Any, index: int) -> None:
        """Wait until the generator with this index has loaded the weights. `load` is the future of `Generator.load`.

        Raises StaleWeightsError when the engine does not have the weights afterwards, and RanksDied when the snapshot
        was lost because the learner that owned it died.
        """
        try:
            report: Any = ray.get(load)
        except ObjectLostError as error:
            raise RanksDied(f"the learner died, and its weight snapshot was lost: {error}") from error
        check_load(self._current_snapshot, report, generator=index)

    def _restart(self, index: int, error: RayActorError) -> ray.ObjectRef:
        """Replace a dead generator by a new one that loads the current weights. Returns the future of this load.

        Raises RuntimeError when no restart is left, and when the generator died in its constructor, because a new
        generator would fail in the same way.
        """
        explanation = explain(error, role="generator", index=index)
        if error.actor_init_failed:
            raise explanation.to_error() from error
        if self._restarts_left == 0:
            raise explanation.to_error(
                "; no restart is left (execution.generators.max_failures limits the restarts; "
                "with weight_transfer nccl or ipc, generators are never restarted)"
            ) from error
        self._restarts_left -= 1
        self.restarts += 1
        log.warning("%s; a new generator is started and repeats its work", explanation.sentence)
        stage_monitor.ignore_exits("generator", index)
        # Ray can report a death while the process is still alive. Without the kill, the process would keep its
        # resources.
        ray.kill(self.actors[index])
        self.actors[index] = self._start_generator(index)
        return self.actors[index].load.remote(self._current_snapshot)

    @property
    def _current_snapshot(self) -> WeightSnapshot:
        assert self._snapshot is not None, "`load` must be called before `generate`"
        return self._snapshot
