"""evaluate: how good the pipeline's models are, and how much better one is than another, with intervals.

    raymill run evaluate evaluate.yaml

Held-out text, completions of prompts, stereotypes and the reward model's order of held-out preferences are measured
side by side: text and pairs by Ray tasks, completions by vLLM engines. Every estimate has a bootstrap interval over its
records: documents, prompts, pairs.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from actors.completion_measures import METRICS, measure_completions
from actors.completions import GENERATION_BATCH_PROMPTS, Completions, SamplingConfig, complete_tasks
from actors.evaluation_results import (
    Bootstrap,
    EvaluationResults,
    EvaluationSample,
    GroupBias,
    RewardResults,
    TaskResults,
    TextResults,
    bias_results,
    reward_results,
    task_results,
    task_samples,
    text_results,
)
from actors.likelihood import MAX_PASS_TOKENS, merge_scores, score_text, xz_size
from actors.reward_margins import reward_margins
from actors.scorer import Verifier
from actors.sentence_pairs import read_pairs, score_pairs
from cluster.capacity import wait_for_capacity
from cluster.paths import list_files
from cluster.placement import Execution, Placement
from cluster.progress import working
from cluster.ray_task import RunningTasks, ray_task
from cluster.storage import Storage
from data.chats.records import PromptRecord, read_preferences, read_prompts
from data.chats.template import load_tokenizer, render_preference
from data.tokens.shard_format import read_manifest
from data.tokens.shard_reader import check_tokenizer
from data.tokens.tokenizer import fingerprint
from jobs.frame.artifact import Artifact
from jobs.frame.fields import input_artifact, source_files, user_function
from jobs.frame.sizes import (
    activation_gib,
    bytes_per_token,
    forward_flop,
    model_sizes,
    parameters_mib,
    shards_sizes,
)
from jobs.frame.stage import Context, PlannedInputs, Stage
from jobs.frame.user_code import read_verifier
from jobs.frame.workload import Processes, Workload
from jobs.report.evaluation import report_evaluation
from model.huggingface_config import read_config
from model.precision import Precision, precision_field, resolved_precision
from model.transformer_config import num_parameters

_FORECAST_WINDOW = 512
_COMPLETION_S = 0.004
"""Seconds of Python for each completion and its measures, on the reference processor."""
_XZ_S = 1e-6
"""Seconds of `xz -9e` for each byte there."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GenerationTask:
    """Prompts that models complete, and what is measured of the completions."""

    name: str
    """Name in the results."""
    prompts: str = source_files()
    """JSONL of `{"prompt": …}` or `{"messages": […]}`. A field `answer` is what the metrics compare with: a text, or
    for exact_match and f1 a list of accepted ones."""
    measures: list[str] = user_function([])
    """Functions `path/to/file.py:function`, called as function(prompt, completion, record) -> float: the form of an
    RLHF verifier, whose mean here is its accuracy."""
    metrics: list[str] = field(default_factory=list)
    """Any of bleu, rouge, exact_match and f1; every prompt then needs an `answer`."""
    models: list[str] = field(default_factory=list)
    """Names of the models that complete them; every model when empty."""
    max_prompts: int | None = None
    """Number of prompts, from the first on; all when left out."""


def _half() -> Placement:
    return Placement(cpus_per_worker=0.5)


def _two_scorers() -> Placement:
    return Placement(workers=2, cpus_per_worker=0.75)


@dataclass(frozen=True, kw_only=True)
class EvaluateExecution(Execution):
    """Where the work runs; nothing here changes a result, beyond rounding."""

    generators: Placement = field(default_factory=_half)
    """The engines."""
    scorers: Placement = field(default_factory=_two_scorers)
    """The tasks that compute likelihoods; the documents are divided among `workers` of them for each model."""
    kv_cache_gib: float = 0.5
    """Memory for keys and values of each engine, on CPU."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """`evaluate.yaml`."""

    models: dict[str, str] = input_artifact("model")
    """Name in the results → stage, artifact or Llama-family Hugging Face folder."""
    text: str | None = input_artifact("shards", default=None)
    """Shards whose validation documents are the held-out text; no text is measured without."""
    text_models: list[str] = field(default_factory=list)
    """Names of the models whose likelihood of the text is measured; every model when empty."""
    overlap: int = 64
    """Tokens that two windows of a long document share, so that each token is predicted from at least as many."""
    precision: Precision = precision_field("scorers")
    """Precision of the matrix products for text and preferences (`model.precision`)."""
    compare_with_xz: bool = False
    """Compress the held-out text by `xz -9e` in one stream as well, as a yardstick of bits per byte."""
    generation: list[GenerationTask] = field(default_factory=list)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    compare: list[list[str]] = field(default_factory=list)
    """Pairs [before, after] of models, compared prompt by prompt in every task that both complete."""
    stereotype_pairs: str | None = source_files(None)
    """JSONL of `{"group", "stereotype", "counterpart"}`: sentences that differ only in the group they name."""
    reward: str | None = input_artifact("reward_model", default=None)
    """A reward model, measured on `preferences`."""
    preferences: list[str] = source_files([])
    """JSONL files of `{"prompt", "chosen", "rejected"}` that the reward model has not learned from."""
    num_resamples: int = 2000
    """Resamples of each bootstrap."""
    seed: int = 0
    """Seed of the bootstrap resampling."""
    execution: EvaluateExecution = field(default_factory=EvaluateExecution)


# What is checked before work.


def check(config: EvaluateConfig) -> None:
    """Raises ValueError for every mistake that shows without the inputs."""
    if not config.models:
        raise ValueError("models: must name at least one model to evaluate")
    _check_models(config, "text_models", config.text_models)
    for number, pair in enumerate(config.compare):
        if len(pair) != 2:
            raise ValueError(f"compare[{number}]: {pair} must be a pair [before, after]")
        _check_models(config, f"compare[{number}]", pair)
    names = [task.name for task in config.generation]
    if len(set(names)) < len(names):
        raise ValueError(f"generation: the names {', '.join(names)} must differ")
    for number, task in enumerate(config.generation):
        _check_task(config, f"generation[{number}]", task)
    if (config.reward is None) != (not config.preferences):
        raise ValueError("reward and preferences: give both, or neither")
    if config.compare_with_xz and config.text is None:
        raise ValueError("compare_with_xz: needs text, the shards whose validation documents are compressed")
    if config.sampling.temperature < 0 or config.sampling.max_new_tokens < 1:
        raise ValueError("sampling: temperature must be 0 or above and max_new_tokens at least 1")
    if config.num_resamples < 100:
        raise ValueError(f"num_resamples: {config.num_resamples} must be at least 100 to give an interval")
    for name in ("generators", "scorers"):
        getattr(config.execution, name).check(f"execution.{name}", forms_group=False)


def _check_models(config: EvaluateConfig, where: str, names: Sequence[str]) -> None:
    for name in names:
        if name not in config.models:
            raise ValueError(f"{where}: {name!r} is not one of the models; they are {', '.join(config.models)}")


def _check_task(config: EvaluateConfig, where: str, task: GenerationTask) -> None:
    _check_models(config, f"{where}.models", task.models)
    for metric in task.metrics:
        if metric not in METRICS:
            raise ValueError(f"{where}.metrics: {metric!r} is not one of {', '.join(METRICS)}")
    if not task.metrics and not task.measures:
        raise ValueError(f"{where}: needs metrics or measures, or nothing would be measured of the completions")
    if task.max_prompts is not None and task.max_prompts < 1:
        raise ValueError(f"{where}.max_prompts: {task.max_prompts} must be at least 1; leave it out for all")
    for measure in task.measures:
        try:
            read_verifier(measure)
        except ValueError as error:
            raise ValueError(f"{where}.measures: {error}") from error


def check_records(config: EvaluateConfig) -> None:
    """Raises ValueError naming file and line of a malformed prompt, pair or preference."""
    for task in config.generation:
        _records(task)
    if config.stereotype_pairs is not None:
        read_pairs(config.stereotype_pairs)
    if config.reward is not None:
        for _ in read_preferences(list_files(config.preferences)):
            pass


def check_inputs(config: EvaluateConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError for text of another tokenizer, or prompts that leave no room for completions."""
    for name in config.models:
        folder = inputs[f"models.{name}"].model.local()
        sizes = read_config(folder)
        if config.text is not None and name in (config.text_models or config.models):
            split = inputs["text"].storage / "validation"
            check_tokenizer(split, read_manifest(split), fingerprint(folder))
            if not 0 <= config.overlap < sizes.max_length:
                raise ValueError(
                    f"overlap: {config.overlap} must be at least 0 and below {sizes.max_length}, {name}'s max_length"
                )
    for task in config.generation:
        records = _records(task)
        for name in task.models or config.models:
            _check_prompt_lengths(config, task, records, name, inputs[f"models.{name}"].model)


def _records(task: GenerationTask) -> list[PromptRecord]:
    """The task's prompts. Raises ValueError for a prompt without the answer that a metric needs."""
    records = list(read_prompts(list_files([task.prompts])))[: task.max_prompts]
    for record in records:
        answer = record.record.get("answer")
        if task.metrics and not answer:
            raise ValueError(f"{record.where}: answer is missing, which {', '.join(task.metrics)} compare with")
        if isinstance(answer, list) and {"bleu", "rouge"} & set(task.metrics):
            raise ValueError(
                f"{record.where}: answer is a list, but bleu and rouge compare with one text; give a string"
            )
    return records


def _check_prompt_lengths(
    config: EvaluateConfig, task: GenerationTask, records: Sequence[PromptRecord], name: str, model: Storage
) -> None:
    room = read_config(model.local()).max_length - config.sampling.max_new_tokens
    tokenizer = load_tokenizer(model.local())
    for record in records:
        length = len(tokenizer.prompt_ids(record.messages, where=record.where))
        if length > room:
            raise ValueError(
                f"{record.where}: the prompt has {length} tokens, but {name} has room for {room} beside "
                f"sampling.max_new_tokens={config.sampling.max_new_tokens}; shorten the prompt or the completions"
            )


# The run.


def run(config: EvaluateConfig, context: Context) -> dict[str, float]:
    """Measure everything that the config asks for; write results.json and samples.jsonl."""
    for name, group in (("scorers", config.execution.scorers), ("generators", config.execution.generators)):
        wait_for_capacity(group.bundles, f"evaluate: execution.{name}")  # apart: they may wait for each other
    models = {name: context.inputs[f"models.{name}"].model for name in config.models}
    bootstrap = Bootstrap(num_resamples=config.num_resamples, seed=config.seed)
    running = RunningTasks()

    # Ray tasks run while the engines start and generate, so all of them are started first.
    text = bias = reward = None
    if config.text is not None:
        text = start_text(config, models, context.inputs["text"].storage, running, bootstrap)
    if config.stereotype_pairs is not None:
        bias = start_bias(config, config.stereotype_pairs, models, running, bootstrap)
    if config.reward is not None:
        reward = start_reward(config, context.inputs["reward"].model, running, bootstrap)
    generation = None
    if config.generation:
        generation, samples = generate(config, models, bootstrap)
        context.output.write_jsonl("samples.jsonl", map(asdict, samples))
    results = EvaluationResults(
        models={name: context.inputs[f"models.{name}"].id for name in config.models},
        order=list(config.models),
        text=_finish(text),
        generation=generation,
        bias=_finish(bias),
        reward=_finish(reward),
    )
    context.output.write_json("results.json", results.to_plain())
    context.tracker.log(0, {f"evaluate/{key}": value for key, value in results.by_key().items()})
    return results.by_key()


T = TypeVar("T")


def _finish(wait: Callable[[], T] | None) -> T | None:
    return None if wait is None else wait()


def start_text(
    config: EvaluateConfig, models: Mapping[str, Storage], shards: Storage, running: RunningTasks, bootstrap: Bootstrap
) -> Callable[[], TextResults]:
    """Start the likelihood tasks of every model, and xz; the returned function waits for them."""
    scorers, split = config.execution.scorers, shards / "validation"
    task = ray_task(score_text, scorers)
    parts = {
        name: running.add(
            [
                task(
                    models[name],
                    split,
                    part=part,
                    num_parts=scorers.workers,
                    overlap=config.overlap,
                    precision=resolved_precision(config.precision),
                    device=scorers.device,
                )
                for part in range(scorers.workers)
            ]
        )
        for name in (config.text_models or config.models)
    }
    xz = running.add([ray_task(xz_size, scorers)(split, shards / "tokenizer")] if config.compare_with_xz else [])

    def finish() -> TextResults:
        scores = {name: merge_scores(running.wait(tasks, f"likelihood of {name}")) for name, tasks in parts.items()}
        (xz_bytes,) = running.wait(xz, "xz") or [None]
        return text_results(scores, xz_bytes, bootstrap)

    return finish


def start_bias(
    config: EvaluateConfig, path: str, models: Mapping[str, Storage], running: RunningTasks, bootstrap: Bootstrap
) -> Callable[[], dict[str, dict[str, GroupBias]]]:
    """Start scoring the sentence pairs with every model; the returned function waits for it."""
    pairs, scorers = read_pairs(path), config.execution.scorers
    task = ray_task(score_pairs, scorers)
    tasks = {name: running.add([task(folder, pairs, device=scorers.device)]) for name, folder in models.items()}

    def finish() -> dict[str, dict[str, GroupBias]]:
        scores = {name: running.wait(tasks[name], f"stereotypes of {name}")[0] for name in models}
        return {name: bias_results(pairs, of_model, bootstrap) for name, of_model in scores.items()}

    return finish


def start_reward(
    config: EvaluateConfig, model: Storage, running: RunningTasks, bootstrap: Bootstrap
) -> Callable[[], RewardResults]:
    """Start scoring the preferences; the returned function waits for it.

    Raises ValueError when no pair fits the reward model.
    """
    tokenizer, scorers = load_tokenizer(model.local()), config.execution.scorers
    longest = read_config(model.local()).max_length
    pairs = [render_preference(tokenizer, record) for record in read_preferences(list_files(config.preferences))]
    fitting = [pair for pair in pairs if max(len(pair.chosen), len(pair.rejected)) <= longest]
    if not fitting:
        raise ValueError(f"preferences: none of {len(pairs)} pairs fits the reward model's max_length of {longest}")
    task, precision = ray_task(reward_margins, scorers), resolved_precision(config.precision)
    tasks = running.add([task(model, fitting, pad_id=tokenizer.pad_id, precision=precision, device=scorers.device)])
    return lambda: reward_results(running.wait(tasks, "preferences")[0], len(pairs) - len(fitting), bootstrap)


# Completions.


def generate(
    config: EvaluateConfig, models: Mapping[str, Storage], bootstrap: Bootstrap
) -> tuple[dict[str, TaskResults], list[EvaluationSample]]:
    """Results by task, and the samples of all tasks."""
    records = {task.name: _records(task) for task in config.generation}
    completions = _complete(config, models, records)
    results: dict[str, TaskResults] = {}
    samples: list[EvaluationSample] = []
    for task in config.generation:
        of_task, prompts = completions[task.name], records[task.name]
        programs = [read_verifier(measure) for measure in task.measures]
        verifiers = {program.function: Verifier(program) for program in programs}
        values = {
            name: measure_completions(of_model, prompts, verifiers=verifiers, metrics=task.metrics)
            for name, of_model in of_task.items()
        }
        references = [str(record.record["answer"]) for record in prompts] if "bleu" in task.metrics else None
        results[task.name] = task_results(
            of_task, values, references=references, compare=config.compare, bootstrap=bootstrap
        )
        samples += task_samples(task.name, [record.text for record in prompts], of_task, values)
    return results, samples


def _complete(
    config: EvaluateConfig, models: Mapping[str, Storage], records: Mapping[str, Sequence[PromptRecord]]
) -> dict[str, dict[str, Completions]]:
    """Completions by task and model."""
    tasks_of_model = {
        name: [task.name for task in config.generation if name in (task.models or config.models)] for name in models
    }
    pending = {name: sum(len(records[task]) for task in tasks) for name, tasks in tasks_of_model.items() if tasks}

    def model_done(name: str) -> None:
        log.info("evaluate: %s has completed %d prompts", name, pending.pop(name))

    with working(lambda: f"completing the prompts with {', '.join(list(pending))}"):
        return complete_tasks(
            records,
            models,
            tasks_of_model,
            config.sampling,
            config.execution.generators,
            kv_cache_gib=config.execution.kv_cache_gib,
            on_done=model_done,
        )


def workload(config: EvaluateConfig, planned: PlannedInputs) -> Workload:
    """The work to forecast: likelihoods of the text, completions, and their measures."""
    execution, sizes = config.execution, [model_sizes(planned[f"models.{name}"]) for name in config.models]
    largest = max(sizes, key=num_parameters)
    window = min(largest.max_length, _FORECAST_WINDOW)
    num_bytes = 0.0 if config.text is None else shards_sizes(planned["text"]).validation_bytes
    tokens = len(config.text_models or config.models) * num_bytes / bytes_per_token(largest.vocab_size)
    num_batches, num_completions = 0, 0
    for task in config.generation:
        number = len(_records(task)) * len(task.models or config.models)
        num_batches += math.ceil(number / GENERATION_BATCH_PROMPTS)
        num_completions += number
    scorers = execution.scorers.workers * execution.scorers.threads_per_worker
    model_gib = parameters_mib(largest, 4) / 1024
    activations_gib = activation_gib(largest, tokens=MAX_PASS_TOKENS, length=window) / 2  # no backward
    processes = [Processes(kind="actor", number=execution.scorers.workers, memory_gib=model_gib + activations_gib)]
    if config.generation:
        cache_gib = execution.kv_cache_gib
        processes.append(
            Processes(kind="engine", number=execution.generators.workers, memory_gib=model_gib + cache_gib)
        )
    return Workload(
        processes=processes,
        flop=tokens * forward_flop(largest, window),
        width=largest.width,
        precision=resolved_precision(config.precision),
        threads=scorers,
        engine_steps=config.sampling.max_new_tokens * num_batches / execution.generators.workers,
        python_s=num_completions * _COMPLETION_S + num_bytes * _XZ_S * config.compare_with_xz,
        on_gpu=execution.scorers.gpus_per_worker > 0 or execution.generators.gpus_per_worker > 0,
    )


STAGE = Stage(
    name="evaluate",
    version=2,
    kind="evaluation",
    config=EvaluateConfig,
    run=run,
    check=check,
    check_sources=check_records,
    check_inputs=check_inputs,
    workload=workload,
    report=report_evaluation,
    placements=lambda config: ({"scorers": config.execution.scorers}, {"generators": config.execution.generators}),
    engine_groups=lambda config: ("generators",),
)
