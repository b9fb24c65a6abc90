"""A group of equal workers in one process group, run by Ray Train and started again when one dies."""

import logging
import re
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster import stage_monitor
from cluster.capacity import wait_for_capacity
from cluster.failures import Explanation, explain, explain_death, explain_raised
from cluster.heartbeat import monitored, own_process_info
from cluster.placement import Placement
from cluster.process_info import ProcessInfo
from cluster.session import refuse_shadowed_packages, worker_env
from cluster.signals import defer_signals, received_signal
from cluster.worker_errors import WorkerError, wrap_error

if TYPE_CHECKING:
    from ray.train import TrainingFailedError
    from ray.train.torch import TorchTrainer

_POLL_S = 0.2
_PEER_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset) by peer|torch\.distributed|Socket")
"""In an exception that a rank raises because another one is gone."""

log = logging.getLogger(__name__)


class StoppedOnRequest(Exception):
    """Raised by `work` when it has kept all it has done because the driver is told to end (`stop_requested`)."""


@dataclass(frozen=True)
class RankContext:
    """Where in the group a worker stands."""

    rank: int
    world_size: int


def run_worker_group(
    work: Callable[[RankContext, Any], None], payload: Any, placement: Placement, *, name: str
) -> None:
    """Call `work(spot, payload)` in every worker of the group, inside an initialised process group.

    A worker that dies takes the group with it; the group is started again up to `placement.max_failures` times, and
    `work` itself finds the last whole checkpoint. Results are what `work` writes to storage.
    Raises ValueError when the group does not fit into the cluster, or when `work` raised one (a mistake of the user's,
    which no restart mends); RuntimeError when the group failed for good.
    """
    from ray.train import TrainingFailedError  # late, as below: it takes a second that `plan` need not wait for

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
                raise first.error(f"; no restart is left{limit}") from error
            log.warning("%s; all ranks start again from the last checkpoint", first.sentence)


def _run_once(work: Callable[[RankContext, Any], None], payload: Any, placement: Placement, name: str) -> None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    # Ray Train resumes silently where storage path and name are those of an older run: neither is ever reused.
    scratch = tempfile.mkdtemp(prefix="raymill-train-")
    trainer = TorchTrainer(
        _work_in_group,
        train_loop_config={
            "work": work,
            "payload": payload,
            "threads": placement.threads_per_worker,
            "stage": stage_monitor.current_stage(),
        },
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
        _fit(trainer)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fit(trainer: "TorchTrainer") -> None:
    """`trainer.fit()`, in a thread: in the main one it would take SIGINT for itself. Its workers may stop in order."""
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # raised again below, in the thread that waits
            errors.append(error)

    if (here := stage_monitor.current_monitor()) is not None:
        here.expect_end("rank")  # what was left of the attempt before has been ended
    thread = threading.Thread(target=fit, daemon=True, name="trainer")
    thread.start()
    with defer_signals():
        while thread.is_alive() and received_signal() is None:
            thread.join(_POLL_S)
        if received_signal() is not None and here is not None:
            here.request_stop()
            here.wait_for_end("rank")
    if errors:
        raise errors[0]


def _failures(error: "TrainingFailedError") -> dict[int, Exception]:
    """By rank; empty where the group never came up."""
    from ray.train import WorkerGroupError

    return dict(sorted(error.worker_failures.items())) if isinstance(error, WorkerGroupError) else {}


def _first_failure(error: "TrainingFailedError", name: str) -> Explanation:
    """Of several ranks' failures the one that came first: a death makes the others fail in a collective."""
    from ray.train import ControllerError

    failures, here = _failures(error), stage_monitor.current_monitor()
    raised = {rank: failure for rank, failure in failures.items() if isinstance(failure, WorkerError)}
    for rank, failure in failures.items():
        if rank not in raised:
            return explain(_health(failure), stage=name, role="rank", index=rank)
    if not raised:
        inner = error.controller_failure if isinstance(error, ControllerError) else error
        return explain(inner, stage=name, role="rank")
    rank, failure = min(raised.items(), key=lambda one: (_PEER_LOST.search(str(one[1].error)) is not None, one[0]))
    if here and _PEER_LOST.search(str(failure.error)) and (death := here.take_death(role="rank", is_first=True)):
        return explain_death(str(failure.error), death)
    place = failure.process or ProcessInfo(stage=name, role="rank", index=rank)
    return explain_raised(place, failure.error, failure.traceback)


def _health(failure: Exception) -> Exception:
    """What Ray Train's poll of a worker met."""
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return failure.health_check_failure if isinstance(failure, WorkerHealthCheckFailedError) else failure


def _work_in_group(config: dict[str, Any]) -> None:
    import ray.train
    import torch

    refuse_shadowed_packages()
    torch.set_num_threads(config["threads"])
    here = ray.train.get_context()
    spot = RankContext(rank=here.get_world_rank(), world_size=here.get_world_size())
    with monitored(config["stage"], "rank", spot.rank):
        try:
            config["work"](spot, config["payload"])
        except Exception as error:
            raise wrap_error(error, own_process_info()) from None
