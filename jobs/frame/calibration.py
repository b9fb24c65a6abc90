"""The calibration of this machine: a few figures of its speed, from which forecasts are made; measured once a week.

Everything is measured in processor time of one thread, so that other work on the machine does not distort it.
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
from cluster.progress import working
from cluster.user_cache import UserCache

if TYPE_CHECKING:
    import torch

_VERSION = 2
"""Raised when the measurement changes."""
_INSTRUCTION_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
"""Environment variables that limit the libraries of matrix products to older instructions of the processor."""
_MAX_AGE_S = 7 * 24 * 3600.0
"""Age at which figures are measured again, because they may be those of a throttled or busy hour."""
_MATMUL_SIZE = 768
"""Rows and columns of the matrices of the large product."""
_ROWS, _LENGTH = 2, 128
"""Size of the batch of the small decoder."""

_cache = UserCache("machines")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The speed of one node."""

    processor: str
    cores: int
    python_s: float
    """Seconds of a fixed Python program: JSON, regular expressions, dictionaries."""
    step_flops: float
    """FLOP/s of one thread in training steps of a small decoder (width 256) in float32."""
    product_flops: float
    """FLOP/s of one thread in a large matrix product in float32, which wide models approach."""
    bfloat16_speed: float
    """Speed of these training steps in bfloat16 relative to float32; on a processor that emulates bfloat16, that of a
    product instead, 0.02 to 0.1."""


def calibrate() -> Machine:
    """The speed of this machine. Measuring takes about three seconds, the first time and again after a week."""
    instructions = [os.environ.get(name) for name in _INSTRUCTION_VARIABLES]
    names = (processor_name(), num_cores(), platform.python_version(), version("torch"), version("numpy"), _VERSION)
    key = json.dumps([*names, *instructions])
    cached = _cache.get(key)
    if cached is None or not 0 <= time.time() - cached["at"] < _MAX_AGE_S:
        with working("measuring this machine, for forecasts"):
            cached = {"at": time.time(), "machine": asdict(_measure())}
        _cache.put(key, cached)
    return Machine(**cached["machine"])


def _measure() -> Machine:
    import torch  # late: a remembered calibration does not need it

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
    """Processor seconds of this thread for the fastest of several calls."""
    best_s = float("inf")
    for _ in range(tries):
        started = time.thread_time()
        work()
        best_s = min(best_s, time.thread_time() - started)
    return best_s


def _python_work() -> None:
    words = [f"word{number % 997}" for number in range(20_000)]
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    text = json.dumps([{"text": " ".join(words[start : start + 50])} for start in range(0, 20_000, 50)])
    for record in json.loads(text):
        re.findall(r"[a-z]+\d", record["text"])


def _step_flops(dtype: "torch.dtype | None") -> float:
    """FLOP/s (counted as for MFU) of a small decoder's forward and backward pass; None computes in float32."""
    import torch  # late: a remembered calibration does not need it

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
