"""Completions of evaluation prompts, sampled with vLLM engines.

Before a model's completions are used, the sync check (`actors.sync_check`) compares the engine with Raymill's own
PyTorch model. A compressed model is completed with vLLM's int8 kernels, whose rounding depends on the processor. There
is no bound for its logprobs here (`actors.compression` has one), but the difference is logged.

Shape legend: in `model_NT`, N is the number of completions and T the number of positions of a row.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle
from torch import Tensor

from actors.engine import EngineSettings, engine_env
from actors.generator import Generator
from actors.generator_pool import GeneratorPool
from actors.likelihood import load_language_model
from actors.logprobs import batch_logprobs
from actors.rollout import GenerationBatch, PromptRequest, Rollout, SamplingParams, engine_logprobs, rollout_batch
from actors.settings import EVALUATION_BATCH_PROMPTS, MAX_PASS_TOKENS, SamplingConfig
from actors.sync_check import (
    LOGPROB_BOUNDS,
    LogprobBound,
    check_logprobs,
    check_rollouts,
    is_within,
    logprob_difference,
    widen_bound,
)
from actors.weight_sync import ObjectStoreSender, WeightSnapshot
from cluster import stage_monitor
from cluster.heartbeat import monitored_class
from cluster.placement import Placement
from cluster.session import worker_env
from cluster.storage import Storage
from data.chats.layouts import PromptRecord
from data.chats.prompts import require_prompt_ids
from data.chats.template import load_chat_tokenizer
from model.batch import Batch
from model.huggingface import load_hf_model
from model.huggingface_config import is_quantized, read_config
from model.precision import (
    ComputePrecision,
    autocast_dtype,
    require_resolved,
    torch_dtype,
)
from model.rounding import perturbed
from model.transformer import Transformer
from model.transformer_config import TransformerConfig

log = logging.getLogger(__name__)

_NUM_CHECKED_COMPLETIONS = 16
"""Maximum number of completions of each model that the sync check compares. The check runs on the driver, often without
a GPU, so the number is small."""


_GREEDY_LOGPROB_TEMPERATURE = 1.0
"""Temperature of the logprobs that vLLM reports with greedy decoding."""


@dataclass(frozen=True, kw_only=True)
class ModelPrompts:
    """A model and the prompts that it completes."""

    model: Storage
    """Hugging Face folder of the model."""
    prompts: Sequence[PromptRequest]
    """One request for each prompt, with `num_samples` 1. A prompt has the same index, and so the same seed, for every
    model."""
    stop_ids: tuple[int, ...]
    """Ids of the model's stop tokens."""


@dataclass(frozen=True)
class Completions:
    """One model's completions of the prompts of one evaluation task, in the order of the prompts."""

    texts: list[str]
    """The completions as text, without the stop token. Other special tokens are part of the text."""
    rollouts: list[Rollout]
    """The completions as tokens."""


def complete_tasks(
    tasks: Mapping[str, Sequence[PromptRecord]],
    models: Mapping[str, Storage],
    tasks_by_model: Mapping[str, Sequence[str]],
    sampling: SamplingConfig,
    placement: Placement,
    *,
    kv_cache_gib: float,
    on_done: Callable[[str], None] = lambda model: None,
) -> dict[str, dict[str, Completions]]:
    """Return the completions by the name of the task and then by the name of the model.

    An inner dictionary has only the models that complete the task.

    `tasks` has the prompts of each evaluation task, by the name of the task. The keys of `models` and `tasks_by_model`
    are the names of the models. `models` has the Hugging Face folder of each model, and `tasks_by_model` the names of
    the tasks that each model completes. `placement` has the number of engines and the resources of each engine.
    `kv_cache_gib` is the size of each engine's KV cache. `on_done` is called with the name of a model after the sync
    check of the model's completions.
    """
    # Every prompt of every task gets an index of its own, from which the seed of its completion is derived.
    counter = itertools.count()
    prompt_indices = {task: [next(counter) for _ in records] for task, records in tasks.items()}
    # A model without tasks is left out here and in all that follows.
    tokenizers = {name: load_chat_tokenizer(models[name].local()) for name, names in tasks_by_model.items() if names}
    prompts_by_model: dict[str, ModelPrompts] = {}
    for name, tokenizer in tokenizers.items():
        prompts = [
            PromptRequest(index, tuple(require_prompt_ids(tokenizer, record)), 1)
            for task in tasks_by_model[name]
            for index, record in zip(prompt_indices[task], tasks[task], strict=True)
        ]
        prompts_by_model[name] = ModelPrompts(model=models[name], prompts=prompts, stop_ids=tokenizer.stop_ids)
    rollouts = complete(prompts_by_model, sampling, placement, kv_cache_gib=kv_cache_gib, on_done=on_done)
    completions: dict[str, dict[str, Completions]] = {task: {} for task in tasks}
    for name, tokenizer in tokenizers.items():
        remaining = iter(rollouts[name])
        for task in tasks_by_model[name]:
            task_rollouts = list(itertools.islice(remaining, len(tasks[task])))
            texts = [tokenizer.decode(rollout.text_ids) for rollout in task_rollouts]
            completions[task][name] = Completions(texts, task_rollouts)
    return completions


def complete(
    prompts_by_model: Mapping[str, ModelPrompts],
    sampling: SamplingConfig,
    placement: Placement,
    *,
    kv_cache_gib: float,
    on_done: Callable[[str], None] = lambda model: None,
) -> dict[str, list[Rollout]]:
    """Return the completions of each model's prompts, in the order of the prompts.

    The keys of `prompts_by_model` and of the result are the names of the models. Models with equal model configs use
    the same engines one after the other, because starting an engine takes tens of seconds, but loading other weights
    into a running engine takes only tens of milliseconds. A compressed model gets engines of its own, which read the
    weights from its folder. The other arguments are those of `complete_tasks`. Raises
    EngineMismatchError when the sync check fails, for example because the logprobs of an engine differ from those of
    Raymill's model by more than a bound.
    """
    results: dict[str, list[Rollout]] = {}
    for (model_config, compressed), names in _group_by_engine(prompts_by_model).items():
        precision = require_resolved(sampling.precision)
        settings = EngineSettings(
            model=prompts_by_model[names[0]].model,
            max_length=model_config.max_length,
            max_sequences=EVALUATION_BATCH_PROMPTS,
            precision=precision,
            kv_cache_gib=kv_cache_gib,
            is_cuda=placement.gpus_per_worker > 0,
        )
        pool = GeneratorPool(
            lambda index, settings=settings: _start_generator(settings, placement, index),
            placement.workers,
            max_restarts=placement.max_failures,
        )
        try:
            if compressed is not None:
                results[compressed] = _complete_compressed(pool, prompts_by_model[compressed], sampling, model_config)
                on_done(compressed)
                continue
            for name, rollouts in _complete_by_model(pool, {name: prompts_by_model[name] for name in names}, sampling):
                results[name] = rollouts
                on_done(name)
        finally:
            pool.close()
    return results


class _EngineKey(NamedTuple):
    """What the models have in common that can use the same engine."""

    config: TransformerConfig
    compressed: str | None
    """Name of the compressed model of the engine. None if the models are not compressed."""


def _group_by_engine(prompts_by_model: Mapping[str, ModelPrompts]) -> dict[_EngineKey, list[str]]:
    """Group the names of the models by the engine that they can use."""
    names: dict[_EngineKey, list[str]] = {}
    for name, model_prompts in prompts_by_model.items():
        folder = model_prompts.model.local()
        key = _EngineKey(read_config(folder, allow_int8=True), name if is_quantized(folder) else None)
        names.setdefault(key, []).append(name)
    return names


def _complete_compressed(
    pool: GeneratorPool, model_prompts: ModelPrompts, sampling: SamplingConfig, config: TransformerConfig
) -> list[Rollout]:
    """Return one completion of each prompt of a compressed model, with whose folder the engines were started."""
    pool.load(WeightSnapshot(version=0, chunks=[], checksums={}, is_in_folder=True))
    rollouts = _generate(pool, model_prompts, sampling, 0, config.vocab_size)
    checked = rollouts[:_NUM_CHECKED_COMPLETIONS]
    batch = rollout_batch(checked, pad_id=0)
    precision = require_resolved(sampling.precision)
    model_NT = _model_logprobs(load_language_model(model_prompts.model.local()), batch, sampling.temperature, precision)
    difference = logprob_difference(batch, engine_logprobs(checked, batch), model_NT)
    log.info(
        "evaluate: vLLM's logprobs of the compressed model in %s differ from Raymill's by %.3f nats on average, and by "
        "%.3f at most",
        model_prompts.model.url,
        difference.mean,
        difference.max,
    )
    return rollouts


def _complete_by_model(
    pool: GeneratorPool, prompts_by_model: Mapping[str, ModelPrompts], sampling: SamplingConfig
) -> Iterator[tuple[str, list[Rollout]]]:
    """Complete all prompts, one model after the other. Yields the name and the completions of each model.

    The weights of each model are loaded into the engines, so all models must have the model config with which the
    engines were started. The weight version of a model is its position in `prompts_by_model`.
    """
    precision = require_resolved(sampling.precision)
    sender = ObjectStoreSender(rank=0, dtype=torch_dtype(precision))
    previous: WeightSnapshot | None = None
    for version, (name, model_prompts) in enumerate(prompts_by_model.items()):
        model = load_hf_model(model_prompts.model.local())
        snapshot = sender.send(model, version)
        pool.load(snapshot)
        rollouts = _generate(pool, model_prompts, sampling, version, model.config.vocab_size)
        check_completions(
            model, rollouts[:_NUM_CHECKED_COMPLETIONS], sampling.temperature, precision, snapshot, previous
        )
        previous = snapshot
        yield name, rollouts


def _generate(
    pool: GeneratorPool, model_prompts: ModelPrompts, sampling: SamplingConfig, version: int, vocab_size: int
) -> list[Rollout]:
    """Return one completion of each prompt of a model. `version` is the weight version that the engines have loaded."""
    batch_sampling = SamplingParams(
        temperature=sampling.temperature,
        max_new_tokens=sampling.max_new_tokens,
        stop_ids=model_prompts.stop_ids,
        seed=sampling.seed,
    )
    prompts = list(model_prompts.prompts)
    groups = pool.generate(
        [
            GenerationBatch(0, version, tuple(prompts[start : start + EVALUATION_BATCH_PROMPTS]), batch_sampling)
            for start in range(0, len(prompts), EVALUATION_BATCH_PROMPTS)
        ]
    )
    check_rollouts(prompts, groups, version=version, vocab_size=vocab_size)
    return [group.rollouts[0] for group in groups]


def check_completions(
    model: Transformer,
    rollouts: Sequence[Rollout],
    temperature: float,
    precision: ComputePrecision,
    current: WeightSnapshot,
    previous: WeightSnapshot | None,
) -> None:
    """Raises EngineMismatchError when engine and Raymill differ in the completions' logprobs by more than a bound.

    The bound depends on `precision` and `temperature`. If it is exceeded, what rounding alone does to this model is
    measured on the completions, and widens the bound as in RLHF. `current` is the snapshot from which the engine loaded
    `model`, and `previous` the snapshot that the engine had loaded before. `previous` is None for the first model of an
    engine.
    """
    batch = rollout_batch(rollouts, pad_id=0)
    model_NT = _model_logprobs(model, batch, temperature, precision)
    temperature = temperature or _GREEDY_LOGPROB_TEMPERATURE
    # The logits are divided by the temperature, so a low temperature increases the rounding errors of the logprobs.
    default, scale = LOGPROB_BOUNDS[precision], min(1.0, temperature)
    bound = LogprobBound(max=default.max / scale, mean=default.mean / scale)
    engine_NT = engine_logprobs(rollouts, batch)
    if not is_within(logprob_difference(batch, engine_NT, model_NT), bound):
        with perturbed(model, precision):
            perturbed_NT = _model_logprobs(model, batch, temperature, precision)
        bound = widen_bound(bound, logprob_difference(batch, perturbed_NT, model_NT))
    check_logprobs(
        batch,
        engine_NT,
        model_NT,
        bound=bound,
        model_config=model.config,
        temperature=temperature,
        current=current,
        previous=previous,
    )


def _model_logprobs(model: Transformer, batch: Batch, temperature: float, precision: ComputePrecision) -> Tensor:
    """Return the logprobs [N, T] of the completions under Raymill's model, at the temperature of the engine's."""
    return batch_logprobs(
        model,
        batch,
        temperature=temperature or _GREEDY_LOGPROB_TEMPERATURE,
        micro_batch_size=max(1, MAX_PASS_TOKENS // batch.input_ids.shape[1]),
        dtype=autocast_dtype(precision),
    )


def _start_generator(settings: EngineSettings, placement: Placement, index: int) -> ActorHandle:
    """Start the Ray actor of the generator with this index."""
    environment = {**worker_env(placement.threads_per_worker), **engine_env()}
    handle: Any = (
        ray.remote(monitored_class(Generator, stage_monitor.current_stage(), "generator", index))
        .options(
            num_cpus=placement.cpus_per_worker,
            num_gpus=placement.gpus_per_worker,
            runtime_env={"env_vars": environment},
        )
        .remote(settings)
    )
    return handle
