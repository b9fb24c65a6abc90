"""Calibrates this machine: measures its speed and caches the result for a week, so that forecasts can be computed.

Measurements are CPU time of one thread, so that other programs on the machine do not distort them. The exception is
`Machine.bfloat16_speed` on a processor that only emulates bfloat16: it is a ratio of two wall times.
"""

import json
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from cluster.machine import num_cores, processor_name
from cluster.progress import show_activity
from cluster.user_cache import UserCache

if TYPE_CHECKING:
    import torch

_VERSION = 2
"""The version of the measurement. Increase it when the measurement changes; calibrations are then repeated."""
_INSTRUCTION_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
"""Environment variables that can restrict the matmul libraries to older CPU instructions, which are slower."""
_MAX_AGE_S = 7 * 24 * 3600.0
"""A calibration that is older than this is repeated, because the machine may have been throttled or busy when the
calibration was made."""
_MATMUL_SIZE = 768
"""The number of rows and columns of the matrices in the large matmul."""
_ROWS, _LENGTH = 2, 128
"""The number of rows and the tokens per row in the batch of the small decoder."""

_cache = UserCache("machines")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The measured speed of one machine's CPU."""

    processor: str
    """The name of the processor model."""
    cores: int
    python_s: float
    """CPU seconds of a fixed Python program that uses JSON, regular expressions and dictionaries."""
    step_flops: float
    """FLOP/s of one thread in forward and backward passes of a small decoder (hidden size 256) in float32."""
    product_flops: float
    """FLOP/s of one thread in a large float32 matmul. The training of a model with a large hidden size comes close to
    this speed."""
    bfloat16_speed: float
    """Speed in bfloat16 divided by the speed in float32. Measured with the passes of the small decoder, or with a
    matmul if the processor only emulates bfloat16. On such a processor the value is far below 1, such as 0.03."""


def calibrate() -> Machine:
    """Return the speed of this machine.

    The speed is measured, in about three seconds, if there is no cached calibration that is at most a week old and was
    made with the same versions of Python, torch and numpy and the same `_INSTRUCTION_VARIABLES`. Otherwise the cached
    calibration is returned.
    """
    instructions = [os.environ.get(name) for name in _INSTRUCTION_VARIABLES]
    names = (processor_name(), num_cores(), platform.python_version(), version("torch"), version("numpy"), _VERSION)
    key = json.dumps([*names, *instructions])
    cached = _cache.get(key)
    if cached is None or not 0 <= time.time() - cached["at"] < _MAX_AGE_S:
        with show_activity("measuring the speed of this machine for forecasts"):
            cached = {"at": time.time(), "machine": asdict(_measure())}
        _cache.put(key, cached)
    return Machine(**cached["machine"])


def _measure() -> Machine:
    """Measure the speed of this machine, without the cache."""
    import torch  # imported here, because it is not needed when the calibration is cached

    from model.precision import bfloat16_emulation_slowdown

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        matrix = torch.randn(_MATMUL_SIZE, _MATMUL_SIZE)
        product_s = _best_s(lambda: torch.mm(matrix, matrix), tries=6)
        step_flops = _step_flops(None)
        slowdown = bfloat16_emulation_slowdown()
        return Machine(
            processor=processor_name(),
            cores=num_cores(),
            python_s=_best_s(_python_work, tries=5),
            step_flops=step_flops,
            product_flops=2 * _MATMUL_SIZE**3 / product_s,
            bfloat16_speed=_step_flops(torch.bfloat16) / step_flops if slowdown is None else 1 / slowdown,
        )
    finally:
        torch.set_num_threads(threads)


def _best_s(work: Callable[[], object], *, tries: int) -> float:
    """Call `work` several times, `tries` in all. Returns the CPU seconds that this thread used for the fastest call."""
    best_s = float("inf")
    for _ in range(tries):
        started = time.thread_time()
        work()
        best_s = min(best_s, time.thread_time() - started)
    return best_s


def _python_work() -> None:
    """The Python program whose CPU time is `Machine.python_s`."""
    words = [f"word{number % 997}" for number in range(20_000)]
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    text = json.dumps([{"text": " ".join(words[start : start + 50])} for start in range(0, 20_000, 50)])
    for record in json.loads(text):
        re.findall(r"[a-z]+\d", record["text"])


def _step_flops(dtype: "torch.dtype | None") -> float:
    """Measure the FLOP/s of a small decoder's forward and backward pass. `dtype` None means float32.

    The number of floating-point operations is computed by `flop_per_token`, as for the model FLOP utilization.
    """
    import torch  # imported here, because it is not needed when the calibration is cached

    from model.batch import batch_from_sequences
    from model.objectives import causal_lm
    from model.train import autocast
    from model.transformer import Transformer, initialize
    from model.transformer_config import TransformerConfig, flop_per_token

    model_config = TransformerConfig(
        vocab_size=4096, width=256, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=640, max_length=_LENGTH
    )
    model = Transformer(model_config)
    initialize(model, seed=0)
    rows, mask = [list(range(_LENGTH + 1))] * _ROWS, [True] * (_LENGTH + 1)
    batch = batch_from_sequences(rows, [mask] * _ROWS, length=_LENGTH, pad_id=0)

    def step() -> None:
        with autocast(torch.device("cpu"), dtype):
            loss = causal_lm(model, batch).sum
        loss.backward()

    step_s = _best_s(step, tries=4)
    return _ROWS * _LENGTH * flop_per_token(model_config, _LENGTH) / step_s
