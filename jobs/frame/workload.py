"""The work of a stage in quantities that do not depend on the machine; forecasts turn them into seconds and GiB.

Each stage declares its own (`Stage.workload`). The quantities are likely values, not bounds, because a forecast is
compared with what was measured.
"""

from dataclasses import dataclass, field
from typing import Literal

ProcessKind = Literal["task", "trainer", "actor", "engine", "server"]
"""task: of the data stages, without torch. trainer: of a Ray Train group. actor: with torch, in an actor graph. engine:
vLLM in an actor. server: vLLM's own."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Equal worker processes, which run at the same time as all others of the stage."""

    kind: ProcessKind
    number: int = 1
    memory_gib: float = 0.0
    """Memory of each beyond what every process of its kind takes: models, state, activations, caches, texts."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The likely work of one stage."""

    processes: list[Processes] = field(default_factory=list)
    flop: float = 0.0
    """FLOP of dense products over the whole stage."""
    width: int = 256
    """Width of the model; narrow ones reach less of the processor's speed."""
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int = 1
    """Threads that compute at the same time, over all workers."""
    steps: int = 0
    """Optimizer steps, each with its synchronization and its share of logging and checkpoints."""
    rl_steps: int = 0
    """Steps of an actor graph, each with its messages, weight sync and sync check."""
    engine_steps: float = 0.0
    """Forward passes of the engines: one for each token of a generation batch, whatever its size."""
    python_s: float = 0.0
    """Seconds of Python in one process on the reference processor (`cost_model.REFERENCE_PYTHON_S`)."""
    python_processes: int = 1
    """Processes that share `python_s`."""
    disk_gib: float = 0.0
    """Size of the artifact, checkpoints included."""
    driver_gib: float = 0.0
    """Memory of the driver for this stage."""
    on_gpu: bool = False
    """Whether it computes on GPUs; then this machine's processor says nothing about its time and memory."""
