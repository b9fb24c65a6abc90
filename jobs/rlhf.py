"""rlhf: trains a policy on the rewards of its own completions, in a graph of actors with vLLM engines.

    raymill run rlhf rlhf.yaml

`actors/graph.py` has the actor graph and one RLHF step. This file has the config of the stage, reads the prompts,
and runs the training loop.
"""

import itertools
import logging
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from actors.algorithm import load_algorithm
from actors.graph_config import GraphConfig, Prompt
from actors.rlhf_results import HeldOutCompletion, RLHFSummary, held_out_samples, rlhf_summary
from actors.settings import GraphExecution, RolloutConfig
from cluster.metrics_log import read_metrics
from cluster.paths import list_files
from cluster.placement import Placement
from cluster.progress import Progress, show_activity
from cluster.signals import StoppedBySignal, defer_signals, received_signal
from data.chats.counts import RecordCounts, check_quarantined, log_counts, write_quarantine
from data.chats.messages import text_of
from data.chats.prompts import TokenizedPrompts, parse_prompts, probe_prompts
from data.chats.prompts import tokenize_prompts as tokenize_files
from data.chats.records import read_located
from data.chats.template import load_chat_tokenizer
from data.tokens.tokenizer import fingerprint
from jobs.frame.artifact import Artifact
from jobs.frame.fields import PREVIOUS_STAGE, input_artifact, source_files, user_function
from jobs.frame.fine_tuning import check_max_quarantined
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
from jobs.frame.user_code import read_algorithm_program, read_verifier_program
from jobs.frame.workload import Processes, Workload
from jobs.report.rlhf import report_rlhf
from model.huggingface_config import read_config
from model.learning import LearningConfig
from model.precision import require_resolved
from model.transformer_config import TransformerConfig

if TYPE_CHECKING:
    from actors.graph import Graph

log = logging.getLogger(__name__)

_PROBED_PROMPTS = 2000
"""Number of prompts that are checked before the inputs of the stage are finished."""
_HELD_OUT_BEFORE = "checkpoints/before.jsonl"
"""Completions of the held-out prompts before training."""
_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head dims for which vLLM 0.32 has attention kernels on CPUs."""


@dataclass(frozen=True, kw_only=True)
class RLHFConfig:
    """`rlhf.yaml`."""

    policy: str = input_artifact("model", default=PREVIOUS_STAGE)
    """Model to train: a stage, an artifact or a Llama-family Hugging Face folder."""
    reward: str | None = input_artifact("reward_model", default=None)
    """Reward model that scores the completions. Set either this or `verifier`."""
    verifier: str | None = user_function(default=None)
    """User-provided function that scores the completions: `path/to/file.py:function`, called as function(prompt,
    completion, record). If it has a parameter `truncated`, it is told whether the completion was cut at max_new_tokens.
    Modules in its folder that it imports are shipped with it, and their content is part of the artifact's id. Data
    files in the folder are not shipped: write the data into an imported module, or put it on storage that every node
    can read."""
    prompts: list[str] = source_files()
    """JSONL files, or JSON files with an array, of `{"prompt", …}` or `{"messages", …}`. A verifier receives the
    complete record. For a policy without a chat template, `prompt` is the text that the policy continues."""
    held_out_prompts: list[str] = source_files(default=[])
    """JSONL files of prompts that are never trained on. The policy completes them before and after training."""
    max_quarantined: float = 0.01
    """Largest share of the prompts that may be unusable. They are listed in the folder quarantine. The run stops if
    there are more. A single prompt never stops it."""
    steps: int = 100
    """Number of RLHF steps. Each step begins with generation and ends with the weight sync."""
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    """How completions are sampled."""
    learning: LearningConfig = field(default_factory=LearningConfig)
    """The RL algorithm and its settings."""
    shuffle_rewards: bool = False
    """Whether each step's rewards are assigned to the step's completions at random. This is a control experiment, in
    which the policy cannot learn anything."""
    seed: int = 0
    """Seed of the prompt order, of every completion and of the minibatches."""
    execution: GraphExecution = field(default_factory=GraphExecution)


def check(config: RLHFConfig) -> None:
    """Raises ValueError for the first error that can be detected in the config alone."""
    if config.steps < 1:
        raise ValueError(f"steps: {config.steps} must be at least 1")
    if (config.reward is None) == (config.verifier is None):
        raise ValueError("reward, verifier: set exactly one of them; it scores the completions")
    check_max_quarantined(config.max_quarantined)
    config.rollouts.check("rollouts")
    config.learning.check("learning")
    algorithm = load_algorithm(read_algorithm_program(config.learning.algorithm))
    algorithm.check(config.learning, "learning")
    config.execution.check("execution", config.rollouts, config.learning, algorithm)
    if config.verifier is not None:
        try:
            read_verifier_program(config.verifier)
        except ValueError as error:
            raise ValueError(f"verifier: {error}") from error
    if algorithm.needs_groups and config.rollouts.group_size < 2:
        raise ValueError(
            f"rollouts.group_size: 1, but {config.learning.algorithm} compares the completions of one prompt; "
            "set it to at least 2"
        )
    if config.execution.held_out_interval and not config.held_out_prompts:
        raise ValueError("execution.held_out_interval: needs held_out_prompts; add some, or set the interval to 0")
    if config.execution.held_out_interval >= config.steps:
        raise ValueError(
            f"execution.held_out_interval: {config.execution.held_out_interval} would have no effect, because the run "
            f"has {config.steps} steps, and the end is always measured; lower it, or set it to 0"
        )


def check_prompts(config: RLHFConfig) -> None:
    """Raises ValueError if too many of the first prompts cannot be used."""
    for name, patterns in _prompt_fields(config):
        counts = probe_prompts(list_files(patterns), _PROBED_PROMPTS)
        check_quarantined(counts, config.max_quarantined, field=name, where="")


def _prompt_fields(config: RLHFConfig) -> list[tuple[str, list[str]]]:
    """Return (name, patterns) of the fields with files of prompts. Fields without patterns are left out."""
    fields = [("prompts", config.prompts), ("held_out_prompts", config.held_out_prompts)]
    return [(name, patterns) for name, patterns in fields if patterns or name == "prompts"]


def check_inputs(config: RLHFConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError if the reward model has another tokenizer than the policy.

    Also raises ValueError if none of `prompts`, or none of `held_out_prompts`, is short enough (`tokenize_prompts`).
    """
    policy, reward = inputs["policy"], inputs.get("reward")
    if reward is not None and fingerprint(policy.model.local()) != fingerprint(reward.model.local()):
        raise ValueError(
            f"reward: the tokenizer of {reward.id} differs from that of the policy {policy.id}; train the reward model "
            "from the same model as the policy"
        )
    tokenize_prompts(config, inputs)


def check_planned_inputs(config: RLHFConfig, planned: PlannedInputs) -> None:
    """Raises ValueError if the policy's max_length is too small for the completions.

    Also raises ValueError if the engines run on CPUs and vLLM does not support the policy's head dim there.
    """
    model_config = model_config_of(planned["policy"])
    if config.rollouts.max_new_tokens >= model_config.max_length:
        raise ValueError(
            f"rollouts.max_new_tokens: {config.rollouts.max_new_tokens} must be below the policy's max_length "
            f"{model_config.max_length}, which includes the prompt; lower it"
        )
    head_dim = model_config.head_dim
    if config.execution.generators.gpus_per_worker == 0 and head_dim not in _CPU_HEAD_SIZES:
        raise ValueError(
            f"policy: its head dim is {head_dim}, for which vLLM has no attention kernel on CPUs; "
            f"width / num_heads must be one of {', '.join(map(str, _CPU_HEAD_SIZES))}"
        )


@dataclass(frozen=True)
class Prompts:
    """The tokenized prompts of a run."""

    train: list[Prompt]
    held_out: list[Prompt]
    num_too_long: int
    """Number of prompts that were left out, because max_new_tokens would not fit after them."""
    files: dict[str, TokenizedPrompts]
    """All prompts and the counts of the records, by the name of the config field."""

    @property
    def counts(self) -> RecordCounts:
        """The counts of all records."""
        return sum((prompts.counts for prompts in self.files.values()), RecordCounts())


def run(config: RLHFConfig, context: Context) -> RLHFSummary:
    """Train the policy and write `model/`, `samples.jsonl`, `checkpoints/` and `metrics.jsonl`.

    `samples.jsonl` has the completions of the held-out prompts before and after training.
    """
    from actors.graph import build_graph  # imported here, so that loading a config imports neither Ray nor torch

    prompts = tokenize_prompts(config, context.inputs)
    for name, tokenized in prompts.files.items():
        write_quarantine(context.output, name, tokenized.quarantined)
        log_counts(tokenized.counts, field=name)
    with build_graph(graph_config(config, context, prompts), config.execution) as graph:
        after = train_with_recovery(config, context, graph, prompts)
    before = [HeldOutCompletion(**line) for line in context.output.read_jsonl(_HELD_OUT_BEFORE)]
    context.output.write_jsonl("samples.jsonl", map(asdict, held_out_samples(before, after)))
    return rlhf_summary(
        read_metrics(context.output),
        before,
        after,
        num_prompts=len(prompts.train),
        num_too_long=prompts.num_too_long,
        num_quarantined=prompts.counts.num_quarantined,
    )


def train_with_recovery(
    config: RLHFConfig, context: Context, graph: "Graph", prompts: Prompts
) -> list[HeldOutCompletion]:
    """Train from the last checkpoint, or from the beginning if there is none, and export the model.

    When a rank of the learner or the critic dies, training restarts from the last checkpoint. Returns the completions
    of the held-out prompts after training, with their rewards.
    """
    from actors.rank_group import RanksDied

    while True:
        try:
            with show_activity("starting the engines, the learner and the scorer"):
                step = graph.start()  # the number of steps that were done at the checkpoint, or 0 without one
            if not step and read_metrics(context.output):
                log.warning("rlhf has begun before, but has no complete checkpoint; it starts at step 0")
            context.tracker.resume(step)
            if step:
                log.info("rlhf resumes from its checkpoint at step %d of %d", step, config.steps)
            else:
                with show_activity("completing the held-out prompts before training"):
                    before = complete_held_out(graph, prompts)
                context.output.write_jsonl(_HELD_OUT_BEFORE, map(asdict, before))
            train(config, context, graph, prompts, step)
            with show_activity("completing the held-out prompts after training"):
                after = complete_held_out(graph, prompts)
            with show_activity("writing the model and the last checkpoint"):
                graph.export(context.output / "model")
            return after
        except RanksDied as error:
            graph.recover(error)
        except KeyboardInterrupt:
            raise StoppedBySignal(f"rlhf resumes from step {graph.saved_step()} of {config.steps}") from None


def train(config: RLHFConfig, context: Context, graph: "Graph", prompts: Prompts, step: int) -> None:
    """Run the remaining RLHF steps, log each of them, and save a checkpoint every checkpoint_interval steps.

    The last step is followed by a checkpoint too. `step` is the number of steps that are done already. So it is also
    the index of the next step, counted from 0.
    """
    execution = config.execution
    with Progress("training", config.steps, "steps", done=step) as progress:
        while step < config.steps:
            # After a signal, the block saves the step that is running, and ends with KeyboardInterrupt.
            with defer_signals():
                metrics = graph.rlhf_step(step)
                step += 1
                by_key = metrics.by_key()
                if received_signal() is not None:
                    context.tracker.log(step, by_key)
                    context.tracker.flush()
                    graph.save()
                    graph.finish_save()
            if execution.held_out_interval and step % execution.held_out_interval == 0 and step < config.steps:
                with show_activity("completing the held-out prompts"):
                    by_key["held_out/reward_mean"] = statistics.fmean(
                        graph.complete_and_score(prompts.held_out).rewards
                    )
            context.tracker.log(step, by_key)
            if step % execution.checkpoint_interval == 0 or step == config.steps:
                # Steps before a checkpoint are never rerun. So their metrics are written before the checkpoint.
                context.tracker.flush()
                graph.save()
            progress.update(step, f"reward {metrics.rollouts.reward_mean:.3f}")


def graph_config(config: RLHFConfig, context: Context, prompts: Prompts) -> GraphConfig:
    """Return the config of the actor graph."""
    return GraphConfig(
        policy=context.inputs["policy"].model,
        reward=context.inputs["reward"].model if "reward" in context.inputs else None,
        verifier=None if config.verifier is None else read_verifier_program(config.verifier),
        prompts=prompts.train,
        max_prompt_length=max(len(prompt.prompt_ids) for prompt in [*prompts.train, *prompts.held_out]),
        rollouts=config.rollouts,
        learning=config.learning,
        algorithm=read_algorithm_program(config.learning.algorithm),
        seed=config.seed,
        shuffle_rewards=config.shuffle_rewards,
        checkpoints=context.output / "checkpoints",
    )


def tokenize_prompts(config: RLHFConfig, inputs: Mapping[str, Artifact]) -> Prompts:
    """Read and tokenize all prompts. A prompt that leaves no room for max_new_tokens is left out.

    Raises ValueError if more than the share `max_quarantined` of the prompts cannot be used, or if none of `prompts` is
    left. Also raises ValueError if there are `held_out_prompts`, but none of them is left.
    """
    folder = inputs["policy"].model.local()
    tokenizer = load_chat_tokenizer(folder)
    max_prompt_length = read_config(folder).max_length - config.rollouts.max_new_tokens
    files: dict[str, TokenizedPrompts] = {}
    fitting: dict[str, list[Prompt]] = {"prompts": [], "held_out_prompts": []}
    for name, patterns in _prompt_fields(config):
        files[name] = tokenize_files(list_files(patterns), tokenizer)
        check_quarantined(files[name].counts, config.max_quarantined, field=name, where="")
        fitting[name] = [
            Prompt(prompt.text, tuple(ids), prompt.record)
            for prompt, ids in files[name].prompts
            if len(ids) <= max_prompt_length
        ]
        if not fitting[name]:
            raise ValueError(
                f"{name}: none of the {len(files[name].prompts)} prompts leaves room for rollouts.max_new_tokens="
                f"{config.rollouts.max_new_tokens} in the policy's max_length; shorten the completions or the prompts"
            )
    num_prompts = sum(len(tokenized.prompts) for tokenized in files.values())
    num_fitting = sum(map(len, fitting.values()))
    return Prompts(fitting["prompts"], fitting["held_out_prompts"], num_prompts - num_fitting, files)


def complete_held_out(graph: "Graph", prompts: Prompts) -> list[HeldOutCompletion]:
    """Complete the held-out prompts with the current policy, and score the completions."""
    scored = graph.complete_and_score(prompts.held_out)
    return [
        HeldOutCompletion(prompt=prompt.text, completion=text, reward=reward)
        for prompt, text, reward in zip(prompts.held_out, scored.texts, scored.rewards, strict=True)
    ]


def output_sizes(config: RLHFConfig, planned: PlannedInputs) -> TransformerConfig:
    """Return the sizes of the trained model: its model config, which is that of `policy`."""
    return model_config_of(planned["policy"])


def placements_of(config: RLHFConfig) -> dict[str, Placement]:
    """Return the placement of each worker group of the actor graph, by group name, such as `learners` or `critics`."""
    return config.execution.placements(
        config.learning, load_algorithm(read_algorithm_program(config.learning.algorithm))
    )


def estimate(config: RLHFConfig, planned: PlannedInputs) -> dict[str, float]:
    """Return what `raymill plan` prints, by name.

    `rollouts` is the number of rollouts of the run, and `sampled_tokens` an upper bound of their tokens. The other
    values, such as `learner_mib`, are the memory of one actor of each kind in MiB: the weights, for learner and critic
    also gradients and optimizer state, and for a generator on CPUs also the KV cache.
    """
    execution, model_config = config.execution, model_config_of(planned["policy"])
    num_rollouts = config.steps * config.rollouts.rollouts_per_step
    placements = placements_of(config)
    # MiB of an engine's weights, and of its KV cache on CPUs.
    engine = parameters_mib(model_config, 2 if config.learning.precision == "bfloat16" else 4)
    cache = execution.kv_cache_gib * 1024 if execution.generators.gpus_per_worker == 0 else 0
    memory: dict[str, float] = {
        "generator_mib": engine + cache,
        "learner_mib": training_state_mib(model_config, workers=execution.learners.workers),
        "critic_mib": training_state_mib(model_config, workers=execution.critics.workers)
        if "critics" in placements
        else 0,
        "reference_mib": parameters_mib(model_config, 4) if "reference" in placements else 0,
        "scorer_mib": parameters_mib(model_config_of(planned["reward"]), 4) if "reward" in planned else 0,
    }
    sampled = {"rollouts": num_rollouts, "sampled_tokens": num_rollouts * config.rollouts.max_new_tokens}
    return {**sampled, **{name: size for name, size in memory.items() if size}}


def workload(config: RLHFConfig, planned: PlannedInputs) -> Workload:
    """Return what the forecast of time and memory is computed from.

    The time is that of generating and scoring completions, of the forward passes of learner, reference and critic
    before the update, and of the updates. Every completion is assumed to have two thirds of max_new_tokens. Every
    prompt is assumed to have the mean length of the first thousand prompts.
    """
    execution, model_config, rollouts = config.execution, model_config_of(planned["policy"]), config.rollouts
    first = itertools.islice(read_located(list_files([*config.prompts, *config.held_out_prompts])), 1000)
    prompt_tokens = statistics.fmean(
        chat_tokens([text_of(message) for message in prompt.messages], model_config.vocab_size)
        for prompt in parse_prompts(first)
    )
    num_held_out = sum(1 for _ in read_located(list_files(config.held_out_prompts))) if config.held_out_prompts else 0
    # `num_evaluations` is how often the held-out prompts are completed: before training, after training, and after each
    # held_out_interval that ends before the last step.
    num_evaluations = 2 + ((config.steps - 1) // execution.held_out_interval if execution.held_out_interval else 0)
    # Assumed length of a prompt and its completion, in tokens.
    length = round(prompt_tokens + rollouts.max_new_tokens * 2 / 3)
    placements = placements_of(config)
    rollout_tokens = config.steps * rollouts.rollouts_per_step * length
    # `passes` is the cost of a rollout's token, counted in forward passes: one each in the engine, the learner, the
    # reference and the critic before the update, and in each epoch three for the learner's update and three for the
    # critic's. An update counts as three, because its backward pass costs as much as two forward passes.
    has_reference, has_critic = "reference" in placements, "critics" in placements
    passes = 2 + has_reference + has_critic + 3 * config.learning.epochs * (1 + has_critic)
    # Tokens that the reward model scores. A verifier is assumed to take no time.
    scored_tokens = (rollout_tokens + num_evaluations * num_held_out * length) if "reward" in planned else 0
    model_gib, state_gib = parameters_mib(model_config, 4) / 1024, training_state_mib(model_config) / 1024
    # The losses of RLHF need the logits of all tokens of a micro-batch, unlike the fused cross entropy.
    activations_gib = activation_gib(model_config, tokens=execution.micro_batch_size * length, length=length)
    learners, critics = execution.learners.workers, execution.critics.workers
    processes = [
        Processes(kind="engine", number=execution.generators.workers, memory_gib=model_gib + execution.kv_cache_gib),
        Processes(kind="actor", number=learners, memory_gib=state_gib / learners + activations_gib),
        Processes(kind="actor", memory_gib=model_gib),  # the scorer
    ]
    if "reference" in placements:
        processes.append(Processes(kind="actor", memory_gib=model_gib))
    if "critics" in placements:
        processes.append(Processes(kind="actor", number=critics, memory_gib=state_gib / critics + activations_gib))
    return Workload(
        processes=processes,
        flop=(rollout_tokens * passes + scored_tokens + num_evaluations * num_held_out * length)
        * forward_flop_per_token(model_config, length),
        width=model_config.width,
        precision=require_resolved(config.learning.precision),
        threads=learners * execution.learners.threads_per_worker,
        steps=config.steps * config.learning.optimizer_steps_per_rlhf_step,
        rlhf_steps=config.steps,
        engine_steps=rollouts.max_new_tokens * generation_batches_per_engine(config, num_evaluations, num_held_out),
        disk_gib=(2 + ("critics" in placements)) * checkpoint_gib(model_config) + model_gib,
        on_gpu=any(placement.gpus_per_worker > 0 for placement in placements.values()),
    )


def generation_batches_per_engine(config: RLHFConfig, num_evaluations: int, num_held_out: int) -> float:
    """Return how many generation batches each engine completes during the run.

    There are `num_held_out` held-out prompts, which are completed `num_evaluations` times. They get one completion each
    instead of group_size, so a batch has group_size times as many of them (`actors.graph`).
    """
    rollouts = config.rollouts
    step_batches = rollouts.prompts_per_step // rollouts.generation_batch_prompts
    evaluation_batches = math.ceil(num_held_out / (rollouts.generation_batch_prompts * rollouts.group_size))
    num_batches = config.steps * step_batches + num_evaluations * evaluation_batches
    return num_batches / config.execution.generators.workers


STAGE = Stage(
    name="rlhf",
    version=4,
    kind="model",
    config=RLHFConfig,
    run=run,
    output_sizes=output_sizes,
    check=check,
    check_sources=check_prompts,
    check_planned_inputs=check_planned_inputs,
    check_inputs=check_inputs,
    estimate=estimate,
    workload=workload,
    report=report_rlhf,
    placements=lambda config: (placements_of(config),),
    # Colocated generators run on the nodes of the learners. So they need no pods of their own on Kubernetes.
    separate_engine_groups=lambda config: () if config.execution.colocate else ("generators",),
)
