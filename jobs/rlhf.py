"""rlhf: the policy learns from the rewards of its own completions, in a graph of actors around vLLM engines.

    raymill run rlhf rlhf.yaml

The graph is `actors.graph`; this file has its config, its prompts, and the loop around its step.
"""

import itertools
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from actors.algorithm import load_algorithm
from actors.graph import Graph, GraphConfig, ScoredRollouts, build_graph
from actors.rank_group import RanksDied
from actors.rlhf_results import HeldOutCompletion, held_out_samples, rlhf_summary
from actors.rollout import Prompt
from actors.settings import GraphExecution, RolloutConfig
from cluster.metrics_log import read_metrics
from cluster.paths import list_files
from cluster.placement import Placement
from cluster.progress import Progress, working
from cluster.signals import StoppedBySignal, defer_signals, received_signal
from data.chats.records import read_prompts
from data.chats.template import load_tokenizer
from data.tokens.tokenizer import fingerprint
from jobs.frame.artifact import Artifact
from jobs.frame.fields import PREVIOUS, input_artifact, source_files, user_function
from jobs.frame.sizes import (
    activation_gib,
    chat_tokens,
    checkpoint_gib,
    forward_flop_per_token,
    model_config_of,
    parameters_mib,
    training_state_mib,
)
from jobs.frame.stage import Context, PlannedInputs, Stage
from jobs.frame.user_code import read_algorithm, read_verifier
from jobs.frame.workload import Processes, Workload
from jobs.report.rlhf import report_rlhf
from model.huggingface_config import read_config
from model.learning import LearningConfig
from model.precision import resolved_precision
from model.transformer_config import TransformerConfig

log = logging.getLogger(__name__)

_BEFORE = "checkpoints/before.jsonl"
_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""What vLLM 0.32 has attention kernels for on CPU."""


@dataclass(frozen=True, kw_only=True)
class RLHFConfig:
    """`rlhf.yaml`."""

    policy: str = input_artifact("model", default=PREVIOUS)
    """The chat model that learns: a stage, an artifact or a Llama-family Hugging Face folder."""
    reward: str | None = input_artifact("reward_model", default=None)
    """A reward model that scores the completions. Give either this or a verifier."""
    verifier: str | None = user_function(default=None)
    """A function that scores the completions: `path/to/file.py:function`, called as function(prompt, completion,
    record). Modules in its folder that it imports are shipped with it and are part of the identity. Other files there
    are not: keep its data in such a module, or where every node sees it."""
    prompts: list[str] = source_files()
    """JSONL files of `{"prompt", …}` or `{"messages", …}`; a verifier sees the whole line."""
    held_out_prompts: list[str] = source_files(default=[])
    """Prompts that are completed before and after learning and never learned from: JSONL files as above."""
    steps: int = 100
    """Steps of learning, each from generation to weight sync."""
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    shuffle_rewards: bool = False
    """A control experiment: each step's rewards are permuted over its completions, so nothing can be learned."""
    seed: int = 0
    """Seed of the order of prompts, of every completion and of the minibatches."""
    execution: GraphExecution = field(default_factory=GraphExecution)


def check(config: RLHFConfig) -> None:
    """Raises ValueError for every mistake that shows without the inputs."""
    if config.steps < 1:
        raise ValueError(f"steps: {config.steps} must be at least 1")
    if (config.reward is None) == (config.verifier is None):
        raise ValueError("reward, verifier: give exactly one of them; it scores the completions")
    config.rollouts.check("rollouts")
    config.learning.check("learning")
    algorithm = load_algorithm(read_algorithm(config.learning.algorithm))
    algorithm.check(config.learning, "learning")
    config.execution.check("execution", config.rollouts, config.learning, algorithm)
    if config.verifier is not None:
        try:
            read_verifier(config.verifier)
        except ValueError as error:
            raise ValueError(f"verifier: {error}") from error
    if algorithm.needs_groups and config.rollouts.group_size < 2:
        raise ValueError(
            f"rollouts.group_size: 1, but {config.learning.algorithm} compares the completions of one prompt; "
            "take at least 2"
        )
    if config.execution.held_out_interval and not config.held_out_prompts:
        raise ValueError("execution.held_out_interval: there are no held_out_prompts to measure on; add some, or set 0")


def check_prompts(config: RLHFConfig) -> None:
    """Raises ValueError naming file and line of a malformed prompt."""
    for _ in read_prompts(list_files([*config.prompts, *config.held_out_prompts])):
        pass


def check_inputs(config: RLHFConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError for a tokenizer of another model, or prompts that leave no room for a completion."""
    folder = inputs["policy"].model.local()
    if "reward" in inputs:
        theirs = inputs["reward"].model.local()
        if fingerprint(folder) != fingerprint(theirs):
            raise ValueError(
                f"reward: the tokenizer of {inputs['reward'].id} is not that of the policy {inputs['policy'].id}; "
                "train the reward model from the same model as the policy"
            )
    read_all(config, inputs)


def check_planned_inputs(config: RLHFConfig, planned: PlannedInputs) -> None:
    """Raises ValueError for a policy that is too short for the completions or unfit for the engines."""
    sizes = model_config_of(planned["policy"])
    if config.rollouts.max_new_tokens >= sizes.max_length:
        raise ValueError(
            f"rollouts.max_new_tokens: {config.rollouts.max_new_tokens} must be below the policy's max_length "
            f"{sizes.max_length}, which holds the prompt too; shorten the completions"
        )
    head_dim = sizes.head_dim
    if config.execution.generators.gpus_per_worker == 0 and head_dim not in _CPU_HEAD_SIZES:
        raise ValueError(
            f"policy: its heads have {head_dim} channels, for which vLLM has no attention on CPU; "
            f"width / num_heads must be one of {', '.join(map(str, _CPU_HEAD_SIZES))}"
        )


@dataclass(frozen=True)
class Prompts:
    """The prompts of a run."""

    train: list[Prompt]
    held_out: list[Prompt]
    num_too_long: int
    """Left out because max_new_tokens would not fit behind them."""


def run(config: RLHFConfig, context: Context) -> dict[str, Any]:
    """Learn and leave `model/`, `samples.jsonl`, `checkpoints/` and `metrics.jsonl` in the output."""
    prompts = read_all(config, context.inputs)
    with build_graph(graph_config(config, context, prompts), config.execution) as graph:
        after = learn_through_deaths(config, context, graph, prompts)
    before = [HeldOutCompletion(**line) for line in context.output.read_jsonl(_BEFORE)]
    context.output.write_jsonl("samples.jsonl", map(asdict, held_out_samples(before, after)))
    summary = rlhf_summary(
        read_metrics(context.output),
        before,
        after,
        num_prompts=len(prompts.train),
        num_too_long=prompts.num_too_long,
    )
    return summary.to_plain()


def learn_through_deaths(
    config: RLHFConfig, context: Context, graph: Graph, prompts: Prompts
) -> list[HeldOutCompletion]:
    """Learn from the last checkpoint to the exported model, again after each death of a training rank.

    Returns the held-out completions after learning.
    """
    while True:
        try:
            with working("starting the engines, the learner and the scorer"):
                step = graph.start()
            context.tracker.resume(step)
            if step:
                log.info("rlhf resumes from its checkpoint at step %d of %d", step, config.steps)
            else:
                with working("completing the held-out prompts before learning"):
                    before = complete_held_out(graph, prompts)
                context.output.write_jsonl(_BEFORE, map(asdict, before))
            learn(config, context, graph, prompts, step)
            with working("completing the held-out prompts after learning"):
                after = complete_held_out(graph, prompts)
            with working("writing the model and the last checkpoint"):
                graph.export(context.output / "model")
            return after
        except RanksDied as error:
            graph.recover(error)
        except KeyboardInterrupt:
            raise StoppedBySignal(f"rlhf resumes from step {graph.saved_step()} of {config.steps}") from None


def learn(config: RLHFConfig, context: Context, graph: Graph, prompts: Prompts, step: int) -> None:
    """Do every step from `step` on; log each, save at the interval and at the end."""
    execution = config.execution
    with Progress("learning", config.steps, "steps", done=step) as progress:
        while step < config.steps:
            with defer_signals():  # a step that is cut short is lost, so one that ends in time is waited for and kept
                metrics = graph.train_step(step)
                step += 1
                by_key = metrics.by_key()
                if received_signal() is not None:
                    context.tracker.log(step, by_key)
                    context.tracker.flush()
                    graph.save()
                    graph.finish_save()
            if execution.held_out_interval and step % execution.held_out_interval == 0 and step < config.steps:
                with working("completing the held-out prompts"):
                    by_key["held_out/reward_mean"] = statistics.fmean(graph.score_held_out(prompts.held_out).rewards)
            context.tracker.log(step, by_key)
            if step % execution.checkpoint_interval == 0 or step == config.steps:
                context.tracker.flush()  # no step before a checkpoint is repeated, so its line must be safe
                graph.save()
            progress.update(step, f"reward {metrics.rollouts.reward_mean:.3f}")


def graph_config(config: RLHFConfig, context: Context, prompts: Prompts) -> GraphConfig:
    """The config of the graph."""
    return GraphConfig(
        policy=context.inputs["policy"].model,
        reward=context.inputs["reward"].model if "reward" in context.inputs else None,
        verifier=None if config.verifier is None else read_verifier(config.verifier),
        prompts=prompts.train,
        max_prompt_length=max(len(prompt.prompt_ids) for prompt in [*prompts.train, *prompts.held_out]),
        rollouts=config.rollouts,
        learning=config.learning,
        algorithm=read_algorithm(config.learning.algorithm),
        seed=config.seed,
        shuffle_rewards=config.shuffle_rewards,
        checkpoints=context.output / "checkpoints",
    )


def read_all(config: RLHFConfig, inputs: Mapping[str, Artifact]) -> Prompts:
    """All prompts, tokenized. Raises ValueError when none of a file list leaves room for a completion."""
    folder = inputs["policy"].model.local()
    tokenizer = load_tokenizer(folder)
    room = read_config(folder).max_length - config.rollouts.max_new_tokens

    def read(patterns: Sequence[str]) -> list[Prompt]:
        return [
            Prompt(record.text, tuple(tokenizer.prompt_ids(record.messages, location=record.location)), record.record)
            for record in (read_prompts(list_files(list(patterns))) if patterns else ())
        ]

    train, held_out = read(config.prompts), read(config.held_out_prompts)
    fitting = [[prompt for prompt in prompts if len(prompt.prompt_ids) <= room] for prompts in (train, held_out)]
    for name, prompts, kept in zip(("prompts", "held_out_prompts"), (train, held_out), fitting, strict=True):
        if not kept and (prompts or name == "prompts"):
            raise ValueError(
                f"{name}: none of {len(prompts)} leaves room for rollouts.max_new_tokens="
                f"{config.rollouts.max_new_tokens} in the policy's max_length; shorten the completions or the prompts"
            )
    return Prompts(fitting[0], fitting[1], len(train) + len(held_out) - len(fitting[0]) - len(fitting[1]))


def complete_held_out(graph: Graph, prompts: Prompts) -> list[HeldOutCompletion]:
    """The held-out prompts with their completions and rewards under the current policy."""
    scored: ScoredRollouts = graph.score_held_out(prompts.held_out)
    return [
        HeldOutCompletion(prompt=prompt.text, completion=text, reward=reward)
        for prompt, text, reward in zip(prompts.held_out, scored.texts, scored.rewards, strict=True)
    ]


def sizes(config: RLHFConfig, planned: PlannedInputs) -> TransformerConfig:
    """The sizes of the model, those of `policy`."""
    return model_config_of(planned["policy"])


def placements_of(config: RLHFConfig) -> dict[str, Placement]:
    """The placements of the graph's groups, by role."""
    return config.execution.placements(config.learning, load_algorithm(read_algorithm(config.learning.algorithm)))


def estimate(config: RLHFConfig, planned: PlannedInputs) -> dict[str, float]:
    """The largest number of rollouts and sampled tokens, and the memory of each actor's models and of the cache."""
    execution, sizes = config.execution, model_config_of(planned["policy"])
    rollouts = config.steps * config.rollouts.rollouts_per_step
    groups = placements_of(config)
    engine = parameters_mib(sizes, 2 if config.learning.precision == "bfloat16" else 4)
    cache = execution.kv_cache_gib * 1024 if execution.generators.gpus_per_worker == 0 else 0
    memory: dict[str, float] = {
        "generator_mib": engine + cache,
        "learner_mib": training_state_mib(sizes, workers=execution.learners.workers),
        "critic_mib": training_state_mib(sizes, workers=execution.critics.workers) if "critics" in groups else 0,
        "reference_mib": parameters_mib(sizes, 4) if "reference" in groups else 0,
        "scorer_mib": parameters_mib(model_config_of(planned["reward"]), 4) if "reward" in planned else 0,
    }
    sampled = {"rollouts": rollouts, "sampled_tokens": rollouts * config.rollouts.max_new_tokens}
    return {**sampled, **{name: size for name, size in memory.items() if size}}


def workload(config: RLHFConfig, planned: PlannedInputs) -> Workload:
    """The work to forecast: generation, the passes of scorer, reference and learner, and the update.

    It assumes completions of two thirds of max_new_tokens, and prompts as long as the first thousand.
    """
    execution, sizes, rollouts = config.execution, model_config_of(planned["policy"]), config.rollouts
    first = itertools.islice(read_prompts(list_files([*config.prompts, *config.held_out_prompts])), 1000)
    prompt_tokens = statistics.fmean(
        chat_tokens([message["content"] for message in prompt.messages], sizes.vocab_size) for prompt in first
    )
    num_held_out = sum(1 for _ in read_prompts(list_files(config.held_out_prompts))) if config.held_out_prompts else 0
    num_measured = 2 + (config.steps // execution.held_out_interval if execution.held_out_interval else 0)
    length = round(prompt_tokens + rollouts.max_new_tokens * 2 / 3)
    groups = placements_of(config)
    trained = config.steps * rollouts.rollouts_per_step * length
    # A pass each by engine, learner (for the ratio) and reference, and an update of three for each epoch.
    passes = 2 + ("reference" in groups) + 3 * config.learning.epochs * (1 + ("critics" in groups))
    scored = (trained + num_measured * num_held_out * length) if "reward" in planned else 0
    batches = rollouts.prompts_per_step / rollouts.generation_batch_prompts / execution.generators.workers
    held_out_batches = math.ceil(num_held_out / rollouts.generation_batch_prompts) / execution.generators.workers
    model_gib, state_gib = parameters_mib(sizes, 4) / 1024, training_state_mib(sizes) / 1024
    activations_gib = activation_gib(sizes, tokens=execution.micro_batch_size * length, length=length)
    learners, critics = execution.learners.workers, execution.critics.workers
    processes = [
        Processes(kind="engine", number=execution.generators.workers, memory_gib=model_gib + execution.kv_cache_gib),
        Processes(kind="actor", number=learners, memory_gib=state_gib / learners + activations_gib),
        Processes(kind="actor", memory_gib=model_gib),  # the scorer
    ]
    if "reference" in groups:
        processes.append(Processes(kind="actor", memory_gib=model_gib))
    if "critics" in groups:
        processes.append(Processes(kind="actor", number=critics, memory_gib=state_gib / critics + activations_gib))
    return Workload(
        processes=processes,
        flop=(trained * passes + scored + num_measured * num_held_out * length) * forward_flop_per_token(sizes, length),
        width=sizes.width,
        precision=resolved_precision(config.learning.precision),
        threads=learners * execution.learners.threads_per_worker,
        steps=config.steps * config.learning.epochs * config.learning.minibatches,
        rl_steps=config.steps,
        engine_steps=rollouts.max_new_tokens * (config.steps * batches + num_measured * held_out_batches),
        disk_gib=(2 + ("critics" in groups)) * checkpoint_gib(sizes) + model_gib,
        on_gpu=any(group.gpus_per_worker > 0 for group in groups.values()),
    )


STAGE = Stage(
    name="rlhf",
    version=3,
    kind="model",
    config=RLHFConfig,
    run=run,
    output_sizes=sizes,
    check=check,
    check_sources=check_prompts,
    check_planned_inputs=check_planned_inputs,
    check_inputs=check_inputs,
    estimate=estimate,
    workload=workload,
    report=report_rlhf,
    placements=lambda config: (placements_of(config),),
    engine_groups=lambda config: () if config.execution.colocate else ("generators",),
)
