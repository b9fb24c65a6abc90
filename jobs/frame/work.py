"""What a stage's work amounts to, in quantities that no machine changes: what `forecast.py` makes seconds and GiB of.

Each stage tells its own (`Stage.work`). Quantities are the likely ones, not bounds: a forecast is compared with what
was measured.
"""

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["task", "trainer", "actor", "engine", "server"]
"""task: of the data path, no torch. trainer: of a Ray Train group. actor: with torch, beside an engine. engine: vLLM in
an actor. server: vLLM's own."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Worker processes that live at the same time as all others of the stage."""

    kind: Kind
    number: int = 1
    own_gib: float = 0.0
    """Memory of each beyond what every process of its kind takes: models, state, activations, caches, texts."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The likely work of one stage."""

    processes: list[Processes] = field(default_factory=list)
    flop: float = 0.0
    """Of dense products, over the whole stage."""
    width: int = 256
    """Of the model: narrow ones reach less of what the processor can."""
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int = 1
    """That compute at the same time, over all workers."""
    steps: int = 0
    """Optimizer steps, each with its synchronisations and its part of logs and checkpoints."""
    rl_steps: int = 0
    """Steps of an actor graph, each with its rounds of messages, weight sync and sync check."""
    engine_steps: float = 0.0
    """Forward passes of engines, one for each token of a generation batch, at any batch size."""
    python_s: float = 0.0
    """Seconds of Python on the reference processor (`forecast.REFERENCE_PYTHON_S`), for one process."""
    python_processes: int = 1
    """Among how many these are shared out."""
    disk_gib: float = 0.0
    """Written into the artifact, checkpoints included."""
    driver_gib: float = 0.0
    """Memory that the driver takes for it."""
    on_gpu: bool = False
    """Then nothing of it can be told from what this machine's processor does."""
