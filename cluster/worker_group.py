"""A group of equal workers in one process group, run by Ray Train and restarted when a worker dies."""

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
"""How long a rank waits for another in a collective."""
_PEER_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset) by peer|torch\.distributed|Socket")
"""Matches the exceptions that a rank raises because another one is gone."""

log = logging.getLogger(__name__)


class StoppedOnRequest(Exception):
    """Raised by `work` once it has saved its progress, because the driver asked it to stop (`stop_requested`)."""


def run_worker_group(
    work: Callable[[RankContext, Any], None], payload: Any, placement: Placement, *, name: str
) -> None:
    """Call `work(rank_context, payload)` in every worker of the group, inside an initialized process group.

    When a worker dies the whole group is restarted, up to `placement.max_failures` times, and `work` itself resumes
    from the last whole checkpoint. Its results are what it writes to storage. Raises ValueError when the group does
    not fit into the cluster or `work` raised one (a mistake of the user's, which no restart helps), RuntimeError when
    the group failed for good.
    """
    from ray.train import TrainingFailedError  # late, as below: a second that `plan` need not wait for

    for attempt in range(placement.max_failures + 1):
        wait_for_capacity(
            placement.bundles, f"{name}: execution.placement"
        )  # each time: a node may be gone with a worker
        try:
            _run_once(work, payload, placement, name)
            return
        except TrainingFailedError as error:
            for failure in _failures(error).values():
                if isinstance(failure, WorkerError) and isinstance(failure.error, ValueError):
                    raise ValueError(f"{name}: {failure.error}") from error
            first = _first_failure(error, name)
            if attempt == placement.max_failures:
                limit = f" (execution.placement.max_failures={placement.max_failures})"
                raise first.to_error(f"; no restart is left{limit}") from error
            log.warning("%s; all ranks restart from the last checkpoint", first.sentence)


def _run_once(work: Callable[[RankContext, Any], None], payload: Any, placement: Placement, name: str) -> None:
    import ray.train

    from cluster.trainer import Trainer

    # Ray Train resumes silently where storage path and name are those of an older run: neither is ever reused.
    scratch = tempfile.mkdtemp(prefix="raymill-train-")
    # As arguments of the function, not as `train_loop_config`: that the controller would load, and with it torch.
    trainer = Trainer(
        partial(_work_in_group, work, payload, placement, stage_monitor.current_stage()),
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
        _fit(trainer)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fit(trainer: "Trainer") -> None:
    """Call `trainer.fit()` in a thread, as in the main thread it would handle SIGINT; let its workers stop in order."""
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # raised again below, in the waiting thread
            errors.append(error)

    if (monitor := stage_monitor.current_monitor()) is not None:
        monitor.ignore_exits("rank")  # the processes of the previous attempt have been ended
    thread = threading.Thread(target=fit, daemon=True, name="trainer")
    thread.start()
    with defer_signals():
        while thread.is_alive() and received_signal() is None:
            thread.join(_POLL_S)
        if received_signal() is not None and monitor is not None:
            monitor.request_stop()
            monitor.wait_for_exit("rank")
    if errors:
        raise errors[0]


def _failures(error: "TrainingFailedError") -> dict[int, Exception]:
    """The failures by rank; empty when the group never started."""
    from ray.train import WorkerGroupError

    return dict(sorted(error.worker_failures.items())) if isinstance(error, WorkerGroupError) else {}


def _first_failure(error: "TrainingFailedError", name: str) -> Explanation:
    """The failure that came first: a death makes the other ranks fail in a collective."""
    from ray.train import ControllerError

    failures, monitor = _failures(error), stage_monitor.current_monitor()
    raised = {rank: failure for rank, failure in failures.items() if isinstance(failure, WorkerError)}
    for rank, failure in failures.items():
        if rank not in raised:
            return explain(_health_check_failure(failure), stage=name, role="rank", index=rank)
    if not raised:
        inner = error.controller_failure if isinstance(error, ControllerError) else error
        return explain(inner, stage=name, role="rank")
    rank, failure = min(raised.items(), key=lambda one: (_PEER_LOST.search(str(one[1].error)) is not None, one[0]))
    is_consequence = _PEER_LOST.search(str(failure.error)) is not None
    if monitor and is_consequence and (death := monitor.pop_death(role="rank", oldest_first=True)):
        return explain_death(str(failure.error), death)
    process = failure.process or ProcessInfo(stage=name, role="rank", index=rank)
    return explain_exception(process, failure.error, failure.traceback)


def _health_check_failure(failure: Exception) -> Exception:
    """The failure that Ray Train's health check of a worker found, or the failure itself."""
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return failure.health_check_failure if isinstance(failure, WorkerHealthCheckFailedError) else failure


def _work_in_group(
    work: Callable[[RankContext, Any], None], payload: Any, placement: Placement, stage: str | None
) -> None:
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
            work(rank_context, payload)
            dist.destroy_process_group()
        except Exception as error:
            raise wrap_error(error, current_process_info()) from None
