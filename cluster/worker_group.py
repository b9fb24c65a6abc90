"""Runs a group of equal workers in one process group with Ray Train, and restarts the group when a worker dies."""

import logging
import re
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster import stage_monitor
from cluster.capacity import wait_for_capacity
from cluster.failures import Explanation, explain, explain_death, explain_exception
from cluster.heartbeat import current_process_info, monitored
from cluster.placement import Placement
from cluster.process_group import RankContext, free_address, join_process_group
from cluster.process_info import ProcessInfo
from cluster.session import check_no_shadowed_packages, worker_env
from cluster.signals import defer_signals, received_signal
from cluster.worker_errors import WorkerError, wrap_error

if TYPE_CHECKING:
    from ray.train import TrainingFailedError

    from cluster.trainer import Trainer

_POLL_S = 0.2
_COLLECTIVE_TIMEOUT_S = 600.0
"""How long a rank waits for the other ranks in a collective operation."""
_PEER_LOST_PATTERN = re.compile(r"gloo|NCCL|Connection (closed|reset) by peer|torch\.distributed|Socket")
"""Matches the text of the exceptions that a rank raises because another rank has died."""

log = logging.getLogger(__name__)


class StoppedOnRequest(Exception):
    """Raised by a worker function that has saved its progress because the driver asked it to stop.

    The request of the driver is read with `heartbeat.stop_requested`.
    """


def run_worker_group(
    worker_fn: Callable[[RankContext, Any], None], payload: Any, placement: Placement, *, name: str
) -> None:
    """Call `worker_fn(rank_context, payload)` in every worker of the group, inside an initialized process group.

    When a worker dies, the whole group is restarted, up to `placement.max_failures` times. After a restart `worker_fn`
    must load the last complete checkpoint itself. The return value of `worker_fn` is ignored, so it must write its
    results to storage. `payload` is any value that can be pickled, and `name` is the name of the stage.

    Raises ValueError when the group does not fit into the cluster, or when `worker_fn` raised a ValueError. A
    ValueError is a user error, so the group is not restarted. Raises RuntimeError when the group failed and no restart
    is left.
    """
    # `ray.train` is imported inside functions so that `raymill plan` does not wait a second for it.
    from ray.train import TrainingFailedError

    for attempt in range(placement.max_failures + 1):
        # Waits before every attempt, because the node may have died together with the worker.
        wait_for_capacity(placement.bundles, f"{name}: execution.placement")
        try:
            _run_once(worker_fn, payload, placement, name)
            return
        except TrainingFailedError as error:
            for failure in _failures_by_rank(error).values():
                if isinstance(failure, WorkerError) and isinstance(failure.error, ValueError):
                    raise ValueError(f"{name}: {failure.error}") from error
            explanation = _explain_first_failure(error, name)
            if attempt == placement.max_failures:
                limit = f" (execution.placement.max_failures={placement.max_failures})"
                raise explanation.to_error(f"; no restart is left{limit}") from error
            log.warning("%s; all ranks restart from the last checkpoint", explanation.sentence)


def _run_once(worker_fn: Callable[[RankContext, Any], None], payload: Any, placement: Placement, name: str) -> None:
    """Run the group once. Raises TrainingFailedError when a worker or Ray Train's controller failed."""
    import ray.train

    from cluster.trainer import Trainer

    # Storage path and run name are new for every attempt. Ray Train would silently resume an earlier run that has the
    # same path and name.
    scratch = tempfile.mkdtemp(prefix="raymill-train-")
    # The payload is bound to the function with `partial` instead of passed as `train_loop_config`. Ray Train's
    # controller unpickles `train_loop_config`, and would have to import torch for it.
    trainer = Trainer(
        partial(_run_worker, worker_fn, payload, placement, stage_monitor.current_stage()),
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
        _fit_until_signal(trainer)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fit_until_signal(trainer: "Trainer") -> None:
    """Run `trainer.fit()` until it ends or this process receives a signal.

    `trainer.fit()` runs in a thread, because in the main thread it would install its own SIGINT handler. After a
    signal the workers are asked to stop, and KeyboardInterrupt is raised when they have ended.
    """
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # raised again at the end of `_fit_until_signal`, in the main thread
            errors.append(error)

    if (monitor := stage_monitor.current_monitor()) is not None:
        monitor.ignore_exits("rank")  # Ray Train has ended the processes of the previous attempt
    thread = threading.Thread(target=fit, daemon=True, name="trainer")
    thread.start()
    with defer_signals():  # raises KeyboardInterrupt at its end if a signal came
        while thread.is_alive() and received_signal() is None:
            thread.join(_POLL_S)
        if received_signal() is not None and monitor is not None:
            monitor.request_stop()
            monitor.wait_for_exit("rank")
    if errors:
        raise errors[0]


def _failures_by_rank(error: "TrainingFailedError") -> dict[int, Exception]:
    """Return the failure of each rank that failed. Empty when the group never started."""
    from ray.train import WorkerGroupError

    return dict(sorted(error.worker_failures.items())) if isinstance(error, WorkerGroupError) else {}


def _explain_first_failure(error: "TrainingFailedError", name: str) -> Explanation:
    """Explain the failure that caused the failures of the other ranks.

    When a worker dies, the other ranks fail too, because they wait for it in a collective operation.
    """
    from ray.train import ControllerError

    failures, monitor = _failures_by_rank(error), stage_monitor.current_monitor()
    exceptions = {rank: failure for rank, failure in failures.items() if isinstance(failure, WorkerError)}
    for rank, failure in failures.items():
        if rank not in exceptions:  # the rank raised nothing, so its process died
            return explain(_health_check_failure(failure), stage=name, role="rank", index=rank)
    if not exceptions:
        cause = error.controller_failure if isinstance(error, ControllerError) else error
        return explain(cause, stage=name, role="rank")
    # Prefer an exception that is not the consequence of a lost peer, then the lowest rank.
    rank, failure = min(exceptions.items(), key=lambda item: (_is_peer_lost(item[1]), item[0]))
    # If every rank reports only a lost peer, the cause is the process that the monitor saw die first.
    if monitor and _is_peer_lost(failure) and (death := monitor.pop_death(role="rank", oldest_first=True)):
        return explain_death(str(failure.error), death)
    process = failure.process or ProcessInfo(stage=name, role="rank", index=rank)
    return explain_exception(process, failure.error, failure.traceback)


def _is_peer_lost(failure: WorkerError) -> bool:
    """Whether a rank raised an exception because another rank had died."""
    return _PEER_LOST_PATTERN.search(str(failure.error)) is not None


def _health_check_failure(failure: Exception) -> Exception:
    """Return the exception inside Ray Train's WorkerHealthCheckFailedError; any other exception unchanged."""
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return failure.health_check_failure if isinstance(failure, WorkerHealthCheckFailedError) else failure


def _run_worker(
    worker_fn: Callable[[RankContext, Any], None], payload: Any, placement: Placement, stage: str | None
) -> None:
    """Join the group's process group and call `worker_fn`. This function runs in every worker process."""
    import ray.train
    import torch
    import torch.distributed as dist
    from ray.train.collective import broadcast_from_rank_zero

    check_no_shadowed_packages()
    torch.set_num_threads(placement.threads_per_worker)
    train_context = ray.train.get_context()
    rank_context = RankContext(rank=train_context.get_world_rank(), world_size=train_context.get_world_size())
    with monitored(stage, "rank", rank_context.rank):
        try:
            address = broadcast_from_rank_zero(free_address() if rank_context.rank == 0 else "")
            join_process_group(
                rank_context, backend=placement.backend, address=address, timeout_s=_COLLECTIVE_TIMEOUT_S
            )
            worker_fn(rank_context, payload)
            dist.destroy_process_group()
        except Exception as error:
            raise wrap_error(error, current_process_info()) from None
