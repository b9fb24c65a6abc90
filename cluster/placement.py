"""How many processes a stage starts, and which resources each process gets.

These settings belong to `execution:` in a config and are never part of an artifact's id.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from cluster.ignored_settings import reject_ignored


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The `execution:` settings that all stages have in common."""

    wait_s: float = 600.0
    """How many seconds the stage waits for nodes that its workers need and that have not joined the cluster yet. If
    there are enough nodes, but other work is using them, it waits as many seconds, or 120 if that is more. In a local
    cluster, which no nodes join, this setting has no effect: the stage waits 120 s for resources in use."""

    def __post_init__(self) -> None:
        if self.wait_s < 0:
            raise ValueError(
                f"execution.wait_s: {self.wait_s:g} must not be negative; with 0 the stage does not wait for nodes"
            )


@dataclass(frozen=True, kw_only=True)
class TasksExecution(Execution):
    """The `execution:` settings of a stage that runs many independent tasks."""

    workers: int | None = None
    """How many tasks run at the same time, each on one CPU. null uses all CPUs of the cluster. 0 runs the tasks one
    after another in the `raymill` process itself, where `breakpoint()` opens the debugger."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers is not None and self.workers < 0:
            raise ValueError(
                f"execution.workers: {self.workers} must not be negative; remove it to use all CPUs, or set it to 0 to "
                "run the tasks in the raymill process itself"
            )


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The size of a group of equal workers, and the resources of each worker."""

    workers: int = 1
    """Number of worker processes in the group."""
    cpus_per_worker: float = 1.0
    """CPU cores of each worker. A fraction lets several workers share a core."""
    gpus_per_worker: float = 0.0
    """GPUs of each worker. With 0 the workers compute on CPUs."""
    backend: Literal["gloo", "nccl"] = "gloo"
    """Communication backend of the workers' process group: gloo for CPUs, nccl for GPUs."""
    threads_per_worker: int = 1
    """OpenMP threads of each worker. All workers on a node together should not have more threads than the node has
    cores. This is not checked."""
    max_failures: int = 3
    """How often workers may be restarted after one has died. Training workers are restarted all together, from their
    last checkpoint. Other workers are restarted alone."""

    def check(self, field: str, *, forms_process_group: bool = True) -> None:
        """Raises ValueError when a value is not allowed. `field` is the name of this placement in the config.

        Set `forms_process_group` to False for workers that do not communicate with each other. They do not use the
        backend, so it must have its default.
        """
        for name, value in (("workers", self.workers), ("threads_per_worker", self.threads_per_worker)):
            if value < 1:
                raise ValueError(f"{field}.{name}: {value} must be at least 1")
        if self.max_failures < 0:
            raise ValueError(
                f"{field}.max_failures: {self.max_failures} must not be negative; with 0 the group is never restarted"
            )
        if self.cpus_per_worker < 0 or self.gpus_per_worker < 0:
            raise ValueError(
                f"{field}: cpus_per_worker ({self.cpus_per_worker:g}) and gpus_per_worker ({self.gpus_per_worker:g}) "
                "must not be negative"
            )
        if self.backend == "nccl" and self.gpus_per_worker == 0:
            raise ValueError(f"{field}.backend: nccl needs gpus_per_worker above 0; use gloo on CPUs")
        if not forms_process_group:
            reason = "these workers do not form a process group"
            reject_ignored(self, "backend", path=field, reason=reason)
        if forms_process_group and self.backend == "gloo" and self.gpus_per_worker > 0:
            raise ValueError(
                f"{field}.backend: gloo cannot shard a model over GPUs (gpus_per_worker={self.gpus_per_worker:g}); "
                "use nccl"
            )

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """The torch device type that the workers compute on."""
        return "cuda" if self.gpus_per_worker > 0 else "cpu"

    @property
    def resources(self) -> dict[str, float]:
        """The amount of each resource for all workers together: {"CPU": …, "GPU": …}, as in `bundle`."""
        return {name: self.workers * amount for name, amount in self.bundle.items()}

    @property
    def bundle(self) -> dict[str, float]:
        """The resources of one worker as a Ray bundle: {"CPU": …, "GPU": …}, without resources of amount 0."""
        needed = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        return {name: amount for name, amount in needed.items() if amount}

    @property
    def bundles(self) -> list[dict[str, float]]:
        """The bundles of a Ray placement group for all workers: `bundle` once for each worker."""
        return [self.bundle] * self.workers


def total_resources(placements: Iterable[Placement]) -> dict[str, float]:
    """Return the amount of each resource that several groups of workers need when they run at the same time."""
    return sum_resources(placement.resources for placement in placements)


def sum_resources(bundles: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Add up the amount of each resource over all bundles."""
    total: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def format_amount(name: str, amount: float) -> str:
    """Format an amount of a resource: `1 CPU`, `8 GPUs`."""
    return f"{amount:g} {name}{'' if amount == 1 else 's'}"


def check_fits(needed: Mapping[str, float], limits: Mapping[str, float], field: str) -> None:
    """Raises ValueError when more of a resource is `needed` than the cluster can ever have.

    Both mappings have the names of resources as keys and amounts as values. The `limits` include resources in use and
    nodes that have not joined yet. `field` is the config field that the error message names.
    """
    for name, amount in needed.items():
        total = limits.get(name, 0.0)
        if amount > total + 1e-9:
            raise ValueError(
                f"{field}: does not fit: needs {format_amount(name, amount)}, the cluster has at most {total:g}; "
                "use fewer workers, give each worker less, or use a larger cluster"
            )
