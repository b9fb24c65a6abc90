"""What the training stages share around their loops: settings, one rank's housekeeping, the exported folder.

The loop itself stands in each stage (`for report in fit(state, batches, objective)`); nothing here owns it.
"""

import logging
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from cluster.placement import Placement
from cluster.storage import Storage
from cluster.tracking import Tracker
from cluster.workers import WorkerSpot
from data.tokenizer import chat_end_id, load_tokenizer, pad_id, separator_id
from model.batch import B, TrainBatch, split, to_device
from model.checkpoint import Checkpoints
from model.heads import ScalarHead
from model.huggingface import SpecialTokens, save_folder
from model.objectives import Objective
from model.optim import adamw, warmup_cosine
from model.parallel import full_state_dict, shard, sum_over_ranks
from model.train import StepReport, TrainState, autocast
from model.transformer import Transformer, TransformerConfig

Dtype = Literal["float32", "bfloat16"]
"""Of matrix products; parameters, gradients and optimizer stay float32 (autocast over float32 masters)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and half a cosine."""

    lr: float = 3e-4
    """Peak learning rate."""
    warmup_steps: int = 10
    final_lr_ratio: float = 0.1
    """Learning rate of the last step over the peak."""
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    """Largest norm of the whole gradient."""

    def check(self, steps: int) -> None:
        """Raises ValueError naming the field, the value and the rule."""
        if self.lr <= 0:
            raise ValueError(f"optimizer.lr: {self.lr} must be above 0")
        if not 0 <= self.warmup_steps <= steps:
            raise ValueError(f"optimizer.warmup_steps: {self.warmup_steps} must be between 0 and steps ({steps})")
        if self.clip_norm <= 0:
            raise ValueError(f"optimizer.clip_norm: {self.clip_norm} must be above 0")


@dataclass(frozen=True, kw_only=True)
class TrainingExecution:
    """How a training stage runs; nothing here changes what it computes, beyond rounding."""

    placement: Placement = field(default_factory=Placement)
    micro_batch_size: int = 8
    """Rows that a worker computes at once; the rest of its share is accumulated."""
    log_interval: int = 10
    """Steps between two lines of the metrics log."""
    checkpoint_interval: int = 100
    keep_checkpoints: int = 2
    activation_checkpointing: bool = False
    compile: bool = False
    peak_tflops: float = 0.0
    """Of one worker, for MFU; 0 measures it with a large matrix product."""

    def check(self, batch_size: int) -> None:
        """Raises ValueError when the batch does not divide among workers, or a setting is out of range."""
        self.placement.check("execution.placement")
        if batch_size % self.placement.workers:
            raise ValueError(
                f"batch_size: {batch_size} does not divide among execution.placement.workers="
                f"{self.placement.workers}; make it a multiple"
            )
        for name in ("micro_batch_size", "log_interval", "checkpoint_interval", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"execution.{name}: {getattr(self, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainingWork:
    """What a worker of a training stage is given: everything that is the same for pretrain, sft and reward."""

    output: Storage
    tracker: Tracker
    optimizer: OptimizerConfig
    execution: TrainingExecution
    steps: int
    batch_size: int
    dtype: Dtype
    objective_key: str
    """The area under which the loss is logged: train, sft, reward."""


class TrainingRun:
    """One rank's device, process group, checkpoints and metrics around a training loop.

    Make it and call its methods on all ranks together.
    """

    def __init__(self, spot: WorkerSpot, work: TrainingWork) -> None:
        self.spot, self.work = spot, work
        on_gpu = work.execution.placement.gpus_per_worker > 0
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self.dtype = torch.bfloat16 if work.dtype == "bfloat16" else None
        checkpoints = work.output / "checkpoints"
        self.checkpoints = Checkpoints(checkpoints.fs, checkpoints.root, keep=work.execution.keep_checkpoints)
        self.total_tokens = 0
        self._since_log: list[StepReport] = []
        self._fed_hash = 0
        self._logged_s = time.perf_counter()
        self._peak_flops = 0.0

    def start(self, model: Transformer | ScalarHead) -> TrainState:
        """Shard the whole, initialised model, make its optimizer, and go on from the newest checkpoint if any."""
        work, execution = self.work, self.work.execution
        model.to(self.device)
        self._mesh = init_device_mesh(self.device.type, (self.spot.world_size,))
        shard(
            model,
            mesh=self._mesh,
            activation_checkpointing=execution.activation_checkpointing,
            compile_layers=execution.compile,
        )
        settings = work.optimizer
        optimizer = adamw(
            model, lr=settings.lr, betas=(settings.beta1, settings.beta2), weight_decay=settings.weight_decay
        )
        schedule = warmup_cosine(
            peak_lr=settings.lr,
            warmup_steps=settings.warmup_steps,
            total_steps=work.steps,
            final_ratio=settings.final_lr_ratio,
        )
        state = TrainState(model, optimizer, schedule, clip_norm=settings.clip_norm, autocast_dtype=self.dtype)
        position = self.checkpoints.load(state)
        if position is not None:
            self.total_tokens = position["total_tokens"]
            log.info("goes on from step %d", state.step)
        if self.spot.rank == 0:
            work.tracker.resume(state.step)
            self._peak_flops = execution.peak_tflops * 1e12 or measure_peak_flops(self.device, self.dtype)
        self._logged_s = time.perf_counter()
        return state

    def samples_of_step(self, step: int) -> range:
        """Global indices of this rank's samples in `step`; together the ranks cover the global batch once."""
        share = self.work.batch_size // self.spot.world_size
        first = step * self.work.batch_size + self.spot.rank * share
        return range(first, first + share)

    def micro_batches(self, batch: B, fed: np.ndarray, step: int) -> list[B]:
        """This rank's batch in micro-batches. `fed` are its token ids, one row a sample, for the data hash."""
        first = self.samples_of_step(step).start
        for offset, row in enumerate(fed):
            self._fed_hash += zlib.crc32(np.ascontiguousarray(row).tobytes(), (first + offset) & 0xFFFFFFFF)
        return list(split(batch, self.work.execution.micro_batch_size))

    def log(self, report: StepReport, flops_per_token: float) -> None:
        """Write a line of metrics at the logging interval and at the last step.

        `data/hash` fingerprints every token id fed since the last line with its place in the global order: equal
        runs are equal here at any number of workers.
        """
        self._since_log.append(report)
        self.total_tokens += report.num_tokens
        if report.step % self.work.execution.log_interval and report.step < self.work.steps:
            return
        fed = sum_over_ranks(torch.tensor([self._fed_hash], device=self.device), self._mesh).item()
        self._fed_hash = 0
        reports, self._since_log = self._since_log, []
        now = time.perf_counter()
        elapsed_s, self._logged_s = now - self._logged_s, now
        if self.spot.rank:
            return
        area = self.work.objective_key
        tokens_per_s = sum(r.num_tokens for r in reports) / elapsed_s
        peak = self._peak_flops * self.spot.world_size
        self.work.tracker.log(
            report.step,
            {
                f"{area}/loss": sum(r.loss * r.weight for r in reports) / sum(r.weight for r in reports),
                f"{area}/grad_norm": report.grad_norm,
                f"{area}/lr": report.lr,
                "data/tokens": self.total_tokens,
                "data/hash": fed % (1 << 48),
                "perf/tokens_per_s": tokens_per_s,
                "perf/mfu": tokens_per_s * flops_per_token / peak,
                **report.metrics,
            },
        )

    def log_validation(self, step: int, metrics: dict[str, float]) -> None:
        """Write validation metrics of a step; the time they took does not count as training."""
        if self.spot.rank == 0:
            self.work.tracker.log(step, metrics)
        self._logged_s = time.perf_counter()

    def checkpoint_when_due(self, state: TrainState) -> None:
        """Begin to save at the checkpoint interval; the write itself goes on in the background."""
        if state.step % self.work.execution.checkpoint_interval == 0 and state.step < self.work.steps:
            self.checkpoints.save(state, {"total_tokens": self.total_tokens})

    def mean_loss(self, state: TrainState, batches: Iterator[TrainBatch], objective: Objective) -> dict[str, float]:
        """The objective's mean, and its metrics', over held-out batches, over all ranks, without learning.

        Every rank must have the same number of batches; an empty one needs a batch with an empty loss mask.
        """
        sums: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for batch in batches:
                with autocast(self.device, self.dtype):
                    loss = objective(state.model, to_device(batch, self.device))
                parts = {"loss": loss.sum, "weight": loss.weight, **loss.metrics}
                sums = {
                    name: sums.get(name, torch.zeros((), dtype=torch.float64)) + part.double().cpu()
                    for name, part in parts.items()
                }
        totals = sum_over_ranks(torch.stack(list(sums.values())).to(self.device), self._mesh).tolist()
        named = dict(zip(sums, totals, strict=True))
        weight = named.pop("weight")
        return {name: total / weight for name, total in named.items()}

    def finish(self, state: TrainState, config: TransformerConfig, tokens: SpecialTokens, tokenizer: Path) -> None:
        """Save the last checkpoint and the Hugging Face folder `model/` into the output."""
        self.checkpoints.save(state, {"total_tokens": self.total_tokens})
        self.checkpoints.wait()
        whole = full_state_dict(state.model)
        if self.spot.rank == 0:
            with tempfile.TemporaryDirectory(prefix="raymill-export-") as scratch:
                folder = Path(scratch)
                save_folder(folder, whole, config, special_tokens=tokens, tokenizer_folder=tokenizer)
                self.work.output.put_folder(folder, "model")
            self.work.tracker.close()
        if dist.is_initialized():
            dist.barrier()


def special_tokens(tokenizer_folder: Path, *, chat: bool) -> SpecialTokens:
    """The ids that a model's folder names: a chat model ends its answers by the template's end token."""
    tokenizer = load_tokenizer(tokenizer_folder)
    separator = separator_id(tokenizer)
    return SpecialTokens(bos=separator, eos=chat_end_id(tokenizer) if chat else separator, pad=pad_id(tokenizer))


def measure_peak_flops(device: torch.device, dtype: torch.dtype | None, *, size: int = 1024) -> float:
    """FLOP/s that one worker reaches on a large square matrix product: the best of several short tries."""
    a = torch.randn(size, size, device=device, dtype=dtype or torch.float32)
    best_s = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - started)
    return 2.0 * size**3 / best_s
