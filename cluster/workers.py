"""A group of equal workers in one process group, run by Ray Train and started again when one dies."""

import logging
import shutil
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.placement import Placement
from cluster.room import wait_for_room
from cluster.session import assert_own_packages, worker_env

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSpot:
    """Where in the group a worker stands."""

    rank: int
    world_size: int


def run_workers(work: Callable[[WorkerSpot, Any], None], payload: Any, placement: Placement, *, name: str) -> None:
    """Call `work(spot, payload)` in every worker of the group, inside an initialised process group.

    A worker that dies takes the group with it; the group is started again up to `placement.max_failures` times, and
    `work` itself finds the last whole checkpoint. Results are what `work` writes to storage.
    Raises ValueError when the group does not fit into the cluster, or when `work` raised one (a mistake of the user's,
    which no restart mends); RuntimeError when the group failed for good.
    """
    from ray.train import WorkerGroupError  # late, as below: Ray Train takes a second that `plan` need not wait for

    for attempt in range(placement.max_failures + 1):
        wait_for_room(placement.bundles, f"{name}: execution.placement")  # each time: a node may be gone with a worker
        try:
            _run_once(work, payload, placement, name)
            return
        except WorkerGroupError as error:
            causes = [_cause(failure) for failure in error.worker_failures.values()]
            for cause in causes:
                if isinstance(cause, ValueError):
                    raise ValueError(f"{name}: {cause}") from error
            if attempt == placement.max_failures:
                raise RuntimeError(f"{name}: the workers failed for good: {error}") from error
            log.warning("%s: a worker failed (%s); going on from the last checkpoint", name, causes[0])


def _run_once(work: Callable[[WorkerSpot, Any], None], payload: Any, placement: Placement, name: str) -> None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    # Ray Train resumes silently where storage path and name are those of an older run: neither is ever reused.
    scratch = tempfile.mkdtemp(prefix="raymill-train-")
    trainer = TorchTrainer(
        _work_in_group,
        train_loop_config={"work": work, "payload": payload, "threads": placement.threads_per_worker},
        torch_config=TorchConfig(backend=placement.backend, timeout_s=600),
        scaling_config=ray.train.ScalingConfig(
            num_workers=placement.workers,
            use_gpu=placement.gpus_per_worker > 0,
            resources_per_worker={"CPU": placement.cpus_per_worker, "GPU": placement.gpus_per_worker},
        ),
        run_config=ray.train.RunConfig(
            name=f"{name}-{uuid.uuid4().hex[:8]}",
            storage_path=scratch,
            worker_runtime_env={"env_vars": worker_env(placement.threads_per_worker)},
        ),
    )
    try:
        trainer.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _cause(failure: Exception) -> BaseException:
    """What `work` raised; Ray Train wraps it to carry its traceback and offers no public way back."""
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    return failure._base_exc if isinstance(failure, UserExceptionWithTraceback) else failure


def _work_in_group(config: dict[str, Any]) -> None:
    import ray.train
    import torch

    assert_own_packages()
    torch.set_num_threads(config["threads"])
    here = ray.train.get_context()
    spot = WorkerSpot(rank=here.get_world_rank(), world_size=here.get_world_size())
    config["work"](spot, config["payload"])
