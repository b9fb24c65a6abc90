"""How many processes a stage starts and what each may use. Part of `execution:`, never of an artifact's id."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The `execution:` settings that every stage has."""

    wait_s: float = 600.0
    """How long the stage waits for nodes that its workers need and that are still to come. Not used in a cluster that
    the command started itself, which gets no further nodes."""

    def __post_init__(self) -> None:
        if self.wait_s < 0:
            raise ValueError(f"execution.wait_s: {self.wait_s:g} must not be negative; 0 waits for nothing")


@dataclass(frozen=True, kw_only=True)
class TasksExecution(Execution):
    """The `execution:` settings of a stage whose work is many independent tasks."""

    workers: int | None = None
    """Tasks at once, one CPU each; null takes all CPUs of the cluster. 0 runs the tasks one after another in the
    command's own process, where `breakpoint()` opens the debugger."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers is not None and self.workers < 0:
            raise ValueError(
                f"execution.workers: {self.workers} must not be negative; leave it out for all CPUs, 0 runs the tasks "
                "in this process"
            )


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A group of equal workers."""

    workers: int = 1
    """Processes in the group."""
    cpus_per_worker: float = 1.0
    """A fraction lets several actors share a core."""
    gpus_per_worker: float = 0.0
    """GPUs of each worker; 0 computes on CPUs."""
    backend: Literal["gloo", "nccl"] = "gloo"
    """Communication backend of the workers' process group: gloo on CPUs, nccl on GPUs."""
    threads_per_worker: int = 1
    """OpenMP threads of a worker; threads times workers on one node must not exceed its cores."""
    max_failures: int = 3
    """How often the group is restarted from its last checkpoint after a worker died."""

    def check(self, field: str, *, forms_process_group: bool = True) -> None:
        """Raises ValueError naming the field, the value, the rule and the remedy.

        `forms_process_group` is false for workers that never communicate with each other: their backend is not checked.
        """
        for name, value in (("workers", self.workers), ("threads_per_worker", self.threads_per_worker)):
            if value < 1:
                raise ValueError(f"{field}.{name}: {value} must be at least 1")
        if self.max_failures < 0:
            raise ValueError(f"{field}.max_failures: {self.max_failures} must not be negative; 0 restarts nothing")
        if self.cpus_per_worker < 0 or self.gpus_per_worker < 0:
            raise ValueError(f"{field}: cpus_per_worker and gpus_per_worker must not be negative")
        if self.backend == "nccl" and self.gpus_per_worker == 0:
            raise ValueError(f"{field}.backend: nccl needs gpus_per_worker above 0; take gloo on CPUs")
        if forms_process_group and self.backend == "gloo" and self.gpus_per_worker > 0:
            raise ValueError(
                f"{field}.backend: gloo cannot shard a model over GPUs (gpus_per_worker={self.gpus_per_worker:g}); "
                "take nccl"
            )

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """Where a worker computes, as torch names it."""
        return "cuda" if self.gpus_per_worker > 0 else "cpu"

    @property
    def resources(self) -> dict[str, float]:
        """The resources of all workers together."""
        return {name: self.workers * amount for name, amount in self.bundle.items()}

    @property
    def bundle(self) -> dict[str, float]:
        """The resources of one worker, on one node, as Ray takes them: {"CPU": …, "GPU": …} without zeros."""
        needed = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        return {name: amount for name, amount in needed.items() if amount}

    @property
    def bundles(self) -> list[dict[str, float]]:
        """The resources of each worker."""
        return [self.bundle] * self.workers


def total_resources(placements: Iterable[Placement]) -> dict[str, float]:
    """The resources of groups that run at the same time."""
    return sum_resources(placement.resources for placement in placements)


def sum_resources(bundles: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The sum of the bundles, resource by resource."""
    total: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def format_amount(name: str, amount: float) -> str:
    """`1 CPU`, `8 GPUs`."""
    return f"{amount:g} {name}{'' if amount == 1 else 's'}"


def check_fits(needed: Mapping[str, float], available: Mapping[str, float], field: str) -> None:
    """Raises ValueError when the cluster as a whole has less than `needed`."""
    for name, amount in needed.items():
        present = available.get(name, 0.0)
        if amount > present + 1e-9:
            raise ValueError(
                f"{field}: does not fit: needs {format_amount(name, amount)}, the cluster has {present:g}; "
                "lower the number of workers or the share of each, or take a larger cluster"
            )
