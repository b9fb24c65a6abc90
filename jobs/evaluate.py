"""evaluate: measures several models side by side, with a confidence interval for every number.

    raymill run evaluate evaluate.yaml

It measures bits per byte on held-out text, completions of prompts, stereotype bias, and the reward model's accuracy on
held-out preference pairs. Ray tasks compute likelihoods and rewards while vLLM engines generate the completions.
Intervals come from bootstrap resampling of the records (documents, prompts or pairs).
"""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from actors.answer_match import AnswerForm
from actors.completion_measures import (
    ANSWER_METRICS,
    METRICS,
    TEXT_METRICS,
    answer_problem,
    measure_completions,
    result_names,
    task_metrics,
)
from actors.evaluation_results import (
    COMPLETION_STATISTICS,
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
from actors.held_out_text import keeps_text
from actors.sentence_pairs import read_pairs, score_pairs
from actors.settings import EVALUATION_BATCH_PROMPTS, MAX_PASS_TOKENS, SamplingConfig
from actors.verifier import Verifier
from cluster.capacity import wait_for_capacity
from cluster.ignored_settings import reject_ignored
from cluster.paths import list_files
from cluster.placement import Execution, Placement
from cluster.progress import show_activity
from cluster.ray_task import RunningTasks, ray_task
from cluster.storage import Storage
from data.chats.counts import check_quarantined, log_counts
from data.chats.layouts import PromptRecord
from data.chats.preferences import render_preferences
from data.chats.prompts import require_prompt_ids
from data.chats.records import read_prompts
from data.chats.rendering_tasks import probe_records
from data.chats.template import load_chat_tokenizer
from data.tokens.shard_format import read_manifest
from data.tokens.tokenizer import fingerprint
from jobs.frame.artifact import Artifact
from jobs.frame.fields import input_artifact, source_files, user_function
from jobs.frame.fine_tuning import check_max_quarantined
from jobs.frame.sizes import (
    bytes_per_token,
    forward_activation_gib,
    forward_flop_per_token,
    model_config_of,
    parameters_mib,
    shards_sizes,
)
from jobs.frame.stage import Context, PlannedInputs, Stage
from jobs.frame.user_code import read_verifier_program
from jobs.frame.workload import Processes, Workload
from jobs.report.evaluation import report_evaluation
from model.huggingface_config import read_config
from model.precision import Precision, precision_field, require_resolved
from model.transformer_config import num_parameters

if TYPE_CHECKING:
    from actors.completions import Completions

_FORECAST_WINDOW = 512
"""Longest sequence that the forecast of FLOPs and memory assumes, in tokens."""
_COMPLETION_S = 0.004
"""Seconds of Python that one completion and its measures take on the reference processor (`jobs.frame.cost_model`)."""
_XZ_S = 1e-6
"""Seconds that `xz -9e` takes for one byte on the reference processor."""

_NUM_NAMED_PROMPTS = 5
"""Maximum number of left-out prompts that a warning names."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GenerationTask:
    """Prompts that models complete, and how the completions are measured."""

    name: str
    """Name in the results."""
    prompts: str = source_files()
    """JSONL file of `{"prompt": …}` or `{"messages": […]}`. The metrics compare each completion with the record's field
    `answer`: a text or, for exact_match and f1, a list of accepted texts."""
    measures: list[str] = user_function([])
    """User-provided functions `path/to/file.py:function`, called as function(prompt, completion, record) -> float. The
    verifier of an RLHF run can be used as it is. A function with a parameter `truncated` is told whether the completion
    was cut. If a function returns 0 or 1, its mean is the accuracy."""
    metrics: list[str] = field(default_factory=list)
    """Built-in metrics: any of bleu, rouge, exact_match and f1. They need an `answer` in every prompt's record."""
    answer_form: AnswerForm = "plain"
    """The normal form in which exact_match and f1 compare. plain is for any language: case, white space, quotes and
    punctuation around an answer do not count. squad is that of SQuAD, for English and for comparisons with published
    results: it removes articles and all ASCII punctuation, also the point of 1.5. numeric compares the values of the
    last numbers of a completion, as many as the answer has."""
    language: str | None = None
    """Language of the answers, such as en or ja, by which bleu and rouge cut them into words. If unset, their script
    decides."""
    models: list[str] = field(default_factory=list)
    """Names of the models that complete these prompts. If empty, every model completes them."""
    max_prompts: int | None = None
    """Use only the first max_prompts prompts. If unset, all prompts are used."""


def _default_generators() -> Placement:
    return Placement(cpus_per_worker=0.5)


def _default_scorers() -> Placement:
    return Placement(workers=2, cpus_per_worker=0.75)


@dataclass(frozen=True, kw_only=True)
class EvaluateExecution(Execution):
    """Where the stage runs. These settings change no result, except by rounding."""

    generators: Placement = field(default_factory=_default_generators)
    """The actors that run the vLLM engines."""
    scorers: Placement = field(default_factory=_default_scorers)
    """The Ray tasks that compute likelihoods, rewards and the size of the text under xz. For each model the documents
    of the text are divided among `workers` tasks."""
    kv_cache_gib: float = 0.5
    """Size of each engine's KV cache in GiB. Only engines on CPUs use this setting."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """`evaluate.yaml`."""

    models: dict[str, str] = input_artifact("model", "compressed_model")
    """The models to evaluate, by their names in the results. A model is a stage, an artifact or a Llama-family Hugging
    Face folder. A compressed model completes prompts with vLLM's int8 kernels, and its likelihoods are computed with
    the same rounding by Raymill's model."""
    text: str | None = input_artifact("shards", default=None)
    """Shards whose validation documents are the held-out text. If unset, bits per byte are not measured. Models with
    another tokenizer than the shards read the same text, tokenized again."""
    text_models: list[str] = field(default_factory=list)
    """Names of the models whose bits per byte are measured. If empty, every model is measured."""
    overlap: int = 64
    """Number of predicted tokens that consecutive windows of a long document share. Each is scored only once, in the
    window in which it has more context. So every scored token has at least this number of tokens before it, except at
    the start of a document."""
    precision: Precision = precision_field(placement="scorers")
    """Precision of matmuls when text and preferences are scored (`model.precision`)."""
    compare_with_xz: bool = False
    """Whether the held-out text is also compressed with `xz -9e` in one stream. The bits per byte of xz are then
    compared with those of the models."""
    generation: list[GenerationTask] = field(default_factory=list)
    """Sets of prompts to complete."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How completions are sampled."""
    compare: list[list[str]] = field(default_factory=list)
    """Pairs [before, after] of model names. The two models of a pair are compared prompt by prompt, on every set of
    prompts that both complete, and document by document if the bits per byte of both are measured."""
    stereotype_pairs: str | None = source_files(None)
    """JSONL file of `{"group", "stereotype", "counterpart"}`. `stereotype` and `counterpart` are sentences that differ
    only in the social group that they name. `group` is the kind of group, such as gender."""
    reward: str | None = input_artifact("reward_model", default=None)
    """Reward model whose accuracy on `preferences` is measured."""
    preferences: list[str] = source_files([])
    """JSONL files of `{"prompt", "chosen", "rejected"}` that the reward model was not trained on, in any layout of the
    stage `reward`."""
    max_quarantined: float = 0.01
    """Largest share of the preferences that may be unusable. The run stops if there are more. A single record never
    stops it, and ties do not count."""
    num_resamples: int = 2000
    """Number of resamples in each bootstrap."""
    seed: int = 0
    """Seed of the bootstrap resampling."""
    execution: EvaluateExecution = field(default_factory=EvaluateExecution)


# Checks before the stage runs.


def check(config: EvaluateConfig) -> None:
    """Raises ValueError for the first error in the config or in the user-provided functions that it names."""
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
        raise ValueError("reward and preferences: set both of them, or neither")
    check_max_quarantined(config.max_quarantined)
    if config.compare_with_xz and config.text is None:
        raise ValueError("compare_with_xz: set `text` too; its validation documents are what xz compresses")
    if config.sampling.temperature < 0 or config.sampling.max_new_tokens < 1:
        raise ValueError("sampling: temperature must be 0 or above and max_new_tokens at least 1")
    if config.num_resamples < 100:
        raise ValueError(
            f"num_resamples: {config.num_resamples} must be at least 100, so that intervals are meaningful"
        )
    for name in ("generators", "scorers"):
        getattr(config.execution, name).check(f"execution.{name}", forms_process_group=False)
    _reject_ignored(config)


def _reject_ignored(config: EvaluateConfig) -> None:
    """Raises ValueError for a setting that would have no effect, and if nothing would be measured."""
    has_scores = any(value is not None for value in (config.text, config.stereotype_pairs, config.reward))
    if not has_scores and not config.generation:
        raise ValueError("text, generation, stereotype_pairs, reward: set one of them; else nothing would be measured")
    if not has_scores:
        reason = "without text, stereotype_pairs and reward nothing is scored"
        reject_ignored(config.execution, "scorers", path="execution", reason=reason)
    if config.text is None:
        reject_ignored(config, "text_models", "overlap", path="", reason="`text` is not set")
    if config.reward is None:
        reject_ignored(config, "max_quarantined", path="", reason="`preferences` is not set")
    if config.text is None and config.reward is None:
        reject_ignored(config, "precision", path="", reason="only text and preferences are scored in it")
    if not config.generation:
        reason = "without `generation` no prompts are completed"
        sampling = ("temperature", "max_new_tokens", "seed", "precision")
        reject_ignored(config.sampling, *sampling, path="sampling", reason=reason)
        reject_ignored(config.execution, "generators", "kv_cache_gib", path="execution", reason=reason)
    elif config.execution.generators.gpus_per_worker > 0:
        reject_ignored(config.execution, "kv_cache_gib", path="execution", reason="the engines run on GPUs")
    if config.sampling.temperature == 0:
        reject_ignored(config.sampling, "seed", path="sampling", reason="with temperature 0 nothing is sampled")
    measured_together = [set(task.models or config.models) for task in config.generation]
    if config.text is not None:
        measured_together.append(set(config.text_models or config.models))
    for number, pair in enumerate(config.compare):
        if not any(set(pair) <= names for names in measured_together):
            raise ValueError(
                f"compare[{number}]: {pair} would have no effect, because no task of `generation` is completed by "
                "both models, and the bits per byte of both are not measured; remove it, or add them to the models of "
                "a task or to text_models"
            )


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
        raise ValueError(f"{where}: set metrics or measures; without either, nothing would be measured")
    if task.answer_form != "plain" and not set(ANSWER_METRICS) & set(task.metrics):
        raise ValueError(
            f"{where}.answer_form: {task.answer_form} would have no effect without one of {', '.join(ANSWER_METRICS)}; "
            "remove it"
        )
    if task.language is not None and not set(TEXT_METRICS) & set(task.metrics):
        raise ValueError(
            f"{where}.language: {task.language} would have no effect without one of {', '.join(TEXT_METRICS)}; remove "
            "it"
        )
    if task.language is not None and not re.fullmatch("[a-z]{2,3}", task.language):
        raise ValueError(f"{where}.language: {task.language!r} must be a code of two or three letters, such as en")
    if task.max_prompts is not None and task.max_prompts < 1:
        raise ValueError(
            f"{where}.max_prompts: {task.max_prompts} must be at least 1; leave it unset to use all prompts"
        )
    _check_result_names(where, task)


def _check_result_names(where: str, task: GenerationTask) -> None:
    """Raises ValueError if two results of the task would have the same name, or if a function cannot be read."""
    if repeated := _find_repeated(task.metrics):
        raise ValueError(f"{where}.metrics: {', '.join(repeated)} is listed twice; remove one of them")
    try:
        functions = [read_verifier_program(measure).function_name for measure in task.measures]
    except ValueError as error:
        raise ValueError(f"{where}.measures: {error}") from error
    if repeated := _find_repeated(functions):
        raise ValueError(
            f"{where}.measures: {', '.join(repeated)} would name several results; give each function another name"
        )
    reserved = {*COMPLETION_STATISTICS, *(name for metric in task.metrics for name in result_names(metric))}
    for name in functions:
        if name in reserved:
            raise ValueError(
                f"{where}.measures: {name} is already the name of a built-in result; rename the function (these names "
                f"are built in: {', '.join(sorted(reserved))})"
            )


def _find_repeated(names: Sequence[str]) -> list[str]:
    """Return the names that occur more than once."""
    return sorted({name for name in names if names.count(name) > 1})


def check_records(config: EvaluateConfig) -> None:
    """Raises ValueError for a malformed prompt, sentence pair or preference, and for engines without any prompt.

    The error for a malformed record names its file and line.
    """
    _check_engines(config, {task.name: len(_records(task)) for task in config.generation})
    if config.stereotype_pairs is not None:
        read_pairs(config.stereotype_pairs)
    if config.reward is not None:
        counts = probe_records(list_files(config.preferences), "preferences")
        check_quarantined(counts, config.max_quarantined, field="preferences", where="")


def _check_engines(config: EvaluateConfig, num_prompts: Mapping[str, int]) -> None:
    """Raises ValueError if there are engines that never have work. `num_prompts` has the prompts of each task."""
    num_engines, num_batches = config.execution.generators.workers, 0
    for model in config.models:  # the engines complete the prompts of one model after the other
        tasks = [task for task in config.generation if model in (task.models or config.models)]
        prompts = sum(num_prompts[task.name] for task in tasks)
        num_batches = max(num_batches, math.ceil(prompts / EVALUATION_BATCH_PROMPTS))
    if config.generation and num_engines > num_batches:
        raise ValueError(
            f"execution.generators.workers: {num_engines} engines, but no model has more than {num_batches} generation "
            f"batches of {EVALUATION_BATCH_PROMPTS} prompts, so some engines would be idle; set it to {num_batches}"
        )


def check_inputs(config: EvaluateConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError if the text, the overlap or the prompts of a task cannot be used for one of the models.

    Another tokenizer than that of the text must keep texts exactly, the overlap must be below the model's max_length,
    and some prompt of each task must fit into the model's context with its completion.
    """
    models = {name: inputs[f"models.{name}"].model for name in config.models}
    for name in config.models:
        folder = models[name].local()
        max_length = read_config(folder, allow_int8=True).max_length
        if config.text is not None and name in (config.text_models or config.models):
            _check_text_tokenizer(inputs["text"].storage, name, folder)
            if not 0 <= config.overlap < max_length:
                raise ValueError(
                    f"overlap: {config.overlap} must be at least 0 and below {max_length}, {name}'s max_length"
                )
    for task in config.generation:
        read_task_prompts(config, task, models)


def _check_text_tokenizer(shards: Storage, name: str, folder: Path) -> None:
    """Raises ValueError if the text has another tokenizer than the model, and one of the two changes texts."""
    if read_manifest(shards / "validation").tokenizer == fingerprint(folder):
        return
    if not keeps_text((shards / "tokenizer").local()):
        raise ValueError(
            f"text: {name} has another tokenizer than the shards, whose tokenizer does not decode tokens to the "
            "original text, so that the text cannot be tokenized again; name only models with the tokenizer of the "
            "shards in text_models, or use shards of a byte-level BPE tokenizer"
        )
    if not keeps_text(folder):
        raise ValueError(
            f"text: the tokenizer of {name} changes texts (such as their case or white space), so that its bits per "
            "byte cannot be compared with those of another tokenizer; remove it from text_models"
        )


def _records(task: GenerationTask) -> list[PromptRecord]:
    """Read the task's prompts, at most max_prompts.

    Raises ValueError for a prompt whose `answer` the metrics of the task cannot use.
    """
    records = list(read_prompts(list_files([task.prompts])))[: task.max_prompts]
    for record in records:
        answer = record.record.get("answer")
        if task.metrics and (problem := answer_problem(answer, task.metrics, task.answer_form)):
            raise ValueError(f"{record.location}: {problem}")
    return records


@dataclass(frozen=True)
class TaskPrompts:
    """The prompts of a generation task."""

    records: list[PromptRecord]
    """The prompts that are completed. They are the same for all models, so that the results can be compared."""
    too_long: list[str]
    """A description of each prompt that is left out, because with its completion it is longer than the context of one
    of the task's models."""


def read_task_prompts(config: EvaluateConfig, task: GenerationTask, models: Mapping[str, Storage]) -> TaskPrompts:
    """Read the prompts of a task. The keys of `models` are the names of the models.

    Raises ValueError if every prompt is too long, and the errors of `_records`.
    """
    records = _records(task)
    too_long: dict[int, str] = {}
    for name in task.models or config.models:
        folder = models[name].local()
        max_prompt_length = read_config(folder, allow_int8=True).max_length - config.sampling.max_new_tokens
        tokenizer = load_chat_tokenizer(folder)
        for index, record in enumerate(records):
            length = len(require_prompt_ids(tokenizer, record))
            if length > max_prompt_length:
                too_long[index] = (
                    f"{record.location} ({length} tokens, but {name} takes prompts of at most {max_prompt_length} "
                    f"tokens with sampling.max_new_tokens={config.sampling.max_new_tokens})"
                )
    if len(too_long) == len(records):
        raise ValueError(
            f"generation: none of the {len(records)} prompts of {task.name} fits into the context of its models: "
            f"{too_long[0]}; shorten the prompts or decrease sampling.max_new_tokens"
        )
    fitting = [record for index, record in enumerate(records) if index not in too_long]
    return TaskPrompts(fitting, [too_long[index] for index in sorted(too_long)])


# The run.


def run(config: EvaluateConfig, context: Context) -> dict[str, float]:
    """Run all measurements and write results.json and samples.jsonl.

    Returns the results by key, such as `sft/perplexity`.
    """
    # Wait for each group separately: the cluster must be able to hold each group, but not both at once.
    for name, group in (("scorers", config.execution.scorers), ("generators", config.execution.generators)):
        wait_for_capacity(group.bundles, f"evaluate: execution.{name}")
    models = {name: context.inputs[f"models.{name}"].model for name in config.models}
    bootstrap = Bootstrap(num_resamples=config.num_resamples, seed=config.seed)
    running = RunningTasks()

    # The Ray tasks are started first, so that they run while the engines start and generate.
    wait_for_text = wait_for_bias = wait_for_reward = None
    if config.text is not None:
        wait_for_text = start_text(config, models, context.inputs["text"].storage, running, bootstrap)
    if config.stereotype_pairs is not None:
        wait_for_bias = start_bias(config, config.stereotype_pairs, models, running, bootstrap)
    if config.reward is not None:
        wait_for_reward = start_reward(config, context.inputs["reward"].model, running, bootstrap)
    generation = None
    if config.generation:
        generation, samples = generate(config, models, bootstrap)
        context.output.write_jsonl("samples.jsonl", map(asdict, samples))
    results = EvaluationResults(
        models={name: context.inputs[f"models.{name}"].id for name in config.models},
        order=list(config.models),
        text=_finish(wait_for_text),
        generation=generation,
        bias=_finish(wait_for_bias),
        reward=_finish(wait_for_reward),
    )
    context.output.write_json("results.json", results.to_plain())
    context.tracker.log(0, {f"evaluate/{key}": value for key, value in results.by_key().items()})
    return results.by_key()


T = TypeVar("T")


def _finish(wait: Callable[[], T] | None) -> T | None:
    """Return what `wait` returns: the results of a measurement. Returns None if this measurement was not started."""
    return None if wait is None else wait()


def start_text(
    config: EvaluateConfig, models: Mapping[str, Storage], shards: Storage, running: RunningTasks, bootstrap: Bootstrap
) -> Callable[[], TextResults]:
    """Start the Ray tasks that compute each model's likelihood of the text, and the task that compresses it with xz.

    Returns a function that waits for the results.
    """
    from actors.likelihood import XzSize, common_documents, merge_scores, score_text, xz_size  # imports torch

    scorers, split, tokenizer = config.execution.scorers, shards / "validation", shards / "tokenizer"
    shards_fingerprint = read_manifest(split).tokenizer
    fingerprints = {name: fingerprint(models[name].local()) for name in (config.text_models or config.models)}
    score, compress = ray_task(score_text, scorers), ray_task(xz_size, scorers)
    parts = {
        name: running.add(
            [
                score(
                    models[name],
                    split,
                    part=part,
                    num_parts=scorers.workers,
                    overlap=config.overlap,
                    precision=require_resolved(config.precision),
                    device=scorers.device,
                    shards_tokenizer=None if model_fingerprint == shards_fingerprint else tokenizer,
                )
                for part in range(scorers.workers)
            ]
        )
        for name, model_fingerprint in fingerprints.items()
    }
    xz_tasks = running.add([compress(split, tokenizer)] if config.compare_with_xz else [])

    def finish() -> TextResults:
        scores = {name: merge_scores(running.wait(tasks, f"likelihood of {name}")) for name, tasks in parts.items()}
        xz: XzSize | None = next(iter(running.wait(xz_tasks, "xz")), None)
        is_common = common_documents(list(scores.values()), xz)
        if num_left_out := int((~is_common).sum()):
            _report_left_out(num_left_out, len(is_common))
        kept = {name: model_scores.select(is_common) for name, model_scores in scores.items()}
        if xz is not None and len(xz.index) > is_common.sum():
            (xz,) = running.wait(running.add([compress(split, tokenizer, is_common.nonzero()[0])]), "xz")
        return text_results(
            kept,
            fingerprints,
            num_left_out=num_left_out,
            xz_bytes=None if xz is None else xz.num_bytes,
            compare=config.compare,
            bootstrap=bootstrap,
        )

    return finish


def _report_left_out(num_left_out: int, num_documents: int) -> None:
    """Log that documents of the held-out text are left out. Raises ValueError if no document is left."""
    reason = "because a tokenizer does not keep their text exactly, so that other bytes would be compared"
    if num_left_out == num_documents:
        raise ValueError(
            f"text: all {num_documents} documents are left out, {reason}; measure only models with the tokenizer of "
            "the shards (text_models), and set compare_with_xz to false"
        )
    log.warning(
        "evaluate: %d of %d documents of the held-out text are left out, %s", num_left_out, num_documents, reason
    )


def start_bias(
    config: EvaluateConfig, path: str, models: Mapping[str, Storage], running: RunningTasks, bootstrap: Bootstrap
) -> Callable[[], dict[str, dict[str, GroupBias]]]:
    """Start scoring the sentence pairs with every model.

    Returns a function that waits for the results. The keys of the results are the names of the models, and then the
    kinds of social groups.
    """
    pairs, scorers = read_pairs(path), config.execution.scorers
    score = ray_task(score_pairs, scorers)
    tasks = {name: running.add([score(folder, pairs, device=scorers.device)]) for name, folder in models.items()}

    def finish() -> dict[str, dict[str, GroupBias]]:
        scores = {name: running.wait(tasks[name], f"stereotypes of {name}")[0] for name in models}
        return {name: bias_results(pairs, model_scores, bootstrap) for name, model_scores in scores.items()}

    return finish


def start_reward(
    config: EvaluateConfig, model: Storage, running: RunningTasks, bootstrap: Bootstrap
) -> Callable[[], RewardResults]:
    """Start scoring the preference pairs. Returns a function that waits for the results.

    Pairs that are longer than the reward model's max_length are left out and counted. Raises ValueError when all are
    left out.
    """
    from actors.reward_margins import reward_margins

    tokenizer, scorers = load_chat_tokenizer(model.local()), config.execution.scorers
    max_length = read_config(model.local()).max_length
    rendered = render_preferences(list_files(config.preferences), tokenizer)
    log_counts(rendered.counts, field="preferences")
    check_quarantined(rendered.counts, config.max_quarantined, field="preferences", where="")
    pairs = rendered.pairs
    fitting = [pair for pair in pairs if max(len(pair.chosen), len(pair.rejected)) <= max_length]
    if not fitting:
        raise ValueError(
            f"preferences: none of the {len(pairs)} pairs fits the reward model's max_length of {max_length}"
        )
    score, precision = ray_task(reward_margins, scorers), require_resolved(config.precision)
    tasks = running.add([score(model, fitting, pad_id=tokenizer.pad_id, precision=precision, device=scorers.device)])
    return lambda: reward_results(running.wait(tasks, "preferences")[0], len(pairs) - len(fitting), bootstrap)


# Completions.


def generate(
    config: EvaluateConfig, models: Mapping[str, Storage], bootstrap: Bootstrap
) -> tuple[dict[str, TaskResults], list[EvaluationSample]]:
    """Complete the prompts of every generation task, and measure the completions.

    Returns the results by the task's name, and the samples of all tasks. Here, a task is a `GenerationTask`.
    """
    prompts_by_task = {task.name: read_task_prompts(config, task, models) for task in config.generation}
    for name, task_prompts in prompts_by_task.items():
        if task_prompts.too_long:
            log.warning(
                "evaluate: %d prompts of %s are left out, because they are too long: %s%s",
                len(task_prompts.too_long),
                name,
                ", ".join(task_prompts.too_long[:_NUM_NAMED_PROMPTS]),
                ", …" if len(task_prompts.too_long) > _NUM_NAMED_PROMPTS else "",
            )
    records = {name: task_prompts.records for name, task_prompts in prompts_by_task.items()}
    completions = _complete(config, models, records)
    results: dict[str, TaskResults] = {}
    samples: list[EvaluationSample] = []
    for task in config.generation:
        completions_by_model, prompts = completions[task.name], records[task.name]
        # A `Verifier` calls any user-provided function. Here, the functions are the task's `measures`.
        programs = [read_verifier_program(measure) for measure in task.measures]
        verifiers = {program.function_name: Verifier(program) for program in programs}
        metrics = task_metrics(task.metrics, answer_form=task.answer_form, language=task.language, records=prompts)
        # `values` has, for each model and each measure or metric except bleu, one value for each prompt.
        values = {
            name: measure_completions(model_completions, prompts, verifiers=verifiers, metrics=metrics)
            for name, model_completions in completions_by_model.items()
        }
        results[task.name] = task_results(
            completions_by_model,
            values,
            metrics=metrics,
            compare=config.compare,
            bootstrap=bootstrap,
            num_too_long=len(prompts_by_task[task.name].too_long),
        )
        samples += task_samples(task.name, [record.text for record in prompts], completions_by_model, values)
    return results, samples


def _complete(
    config: EvaluateConfig, models: Mapping[str, Storage], records: Mapping[str, Sequence[PromptRecord]]
) -> dict[str, dict[str, "Completions"]]:
    """Complete the prompts of every task. `records` has the prompts by the task's name.

    Returns the completions by the task's name, and then by the model's name.
    """
    from actors.completions import complete_tasks

    tasks_of_model = {
        name: [task.name for task in config.generation if name in (task.models or config.models)] for name in models
    }
    # The models that have not completed all of their prompts yet, each with the number of all its prompts.
    pending = {name: sum(len(records[task]) for task in tasks) for name, tasks in tasks_of_model.items() if tasks}

    def model_done(name: str) -> None:
        log.info("evaluate: %s has completed %d prompts", name, pending.pop(name))

    with show_activity(lambda: f"completing the prompts with {', '.join(list(pending))}"):
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
    """Return what the forecast of time and memory is computed from: likelihoods, completions, and the measures.

    Every model is assumed to be as large as the largest of `models`.
    """
    execution, model_configs = config.execution, [model_config_of(planned[f"models.{name}"]) for name in config.models]
    largest = max(model_configs, key=num_parameters)
    window = min(largest.max_length, _FORECAST_WINDOW)
    num_bytes = 0.0 if config.text is None else shards_sizes(planned["text"]).validation_bytes
    tokens = len(config.text_models or config.models) * num_bytes / bytes_per_token(largest.vocab_size)
    num_batches, num_completions = 0, 0
    for task in config.generation:
        task_completions = len(_records(task)) * len(task.models or config.models)
        num_batches += math.ceil(task_completions / EVALUATION_BATCH_PROMPTS)
        num_completions += task_completions
    num_threads = execution.scorers.workers * execution.scorers.threads_per_worker
    model_gib = parameters_mib(largest, 4) / 1024
    activations_gib = forward_activation_gib(largest, tokens=MAX_PASS_TOKENS, length=window)
    # These are Ray tasks. The kind is `actor`, because they need the memory of a process that imports torch, as actors
    # do.
    processes = [Processes(kind="actor", number=execution.scorers.workers, memory_gib=model_gib + activations_gib)]
    if config.generation:
        cache_gib = execution.kv_cache_gib
        processes.append(
            Processes(kind="engine", number=execution.generators.workers, memory_gib=model_gib + cache_gib)
        )
    return Workload(
        processes=processes,
        flop=tokens * forward_flop_per_token(largest, window),
        width=largest.width,
        precision=require_resolved(config.precision),
        threads=num_threads,
        engine_steps=config.sampling.max_new_tokens * num_batches / execution.generators.workers,
        python_s=num_completions * _COMPLETION_S + num_bytes * _XZ_S * config.compare_with_xz,
        on_gpu=execution.scorers.gpus_per_worker > 0 or execution.generators.gpus_per_worker > 0,
    )


STAGE = Stage(
    name="evaluate",
    version=3,
    kind="evaluation",
    config=EvaluateConfig,
    run=run,
    check=check,
    check_sources=check_records,
    check_inputs=check_inputs,
    workload=workload,
    report=report_evaluation,
    placements=lambda config: ({"scorers": config.execution.scorers}, {"generators": config.execution.generators}),
    separate_engine_groups=lambda config: ("generators",),
)
