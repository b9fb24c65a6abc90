"""The workload of a stage: quantities of work, such as floating-point operations, that do not depend on the speed of
the machine.

`Stage.workload` computes a workload, and `cost_model.py` predicts seconds and GiB from it. The quantities are likely
values and not upper bounds, because forecasts should be close to what is measured later.
"""

from dataclasses import dataclass, field
from typing import Literal

ProcessKind = Literal["task", "trainer", "actor", "engine", "server"]
"""The kind of a worker process.

- task: a Ray task of a data stage, which does not import torch.
- trainer: a rank of a Ray Train group.
- actor: a Ray actor or task that imports torch, such as a learner or a scorer.
- engine: a Ray actor or task with a vLLM engine.
- server: vLLM's own server process.
"""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Several worker processes of the same kind and size. All worker processes of a stage are assumed to run at the
    same time."""

    kind: ProcessKind
    number: int = 1
    """How many processes there are."""
    memory_gib: float = 0.0
    """Memory of each process for models, optimizer state, activations, caches and texts. The memory that every process
    of this kind needs even when idle is not included; it is in `cost_model.PROCESS_COSTS`."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The likely work of one complete run of a stage."""

    processes: list[Processes] = field(default_factory=list)
    flop: float = 0.0
    """Floating-point operations of all matmuls, over all workers (a count, not a rate)."""
    width: int = 256
    """Hidden size of the model. A machine reaches fewer FLOP/s with a model of a small hidden size."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the matmuls."""
    threads: int = 1
    """Number of threads that compute matmuls at the same time, over all workers."""
    steps: int = 0
    """Number of optimizer steps of a training stage. The cost model adds `STEP_S` for each of them."""
    rlhf_steps: int = 0
    """Number of RLHF steps. The cost model adds `RLHF_STEP_S` for each of them."""
    engine_steps: float = 0.0
    """Number of forward passes of the vLLM engines. One pass decodes one more token for every prompt of a batch."""
    python_s: float = 0.0
    """Seconds that the stage's Python code would take in one process on the reference processor
    (`cost_model.REFERENCE_PYTHON_S`)."""
    python_processes: int = 1
    """Number of processes that divide the work of `python_s` among them."""
    disk_gib: float = 0.0
    """Size of the artifact, including its checkpoints."""
    driver_gib: float = 0.0
    """Memory that the driver needs for this stage, beyond its usual memory."""
    on_gpu: bool = False
    """Whether the stage computes on GPUs. The cost model then predicts no time and no memory, because only this
    machine's CPU was calibrated."""
