"""Explains a failure in one sentence that names the stage, the process, its node, the cause and the log.

A failure is an exception or the death of a process. Ray's report of a death seldom states the cause. The cause then
comes from the stage's monitor, which observes all processes of the stage (`cluster.stage_monitor`).
"""

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

_MAX_DETAIL_LINES = 12
"""Of a log or of Ray's report, this many lines at the end become the detail of an explanation."""


class JobFailed(RuntimeError):
    """A job failed and does not continue: nothing restarts after such a failure, or no restart is left.

    `text` is one sentence for the user. `detail` is a traceback, or the end of a log or of Ray's report. It is empty if
    there is none.
    """

    def __init__(self, text: str, detail: str = "") -> None:
        super().__init__(text, detail)
        self.text, self.detail = text, detail

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Explanation:
    """The explanation of one failure."""

    sentence: str
    detail: str = ""
    """A traceback, the end of the process's log, or the end of Ray's report. Empty if there is none."""

    def to_error(self, suffix: str = "") -> JobFailed:
        """Convert the explanation to an exception, with `suffix` appended to the sentence."""
        return JobFailed(f"{self.sentence}{suffix}", self.detail)


def explain(error: BaseException, *, stage: str = "", role: str | None = None, index: int | None = None) -> Explanation:
    """Explain an exception, or the death of a process if `error` is the exception with which Ray reports a death.

    `role` and `index` name the process as far as the caller knows it. They select the death among those that the
    stage's monitor observed, and they appear in the sentence if the monitor does not know the process. `stage` is used
    only if no stage is monitored. With `role=None`, an exception of an unknown process is attributed to the driver.
    """
    from ray.exceptions import RayActorError  # Imported here so that `raymill plan` does not import Ray.

    monitor = current_monitor()
    stage = monitor.stage if monitor else stage
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return _explain_constructor_error(error, stage, role, index)
    if _is_death(error):
        report = str(error)
        pid, ip = pid_in_report(report), ip_in_report(report)
        death = monitor.pop_death(role=role, index=index, pid=pid, ip=ip) if monitor else None
        return explain_death(report, death) if death else _explain_unobserved_death(report, stage, role, index)
    text = traceback_text(error)
    process = error.process if isinstance(error, WorkerError) else None
    if monitor and is_ray_task_error(error) and (pid := pid_in_report(text)):
        process = monitor.find_process(pid=pid, ip=ip_in_report(text))
    if process is not None:
        return explain_exception(process, error, text)
    prefix = f"{stage}: " if stage else ""
    subject = f"{prefix}the driver" if role is None else _subject(stage, role, index)
    return Explanation(f"{subject} {describe_error(error, text)}", text)


def _explain_constructor_error(error: BaseException, stage: str, role: str | None, index: int | None) -> Explanation:
    """Explain an exception in an actor's constructor. Of such an exception, Ray passes on only the traceback's text."""
    monitor, text = current_monitor(), strip_colors(str(error))
    pid, frame = pid_in_report(text), innermost_frame(text)
    process = monitor.find_process(pid=pid, ip=ip_in_report(text)) if monitor and pid else None
    cause = f"raised {_last_line(text)}" + (f", at {frame}" if frame else "") + ", in its constructor"
    return Explanation(process.sentence(cause) if process else f"{_subject(stage, role, index)} {cause}", text)


def explain_exception(process: ProcessInfo, error: BaseException, traceback: str) -> Explanation:
    """Explain an exception that a given process raised. `traceback` is the text of the exception's traceback."""
    return Explanation(process.sentence(describe_error(error, traceback)), traceback)


def explain_death(report: str, death: ProcessEvent) -> Explanation:
    """Explain a death that a monitor observed. `report` is what Ray or a surviving process reports about the death."""
    cause = death.cause if death.is_cause_certain else cause_in_report(report) or death.cause
    return Explanation(death.process.sentence(cause), _last_lines(death.log_tail))


def _explain_unobserved_death(report: str, stage: str, role: str | None, index: int | None) -> Explanation:
    """Explain a death that no monitor observed, for example because the monitor was lost together with the node."""
    monitor, pid, ip = current_monitor(), pid_in_report(report), ip_in_report(report)
    process = monitor.find_process(role=role, index=index, pid=pid, ip=ip) if monitor and (pid or role) else None
    subject = str(process) if process else _subject(stage, role, index) + (f" on node {ip}" if ip else "")
    is_node_lost = monitor is not None and process is not None and monitor.is_node_lost(process.ip)
    cause = cause_in_report(report) or (LOST_WITH_NODE if is_node_lost else "died for an unknown reason")
    if cause == LOST_WITH_NODE and monitor and (memory := monitor.last_memory_use(process.ip if process else ip)):
        cause += f"; the last report of its node showed {memory} of memory in use"
    return Explanation(f"{subject} {cause}", _last_lines(report))


def _is_death(error: BaseException) -> bool:
    """Whether Ray's exception reports that a process or its node died, and not that the process raised an exception."""
    from ray.exceptions import (
        LocalRayletDiedError,
        NodeDiedError,
        ObjectLostError,
        OutOfMemoryError,
        RayActorError,
        WorkerCrashedError,
    )

    process_deaths = (RayActorError, WorkerCrashedError, OutOfMemoryError)
    node_deaths = (NodeDiedError, LocalRayletDiedError, ObjectLostError)
    return isinstance(original_error(error), process_deaths + node_deaths)


def _subject(stage: str, role: str | None, index: int | None) -> str:
    """Name a process as in `rlhf: generator 0`, without the parts that are unknown. Without a role it is `a worker`."""
    prefix = f"{stage}: " if stage else ""
    if role is None:
        return f"{prefix}a worker"
    return prefix + (role if index is None else f"{role} {index}")


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_MAX_DETAIL_LINES:])


def _last_line(text: str) -> str:
    return next(
        (line.strip() for line in reversed(text.splitlines()) if line.strip()), "an exception without a message"
    )
