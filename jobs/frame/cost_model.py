"""The cost model: time and memory of a stage's work on a machine, computed from the machine's calibration.

The constants are seconds of the reference processor, two cores of an AMD EPYC 7001. They were tuned on whole demos on
that one and on an EPYC of Zen 4, with AVX-512 and limited to AVX2. To tune them again, compare with what runs measured:
`benchmarks/forecast.py` prints both.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from jobs.frame.calibration import Machine
from jobs.frame.workload import ProcessKind, Workload

REFERENCE_PYTHON_S = 0.0193
"""`Machine.python_s` of the reference processor."""


class ProcessCost(NamedTuple):
    """The cost of one process before it works."""

    memory_gib: float
    """Memory before it holds anything of the stage's."""
    start_cpu_s: float
    """Processor seconds until it is ready: imports, process group, warm-up of an engine."""
    start_wait_s: float
    """Seconds of waiting until it is ready: polls, handshakes, worker pools."""


PROCESS_COSTS: Mapping[ProcessKind, ProcessCost] = {
    "task": ProcessCost(memory_gib=0.2, start_cpu_s=3.0, start_wait_s=2.0),
    "trainer": ProcessCost(memory_gib=0.57, start_cpu_s=13.0, start_wait_s=6.0),
    "actor": ProcessCost(memory_gib=0.36, start_cpu_s=9.0, start_wait_s=3.0),
    "engine": ProcessCost(memory_gib=0.55, start_cpu_s=35.0, start_wait_s=3.0),
    "server": ProcessCost(memory_gib=2.95, start_cpu_s=72.0, start_wait_s=4.0),
}
SESSION_GIB = 1.05
"""Memory of Ray's own processes and the driver."""
TRAIN_GROUP_GIB = 0.5
"""Memory of Ray Train's controller and helper actors, about nine processes together."""
TRAIN_GROUP_CPU_S = 40.0
"""Processor seconds until these are ready."""
RL_START_CPU_S = 50.0
"""Processor seconds until the actors of a graph are connected and its first weights are checked."""
STEP_S = 0.08
"""Seconds of an optimizer step beside its FLOP: optimizer, synchronization, batches."""
RL_STEP_S = 0.8
"""Seconds of a step of an actor graph beside FLOP and generation: messages, scoring, weight sync and its check."""
ENGINE_STEP_S = 0.012
"""Seconds of an engine's forward pass beside its FLOP: scheduling and sampling, in Python."""
THREAD_EFFICIENCY = 0.75
"""Speed of each of several threads relative to one alone, because they share memory and caches."""
WIDE_MODEL_EFFICIENCY = 0.8
"""Fraction of a large matrix product's speed that the training of a wide model reaches."""


class Cost(NamedTuple):
    """What work takes on a machine."""

    seconds: float
    memory_gib: float
    """Peak over all processes of the session."""


def predict(workload: Workload, machine: Machine) -> Cost:
    """The likely cost of work on the processors of a machine."""
    assert not workload.on_gpu, "the calibration of a processor says nothing about GPUs"
    slowness = machine.python_s / REFERENCE_PYTHON_S
    num_processes = sum(group.number for group in workload.processes)
    has_train_group = any(group.kind == "trainer" for group in workload.processes)
    start_s = sum(PROCESS_COSTS[group.kind].start_cpu_s * group.number for group in workload.processes)
    start_s += TRAIN_GROUP_CPU_S * has_train_group + RL_START_CPU_S * (workload.rl_steps > 0)
    parallel_starts = min(machine.cores, has_train_group + max(1, num_processes))
    wait_s = max((PROCESS_COSTS[group.kind].start_wait_s for group in workload.processes), default=0.0)
    python_s = workload.python_s / max(1, min(workload.python_processes, machine.cores))
    serial_s = workload.steps * STEP_S + workload.rl_steps * RL_STEP_S + workload.engine_steps * ENGINE_STEP_S
    seconds = (
        wait_s
        + slowness * (start_s / parallel_starts + python_s + serial_s)
        + workload.flop / reachable_flops(workload, machine)
    )
    memory_gib = SESSION_GIB + workload.driver_gib + TRAIN_GROUP_GIB * has_train_group
    memory_gib += sum(
        (PROCESS_COSTS[group.kind].memory_gib + group.memory_gib) * group.number for group in workload.processes
    )
    return Cost(seconds, memory_gib)


def reachable_flops(workload: Workload, machine: Machine) -> float:
    """FLOP/s that a model of the work's width reaches with the work's threads."""
    narrow = machine.step_flops * min(1.0, math.sqrt(workload.width / 256))
    wide = max(narrow, WIDE_MODEL_EFFICIENCY * machine.product_flops)
    wide_share = min(1.0, max(0.0, math.log2(workload.width / 256) / 2))  # 0 at width 256, 1 from 1024 on
    per_thread = narrow * (1 - wide_share) + wide * wide_share
    if workload.precision == "bfloat16":
        per_thread *= machine.bfloat16_speed
    threads = max(1, min(workload.threads, machine.cores))
    return per_thread * threads * (THREAD_EFFICIENCY if threads > 1 else 1.0)
