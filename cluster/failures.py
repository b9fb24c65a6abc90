"""A failure told in one sentence (stage, process, node, cause, log), and the rest after it."""

from dataclasses import dataclass

from cluster.death_causes import LOST_WITH_NODE, cause_in_report, ip_in_report, pid_in_report
from cluster.node_monitor import ProcessEvent
from cluster.process_info import ProcessInfo, sentence
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


class WorkFailed(RuntimeError):
    """Work failed for good; its text is one sentence for the user, `detail` whatever else is known."""

    def __init__(self, text: str, detail: str = "") -> None:
        super().__init__(text, detail)
        self.text, self.detail = text, detail

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Explanation:
    """What is said of a failure."""

    sentence: str
    detail: str = ""
    """A traceback, or the end of the process's log."""

    def error(self, addition: str = "") -> WorkFailed:
        """The same as an exception, with something added to the sentence."""
        return WorkFailed(f"{self.sentence}{addition}", self.detail)


def explain(error: BaseException, *, stage: str = "", role: str | None = None, index: int | None = None) -> Explanation:
    """What happened to the process that died or raised; `role` and `index` name it where they are known."""
    from ray.exceptions import RayActorError  # late: `plan` need not wait for Ray

    watch = current_monitor()
    stage = watch.stage if watch else stage
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return _explain_failed_start(error, stage, role, index)
    if _is_death(error):
        report = str(error)
        pid, ip = pid_in_report(report), ip_in_report(report)
        death = watch.death_of(role=role, index=index, pid=pid, ip=ip) if watch else None
        return explain_death(report, death) if death else _explain_unseen_death(report, stage, role, index)
    text = traceback_text(error)
    place = error.place if isinstance(error, WorkerError) else None
    if watch and is_ray_task_error(error) and (pid := pid_in_report(text)):
        place = watch.place_of(pid=pid, ip=ip_in_report(text))
    if place is not None:
        return explain_raised(place, error, text)
    who = (f"{stage}: " if stage else "") + "the driver" if role is None else _place(stage, role, index)
    return Explanation(f"{who} {describe_error(error, text)}", text)


def _explain_failed_start(error: BaseException, stage: str, role: str | None, index: int | None) -> Explanation:
    """What is said of an actor that raised while it was made: Ray gives its traceback as text only."""
    watch, text = current_monitor(), strip_colors(str(error))
    pid, frame = pid_in_report(text), innermost_frame(text)
    place = watch.place_of(pid=pid, ip=ip_in_report(text)) if watch and pid else None
    cause = f"raised {_last_line(text)}" + (f", at {frame}" if frame else "") + ", when it was made"
    return Explanation(sentence(place, cause) if place else f"{_place(stage, role, index)} {cause}", text)


def explain_raised(place: ProcessInfo, error: BaseException, text: str) -> Explanation:
    """What is said of an exception in a process that is known, with its traceback as that process wrote it."""
    return Explanation(sentence(place, describe_error(error, text)), text)


def explain_death(report: str, death: ProcessEvent) -> Explanation:
    """What is said of a death that was seen, and of which Ray or a survivor gives a report."""
    cause = death.cause if death.is_certain else cause_in_report(report) or death.cause
    return Explanation(sentence(death.place, cause), _end(death.log_tail))


def _explain_unseen_death(report: str, stage: str, role: str | None, index: int | None) -> Explanation:
    """What is said of a death that no watch has seen, as of one with its node and the watch there."""
    watch, pid, ip = current_monitor(), pid_in_report(report), ip_in_report(report)
    place = watch.place_of(role=role, index=index, pid=pid, ip=ip) if watch and (pid or role) else None
    who = str(place) if place else _place(stage, role, index) + (f" on node {ip}" if ip else "")
    is_lost = watch is not None and place is not None and watch.is_lost(place.ip)
    cause = cause_in_report(report) or (LOST_WITH_NODE if is_lost else "died, and nothing was seen of why")
    if cause == LOST_WITH_NODE and watch and (memory := watch.memory_of(place.ip if place else ip)):
        cause += f", whose control group had used {memory} when it was last seen"
    return Explanation(f"{who} {cause}", _end(report))


def _is_death(error: BaseException) -> bool:
    """Whether Ray says that a process is gone, rather than that it raised something."""
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


def _place(stage: str, role: str | None, index: int | None) -> str:
    before = f"{stage}: " if stage else ""
    if role is None:
        return f"{before}a worker"
    return before + (role if index is None else f"{role} {index}")


def _end(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_SHOWN_LINES:])


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "an exception without a text")
