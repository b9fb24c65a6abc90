"""A group of equal workers in one process group, run by Ray Train and started again when one dies."""

import shutil
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.placement import Placement, check_room
from cluster.session import WORKER_ENV, assert_own_packages, available_resources


@dataclass(frozen=True)
class WorkerSpot:
    """Where in the group a worker stands."""

    rank: int
    world_size: int
    local_rank: int


def run_workers(work: Callable[[WorkerSpot, Any], None], payload: Any, placement: Placement, *, name: str) -> None:
    """Call `work(spot, payload)` in every worker of the group, inside an initialised process group.

    A worker that dies takes the group with it; Ray Train starts the group again up to `placement.max_failures`
    times, and `work` itself finds the last whole checkpoint. Results are what `work` writes to storage.
    Raises ValueError when the cluster has not the room, RuntimeError when the group failed for good.
    """
    check_room(placement.resources, available_resources(), f"{name}: execution.placement")
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
            failure_config=ray.train.FailureConfig(max_failures=placement.max_failures),
            worker_runtime_env={"env_vars": {**WORKER_ENV, "OMP_NUM_THREADS": str(placement.threads_per_worker)}},
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise RuntimeError(f"{name}: the workers failed for good: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _work_in_group(config: dict[str, Any]) -> None:
    import torch  # the worker's own import: the driver need not load torch to start a group

    assert_own_packages()
    torch.set_num_threads(config["threads"])
    here = ray.train.get_context()
    spot = WorkerSpot(rank=here.get_world_rank(), world_size=here.get_world_size(), local_rank=here.get_local_rank())
    config["work"](spot, config["payload"])
