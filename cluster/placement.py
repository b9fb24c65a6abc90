"""Where the processes of a stage go: how many, and what each may use. Part of `execution:`, never of an identity."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A group of equal workers."""

    workers: int = 1
    cpus_per_worker: float = 1.0
    """A fraction lets several actors share a core."""
    gpus_per_worker: float = 0.0
    backend: Literal["gloo", "nccl"] = "gloo"
    """Of the workers' process group: gloo on CPUs, nccl on GPUs."""
    threads_per_worker: int = 1
    """OpenMP threads; threads times workers on one node must not exceed its cores."""
    max_failures: int = 3
    """How often the group is started again, from its last checkpoint, after a worker died."""

    def check(self, field: str, *, forms_group: bool = True) -> None:
        """Raises ValueError naming the field, the value, the rule and the remedy.

        `forms_group` is false for workers that never talk to each other: then their backend says nothing.
        """
        for name in ("workers", "threads_per_worker"):
            if getattr(self, name) < 1:
                raise ValueError(f"{field}.{name}: {getattr(self, name)} must be at least 1")
        if self.max_failures < 0:
            raise ValueError(f"{field}.max_failures: {self.max_failures} must not be negative; 0 starts nothing again")
        if self.cpus_per_worker < 0 or self.gpus_per_worker < 0:
            raise ValueError(f"{field}: cpus_per_worker and gpus_per_worker must not be negative")
        if self.backend == "nccl" and self.gpus_per_worker == 0:
            raise ValueError(f"{field}.backend: nccl needs gpus_per_worker above 0; take gloo on CPUs")
        if forms_group and self.backend == "gloo" and self.gpus_per_worker > 0:
            raise ValueError(
                f"{field}.backend: gloo cannot shard a model over GPUs (gpus_per_worker={self.gpus_per_worker:g}); "
                "take nccl"
            )

    @property
    def resources(self) -> dict[str, float]:
        """What all the workers need together."""
        needed = {"CPU": self.workers * self.cpus_per_worker, "GPU": self.workers * self.gpus_per_worker}
        return {name: amount for name, amount in needed.items() if amount}


def total_resources(placements: Iterable[Placement]) -> dict[str, float]:
    """What groups that run at the same time need together."""
    total: dict[str, float] = {}
    for placement in placements:
        for name, amount in placement.resources.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def check_room(needed: dict[str, float], available: dict[str, float], field: str) -> None:
    """Raise ValueError when the cluster as a whole has less than `needed`."""
    for name, amount in needed.items():
        if amount > available.get(name, 0.0) + 1e-9:
            raise ValueError(
                f"{field}: needs {amount:g} {name}, but the whole cluster has {available.get(name, 0.0):g}; "
                "lower the number of workers or the share of each, or add nodes"
            )
