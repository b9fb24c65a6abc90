"""One sentence that explains a failure (stage, process, node, cause, log), and the details behind it."""

from dataclasses import dataclass

from cluster.death_causes import LOST_WITH_NODE, cause_in_report, ip_in_report, pid_in_report
from cluster.node_monitor import ProcessEvent
from cluster.process_info import ProcessInfo
from cluster.stage_monitor import current_monitor
from cluster.worker_errors import (
    WorkerError,
    describe_error,
    innermost_frame,
    is_ray_task_error,
    original_error,
    strip_colors,
    traceback_text,
)

_SHOWN_LINES = 12


class JobFailed(RuntimeError):
    """Work failed for good; `text` is one sentence for the user, `detail` a traceback or the end of a log."""

    def __init__(self, text: str, detail: str = "") -> None:
        super().__init__(text, detail)
        self.text, self.detail = text, detail

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Explanation:
    """A failure in words."""

    sentence: str
    detail: str = ""
    """A traceback, or the end of the process's log."""

    def error(self, addition: str = "") -> JobFailed:
        """The explanation as an exception, with `addition` appended to the sentence."""
        return JobFailed(f"{self.sentence}{addition}", self.detail)


def explain(error: BaseException, *, stage: str = "", role: str | None = None, index: int | None = None) -> Explanation:
    """The explanation of an exception, or of the death that it reports.

    `stage`, `role` and `index` name the process where the caller knows them and no monitor does.
    """
    from ray.exceptions import RayActorError  # late: `plan` need not wait for Ray

    monitor = current_monitor()
    stage = monitor.stage if monitor else stage
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return _explain_failed_start(error, stage, role, index)
    if _is_death(error):
        report = str(error)
        pid, ip = pid_in_report(report), ip_in_report(report)
        death = monitor.pop_death(role=role, index=index, pid=pid, ip=ip) if monitor else None
        return explain_death(report, death) if death else _explain_unseen_death(report, stage, role, index)
    text = traceback_text(error)
    process = error.process if isinstance(error, WorkerError) else None
    if monitor and is_ray_task_error(error) and (pid := pid_in_report(text)):
        process = monitor.find_process(pid=pid, ip=ip_in_report(text))
    if process is not None:
        return explain_exception(process, error, text)
    subject = (f"{stage}: " if stage else "") + "the driver" if role is None else _subject(stage, role, index)
    return Explanation(f"{subject} {describe_error(error, text)}", text)


def _explain_failed_start(error: BaseException, stage: str, role: str | None, index: int | None) -> Explanation:
    """The explanation of an actor whose constructor raised: Ray gives its traceback as text only."""
    monitor, text = current_monitor(), strip_colors(str(error))
    pid, frame = pid_in_report(text), innermost_frame(text)
    process = monitor.find_process(pid=pid, ip=ip_in_report(text)) if monitor and pid else None
    cause = f"raised {_last_line(text)}" + (f", at {frame}" if frame else "") + ", when it was made"
    return Explanation(process.sentence(cause) if process else f"{_subject(stage, role, index)} {cause}", text)


def explain_exception(process: ProcessInfo, error: BaseException, traceback: str) -> Explanation:
    """The explanation of an exception in a known process, with the traceback as that process wrote it."""
    return Explanation(process.sentence(describe_error(error, traceback)), traceback)


def explain_death(report: str, death: ProcessEvent) -> Explanation:
    """The explanation of a death that a monitor saw; `report` is what Ray or a surviving process says of it."""
    cause = death.cause if death.is_cause_certain else cause_in_report(report) or death.cause
    return Explanation(death.process.sentence(cause), _last_lines(death.log_tail))


def _explain_unseen_death(report: str, stage: str, role: str | None, index: int | None) -> Explanation:
    """The explanation of a death that no monitor saw, for example because its node and the monitor there are gone."""
    monitor, pid, ip = current_monitor(), pid_in_report(report), ip_in_report(report)
    process = monitor.find_process(role=role, index=index, pid=pid, ip=ip) if monitor and (pid or role) else None
    subject = str(process) if process else _subject(stage, role, index) + (f" on node {ip}" if ip else "")
    is_node_lost = monitor is not None and process is not None and monitor.is_node_lost(process.ip)
    cause = cause_in_report(report) or (LOST_WITH_NODE if is_node_lost else "died, and nothing was seen of why")
    if cause == LOST_WITH_NODE and monitor and (memory := monitor.last_memory_use(process.ip if process else ip)):
        cause += f", whose control group had used {memory} when it was last seen"
    return Explanation(f"{subject} {cause}", _last_lines(report))


def _is_death(error: BaseException) -> bool:
    """Whether Ray reports that a process is gone, rather than that it raised something."""
    from ray.exceptions import (
        LocalRayletDiedError,
        NodeDiedError,
        ObjectLostError,
        OutOfMemoryError,
        RayActorError,
        WorkerCrashedError,
    )

    processes = (RayActorError, WorkerCrashedError, OutOfMemoryError)
    nodes = (NodeDiedError, LocalRayletDiedError, ObjectLostError)
    return isinstance(original_error(error), processes + nodes)


def _subject(stage: str, role: str | None, index: int | None) -> str:
    """`rlhf: generator 0`, with as much of it as is known."""
    prefix = f"{stage}: " if stage else ""
    if role is None:
        return f"{prefix}a worker"
    return prefix + (role if index is None else f"{role} {index}")


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_SHOWN_LINES:])


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "an exception without a text")
