"""How fast this machine is, in a few figures that forecasts are made from: measured once, then remembered.

Everything is measured in processor time of one thread, so that other work on the machine does not spoil it.
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

from cluster.machine import num_cores, processor
from cluster.progress import working
from cluster.user_cache import UserCache

if TYPE_CHECKING:
    import torch

_VERSION = 2
"""Raised when what is measured changes."""
_INSTRUCTIONS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
"""What holds the libraries of matrix products to older instructions than the processor has."""
_KEPT_S = 7 * 24 * 3600.0
"""How long figures count: those of a throttled or busy hour are not for ever."""
_PRODUCT_SIZE = 768
_ROWS, _LENGTH = 2, 128

_cache = UserCache("machines")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one node does in a second."""

    processor: str
    cores: int
    python_s: float
    """Of a fixed piece of Python: JSON, regular expressions, dictionaries."""
    step_flops: float
    """FLOP/s of one thread in training steps of a small decoder (width 256) in float32."""
    product_flops: float
    """FLOP/s of one thread in a large matrix product in float32: what wide models come near to."""
    bfloat16_speed: float
    """Speed of the same steps in bfloat16 over that in float32: where it is emulated that of a product, 0.02 to 0.1."""


def calibrate() -> Machine:
    """This machine's figures. They take about three seconds the first time on a machine, and again after a week."""
    held_to = [os.environ.get(name) for name in _INSTRUCTIONS]
    names = (processor(), num_cores(), platform.python_version(), version("torch"), version("numpy"), _VERSION)
    key = json.dumps([*names, *held_to])
    known = _cache.get(key)
    if known is None or not 0 <= time.time() - known["at"] < _KEPT_S:
        with working("measuring this machine, for forecasts"):
            known = {"at": time.time(), "machine": asdict(_measure())}
        _cache.put(key, known)
    return Machine(**known["machine"])


def _measure() -> Machine:
    import torch

    from model.precision import bfloat16_emulation

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        single = torch.randn(_PRODUCT_SIZE, _PRODUCT_SIZE)
        product_s = _best_s(lambda: torch.mm(single, single), tries=6)
        step_flops = _step_flops(None)
        slowdown = bfloat16_emulation()
        return Machine(
            processor=processor(),
            cores=num_cores(),
            python_s=_best_s(_python_work, tries=5),
            step_flops=step_flops,
            product_flops=2 * _PRODUCT_SIZE**3 / product_s,
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
    """FLOP/s, by the count that MFU uses, of forward and backward of a small decoder; None computes in float32."""
    import torch  # late, as above

    from model.batch import from_sequences
    from model.objectives import causal_lm
    from model.train import autocast
    from model.transformer import Transformer, TransformerConfig, flops_per_token, initialize

    sizes = TransformerConfig(
        vocab_size=4096, width=256, num_layers=2, num_heads=4, num_kv_heads=2, ffn_width=640, max_length=_LENGTH
    )
    model = Transformer(sizes)
    initialize(model, seed=0)
    rows, mask = [list(range(_LENGTH + 1))] * _ROWS, [True] * (_LENGTH + 1)
    batch = from_sequences(rows, [mask] * _ROWS, length=_LENGTH, pad_id=0)

    def step() -> None:
        with autocast(torch.device("cpu"), dtype):
            loss = causal_lm(model, batch).sum
        loss.backward()

    step_s = _best_s(step, tries=4)
    return _ROWS * _LENGTH * flops_per_token(sizes, _LENGTH) / step_s
