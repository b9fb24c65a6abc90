"""compress: quantizes a model to int8, in a layout that vLLM loads, and measures it beside the original.

    raymill run compress compress.yaml

    original ─ round ─▶ model/ (compressed-tensors W8A8) ─ measure ─▶ bits per byte and logprobs

Bits per byte are measured for both models with Raymill's PyTorch model. vLLM's logprobs of the compressed model are
compared with those of Raymill's PyTorch model, which simulates int8.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from actors.compression import CompressSummary, bits_per_byte, check_engine
from actors.engine import engine_env
from actors.settings import MAX_PASS_TOKENS
from cluster.capacity import wait_for_capacity
from cluster.ignored_settings import reject_ignored
from cluster.placement import Execution, Placement
from cluster.progress import show_activity
from cluster.ray_task import ray_task
from cluster.storage import Storage
from data.tokens.shard_format import read_manifest
from data.tokens.shard_reader import ShardReader, check_tokenizer
from data.tokens.tokenizer import fingerprint
from jobs.frame.artifact import Artifact
from jobs.frame.fields import input_artifact
from jobs.frame.sizes import (
    bytes_per_token,
    forward_activation_gib,
    forward_flop_per_token,
    model_config_of,
    parameters_mib,
    shards_sizes,
)
from jobs.frame.stage import Context, PlannedInputs, Stage
from jobs.frame.workload import Processes, Workload
from jobs.report.evaluation import report_compression
from model.huggingface_config import read_config
from model.precision import ComputePrecision
from model.transformer_config import TransformerConfig

_PROBE_SEQUENCES, _PROBE_TOKENS = 8, 96  # number and length of the sequences whose logprobs are compared with vLLM's


@dataclass(frozen=True, kw_only=True)
class CompressExecution(Execution):
    """Where the stage runs. These settings change no result, except by rounding."""

    worker: Placement = field(default_factory=lambda: Placement(cpus_per_worker=0.5))
    """Placement of each task that measures the original model, the compressed model or the vLLM engine."""


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """`compress.yaml`."""

    model: str = input_artifact("model")
    """Model to quantize to int8."""
    text: str = input_artifact("shards")
    """Shards on whose validation documents both models are measured."""
    text_bytes: int = 200_000
    """Approximate size of the sample of validation documents to measure on, in bytes. The sample is spread evenly over
    all of them."""
    overlap: int = 64
    """Number of predicted tokens that consecutive windows of a long document share. Each is scored only once, in the
    window in which it has more context."""
    kept_dtype: ComputePrecision = "bfloat16"
    """Data type of embeddings, lm_head and norms, which are not quantized. Engines compute in it by default."""
    execution: CompressExecution = field(default_factory=CompressExecution)


def check(config: CompressConfig) -> None:
    """Raises ValueError for a field out of its range."""
    if config.text_bytes < 1:
        raise ValueError(f"text_bytes: {config.text_bytes} must be at least 1")
    config.execution.worker.check("execution.worker", forms_process_group=False)
    reject_ignored(config.execution.worker, "workers", path="execution.worker", reason="each task has one worker")


def check_inputs(config: CompressConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError if the model, the overlap or the text cannot be used.

    The model must be a floating-point Llama, the overlap must be below the model's max_length, and the text must have
    been tokenized with the model's tokenizer.
    """
    folder = inputs["model"].model.local()
    sizes = read_config(folder)
    if not 0 <= config.overlap < sizes.max_length:
        raise ValueError(
            f"overlap: {config.overlap} must be at least 0 and below the model's max_length {sizes.max_length}"
        )
    split = inputs["text"].storage / "validation"
    check_tokenizer(split, read_manifest(split), fingerprint(folder))


def run(config: CompressConfig, context: Context) -> CompressSummary:
    """Write the quantized model to model/, and measure it beside the original.

    Returns the sizes of both models, and the measures.
    """
    # Imported here, so that loading a config imports neither Ray nor torch.
    import ray

    from actors.likelihood import score_text, sequence_logprobs, vllm_sequence_logprobs
    from model.quantize import adds_int8_exactly, compress_folder

    worker, split = config.execution.worker, context.inputs["text"].storage / "validation"
    wait_for_capacity(worker.bundles, "compress: execution.worker")
    original, compressed = context.inputs["model"].model, context.output / "model"
    with tempfile.TemporaryDirectory(prefix="raymill-compress-") as scratch:
        with show_activity("rounding the weights to int8"):
            size = compress_folder(original.local(), Path(scratch), kept_dtype=config.kept_dtype)
        context.output.put_folder(Path(scratch), "model")
    probes, device = _probes(split), worker.device
    engine = ray_task(vllm_sequence_logprobs, worker, engine_env())(compressed, probes, device=device)
    # Raymill's logprobs of the compressed model: with int8 rounding as it is, and with rounding at random.
    ours = [
        ray_task(sequence_logprobs, worker)(compressed, probes, device=device, rounds_at_random=at_random)
        for at_random in (False, True)
    ]
    adds_exactly = ray_task(adds_int8_exactly, worker)(device)
    # The documents are divided into `num_parts` parts of about text_bytes, and only part 0 is measured.
    num_parts = max(1, round(read_manifest(split).num_bytes / config.text_bytes))
    settings = {"part": 0, "num_parts": num_parts, "overlap": config.overlap, "precision": "float32", "device": device}
    scores = [ray_task(score_text, worker)(folder, split, **settings) for folder in (original, compressed)]
    with show_activity("measuring the original and the compressed model"):
        before, after = ray.get(scores)
    with show_activity("comparing vLLM's logprobs of the compressed model with ours"):
        check = check_engine(*ray.get([engine, *ours]), adds_exactly=ray.get(adds_exactly))
    # Both models are measured on the same documents, so `before.num_bytes` is the size of the text for both.
    summary = CompressSummary(
        **asdict(size),
        bits_per_byte_original=bits_per_byte(before.nats, before.num_bytes),
        bits_per_byte_compressed=bits_per_byte(after.nats, before.num_bytes),
        bits_per_byte_change=bits_per_byte(after.nats - before.nats, before.num_bytes),
        engine_logprob_difference=check.difference,
        rounding_logprob_difference=check.rounding,
    )
    context.tracker.log(0, summary.by_key())
    return summary


def output_sizes(config: CompressConfig, planned: PlannedInputs) -> TransformerConfig:
    """Return the config of the compressed model's network, which is that of the original."""
    return model_config_of(planned["model"])


def workload(config: CompressConfig, planned: PlannedInputs) -> Workload:
    """Return what the forecast of time and memory is computed from.

    One scoring task for each of the two models is assumed to run at the same time as one vLLM engine.
    """
    model_config, worker = model_config_of(planned["model"]), config.execution.worker
    num_bytes = min(config.text_bytes, shards_sizes(planned["text"]).validation_bytes)
    tokens = 2 * num_bytes / bytes_per_token(model_config.vocab_size)
    window = min(model_config.max_length, 512)
    activations_gib = forward_activation_gib(model_config, tokens=MAX_PASS_TOKENS, length=window)
    scorer_gib, engine_gib = (
        2 * parameters_mib(model_config, 4) / 1024 + activations_gib,
        parameters_mib(model_config, 4) / 1024 + 0.5,
    )
    return Workload(
        processes=[
            # The tasks and the engine start together, but the tasks end before the engine's memory peaks. So the peak
            # of all three is not the sum of their peaks but max(2 * scorer_gib, engine_gib). Half of the engine's
            # memory is subtracted from each of the two tasks, so that the sum has this value.
            Processes(kind="actor", number=2, memory_gib=max(0.0, scorer_gib - engine_gib / 2)),
            Processes(kind="engine", memory_gib=engine_gib),
        ],
        flop=tokens * forward_flop_per_token(model_config, window),
        width=model_config.width,
        threads=2 * worker.threads_per_worker,
        disk_gib=parameters_mib(model_config, 1.5) / 1024,
        on_gpu=worker.gpus_per_worker > 0,
    )


STAGE = Stage(
    name="compress",
    version=3,
    kind="compressed_model",
    config=CompressConfig,
    run=run,
    output_sizes=output_sizes,
    check=check,
    check_inputs=check_inputs,
    workload=workload,
    report=report_compression,
    placements=lambda config: ({"worker": config.execution.worker},),
)


def _probes(split: Storage) -> list[list[int]]:
    """Return the first `_PROBE_TOKENS` token ids of each of the first `_PROBE_SEQUENCES` documents of a split.

    The first id of each document is the token that documents begin with.
    """
    documents = ShardReader(split, sequence_length=1).documents()
    return [
        document.tokens[:_PROBE_TOKENS].tolist()
        for document, _ in zip(documents, range(_PROBE_SEQUENCES), strict=False)
    ]
