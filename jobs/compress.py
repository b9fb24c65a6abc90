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

from actors.engine import engine_env
from actors.evaluation_results import NATS_PER_BIT
from actors.likelihood import MAX_PASS_TOKENS, score_text, sequence_logprobs, vllm_sequence_logprobs
from cluster.capacity import wait_for_capacity
from cluster.placement import Execution, Placement
from cluster.progress import working
from cluster.ray_task import ray_task
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
from model.metrics import Interval, bootstrap_interval
from model.quantize import FloatType, compress_folder
from model.transformer import TransformerConfig

_PROBE_SEQUENCES, _PROBE_TOKENS = 8, 96
SMALL_DIFFERENCE = 0.05
"""A mean difference of vLLM's logprobs and ours on the compressed folder, in nats, that is always accepted."""
MAX_DIFFERENCE_RATIO = 15.0
"""Largest mean difference over what rounding to int8 itself has changed. Where sums are exact, another order of them
moves a few activations to the next step (ratio 1.5); a processor without int8 dot products (AVX2) adds pairs in 16
bits, which saturate (7 to 11 on random weights). Wrongly read scales give 20 and more."""
_SMALLEST = 1e-12
"""Replaces a divisor of 0."""
MAX_UNEXPLAINED = 0.25
"""Largest share of the variance of our logprobs that vLLM's leave unexplained: 0.03 with saturation, 0.3 to 1.7 for
rows or scales in another order. It decides where rounding itself changes much."""


@dataclass(frozen=True, kw_only=True)
class CompressExecution(Execution):
    worker: Placement = field(default_factory=lambda: Placement(cpus_per_worker=0.5))
    """Placement of each of the three measuring tasks: the original model, the compressed model, vLLM."""


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """`compress.yaml`."""

    model: str = input_artifact("model")
    text: str = input_artifact("shards")
    """Shards whose validation documents both models are measured on."""
    text_bytes: int = 200_000
    """About how many bytes of it, documents spread evenly over the whole."""
    overlap: int = 64
    """Tokens that two windows of a long document share."""
    kept_dtype: FloatType = "bfloat16"
    """Number format of embeddings, head and norms, which are not rounded to int8; engines compute in it by default."""
    execution: CompressExecution = field(default_factory=CompressExecution)


def check(config: CompressConfig) -> None:
    """Raises ValueError for a field out of its range."""
    if config.text_bytes < 1:
        raise ValueError(f"text_bytes: {config.text_bytes} must be at least 1")
    config.execution.worker.check("execution.worker", forms_group=False)


def check_inputs(config: CompressConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError for a model that is not a float Llama, or text of another tokenizer."""
    folder = inputs["model"].model.local()
    sizes = read_config(folder)
    if not 0 <= config.overlap < sizes.max_length:
        raise ValueError(
            f"overlap: {config.overlap} must be at least 0 and below the model's max_length {sizes.max_length}"
        )
    split = inputs["text"].storage / "validation"
    check_tokenizer(split, read_manifest(split), fingerprint(folder))


@dataclass(frozen=True, kw_only=True)
class CompressSummary:
    """The sizes of both models, their likelihoods, and how well vLLM agrees with us."""

    original_bytes: int
    compressed_bytes: int
    num_quantized: int
    """Weights rounded to int8."""
    num_kept: int
    """Weights that stay floating point."""
    bits_per_byte_original: Interval
    bits_per_byte_compressed: Interval
    bits_per_byte_change: Interval
    engine_logprob_gap: float
    """Mean difference of vLLM's logprobs and ours on the compressed model, in nats."""

    def by_key(self) -> dict[str, float]:
        """By metric key."""
        values = {name: value.value if isinstance(value, Interval) else value for name, value in vars(self).items()}
        return {f"compress/{name}": float(value) for name, value in values.items()}


def run(config: CompressConfig, context: Context) -> dict[str, Any]:
    """Write model/, and measure it beside the original."""
    worker, split = config.execution.worker, context.inputs["text"].storage / "validation"
    wait_for_capacity(worker.bundles, "compress: execution.worker")
    original, compressed = context.inputs["model"].model, context.output / "model"
    with tempfile.TemporaryDirectory(prefix="raymill-compress-") as scratch:
        with working("rounding the weights to int8"):
            size = compress_folder(original.local(), Path(scratch), kept_dtype=config.kept_dtype)
        context.output.put_folder(Path(scratch), "model")
    probes, device = _probes(split), worker.device
    engine = ray_task(vllm_sequence_logprobs, worker, engine_env())(compressed, probes, device=device)
    ours = [ray_task(sequence_logprobs, worker)(folder, probes, device=device) for folder in (compressed, original)]
    num_parts = max(1, round(read_manifest(split).num_bytes / config.text_bytes))
    settings = {"part": 0, "num_parts": num_parts, "overlap": config.overlap, "precision": "float32", "device": device}
    scores = [ray_task(score_text, worker)(folder, split, **settings) for folder in (original, compressed)]
    with working("measuring the original and the compressed model"):
        before, after = ray.get(scores)
    with working("comparing vLLM's logprobs of the compressed model with ours"):
        difference = check_engine(*ray.get([engine, *ours]))
    summary = CompressSummary(
        **asdict(size),
        bits_per_byte_original=bits_per_byte(before.nats, before.num_bytes),
        bits_per_byte_compressed=bits_per_byte(after.nats, before.num_bytes),
        bits_per_byte_change=bits_per_byte(after.nats - before.nats, before.num_bytes),
        engine_logprob_gap=difference,
    )
    context.tracker.log(0, summary.by_key())
    return asdict(summary)


def sizes(config: CompressConfig, needs: Needs) -> TransformerConfig:
    """The sizes of the model, those of the original."""
    return model_sizes(needs["model"])


def work(config: CompressConfig, needs: Needs) -> Work:
    """What the forecast is made of: the likelihoods of original and compressed model, side by side, and an engine."""
    sizes, worker = model_sizes(needs["model"]), config.execution.worker
    num_bytes = min(config.text_bytes, shards_sizes(needs["text"]).validation_bytes)
    tokens = 2 * num_bytes / bytes_per_token(sizes.vocab_size)
    window = min(sizes.max_length, 512)
    held_gib = activation_gib(sizes, tokens=MAX_PASS_TOKENS, length=window) / 2  # no backward
    scorer_gib, engine_gib = 2 * mib(sizes, 4) / 1024 + held_gib, mib(sizes, 4) / 1024 + 0.5
    return Work(
        processes=[
            # They end before the engine, which starts meanwhile, reaches its own peak.
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
    """The first tokens of the first documents."""
    documents = ShardReader(split, sequence_length=1).documents()
    return [
        document.tokens[:_PROBE_TOKENS].tolist()
        for document, _ in zip(documents, range(_PROBE_SEQUENCES), strict=False)
    ]


def check_engine(engine: Sequence[np.ndarray], ours: Sequence[np.ndarray], original: Sequence[np.ndarray]) -> float:
    """Mean difference, in nats, of vLLM's logprobs of the compressed folder and ours.

    `original` are our logprobs of the model before it was compressed.
    Raises RuntimeError when the difference is so large that vLLM must have misread the folder.
    """
    engine_N, ours_N, original_N = (np.concatenate(logprobs) for logprobs in (engine, ours, original))
    difference = float(np.abs(engine_N - ours_N).mean())
    if difference <= SMALL_DIFFERENCE:
        return difference
    ratio = difference / max(float(np.abs(ours_N - original_N).mean()), _SMALLEST)
    unexplained = float(np.square(engine_N - ours_N).mean() / max(float(ours_N.var()), _SMALLEST))
    if not (ratio <= MAX_DIFFERENCE_RATIO and unexplained <= MAX_UNEXPLAINED):  # NaN is refused too
        raise RuntimeError(
            f"compress: vLLM's logprobs of the compressed model are {difference:.3f} nats from ours on average, "
            f"{ratio:.0f} times what rounding has changed (at most {MAX_DIFFERENCE_RATIO:.0f}), and leave "
            f"{unexplained:.0%} of their variance unexplained (at most {MAX_UNEXPLAINED:.0%}): vLLM misreads the folder"
        )
    return difference


def bits_per_byte(nats: np.ndarray, num_bytes: np.ndarray) -> Interval:
    """Bits by byte of text, resampled by document."""
    return bootstrap_interval(nats / NATS_PER_BIT, num_bytes)
