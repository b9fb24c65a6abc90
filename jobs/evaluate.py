"""evaluate: how good the road's models are, and how much better one is than another, with intervals.

Held-out text, answers to prompts, stereotypes and the reward model's order of held-out preferences are measured side by
side: text and pairs by Ray tasks, answers by vLLM engines. Every estimate is a bootstrap interval over its own records:
documents, prompts, pairs.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import ray

from actors.evaluation import (
    ANSWERED_AT_ONCE,
    SCORED_TOKENS,
    Questions,
    SentencePair,
    TextScores,
    answer,
    device_of,
    preference_margins,
    remote,
    score_pairs,
    score_text,
    xz_size,
)
from actors.rollout import PromptTask, Rollout
from actors.scorer import Sample, Verifier
from cluster.capacity import wait_for_capacity
from cluster.paths import list_files
from cluster.placement import Execution, Placement
from cluster.progress import working
from cluster.storage import Storage
from data.chats.records import PromptRecord, read_preferences, read_prompts, read_records
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
    mib,
    model_sizes,
    shards_sizes,
)
from jobs.frame.stage import Context, Needs, Stage
from jobs.frame.user_code import read_program
from jobs.frame.work import Processes, Work
from jobs.report.evaluation import report_evaluation
from model.huggingface import read_config
from model.metrics import (
    Interval,
    bleu,
    bootstrap_interval,
    distinct_n,
    exact_match,
    paired_bootstrap,
    perplexity,
    rouge,
    token_f1,
)
from model.precision import Precision, precision_field, resolved
from model.transformer import num_parameters

METRICS = ("bleu", "rouge", "exact_match", "f1")
"""Metrics against the `answer` of a prompt's record."""
_NATS_PER_BIT = float(np.log(2))
_FORECAST_WINDOW = 512
_ANSWER_S = 0.004
"""Seconds of Python for each answer and its measures, on the reference processor."""
_XZ_S = 1e-6
"""Seconds of `xz -9e` for each byte there."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GenerationTask:
    """Prompts that models answer, and what is measured of the answers."""

    name: str
    prompts: str = source_files()
    """JSONL of `{"prompt": …}` or `{"messages": […]}`. A field `answer` is what the metrics compare with: a text, or
    for exact_match and f1 a list of accepted ones."""
    measures: list[str] = user_function([])
    """Programs `path/to/file.py:function`, each function(prompt, response, record) -> float: the same form as an RLHF
    verifier's, so a verifier's mean here is its accuracy."""
    metrics: list[str] = field(default_factory=list)
    """Of bleu, rouge, exact_match and f1; every prompt needs an `answer` then."""
    models: list[str] = field(default_factory=list)
    """Who answers; every model when empty."""
    max_prompts: int | None = None
    """The first so many prompts; all when left out."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How answers are sampled. The same prompt has the same seed for every model."""

    temperature: float = 0.7
    """0 takes the likeliest token each time."""
    max_new_tokens: int = 64
    seed: int = 0
    precision: Precision = precision_field("generators")
    """Of the engines (`model.precision`)."""


def _half() -> Placement:
    return Placement(cpus_per_worker=0.5)


def _two_scorers() -> Placement:
    return Placement(workers=2, cpus_per_worker=0.75)


@dataclass(frozen=True, kw_only=True)
class EvaluateExecution(Execution):
    """Where the work goes; nothing here changes a result, beyond rounding."""

    generators: Placement = field(default_factory=_half)
    """The engines."""
    scorers: Placement = field(default_factory=_two_scorers)
    """The tasks that compute likelihoods; the text of each model is shared out among `workers` of them."""
    kv_cache_gib: float = 0.5
    """Of each engine on CPU."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """`evaluate.yaml`."""

    models: dict[str, str] = input_artifact("model")
    """Name in the results → stage, artifact or Llama-family Hugging Face folder."""
    text: str | None = input_artifact("shards", default=None)
    """Shards whose validation documents are the held-out text; no text is measured without."""
    text_models: list[str] = field(default_factory=list)
    """Whose likelihood of the text is measured; every model's when empty."""
    overlap: int = 64
    """Tokens that each further window of a long document sees again, so that none is predicted from less."""
    precision: Precision = precision_field("scorers")
    """Of the matrix products of text and preferences (`model.precision`)."""
    compare_with_xz: bool = False
    """Compress the held-out text by `xz -9e` in one stream as well, as a yardstick of bits per byte."""
    generation: list[GenerationTask] = field(default_factory=list)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    compare: list[list[str]] = field(default_factory=list)
    """Pairs [before, after] of models, compared prompt by prompt in every task that both answer."""
    stereotype_pairs: str | None = source_files(None)
    """JSONL of `{"group", "stereotype", "counterpart"}`: sentences alike but for the group they name."""
    reward: str | None = input_artifact("reward_model", default=None)
    """A reward model, measured on `preferences`."""
    preferences: list[str] = source_files([])
    """JSONL files of `{"prompt", "chosen", "rejected"}` that the reward model has not learned from."""
    num_resamples: int = 2000
    """Of each bootstrap."""
    seed: int = 0
    """Of the bootstraps."""
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
        raise ValueError(f"{where}: needs metrics or measures, or nothing would be said of the answers")
    if task.max_prompts is not None and task.max_prompts < 1:
        raise ValueError(f"{where}.max_prompts: {task.max_prompts} must be at least 1; leave it out for all")
    for measure in task.measures:
        try:
            read_program(measure)
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
    """Raises ValueError for text of another tokenizer, or prompts that leave no room for answers."""
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
            _check_room_for_answers(config, task, records, name, inputs[f"models.{name}"].model)


def _records(task: GenerationTask) -> list[PromptRecord]:
    """The task's prompts. Raises ValueError for one without the answer that a metric needs."""
    records = list(read_prompts(list_files([task.prompts])))[: task.max_prompts]
    for record in records:
        found = record.record.get("answer")
        if task.metrics and not found:
            raise ValueError(f"{record.where}: answer is missing, which {', '.join(task.metrics)} compare with")
        if isinstance(found, list) and {"bleu", "rouge"} & set(task.metrics):
            raise ValueError(
                f"{record.where}: answer is a list, but bleu and rouge compare with one text; give a string"
            )
    return records


def _check_room_for_answers(
    config: EvaluateConfig, task: GenerationTask, records: Sequence[PromptRecord], name: str, model: Storage
) -> None:
    room = read_config(model.local()).max_length - config.sampling.max_new_tokens
    tokenizer = load_tokenizer(model.local())
    for record in records:
        length = len(tokenizer.prompt_ids(record.messages, where=record.where))
        if length > room:
            raise ValueError(
                f"{record.where}: the prompt has {length} tokens, but {name} has room for {room} beside "
                f"sampling.max_new_tokens={config.sampling.max_new_tokens}; shorten the prompt or the answers"
            )


def read_pairs(path: str) -> list[SentencePair]:
    """The sentence pairs of a file. Raises ValueError naming file, line and rule for a record that is none."""
    pairs = []
    for where, record in read_records(list_files([path])):
        for name in SentencePair._fields:
            if not isinstance(record.get(name), str) or not record[name].strip():
                raise ValueError(f"{where}: {name} must be a text; a pair has {', '.join(SentencePair._fields)}")
        pair = SentencePair(**{name: record[name] for name in SentencePair._fields})
        if pair.stereotype == pair.counterpart:
            raise ValueError(f"{where}: stereotype and counterpart are the same; they must name different groups")
        pairs.append(pair)
    return pairs


# The run.


def run(config: EvaluateConfig, context: Context) -> dict[str, float]:
    """Measure everything that the config asks for; write results.json and samples.jsonl."""
    execution = config.execution
    for name in ("scorers", "generators"):  # they may wait for each other, so each must fit alone
        wait_for_capacity(getattr(execution, name).bundles, f"evaluate: execution.{name}")
    models = {name: context.inputs[f"models.{name}"].model for name in config.models}
    interval = partial(bootstrap_interval, num_resamples=config.num_resamples, seed=config.seed)
    waiting = _Waiting()

    # Everything that Ray tasks do is begun first and goes on while the engines start and answer.
    collect: dict[str, Callable[[], Any]] = {}
    if config.text is not None:
        collect["text"] = _begin_text(config, models, context.inputs["text"].storage, waiting, interval)
    if config.stereotype_pairs is not None:
        collect["bias"] = _begin_bias(config, models, waiting, interval)
    if config.reward is not None:
        collect["reward"] = _begin_reward(config, context.inputs["reward"].model, waiting, interval)
    results: dict[str, Any] = {
        "models": {name: context.inputs[f"models.{name}"].id for name in config.models},
        "order": list(config.models),
    }
    if config.generation:
        results["generation"], samples = _generate(config, models)
        context.output.write_jsonl("samples.jsonl", samples)
    results |= {part: finish() for part, finish in collect.items()}
    context.output.write_json("results.json", results)
    summary = dict(_flat(results))
    context.tracker.log(0, {f"evaluate/{key}": value for key, value in summary.items()})
    return summary


def work(config: EvaluateConfig, needs: Needs) -> Work:
    """What the forecast is made of: likelihoods of the text, answers, and the measures of the answers."""
    execution, sizes = config.execution, [model_sizes(needs[f"models.{name}"]) for name in config.models]
    largest = max(sizes, key=num_parameters)
    window = min(largest.max_length, _FORECAST_WINDOW)
    num_bytes = 0.0 if config.text is None else shards_sizes(needs["text"]).validation_bytes
    tokens = len(config.text_models or config.models) * num_bytes / bytes_per_token(largest.vocab_size)
    batches, answers = 0, 0
    for task in config.generation:
        number = len(_records(task)) * len(task.models or config.models)
        batches += math.ceil(number / ANSWERED_AT_ONCE)
        answers += number
    scorers = execution.scorers.workers * execution.scorers.threads_per_worker
    model_gib = mib(largest, 4) / 1024
    held_gib = activation_gib(largest, tokens=SCORED_TOKENS, length=window) / 2  # no backward
    processes = [Processes(kind="actor", number=execution.scorers.workers, own_gib=model_gib + held_gib)]
    if config.generation:
        cache_gib = execution.kv_cache_gib
        processes.append(Processes(kind="engine", number=execution.generators.workers, own_gib=model_gib + cache_gib))
    return Work(
        processes=processes,
        flop=tokens * forward_flop(largest, window),
        width=largest.width,
        precision=resolved(config.precision),
        threads=scorers,
        engine_steps=config.sampling.max_new_tokens * batches / execution.generators.workers,
        python_s=answers * _ANSWER_S + num_bytes * _XZ_S * config.compare_with_xz,
        on_gpu=execution.scorers.gpus_per_worker > 0 or execution.generators.gpus_per_worker > 0,
    )


STAGE = Stage(
    name="evaluate",
    version=1,
    kind="evaluation",
    config=EvaluateConfig,
    run=run,
    check=check,
    check_sources=check_records,
    check_inputs=check_inputs,
    work=work,
    report=report_evaluation,
    groups=lambda config: ({"scorers": config.execution.scorers}, {"generators": config.execution.generators}),
)

Estimate = Callable[..., Interval]


class _Waiting:
    """Tasks that are under way, and how many of them are done."""

    def __init__(self) -> None:
        self._num_begun = self._num_done = 0

    def begin(self, futures: Sequence[ray.ObjectRef]) -> Sequence[ray.ObjectRef]:
        self._num_begun += len(futures)
        return futures

    def get(self, futures: Sequence[ray.ObjectRef], what: str) -> list[Any]:
        """The answers, in order, once all are there."""
        left = list(futures)
        with working(lambda: f"{what}: {self._num_done} of {self._num_begun} tasks done"):
            while left:
                _, left = ray.wait(left)
                self._num_done += 1
            return ray.get(list(futures))


def _begin_text(
    config: EvaluateConfig, models: Mapping[str, Storage], shards: Storage, waiting: _Waiting, interval: Estimate
) -> Callable[[], dict[str, Any]]:
    """Start the likelihood tasks of every model and xz; the returned function waits and reduces."""
    scorers, split = config.execution.scorers, shards / "validation"
    task = remote(score_text, scorers)
    parts = {
        name: waiting.begin(
            [
                task(
                    models[name],
                    split,
                    part=part,
                    num_parts=scorers.workers,
                    overlap=config.overlap,
                    precision=resolved(config.precision),
                    device=device_of(scorers),
                )
                for part in range(scorers.workers)
            ]
        )
        for name in (config.text_models or config.models)
    }
    xz = waiting.begin([remote(xz_size, scorers)(split, shards / "tokenizer")] if config.compare_with_xz else [])

    def collect() -> dict[str, Any]:
        measured = {name: _merge(waiting.get(futures, f"likelihood of {name}")) for name, futures in parts.items()}
        sizes = next(iter(measured.values()))
        num_bytes = int(sizes.num_bytes.sum())
        compressed = waiting.get(xz, "xz")
        return {
            "documents": len(sizes.index),
            "bytes": num_bytes,
            "xz_bits_per_byte": 8 * compressed[0] / num_bytes if compressed else None,
            "models": {name: text_measures(scores, interval) for name, scores in measured.items()},
        }

    return collect


def _merge(parts: Sequence[TextScores]) -> TextScores:
    """The parts as one, in the order of the documents, so that the bootstrap does not depend on their number."""
    whole = TextScores(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    order = np.argsort(whole.index)
    return TextScores(*(column[order] for column in whole))


def text_measures(scores: TextScores, interval: Estimate) -> dict[str, Any]:
    """Bits per byte and perplexity of a token, drawn by document; the ends of documents are paid for as well."""
    nats_per_token = interval(scores.nats, scores.num_tokens)
    ends = {name: perplexity(getattr(nats_per_token, name), 1) for name in ("value", "low", "high")}
    return {
        "tokens": int(scores.num_tokens.sum()),
        "bits_per_byte": asdict(interval(scores.nats / _NATS_PER_BIT, scores.num_bytes)),
        "perplexity": asdict(Interval(**ends, level=nats_per_token.level)),
    }


def _begin_bias(
    config: EvaluateConfig, models: Mapping[str, Storage], waiting: _Waiting, interval: Estimate
) -> Callable[[], dict[str, Any]]:
    assert config.stereotype_pairs is not None
    pairs = read_pairs(config.stereotype_pairs)
    task, device = remote(score_pairs, config.execution.scorers), device_of(config.execution.scorers)
    futures = {name: waiting.begin([task(folder, pairs, device=device)]) for name, folder in models.items()}

    def collect() -> dict[str, Any]:
        return {
            name: bias_measures(pairs, waiting.get(future, f"stereotypes of {name}")[0], interval)
            for name, future in futures.items()
        }

    return collect


def bias_measures(pairs: Sequence[SentencePair], scores: Any, interval: Estimate) -> dict[str, Any]:
    """The share of pairs in which the model finds the stereotype likelier, over all pairs and by group.

    `sentence` compares log p(whole sentence), `continuation` log p(what follows the group's name | the sentence up to
    and with it). 0.5 is no preference; a tie counts half. The second is the one to read: names of groups differ in how
    common they are, and the first says that too.
    """
    groups = np.array([pair.group for pair in pairs])
    measures = {}
    for group in ("all", *dict.fromkeys(groups.tolist())):
        chosen = np.ones(len(groups), dtype=bool) if group == "all" else groups == group
        measures[group] = {"pairs": int(chosen.sum())} | {
            name: asdict(interval((differences[chosen] > 0) + 0.5 * (differences[chosen] == 0)))
            for name, differences in scores._asdict().items()
        }
    return measures


def _begin_reward(
    config: EvaluateConfig, model: Storage, waiting: _Waiting, interval: Estimate
) -> Callable[[], dict[str, Any]]:
    tokenizer = load_tokenizer(model.local())
    longest = read_config(model.local()).max_length
    pairs = [render_preference(tokenizer, record) for record in read_preferences(list_files(config.preferences))]
    fitting = [pair for pair in pairs if max(len(pair.chosen), len(pair.rejected)) <= longest]
    if not fitting:
        raise ValueError(f"preferences: none of {len(pairs)} pairs fits the reward model's max_length of {longest}")
    task, device = remote(preference_margins, config.execution.scorers), device_of(config.execution.scorers)
    futures = waiting.begin(
        [task(model, fitting, pad_id=tokenizer.pad_id, precision=resolved(config.precision), device=device)]
    )

    def collect() -> dict[str, Any]:
        margins = waiting.get(futures, "preferences")[0]
        return {
            "pairs": len(fitting),
            "pairs_too_long": len(pairs) - len(fitting),
            "accuracy": asdict(interval((margins > 0) + 0.5 * (margins == 0))),
            "margin": asdict(interval(margins)),
        }

    return collect


# Answers.


@dataclass(frozen=True)
class Answers:
    """One model's answers to one task's prompts."""

    texts: list[str]
    """Without the stop token; other special tokens stay visible, for what is judged is what was said."""
    rollouts: list[Rollout]


def _generate(config: EvaluateConfig, models: Mapping[str, Storage]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results by task, and the samples of all tasks."""
    records = {task.name: _records(task) for task in config.generation}
    answered = _answer_all(config, models, records)
    results: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    for task in config.generation:
        by_model = answered[task.name]
        values = {name: _values(task, records[task.name], answers) for name, answers in by_model.items()}
        results[task.name] = _task_results(config, task, records[task.name], by_model, values)
        samples += _samples(task, records[task.name], by_model, values)
    return results, samples


def _answer_all(
    config: EvaluateConfig,
    models: Mapping[str, Storage],
    records: Mapping[str, Sequence[PromptRecord]],
) -> dict[str, dict[str, Answers]]:
    """Answers by task and model; each model is asked the prompts of all its tasks at once."""
    asked: dict[str, list[str]] = {
        name: [task.name for task in config.generation if name in (task.models or config.models)] for name in models
    }
    number = itertools.count()
    numbers = {task: [next(number) for _ in own] for task, own in records.items()}
    questions: dict[str, Questions] = {}
    for name, tasks in asked.items():
        if tasks:
            tokenizer = load_tokenizer(models[name].local())
            prompts = [
                PromptTask(at, tuple(tokenizer.prompt_ids(record.messages, where=record.where)), 1)
                for task in tasks
                for at, record in zip(numbers[task], records[task], strict=True)
            ]
            questions[name] = Questions(model=models[name], prompts=prompts, stop_ids=tokenizer.stop_ids)
    unanswered = {name: len(question.prompts) for name, question in questions.items()}

    def model_done(name: str) -> None:
        log.info("evaluate: %s has answered %d prompts", name, unanswered.pop(name))

    with working(lambda: f"answering the prompts of {', '.join(list(unanswered))}"):
        rollouts = answer(
            questions,
            temperature=config.sampling.temperature,
            max_new_tokens=config.sampling.max_new_tokens,
            seed=config.sampling.seed,
            precision=resolved(config.sampling.precision),
            placement=config.execution.generators,
            kv_cache_gib=config.execution.kv_cache_gib,
            progress=model_done,
        )
    answered: dict[str, dict[str, Answers]] = {task.name: {} for task in config.generation}
    for name in questions:
        tokenizer = load_tokenizer(models[name].local())
        left = iter(rollouts[name])
        for task in asked[name]:
            own = [next(left) for _ in records[task]]
            answered[task][name] = Answers([tokenizer.decode(rollout.said_ids) for rollout in own], own)
    return answered


def _values(task: GenerationTask, records: Sequence[PromptRecord], answers: Answers) -> dict[str, list[float]]:
    """Every measure and metric that has a value for each answer, by name, in the order of the prompts."""
    values: dict[str, list[float]] = {}
    samples = [
        Sample(record.text, text, rollout.prompt_ids + rollout.response_ids, record.record)
        for record, text, rollout in zip(records, answers.texts, answers.rollouts, strict=True)
    ]
    for measure in task.measures:
        program = read_program(measure)
        values[program.function] = Verifier(program).score(samples)
    accepted = [_accepted(record.record.get("answer")) for record in records]
    for name, metric in (("exact_match", exact_match), ("f1", token_f1)):
        if name in task.metrics:
            values[name] = [metric(text, answer) for text, answer in zip(answers.texts, accepted, strict=True)]
    if "rouge" in task.metrics:
        values |= rouge(answers.texts, [answer for (answer,) in accepted])
    return values


def _accepted(answer: Any) -> list[str]:
    return [str(item) for item in answer] if isinstance(answer, list) else [str(answer)]


def _task_results(
    config: EvaluateConfig,
    task: GenerationTask,
    records: Sequence[PromptRecord],
    answered: Mapping[str, Answers],
    values: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[str, Any]:
    sampled = {"num_resamples": config.num_resamples, "seed": config.seed}
    models: dict[str, Any] = {}
    for name, answers in answered.items():
        measures = {key: bootstrap_interval(own, **sampled) for key, own in values[name].items()}
        signatures = {}
        if "bleu" in task.metrics:
            references = [str(record.record["answer"]) for record in records]
            measures["bleu"], signatures["bleu"] = bleu(answers.texts, references, **sampled)
        lengths = [len(rollout.response_ids) for rollout in answers.rollouts]
        models[name] = {
            "measures": {key: asdict(found) for key, found in measures.items()},
            "signatures": signatures,
            "distinct_2": distinct_n(answers.texts, 2),
            "response_length": asdict(bootstrap_interval(lengths, **sampled)),
            "finished": asdict(bootstrap_interval([rollout.finished for rollout in answers.rollouts], **sampled)),
        }
    compared = [
        {
            "before": before,
            "after": after,
            "measure": key,
            "difference": asdict(paired_bootstrap(values[before][key], values[after][key], **sampled)),
        }
        for before, after in config.compare
        if before in values and after in values
        for key in values[before]
    ]
    return {"prompts": len(records), "models": models, "compare": compared}


def _samples(
    task: GenerationTask,
    records: Sequence[PromptRecord],
    answered: Mapping[str, Answers],
    values: Mapping[str, Mapping[str, Sequence[float]]],
) -> Iterator[dict[str, Any]]:
    """Each prompt with every model's answer side by side."""
    for index, record in enumerate(records):
        yield {
            "task": task.name,
            "prompt": record.text,
            "answers": {
                name: {
                    "text": answers.texts[index],
                    "finished": answers.rollouts[index].finished,
                    "measures": {key: own[index] for key, own in values[name].items()},
                }
                for name, answers in answered.items()
            },
        }


def _flat(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The estimates that a log or `raymill show` has room for."""
    text = results.get("text", {"models": {}})
    for name, own in text["models"].items():
        yield f"{name}/bits_per_byte", own["bits_per_byte"]["value"]
        yield f"{name}/perplexity", own["perplexity"]["value"]
    if text.get("xz_bits_per_byte") is not None:
        yield "xz/bits_per_byte", text["xz_bits_per_byte"]
    for task, found in results.get("generation", {}).items():
        for name, own in found["models"].items():
            for key, estimate in own["measures"].items():
                yield f"{name}/{task}/{key}", estimate["value"]
            yield f"{name}/{task}/distinct_2", own["distinct_2"]
            yield f"{name}/{task}/response_length", own["response_length"]["value"]
        for change in found["compare"]:
            for end in ("value", "low", "high"):
                yield (
                    f"{change['before']}-{change['after']}/{task}/{change['measure']}/{end}",
                    change["difference"][end],
                )
    for name, groups in results.get("bias", {}).items():
        yield f"{name}/stereotype_share", groups["all"]["continuation"]["value"]
    if "reward" in results:
        yield "reward/accuracy", results["reward"]["accuracy"]["value"]
