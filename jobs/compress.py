"""compress: an int8 twin of a model in a layout that vLLM loads, measured beside the original.

original ─ round ─▶ model/ (compressed-tensors W8A8) ─▶ bits per byte of both, and vLLM's logprobs against ours
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.evaluation import (
    SCORED_TOKENS,
    TextScores,
    device_of,
    engine_logprobs,
    remote,
    score_text,
    sequence_logprobs,
)
from actors.generator import engine_env
from cluster.capacity import wait_for_capacity
from cluster.placement import Execution, Placement
from cluster.progress import working
from cluster.storage import Storage
from data.tokens.shard_format import read_manifest
from data.tokens.shard_reader import ShardReader, check_tokenizer
from data.tokens.tokenizer import fingerprint
from jobs.frame.artifact import Artifact
from jobs.frame.fields import input_artifact
from jobs.frame.sizes import activation_gib, bytes_per_token, forward_flop, mib, model_sizes, shards_sizes
from jobs.frame.stage import Context, Needs, Stage
from jobs.frame.work import Processes, Work
from jobs.report.evaluation import report_compression
from model.huggingface import read_config
from model.metrics import bootstrap_interval
from model.quantize import FloatType, compress_folder
from model.transformer import TransformerConfig

_NATS_PER_BIT = float(np.log(2))
_PROBE_SEQUENCES, _PROBE_TOKENS = 8, 96
SAME_GAP = 0.05
"""A mean distance of vLLM's logprobs from ours on the compressed folder, in nats, that needs no explanation."""
MAX_GAP_RATIO = 15.0
"""Largest mean distance over what rounding to int8 itself has changed. Where sums are exact, another order of them
moves a few activations to the next step (ratio 1.5); a processor without int8 dot products (AVX2) adds pairs in 16
bits, which saturate (7 to 11 on random weights). Scales read otherwise than they were written give 20 and more."""
_SMALLEST = 1e-12
"""Stands for a difference or variance of nothing, by which nothing is explained."""
MAX_UNEXPLAINED = 0.25
"""Largest share of the variance of our logprobs that vLLM's leave unexplained: 0.03 with saturation, 0.3 to 1.7 for
rows or scales in another order. It tells where rounding itself changes much."""


@dataclass(frozen=True, kw_only=True)
class CompressExecution(Execution):
    worker: Placement = field(default_factory=lambda: Placement(cpus_per_worker=0.5))
    """Of each of the three tasks that measure: the original, the compressed model, vLLM."""


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """`compress.yaml`."""

    model: str = input_artifact("model")
    text: str = input_artifact("shards")
    """Shards whose validation documents both models are measured on."""
    text_bytes: int = 200_000
    """About how much of it, taken evenly from the whole."""
    overlap: int = 64
    """Tokens that each further window of a long document sees again."""
    kept_dtype: FloatType = "bfloat16"
    """Of embeddings, head and norms, which stay floating point; engines compute in it by default."""
    execution: CompressExecution = field(default_factory=CompressExecution)


def check(config: CompressConfig) -> None:
    """Raises ValueError for a field out of its range."""
    if config.text_bytes < 1:
        raise ValueError(f"text_bytes: {config.text_bytes} must be at least 1")
    config.execution.worker.check("execution.worker", forms_group=False)


def check_inputs(config: CompressConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError for a model that is no float Llama, or text of another tokenizer."""
    folder = inputs["model"].model.local()
    sizes = read_config(folder)
    if not 0 <= config.overlap < sizes.max_length:
        raise ValueError(
            f"overlap: {config.overlap} must be at least 0 and below the model's max_length {sizes.max_length}"
        )
    split = inputs["text"].storage / "validation"
    check_tokenizer(split, read_manifest(split), fingerprint(folder))


def run(config: CompressConfig, context: Context) -> dict[str, Any]:
    """Write model/, and measure it beside the original."""
    worker, split = config.execution.worker, context.inputs["text"].storage / "validation"
    wait_for_capacity(worker.bundles, "compress: execution.worker")
    original, compressed = context.inputs["model"].model, context.output / "model"
    with tempfile.TemporaryDirectory(prefix="raymill-compress-") as scratch:
        with working("rounding the weights to int8"):
            size = compress_folder(original.local(), Path(scratch), kept_dtype=config.kept_dtype)
        context.output.put_folder(Path(scratch), "model")
    probes, device = _probes(split), device_of(worker)
    engine = remote(engine_logprobs, worker, engine_env())(compressed, probes, device=device)
    ours = [remote(sequence_logprobs, worker)(folder, probes, device=device) for folder in (compressed, original)]
    num_parts = max(1, round(read_manifest(split).num_bytes / config.text_bytes))
    settings = {"part": 0, "num_parts": num_parts, "overlap": config.overlap, "precision": "float32", "device": device}
    scores = [remote(score_text, worker)(folder, split, **settings) for folder in (original, compressed)]
    with working("measuring the original and the compressed model"):
        before, after = ray.get(scores)
    with working("comparing vLLM's logprobs of the compressed model with ours"):
        gap = engine_gap(*ray.get([engine, *ours]))
    summary = {**asdict(size), **quality(before, after), "engine_logprob_gap": gap}
    context.tracker.log(0, _flat(summary))
    return summary


def sizes(config: CompressConfig, needs: Needs) -> TransformerConfig:
    """The sizes of the model, those of the original."""
    return model_sizes(needs["model"])


def work(config: CompressConfig, needs: Needs) -> Work:
    """What the forecast is made of: the likelihoods of original and compressed model, side by side, and an engine."""
    sizes, worker = model_sizes(needs["model"]), config.execution.worker
    num_bytes = min(config.text_bytes, shards_sizes(needs["text"]).validation_bytes)
    tokens = 2 * num_bytes / bytes_per_token(sizes.vocab_size)
    window = min(sizes.max_length, 512)
    held_gib = activation_gib(sizes, tokens=SCORED_TOKENS, length=window) / 2  # no backward
    scorer_gib, engine_gib = 2 * mib(sizes, 4) / 1024 + held_gib, mib(sizes, 4) / 1024 + 0.5
    return Work(
        processes=[
            # They have ended before the engine, which starts meanwhile, holds what is its own.
            Processes(kind="actor", number=2, own_gib=max(0.0, scorer_gib - engine_gib / 2)),
            Processes(kind="engine", own_gib=engine_gib),
        ],
        flop=tokens * forward_flop(sizes, window),
        width=sizes.width,
        threads=2 * worker.threads_per_worker,
        disk_gib=mib(sizes, 1.5) / 1024,
        on_gpu=worker.gpus_per_worker > 0,
    )


STAGE = Stage(
    name="compress",
    version=1,
    kind="compressed_model",
    config=CompressConfig,
    run=run,
    sizes=sizes,
    check=check,
    check_inputs=check_inputs,
    work=work,
    report=report_compression,
    groups=lambda config: ({"worker": config.execution.worker},),
)


def _probes(split: Storage) -> list[list[int]]:
    """The beginnings of the first documents."""
    documents = ShardReader(split, sequence_length=1).documents()
    return [
        document.tokens[:_PROBE_TOKENS].tolist()
        for document, _ in zip(documents, range(_PROBE_SEQUENCES), strict=False)
    ]


def engine_gap(engine: Sequence[np.ndarray], ours: Sequence[np.ndarray], original: Sequence[np.ndarray]) -> float:
    """Mean distance, in nats, of vLLM's logprobs of the compressed folder from ours.

    `original` are our logprobs of the model before it was compressed.
    Raises RuntimeError when the distance says that vLLM reads the folder otherwise than it was written.
    """
    engine_N, ours_N, original_N = (np.concatenate(logprobs) for logprobs in (engine, ours, original))
    gap = float(np.abs(engine_N - ours_N).mean())
    if gap <= SAME_GAP:
        return gap
    ratio = gap / max(float(np.abs(ours_N - original_N).mean()), _SMALLEST)
    unexplained = float(np.square(engine_N - ours_N).mean() / max(float(ours_N.var()), _SMALLEST))
    if not (ratio <= MAX_GAP_RATIO and unexplained <= MAX_UNEXPLAINED):  # so that what is no number is refused too
        raise RuntimeError(
            f"compress: vLLM's logprobs of the compressed model are {gap:.3f} nats from ours on average, {ratio:.0f} "
            f"times what rounding has changed (at most {MAX_GAP_RATIO:.0f}), and leave {unexplained:.0%} of their "
            f"variance unexplained (at most {MAX_UNEXPLAINED:.0%}): it reads the folder otherwise than it was written"
        )
    return gap


def quality(before: TextScores, after: TextScores) -> dict[str, dict[str, float]]:
    """Bits per byte of both models and of the change, drawn by document."""

    def bits_per_byte(nats: np.ndarray) -> dict[str, float]:
        return asdict(bootstrap_interval(nats / _NATS_PER_BIT, before.num_bytes))

    return {
        "bits_per_byte_original": bits_per_byte(before.nats),
        "bits_per_byte_compressed": bits_per_byte(after.nats),
        "bits_per_byte_change": bits_per_byte(after.nats - before.nats),
    }


def _flat(summary: Mapping[str, Any]) -> dict[str, float]:
    values = {key: value["value"] if isinstance(value, Mapping) else value for key, value in summary.items()}
    return {f"compress/{key}": float(value) for key, value in values.items()}
