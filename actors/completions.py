"""Completions of evaluation prompts by vLLM engines, each model's checked against our own model before use."""

# No `from __future__ import annotations`: the config loader reads SamplingConfig's types at run time.

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.engine import EngineSettings, engine_env
from actors.generator import Generator
from actors.generator_pool import GeneratorPool
from actors.likelihood import MAX_PASS_TOKENS
from actors.logprobs import batch_logprobs
from actors.rollout import GenerationBatch, PromptRequest, Rollout, SamplingParams, engine_logprobs, rollout_batch
from actors.sync_check import LOGPROB_BOUNDS, LogprobDifference, check_logprobs, check_rollouts
from actors.weight_sync import ObjectStoreSender, WeightSnapshot
from cluster import stage_monitor
from cluster.heartbeat import monitored_class
from cluster.placement import Placement
from cluster.session import worker_env
from cluster.storage import Storage
from data.chats.records import PromptRecord
from data.chats.template import load_tokenizer
from model.huggingface import load_hf_model
from model.huggingface_config import read_config
from model.precision import (
    ComputePrecision,
    Precision,
    autocast_dtype,
    precision_field,
    resolved_precision,
    torch_dtype,
)
from model.transformer import Transformer
from model.transformer_config import TransformerConfig

GENERATION_BATCH_PROMPTS = 64
"""Prompts of a generation batch; fixed, so that completions do not depend on the number of engines."""
_CHECKED_COMPLETIONS = 16
"""Completions of each model whose logprobs our own model computes again, on the driver, where there may be no GPU."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How completions are sampled. The same prompt has the same seed for every model."""

    temperature: float = 0.7
    """0 takes the likeliest token each time."""
    max_new_tokens: int = 64
    """A longer completion is cut."""
    seed: int = 0
    """Seed of every completion."""
    precision: Precision = precision_field("generators")
    """Precision of the engines (`model.precision`)."""


@dataclass(frozen=True, kw_only=True)
class ModelPrompts:
    """The prompts that one model completes."""

    model: Storage
    """Hugging Face folder."""
    prompts: Sequence[PromptRequest]
    """One sample each. Equal prompts of different models have equal indices."""
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Completions:
    """One model's completions of one task's prompts, in order."""

    texts: list[str]
    """Without the stop token; other special tokens stay visible."""
    rollouts: list[Rollout]


def complete_tasks(
    tasks: Mapping[str, Sequence[PromptRecord]],
    models: Mapping[str, Storage],
    tasks_of_model: Mapping[str, Sequence[str]],
    sampling: SamplingConfig,
    placement: Placement,
    *,
    kv_cache_gib: float,
    on_done: Callable[[str], None] = lambda model: None,
) -> dict[str, dict[str, Completions]]:
    """Completions by task and model. Each model completes the prompts of all its tasks in one request.

    `on_done` is called with the name of each model when its completions are there.
    """
    number = itertools.count()
    numbers = {task: [next(number) for _ in records] for task, records in tasks.items()}
    tokenizers = {name: load_tokenizer(models[name].local()) for name, names in tasks_of_model.items() if names}
    requests: dict[str, ModelPrompts] = {}
    for name, tokenizer in tokenizers.items():
        prompts = [
            PromptRequest(index, tuple(tokenizer.prompt_ids(record.messages, location=record.location)), 1)
            for task in tasks_of_model[name]
            for index, record in zip(numbers[task], tasks[task], strict=True)
        ]
        requests[name] = ModelPrompts(model=models[name], prompts=prompts, stop_ids=tokenizer.stop_ids)
    rollouts = complete(requests, sampling, placement, kv_cache_gib=kv_cache_gib, on_done=on_done)
    completions: dict[str, dict[str, Completions]] = {task: {} for task in tasks}
    for name, tokenizer in tokenizers.items():
        remaining = iter(rollouts[name])
        for task in tasks_of_model[name]:
            of_task = list(itertools.islice(remaining, len(tasks[task])))
            texts = [tokenizer.decode(rollout.text_ids) for rollout in of_task]
            completions[task][name] = Completions(texts, of_task)
    return completions


def complete(
    requests: Mapping[str, ModelPrompts],
    sampling: SamplingConfig,
    placement: Placement,
    *,
    kv_cache_gib: float,
    on_done: Callable[[str], None] = lambda model: None,
) -> dict[str, list[Rollout]]:
    """Each model's completion of each of its prompts, in order, by the model's name.

    Models of equal sizes share engines: loading the next model's weights takes tens of milliseconds, starting an engine
    tens of seconds. Raises a WeightSyncError when an engine does not compute what the model does.
    """
    results: dict[str, list[Rollout]] = {}
    for model_config, names in _by_sizes(requests).items():
        precision = resolved_precision(sampling.precision)
        settings = EngineSettings(
            model=requests[names[0]].model,
            max_length=model_config.max_length,
            max_sequences=GENERATION_BATCH_PROMPTS,
            precision=precision,
            kv_cache_gib=kv_cache_gib,
            is_cuda=placement.gpus_per_worker > 0,
        )
        pool = GeneratorPool(
            lambda index, settings=settings: _start_generator(settings, placement, index),
            placement.workers,
            max_failures=placement.max_failures,
        )
        try:
            for name, rollouts in _complete_in_turn(pool, {name: requests[name] for name in names}, sampling):
                results[name] = rollouts
                on_done(name)
        finally:
            pool.close()
    return results


def _by_sizes(requests: Mapping[str, ModelPrompts]) -> dict[TransformerConfig, list[str]]:
    """The names of the models of each size."""
    names: dict[TransformerConfig, list[str]] = {}
    for name, request in requests.items():
        names.setdefault(read_config(request.model.local()), []).append(name)
    return names


def _complete_in_turn(
    pool: GeneratorPool, requests: Mapping[str, ModelPrompts], sampling: SamplingConfig
) -> Iterator[tuple[str, list[Rollout]]]:
    """Each model's name and completions: its weights are loaded into the engines, which complete its prompts."""
    precision = resolved_precision(sampling.precision)
    sender = ObjectStoreSender(rank=0, dtype=torch_dtype(precision))
    previous: WeightSnapshot | None = None
    for version, (name, request) in enumerate(requests.items()):
        model = load_hf_model(request.model.local())
        snapshot = sender.send(model, version)
        pool.load(snapshot)
        rollouts = _generate(pool, request, sampling, version, model.config.vocab_size)
        check_completions(model, rollouts[:_CHECKED_COMPLETIONS], sampling.temperature, precision, snapshot, previous)
        previous = snapshot
        yield name, rollouts


def _generate(
    pool: GeneratorPool, request: ModelPrompts, sampling: SamplingConfig, version: int, vocab_size: int
) -> list[Rollout]:
    request_sampling = SamplingParams(
        temperature=sampling.temperature,
        max_new_tokens=sampling.max_new_tokens,
        stop_ids=request.stop_ids,
        seed=sampling.seed,
    )
    tasks, size = list(request.prompts), GENERATION_BATCH_PROMPTS
    groups = pool.generate(
        [
            GenerationBatch(0, version, tuple(tasks[start : start + size]), request_sampling)
            for start in range(0, len(tasks), size)
        ]
    )
    check_rollouts(tasks, groups, version=version, vocab_size=vocab_size)
    return [group.rollouts[0] for group in groups]


def check_completions(
    model: Transformer,
    rollouts: Sequence[Rollout],
    temperature: float,
    precision: ComputePrecision,
    current: WeightSnapshot,
    previous: WeightSnapshot | None,
) -> None:
    """Raises a WeightSyncError when the completions have other logprobs under our own model than in the engine."""
    temperature = temperature or 1.0  # a greedy engine reports logprobs that no temperature has changed
    batch = rollout_batch(rollouts, pad_id=0)
    model_NT = batch_logprobs(
        model,
        batch,
        temperature=temperature,
        micro_batch_size=max(1, MAX_PASS_TOKENS // batch.input_ids.shape[1]),
        dtype=autocast_dtype(precision),
    )
    # The temperature divides the logits, and their rounding errors too.
    bound, scale = LOGPROB_BOUNDS[precision], min(1.0, temperature)
    check_logprobs(
        batch,
        engine_logprobs(rollouts, batch),
        model_NT,
        bound=LogprobDifference(max=bound.max / scale, mean=bound.mean / scale),
        model_config=model.config,
        temperature=temperature,
        current=current,
        previous=previous,
    )


def _start_generator(settings: EngineSettings, placement: Placement, index: int) -> ActorHandle:
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
