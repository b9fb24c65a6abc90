"""The cost model: predicts the time and memory of a workload on a machine that was calibrated.

The constants in seconds (their names end in `_S` or `_s`) are valid for the reference processor, two cores of an AMD
EPYC 7001. The constants were fitted to complete runs of the demo on the reference processor and on a Zen 4 EPYC. On the
Zen 4 EPYC, some runs used AVX-512 and others only AVX2. To fit the constants again, compare predictions with
measurements: `benchmarks/forecast.py` prints them side by side.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from jobs.frame.calibration import Machine
from jobs.frame.workload import ProcessKind, Workload

REFERENCE_PYTHON_S = 0.0193
"""`Machine.python_s` of the reference processor. On another machine, the constants in seconds are multiplied
by the ratio of that machine's `python_s` to this value. The exception is `start_wait_s`, because waiting takes as long
on every machine."""


class ProcessCost(NamedTuple):
    """What it costs to start one worker process and to keep it idle."""

    memory_gib: float
    """Memory of the idle process, before it has any model or data."""
    start_cpu_s: float
    """CPU seconds until the process is ready: imports, process group, warm-up of a vLLM engine."""
    start_wait_s: float
    """Seconds of waiting without CPU work until the process is ready: polling, handshakes, worker pools."""


PROCESS_COSTS: Mapping[ProcessKind, ProcessCost] = {
    "task": ProcessCost(memory_gib=0.2, start_cpu_s=3.0, start_wait_s=2.0),
    "trainer": ProcessCost(memory_gib=0.57, start_cpu_s=13.0, start_wait_s=6.0),
    "actor": ProcessCost(memory_gib=0.36, start_cpu_s=9.0, start_wait_s=3.0),
    "engine": ProcessCost(memory_gib=0.55, start_cpu_s=35.0, start_wait_s=3.0),
    "server": ProcessCost(memory_gib=2.95, start_cpu_s=72.0, start_wait_s=4.0),
}
"""Kind of a worker process -> the cost of one such process."""
SESSION_GIB = 1.05
"""Memory of the driver and of Ray's own processes."""
TRAIN_GROUP_GIB = 0.5
"""Memory of the controller and the helper actors that Ray Train starts, about nine processes, all together."""
TRAIN_GROUP_CPU_S = 40.0
"""CPU seconds to start the controller and the helper actors of Ray Train."""
RLHF_START_CPU_S = 50.0
"""CPU seconds to connect the RLHF actors and to check the first weight sync, after the actors have started."""
STEP_S = 0.08
"""Seconds of an optimizer step in addition to its matmuls: optimizer update, synchronization, loading of batches."""
RLHF_STEP_S = 0.8
"""Seconds of an RLHF step in addition to matmuls and generation: messages, scoring, weight sync and sync check."""
ENGINE_STEP_S = 0.012
"""Seconds of a vLLM engine's forward pass in addition to its matmuls: scheduling and sampling in Python."""
THREAD_EFFICIENCY = 0.75
"""Speed of a thread when several threads compute, relative to a single thread. It is below 1 because the threads
share memory and caches."""
WIDE_MODEL_EFFICIENCY = 0.8
"""FLOP/s that the training of a model with a large hidden size reaches, as a fraction of the FLOP/s of a large
matmul."""


class Cost(NamedTuple):
    """The predicted time and memory of a workload on a machine."""

    seconds: float
    memory_gib: float
    """Highest memory of all processes of the Ray session together."""


def predict(workload: Workload, machine: Machine) -> Cost:
    """Predict the time and memory of a workload on the CPU of a machine. The workload must not be on a GPU."""
    assert not workload.on_gpu, "the machine's CPU was calibrated, so costs on a GPU cannot be predicted"
    slowness = machine.python_s / REFERENCE_PYTHON_S
    num_processes = sum(group.number for group in workload.processes)
    has_train_group = any(group.kind == "trainer" for group in workload.processes)
    start_s = sum(PROCESS_COSTS[group.kind].start_cpu_s * group.number for group in workload.processes)
    start_s += TRAIN_GROUP_CPU_S * has_train_group + RLHF_START_CPU_S * (workload.rlhf_steps > 0)
    # The processes start in parallel. The controller and the helpers of Ray Train count as one process.
    parallel_starts = min(machine.cores, has_train_group + max(1, num_processes))
    wait_s = max((PROCESS_COSTS[group.kind].start_wait_s for group in workload.processes), default=0.0)
    python_s = workload.python_s / max(1, min(workload.python_processes, machine.cores))
    serial_s = workload.steps * STEP_S + workload.rlhf_steps * RLHF_STEP_S + workload.engine_steps * ENGINE_STEP_S
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
    """Return the FLOP/s that all threads of the workload together reach on the machine.

    The calibration measured the FLOP/s of a small decoder and of a large matmul. If the hidden size is at most 256, the
    result is computed from the FLOP/s of the small decoder. If the hidden size is at least 1024, the result is computed
    from the FLOP/s of the large matmul. Between these sizes, the two results are interpolated.
    """
    narrow_flops = machine.step_flops * min(1.0, math.sqrt(workload.width / 256))
    wide_flops = max(narrow_flops, WIDE_MODEL_EFFICIENCY * machine.product_flops)
    wide_share = min(1.0, max(0.0, math.log2(workload.width / 256) / 2))  # 0 at width 256, 1 at width 1024
    flops_per_thread = narrow_flops * (1 - wide_share) + wide_flops * wide_share
    if workload.precision == "bfloat16":
        flops_per_thread *= machine.bfloat16_speed
    threads = max(1, min(workload.threads, machine.cores))
    return flops_per_thread * threads * (THREAD_EFFICIENCY if threads > 1 else 1.0)
