"""What all training stages do on each rank: set up the device, shard the model, log metrics and save checkpoints.

The training loop itself is in the file of each stage: `for report in fit(state, batches, objective)`.

Shapes: T is the number of token positions of a sample.
"""

import logging
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from cluster.heartbeat import log_on_driver, send_heartbeat, stop_requested
from cluster.process_group import RankContext
from cluster.storage import Storage
from cluster.worker_group import StoppedOnRequest
from data.tokens.tokenizer import SpecialTokenIds
from data.tokens.training_rows import PaddedRows
from jobs.frame.training_run import TrainingPayload
from model.batch import B, Batch, TrainBatch, split_rows, to_device
from model.checkpoint import Checkpoints
from model.generate import sample
from model.heads import ScalarModel
from model.huggingface import load_hf_model, save_hf_model
from model.huggingface_config import SpecialTokens
from model.objectives import Objective
from model.optim import adamw, warmup_cosine
from model.parallel import full_state_dict, shard, sum_over_ranks
from model.precision import autocast_dtype, fastest_matmul_s, require_resolved
from model.train import StepReport, TrainState, autocast
from model.transformer import Transformer
from model.transformer_config import flop_per_token

_MAX_CPU_MATMUL_FLOP = 2e10
"""The peak of a CPU is measured with a matmul of at most this many floating-point operations. A slow CPU core needs
about a second for such a matmul, and a larger one would not reach more FLOP/s."""


class StageTraining:
    """The training of a stage as one rank sees it: the rank's device, metrics and checkpoints.

    Every rank creates one `StageTraining`. Most methods are collective: all ranks must call them in the same order.
    """

    def __init__(self, rank_context: RankContext, payload: TrainingPayload) -> None:
        self.rank_context, self.payload, self.config = rank_context, payload, payload.config
        on_gpu = self.config.execution.placement.gpus_per_worker > 0
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self.dtype = autocast_dtype(require_resolved(payload.config.precision))
        checkpoints = payload.output / "checkpoints"
        self.checkpoints = Checkpoints(
            checkpoints.fs, checkpoints.root, keep=self.config.execution.keep_checkpoints, warn=log_on_driver
        )
        self.total_tokens = 0  # tokens that the ranks together have trained on since the first step, without padding
        self._unlogged_reports: list[StepReport] = []
        self._data_hash = 0
        self._interval_start_s = time.perf_counter()
        self._peak_flops = 0.0

    def start(self, model: Transformer | ScalarModel) -> TrainState:
        """Shard the initialized model and create its optimizer. Load the newest checkpoint, if there is one."""
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
        saved_counts = self.checkpoints.load(state)
        if saved_counts is not None:
            self.total_tokens = saved_counts["total_tokens"]
        if self.rank_context.rank == 0:
            payload.tracker.resume(state.step)
            if state.step:
                log_on_driver(
                    f"resumes from its checkpoint at step {state.step} of {self.config.steps}", level=logging.INFO
                )
        self._model_config = model.config
        self._flop_per_token = flop_per_token(model.config, self.config.sequence_length)
        # All ranks measure their peak at the same time, because they also train at the same time.
        rank_peak_flops = execution.peak_tflops * 1e12 or self._measure_peak_flops()
        self._peak_flops = sum_over_ranks(torch.tensor([rank_peak_flops], device=self.device), self._mesh).item()
        self._interval_start_s = time.perf_counter()
        return state

    def rank_sample_indices(self, step: int) -> range:
        """Return the global indices of the samples that this rank trains on in step `step`.

        Steps count from 0. Global indices count the samples of all ranks and steps, also from 0. The ranks divide the
        global batch among them: each sample of the batch belongs to exactly one rank.
        """
        num_samples = self.config.global_batch_size // self.rank_context.world_size
        first = step * self.config.global_batch_size + self.rank_context.rank * num_samples
        return range(first, first + num_samples)

    @staticmethod
    def to_batch(rows: PaddedRows) -> Batch:
        """Convert rows of numpy arrays to a batch of torch tensors that share the memory of the arrays."""
        return Batch(*(torch.from_numpy(array) for array in rows))

    def micro_batches(self, batch: B) -> list[B]:
        """Split this rank's batch of a step into micro-batches."""
        return list(split_rows(batch, self.config.execution.micro_batch_size))

    def add_to_data_hash(self, token_ids: np.ndarray, step: int) -> None:
        """Add this rank's samples of a step to the metric `data/hash` (see `log`). Steps count from 0.

        `token_ids` [samples, T] are the token ids of the samples, including padding.
        """
        first = self.rank_sample_indices(step).start
        for offset, sample_ids in enumerate(token_ids):
            self._data_hash += zlib.crc32(np.ascontiguousarray(sample_ids).tobytes(), (first + offset) & 0xFFFFFFFF)

    def log(self, report: StepReport) -> None:
        """Write a line of metrics if a logging interval ends with the step of the report, or if this is the last step.

        `report.step` is the number of finished steps.

        The metric `data/hash` is a hash of the token ids of all samples since the previous line, and of the global
        indices of these samples. Two runs that train on the same samples in the same order have the same hashes, with
        any number of workers.
        """
        send_heartbeat(report.step)
        self._unlogged_reports.append(report)
        self.total_tokens += report.num_tokens
        if report.step % self.config.execution.log_interval and report.step < self.config.steps:
            return
        data_hash = sum_over_ranks(torch.tensor([self._data_hash], device=self.device), self._mesh).item()
        self._data_hash = 0
        reports, self._unlogged_reports = self._unlogged_reports, []
        now = time.perf_counter()
        elapsed_s, self._interval_start_s = now - self._interval_start_s, now
        if self.rank_context.rank:
            return
        metrics_prefix = self.payload.metrics_prefix
        tokens_per_s = sum(r.num_tokens for r in reports) / elapsed_s
        self.payload.tracker.log(
            report.step,
            {
                f"{metrics_prefix}/loss": sum(r.loss * r.num_loss_terms for r in reports)
                / sum(r.num_loss_terms for r in reports),
                f"{metrics_prefix}/grad_norm": report.grad_norm,
                f"{metrics_prefix}/lr": report.lr,
                "data/tokens": self.total_tokens,
                "data/hash": data_hash % (1 << 48),
                "perf/tokens_per_s": tokens_per_s,
                **self._mfu(tokens_per_s * self._flop_per_token),
                **report.metrics,
            },
        )
        self._interval_start_s = time.perf_counter()  # set again, because `_mfu` may have spent time on a measurement

    def _mfu(self, flops: float) -> dict[str, float]:
        """Return the metric `perf/mfu`, the model FLOP utilization, or no metric if the measured peak is not credible.

        The utilization is `flops`, the FLOP/s of all ranks together, divided by the peak FLOP/s of all ranks. If the
        utilization is above 1, other programs must have used the machine while the peak was measured. The peak is then
        measured again.
        """
        if flops > self._peak_flops and not self.config.execution.peak_tflops:
            remeasured_flops = self._measure_peak_flops() * self.rank_context.world_size
            self._peak_flops = max(self._peak_flops, remeasured_flops)
        return {"perf/mfu": flops / self._peak_flops} if flops <= self._peak_flops else {}

    def _measure_peak_flops(self) -> float:
        """Measure the peak FLOP/s of this rank with a matmul that has the shape of a feed-forward layer's matmul."""
        num_samples = min(
            self.config.execution.micro_batch_size, self.config.global_batch_size // self.rank_context.world_size
        )
        rows = num_samples * self.config.sequence_length
        width, ffn_width = self._model_config.width, self._model_config.ffn_width
        if self.device.type == "cpu":
            rows = min(rows, max(256, int(_MAX_CPU_MATMUL_FLOP / (2 * width * ffn_width))))
        return measure_peak_flops(self.device, self.dtype, rows=rows, width=width, ffn_width=ffn_width)

    def is_validation_step(self, step: int) -> bool:
        """Return whether the validation loss must be computed when `step` steps are finished."""
        return step % self.config.execution.validation_interval == 0 or step == self.config.steps

    def log_validation(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of the validation after `step` finished steps.

        The time of the validation does not count in `perf/tokens_per_s`.
        """
        if self.rank_context.rank == 0:
            self.payload.tracker.log(step, metrics)
        self._interval_start_s = time.perf_counter()

    def save_checkpoint_if_due(self, state: TrainState) -> None:
        """Save a checkpoint if a checkpoint interval ends after `state.step` finished steps, except after the last
        step.

        The checkpoint is written in the background. If the driver was asked to stop, this function saves a checkpoint
        at any step but the last, waits until the checkpoint is complete, and raises StoppedOnRequest.
        """
        if state.step < self.config.steps and self._must_stop():
            if self.rank_context.rank == 0:
                self.payload.tracker.close()
            self.checkpoints.save(state, {"total_tokens": self.total_tokens})
            self.checkpoints.wait()
            raise StoppedOnRequest(f"at step {state.step}")
        if state.step % self.config.execution.checkpoint_interval == 0 and state.step < self.config.steps:
            if self.rank_context.rank == 0:
                # A resumed run does not repeat the steps before the checkpoint, so their metrics must be on disk first.
                self.payload.tracker.flush()
            self.checkpoints.save(state, {"total_tokens": self.total_tokens})

    def _must_stop(self) -> bool:
        """Return whether any rank has learned that the driver was asked to stop. All ranks get the same answer."""
        if self.rank_context.world_size == 1:
            return stop_requested()
        requested = torch.tensor([float(stop_requested())], device=self.device)
        return sum_over_ranks(requested, self._mesh).item() > 0

    def mean_metrics(self, state: TrainState, batches: Iterator[TrainBatch], objective: Objective) -> dict[str, float]:
        """Compute the mean loss and the means of the objective's metrics over the batches of all ranks.

        The keys of the result are `loss` and the names of the metrics. Each mean is the sum over all batches divided by
        the number of loss terms in all batches. The model is not trained. Every rank must pass the same number of
        batches. A rank without samples passes batches whose loss mask is false everywhere.
        """
        sums: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for batch in batches:
                with autocast(self.device, self.dtype):
                    loss = objective(state.model, to_device(batch, self.device))
                batch_sums = {"loss": loss.sum, "num_loss_terms": loss.num_loss_terms, **loss.metrics}
                sums = {
                    name: sums.get(name, torch.zeros((), dtype=torch.float64)) + batch_sum.double().cpu()
                    for name, batch_sum in batch_sums.items()
                }
        values = sum_over_ranks(torch.stack(list(sums.values())).to(self.device), self._mesh).tolist()
        totals = dict(zip(sums, values, strict=True))
        num_loss_terms = totals.pop("num_loss_terms")
        return {name: total / num_loss_terms for name, total in totals.items()}

    def finish(
        self,
        state: TrainState,
        read_special_tokens: Callable[[Path], SpecialTokenIds],
        tokenizer: Path,
    ) -> None:
        """Save the last checkpoint and write the trained model as the Hugging Face folder `model` of the output.

        The tokenizer in the folder `tokenizer` is copied into the model's folder. `read_special_tokens` takes the
        folder of a tokenizer and returns the ids of the tokenizer's special tokens.
        """
        self.checkpoints.save(state, {"total_tokens": self.total_tokens})
        self.checkpoints.wait()
        state_dict = full_state_dict(state.model)
        if self.rank_context.rank == 0:
            with tempfile.TemporaryDirectory(prefix="raymill-export-") as scratch:
                folder = Path(scratch)
                special_tokens = SpecialTokens(**read_special_tokens(tokenizer)._asdict())
                save_hf_model(
                    folder, state_dict, self._model_config, special_tokens=special_tokens, tokenizer_folder=tokenizer
                )
                self.payload.output.put_folder(folder, "model")
            self.payload.tracker.close()
        if dist.is_initialized():
            dist.barrier()


def measure_peak_flops(
    device: torch.device, dtype: torch.dtype | None, *, rows: int, width: int, ffn_width: int
) -> float:
    """Return the highest of eight measurements of FLOP/s, for the matmul [rows, width] x [width, ffn_width].

    This matmul is the largest of a transformer layer. `dtype` None means float32.
    """
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
    """Let the finished model in `output` continue each prompt, and write the continuations to `samples.jsonl`.

    A prompt is given as (text, token ids). A continuation ends at the token `stop_id` or after 64 tokens.
    """
    model = load_hf_model((output / "model").local())
    samples: list[dict[str, str]] = []
    for index, (text, prompt_ids) in enumerate(prompts):
        new_ids = sample(model, prompt_ids, num_tokens=64, temperature=0.8, seed=seed + index, stop_id=stop_id)
        samples.append({"prompt": text, "continuation": decode(new_ids)})
    output.write_jsonl("samples.jsonl", samples)
