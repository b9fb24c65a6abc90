"""One rank of a training stage: its device, process group, checkpoints and metrics around the stage's training loop.

The loop itself is written in each stage: `for report in fit(state, batches, objective)`.
"""

import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from cluster.heartbeat import send_heartbeat, stop_requested
from cluster.process_group import RankContext
from cluster.storage import Storage
from cluster.worker_group import StoppedOnRequest
from data.tokens.tokenizer import TokenIds
from data.tokens.training_rows import PaddedRows
from jobs.frame.training_run import TrainingPayload
from model.batch import B, Batch, TrainBatch, split_rows, to_device
from model.checkpoint import Checkpoints
from model.generate import sample
from model.heads import ScalarHead
from model.huggingface import load_hf_model, save_hf_model
from model.huggingface_config import SpecialTokens
from model.objectives import Objective
from model.optim import adamw, warmup_cosine
from model.parallel import full_state_dict, shard, sum_over_ranks
from model.precision import autocast_dtype, fastest_matmul_s, resolved_precision
from model.train import StepReport, TrainState, autocast
from model.transformer import Transformer
from model.transformer_config import TransformerConfig

_MAX_PROBE_FLOP = 2e10
"""Largest matrix product that a CPU is measured by: a second of the slowest core, and a larger one is no faster."""


class TrainingRun:
    """One rank's device, process group, checkpoints and metrics around a training loop.

    It is created, and its methods are called, on all ranks together.
    """

    def __init__(self, rank_context: RankContext, payload: TrainingPayload) -> None:
        self.rank_context, self.payload, self.config = rank_context, payload, payload.config
        on_gpu = self.config.execution.placement.gpus_per_worker > 0
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self.dtype = autocast_dtype(resolved_precision(payload.config.precision))
        checkpoints = payload.output / "checkpoints"
        self.checkpoints = Checkpoints(checkpoints.fs, checkpoints.root, keep=self.config.execution.keep_checkpoints)
        self.total_tokens = 0
        self._since_log: list[StepReport] = []
        self._fed_hash = 0
        self._logged_s = time.perf_counter()
        self._peak_flops = 0.0

    def start(self, model: Transformer | ScalarHead) -> TrainState:
        """Shard the initialized model, create its optimizer, and load the newest checkpoint if there is one."""
        payload, execution = self.payload, self.config.execution
        model.to(self.device)
        self._mesh = init_device_mesh(self.device.type, (self.rank_context.world_size,))
        shard(
            model,
            mesh=self._mesh,
            activation_checkpointing=execution.activation_checkpointing,
            compile_layers=execution.compile,
        )
        settings = self.config.optimizer
        optimizer = adamw(
            model, lr=settings.lr, betas=(settings.beta1, settings.beta2), weight_decay=settings.weight_decay
        )
        schedule = warmup_cosine(
            peak_lr=settings.lr,
            warmup_steps=settings.warmup_steps,
            total_steps=self.config.steps,
            final_ratio=settings.final_lr_ratio,
        )
        state = TrainState(model, optimizer, schedule, clip_norm=settings.clip_norm, autocast_dtype=self.dtype)
        position = self.checkpoints.load(state)
        if position is not None:
            self.total_tokens = position["total_tokens"]
        if self.rank_context.rank == 0:
            payload.tracker.resume(state.step)
        # All ranks measure at the same time, because they compute at the same time.
        peak = execution.peak_tflops * 1e12 or self._measure_peak(model.config)
        self._peak_flops = sum_over_ranks(torch.tensor([peak], device=self.device), self._mesh).item()
        self._sizes = model.config
        self._logged_s = time.perf_counter()
        return state

    def rank_sample_indices(self, step: int) -> range:
        """Global indices of this rank's samples in `step`; together the ranks cover the global batch once."""
        share = self.config.global_batch_size // self.rank_context.world_size
        first = step * self.config.global_batch_size + self.rank_context.rank * share
        return range(first, first + share)

    @staticmethod
    def to_batch(rows: PaddedRows) -> Batch:
        """Rows of numpy arrays as a batch of torch tensors, without a copy."""
        return Batch(*(torch.from_numpy(array) for array in rows))

    def micro_batches(self, batch: B, fed: np.ndarray, step: int) -> list[B]:
        """This rank's batch in micro-batches. `fed` [samples, T] are its token ids, for the data hash."""
        first = self.rank_sample_indices(step).start
        for offset, row in enumerate(fed):
            self._fed_hash += zlib.crc32(np.ascontiguousarray(row).tobytes(), (first + offset) & 0xFFFFFFFF)
        return list(split_rows(batch, self.config.execution.micro_batch_size))

    def log(self, report: StepReport, flop_per_token: float) -> None:
        """Write a line of metrics at the logging interval and at the last step.

        `data/hash` fingerprints every token id since the last line with its place in the global order: equal runs have
        equal hashes at any number of workers.
        """
        send_heartbeat(report.step)
        self._since_log.append(report)
        self.total_tokens += report.num_tokens
        if report.step % self.config.execution.log_interval and report.step < self.config.steps:
            return
        fed = sum_over_ranks(torch.tensor([self._fed_hash], device=self.device), self._mesh).item()
        self._fed_hash = 0
        reports, self._since_log = self._since_log, []
        now = time.perf_counter()
        elapsed_s, self._logged_s = now - self._logged_s, now
        if self.rank_context.rank:
            return
        metrics_prefix = self.payload.metrics_prefix
        tokens_per_s = sum(r.num_tokens for r in reports) / elapsed_s
        self.payload.tracker.log(
            report.step,
            {
                f"{metrics_prefix}/loss": sum(r.loss * r.num_terms for r in reports)
                / sum(r.num_terms for r in reports),
                f"{metrics_prefix}/grad_norm": report.grad_norm,
                f"{metrics_prefix}/lr": report.lr,
                "data/tokens": self.total_tokens,
                "data/hash": fed % (1 << 48),
                "perf/tokens_per_s": tokens_per_s,
                **self._mfu(tokens_per_s * flop_per_token),
                **report.metrics,
            },
        )
        self._logged_s = time.perf_counter()  # the peak may have been measured again

    def _mfu(self, flops: float) -> dict[str, float]:
        """Model FLOP utilization: `flops` over the peak FLOP/s of all workers.

        A run faster than the peak shows that the peak was measured on a busy machine: it is measured again, and where
        the run is still faster, nothing is logged.
        """
        if flops > self._peak_flops and not self.config.execution.peak_tflops:
            remeasured = self._measure_peak(self._sizes) * self.rank_context.world_size
            self._peak_flops = max(self._peak_flops, remeasured)
        return {"perf/mfu": flops / self._peak_flops} if flops <= self._peak_flops else {}

    def _measure_peak(self, sizes: TransformerConfig) -> float:
        samples = min(
            self.config.execution.micro_batch_size, self.config.global_batch_size // self.rank_context.world_size
        )
        rows = samples * self.config.sequence_length
        if self.device.type == "cpu":
            rows = min(rows, max(256, int(_MAX_PROBE_FLOP / (2 * sizes.width * sizes.ffn_width))))
        return measure_peak_flops(self.device, self.dtype, rows=rows, width=sizes.width, ffn_width=sizes.ffn_width)

    def validates_at(self, step: int) -> bool:
        """Whether the validation loss is computed after `step`."""
        return step % self.config.execution.validation_interval == 0 or step == self.config.steps

    def log_validation(self, step: int, metrics: dict[str, float]) -> None:
        """Write the validation metrics of a step. Their time does not count as training."""
        if self.rank_context.rank == 0:
            self.payload.tracker.log(step, metrics)
        self._logged_s = time.perf_counter()

    def checkpoint_when_due(self, state: TrainState) -> None:
        """Start to save at the checkpoint interval; the write continues in the background.

        Raises StoppedOnRequest, after a checkpoint, when the driver has been asked to stop.
        """
        if state.step < self.config.steps and self._must_stop():
            if self.rank_context.rank == 0:
                self.payload.tracker.close()
            self.checkpoints.save(state, {"total_tokens": self.total_tokens})
            self.checkpoints.wait()
            raise StoppedOnRequest(f"at step {state.step}")
        if state.step % self.config.execution.checkpoint_interval == 0 and state.step < self.config.steps:
            if self.rank_context.rank == 0:
                self.payload.tracker.flush()  # steps before a checkpoint are not repeated, so their lines must be safe
            self.checkpoints.save(state, {"total_tokens": self.total_tokens})

    def _must_stop(self) -> bool:
        """Whether any rank knows that the driver was asked to stop; the same on all ranks."""
        if self.rank_context.world_size == 1:
            return stop_requested()
        requested = torch.tensor([float(stop_requested())], device=self.device)
        return sum_over_ranks(requested, self._mesh).item() > 0

    def mean_metrics(self, state: TrainState, batches: Iterator[TrainBatch], objective: Objective) -> dict[str, float]:
        """Means of the objective (`loss`) and of its metrics over the batches of all ranks, without an update.

        Every rank must have the same number of batches; one without samples needs a batch with an empty loss mask.
        """
        sums: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for batch in batches:
                with autocast(self.device, self.dtype):
                    loss = objective(state.model, to_device(batch, self.device))
                parts = {"loss": loss.sum, "weight": loss.num_terms, **loss.metrics}
                sums = {
                    name: sums.get(name, torch.zeros((), dtype=torch.float64)) + part.double().cpu()
                    for name, part in parts.items()
                }
        totals = sum_over_ranks(torch.stack(list(sums.values())).to(self.device), self._mesh).tolist()
        named = dict(zip(sums, totals, strict=True))
        weight = named.pop("weight")
        return {name: total / weight for name, total in named.items()}

    def finish(
        self,
        state: TrainState,
        config: TransformerConfig,
        special_tokens: Callable[[Path], TokenIds],
        tokenizer: Path,
    ) -> None:
        """Save the last checkpoint and the Hugging Face folder `model/` in the output.

        special_tokens: the ids of the tokenizer in a folder.
        """
        self.checkpoints.save(state, {"total_tokens": self.total_tokens})
        self.checkpoints.wait()
        full = full_state_dict(state.model)
        if self.rank_context.rank == 0:
            with tempfile.TemporaryDirectory(prefix="raymill-export-") as scratch:
                folder = Path(scratch)
                tokens = SpecialTokens(**special_tokens(tokenizer)._asdict())
                save_hf_model(folder, full, config, special_tokens=tokens, tokenizer_folder=tokenizer)
                self.payload.output.put_folder(folder, "model")
            self.payload.tracker.close()
        if dist.is_initialized():
            dist.barrier()


def measure_peak_flops(
    device: torch.device, dtype: torch.dtype | None, *, rows: int, width: int, ffn_width: int
) -> float:
    """Best FLOP/s of this worker in the largest product of a layer, [rows, width] x [width, ffn_width]."""
    left = torch.randn(rows, width, device=device, dtype=dtype or torch.float32)
    right = torch.randn(width, ffn_width, device=device, dtype=dtype or torch.float32)
    return 2.0 * rows * width * ffn_width / fastest_matmul_s(left, right, tries=8)


def continue_prompts(
    output: Storage,
    prompts: Sequence[tuple[str, Sequence[int]]],
    decode: Callable[[Sequence[int]], str],
    *,
    stop_id: int,
    seed: int,
) -> None:
    """Continue each prompt (its text and token ids) with the finished model and write `samples.jsonl`."""
    model = load_hf_model((output / "model").local())
    samples: list[dict[str, str]] = []
    for number, (text, ids) in enumerate(prompts):
        new = sample(model, ids, num_tokens=64, temperature=0.8, seed=seed + number, stop_id=stop_id)
        samples.append({"prompt": text, "continuation": decode(new)})
    output.write_jsonl("samples.jsonl", samples)
