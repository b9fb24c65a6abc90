"""RLHF: the policy learns from the rewards of its own answers, in a graph of actors around a vLLM engine.

The graph itself is `actors.graph`; here stand its settings, its prompts, and the loop around its step.
"""

import itertools
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from actors.graph import Graph, GraphConfig, Scored, build_graph
from actors.ranks import RanksDied
from actors.rollout import Prompt
from actors.settings import GraphExecution, LearningConfig, RolloutConfig
from cluster.metrics_log import read_metrics
from cluster.paths import list_files
from cluster.progress import Progress, working
from cluster.signals import StoppedBySignal, defer_signals, received_signal
from cluster.storage import Storage
from data.chats.records import read_prompts
from data.chats.template import load_tokenizer
from data.tokens.tokenizer import fingerprint
from jobs.frame.artifact import Artifact
from jobs.frame.fields import PREVIOUS, input_artifact, source_files, user_function
from jobs.frame.sizes import (
    activation_gib,
    chat_tokens,
    checkpoint_gib,
    forward_flop,
    mib,
    model_sizes,
    state_mib,
)
from jobs.frame.stage import Context, Needs, Stage
from jobs.frame.user_code import read_program
from jobs.frame.work import Processes, Work
from jobs.report.rlhf import report_rlhf
from model.huggingface import read_config
from model.metrics import distinct_n
from model.precision import resolved
from model.transformer import TransformerConfig

log = logging.getLogger(__name__)

_BEFORE = "checkpoints/before.jsonl"
_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""What vLLM 0.32 has attention kernels for on CPU."""


@dataclass(frozen=True, kw_only=True)
class RlhfConfig:
    """`rlhf.yaml`."""

    policy: str = input_artifact("model", default=PREVIOUS)
    """The chat model that learns: a stage, an artifact or a Llama-family Hugging Face folder."""
    reward: str | None = input_artifact("reward_model", default=None)
    """A reward model that scores the answers. Either this or a verifier."""
    verifier: str | None = user_function(default=None)
    """A program that scores the answers: `path/to/file.py:function`, called as function(prompt, response, record).
    Modules in its folder that it imports belong to it: they are shipped, and part of the identity. Other files there
    are not: keep its data in such a module, or where every node sees it."""
    prompts: list[str] = source_files()
    """JSONL files of `{"prompt", …}` or `{"messages", …}`; a verifier sees the whole line."""
    heldout_prompts: list[str] = source_files(default=[])
    """Prompts that are answered before and after, and never learned from: JSONL files as above."""
    steps: int = 100
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    shuffle_rewards: bool = False
    """A control experiment: each step's rewards are permuted over its answers, so that there is nothing to learn."""
    seed: int = 0
    """Of the order of prompts, of every sampled answer and of the minibatches."""
    execution: GraphExecution = field(default_factory=GraphExecution)


def check(config: RlhfConfig) -> None:
    """Raises ValueError for every mistake that shows without the inputs."""
    if config.steps < 1:
        raise ValueError(f"steps: {config.steps} must be at least 1")
    if (config.reward is None) == (config.verifier is None):
        raise ValueError("reward, verifier: give exactly one of them; it is what scores the answers")
    config.rollouts.check("rollouts")
    config.learning.check("learning")
    config.execution.check("execution", config.rollouts, config.learning)
    if config.verifier is not None:
        read_program(config.verifier)
    algorithm = config.learning.algorithm
    if algorithm in ("grpo", "rloo") and config.rollouts.group_size < 2:
        raise ValueError(f"rollouts.group_size: 1, but {algorithm} compares the answers to one prompt; take at least 2")
    if config.execution.heldout_interval and not config.heldout_prompts:
        raise ValueError("execution.heldout_interval: there are no heldout_prompts to look at; add some, or set 0")


def check_prompts(config: RlhfConfig) -> None:
    """Raises ValueError naming file and line of a malformed prompt."""
    for _ in read_prompts(list_files([*config.prompts, *config.heldout_prompts])):
        pass


def check_inputs(config: RlhfConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError for a tokenizer of another model, or prompts that leave no room for an answer."""
    folder = inputs["policy"].model.local()
    if "reward" in inputs:
        theirs = inputs["reward"].model.local()
        if fingerprint(folder) != fingerprint(theirs):
            raise ValueError(
                f"reward: the tokenizer of {inputs['reward'].id} is not that of the policy {inputs['policy'].id}; "
                "train the reward model from the same model as the policy"
            )
    read_all(config, inputs)


def check_needs(config: RlhfConfig, needs: Needs) -> None:
    """Raises ValueError for a policy whose sizes the engines or the answers do not fit."""
    sizes = model_sizes(needs["policy"])
    if config.rollouts.max_new_tokens >= sizes.max_length:
        raise ValueError(
            f"rollouts.max_new_tokens: {config.rollouts.max_new_tokens} must be below the policy's max_length "
            f"{sizes.max_length}, which holds the prompt too; shorten the answers"
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
    heldout: list[Prompt]
    num_too_long: int
    """Left out because no whole answer would fit behind them."""


def run(config: RlhfConfig, context: Context) -> dict[str, float]:
    """Learn and leave `model/`, `samples.jsonl`, `checkpoints/` and `metrics.jsonl` in the output."""
    prompts = read_all(config, context.inputs)
    with build_graph(graph_config(config, context, prompts), config.execution) as graph:
        after = learn_through_deaths(config, context, graph, prompts)
    before = context.output.read_jsonl(_BEFORE)
    write_samples(context.output, before, heldout_lines(prompts.heldout, after))
    return summarize(context.output, prompts) | compare(before, after)


def learn_through_deaths(config: RlhfConfig, context: Context, graph: Graph, prompts: Prompts) -> Scored:
    """Everything from the last checkpoint to the exported model, begun again whenever a training rank died; the
    held-out answers at the end."""
    while True:
        try:
            with working("starting the engines, the learner and the scorer"):
                step = graph.start()
            context.tracker.resume(step)
            if step:
                log.info("rlhf goes on from its checkpoint at step %d of %d", step, config.steps)
            else:
                with working("answering the held-out prompts before learning"):
                    before = graph.heldout(prompts.heldout)
                context.output.write_jsonl(_BEFORE, heldout_lines(prompts.heldout, before))
            learn(config, context, graph, prompts, step)
            with working("answering the held-out prompts after learning"):
                after = graph.heldout(prompts.heldout)
            with working("writing the model and the last checkpoint"):
                graph.export(context.output / "model")
            return after
        except RanksDied as error:
            graph.recover(error)
        except KeyboardInterrupt:
            raise StoppedBySignal(f"rlhf goes on from step {graph.saved_step()} of {config.steps}") from None


def learn(config: RlhfConfig, context: Context, graph: Graph, prompts: Prompts, step: int) -> None:
    """Every step from `step` on: logged, and saved at the interval and at the end."""
    execution = config.execution
    with Progress("learning", config.steps, "steps", done=step) as progress:
        while step < config.steps:
            with defer_signals():  # a step that is cut short is lost, so one that ends in time is waited for and kept
                metrics = graph.step(step)
                step += 1
                if received_signal() is not None:
                    context.tracker.log(step, metrics)
                    context.tracker.flush()
                    graph.save()
                    graph.finish_save()
            if execution.heldout_interval and step % execution.heldout_interval == 0 and step < config.steps:
                with working("answering the held-out prompts"):
                    metrics["heldout/reward_mean"] = statistics.fmean(graph.heldout(prompts.heldout).rewards)
            context.tracker.log(step, metrics)
            if step % execution.checkpoint_interval == 0 or step == config.steps:
                context.tracker.flush()  # no step before a checkpoint is done again, so its line must be safe
                graph.save()
            progress.update(step, f"reward {metrics['rollout/reward_mean']:.3f}")


def graph_config(config: RlhfConfig, context: Context, prompts: Prompts) -> GraphConfig:
    """What the graph is built from."""
    return GraphConfig(
        policy=context.inputs["policy"].model,
        reward=context.inputs["reward"].model if "reward" in context.inputs else None,
        verifier=None if config.verifier is None else read_program(config.verifier),
        prompts=prompts.train,
        max_prompt_length=max(len(prompt.prompt_ids) for prompt in [*prompts.train, *prompts.heldout]),
        rollouts=config.rollouts,
        learning=config.learning,
        seed=config.seed,
        shuffle_rewards=config.shuffle_rewards,
        checkpoints=context.output / "checkpoints",
    )


def read_all(config: RlhfConfig, inputs: Mapping[str, Artifact]) -> Prompts:
    """All prompts, tokenized. Raises ValueError when none of a kind leaves room for an answer."""
    folder = inputs["policy"].model.local()
    tokenizer = load_tokenizer(folder)
    room = read_config(folder).max_length - config.rollouts.max_new_tokens

    def read(patterns: Sequence[str]) -> list[Prompt]:
        found = read_prompts(list_files(list(patterns))) if patterns else ()
        return [
            Prompt(prompt.text, tuple(tokenizer.prompt_ids(prompt.messages, where=prompt.where)), prompt.record)
            for prompt in found
        ]

    train, heldout = read(config.prompts), read(config.heldout_prompts)
    fitting = [[prompt for prompt in prompts if len(prompt.prompt_ids) <= room] for prompts in (train, heldout)]
    for name, found, kept in zip(("prompts", "heldout_prompts"), (train, heldout), fitting, strict=True):
        if not kept and (found or name == "prompts"):
            raise ValueError(
                f"{name}: none of {len(found)} leaves room for rollouts.max_new_tokens="
                f"{config.rollouts.max_new_tokens} in the policy's max_length; shorten the answers or the prompts"
            )
    return Prompts(fitting[0], fitting[1], len(train) + len(heldout) - len(fitting[0]) - len(fitting[1]))


def heldout_lines(prompts: Sequence[Prompt], scored: Scored) -> list[dict[str, object]]:
    """One record for each held-out prompt."""
    rows = zip(prompts, scored.responses, scored.rewards, strict=True)
    return [{"prompt": prompt.text, "response": text, "reward": reward} for prompt, text, reward in rows]


def write_samples(output: Storage, before: Sequence[Mapping], after: Sequence[Mapping]) -> None:
    """`samples.jsonl`: each held-out prompt with its answer and reward before and after."""
    lines = [
        {
            "prompt": old["prompt"],
            "before": old["response"],
            "after": new["response"],
            "reward_before": old["reward"],
            "reward_after": new["reward"],
        }
        for old, new in zip(before, after, strict=True)
    ]
    output.write_jsonl("samples.jsonl", lines)


def compare(before: Sequence[Mapping], after: Scored) -> dict[str, float]:
    """Means over the held-out prompts, before and after."""
    if not before:
        return {}
    return {
        "heldout_prompts": len(before),
        "reward_before": statistics.fmean(line["reward"] for line in before),
        "reward_after": statistics.fmean(after.rewards),
        "distinct_2_before": distinct_n([line["response"] for line in before], 2),
        "distinct_2_after": distinct_n(after.responses, 2),
    }


def summarize(output: Storage, prompts: Prompts) -> dict[str, float]:
    """Counts, and what the metrics log says of the whole run."""
    metrics = read_metrics(output)
    return {
        "prompts": len(prompts.train),
        "prompts_too_long": prompts.num_too_long,
        "steps": metrics[-1]["step"],
        "logprob_gap_max": max(line["proof/logprob_gap_max"] for line in metrics),
        "step_s": statistics.median(line["perf/step_s"] for line in metrics),
        "tokens_per_s": statistics.median(line["perf/tokens_per_s"] for line in metrics),
    }


def sizes(config: RlhfConfig, needs: Needs) -> TransformerConfig:
    """The sizes of the model, those of `policy`."""
    return model_sizes(needs["policy"])


def estimate(config: RlhfConfig, needs: Needs) -> dict[str, float]:
    """Rollouts and sampled tokens, at most, and the memory of each actor's models and of the engine's cache."""
    execution, sizes = config.execution, model_sizes(needs["policy"])
    rollouts = config.steps * config.rollouts.rollouts_per_step
    groups = execution.groups(config.learning)
    engine = mib(sizes, 2 if config.learning.precision == "bfloat16" else 4)
    cache = execution.kv_cache_gib * 1024 if execution.generators.gpus_per_worker == 0 else 0
    memory: dict[str, float] = {
        "generator_mib": engine + cache,
        "learner_mib": state_mib(sizes, workers=execution.learners.workers),
        "critic_mib": state_mib(sizes, workers=execution.critics.workers) if "critics" in groups else 0,
        "reference_mib": mib(sizes, 4) if "reference" in groups else 0,
        "scorer_mib": mib(model_sizes(needs["reward"]), 4) if "reward" in needs else 0,
    }
    sampled = {"rollouts": rollouts, "sampled_tokens": rollouts * config.rollouts.max_new_tokens}
    return {**sampled, **{name: size for name, size in memory.items() if size}}


def work(config: RlhfConfig, needs: Needs) -> Work:
    """What the forecast is made of: generation, the passes of scorer, reference and learner, and the update.

    Completions are taken to reach two thirds of max_new_tokens, and prompts to be as long as the first thousand.
    """
    execution, sizes, rollouts = config.execution, model_sizes(needs["policy"]), config.rollouts
    first = itertools.islice(read_prompts(list_files([*config.prompts, *config.heldout_prompts])), 1000)
    prompt_tokens = statistics.fmean(
        chat_tokens([message["content"] for message in prompt.messages], sizes.vocab_size) for prompt in first
    )
    heldout = sum(1 for _ in read_prompts(list_files(config.heldout_prompts))) if config.heldout_prompts else 0
    looks = 2 + (config.steps // execution.heldout_interval if execution.heldout_interval else 0)
    length = round(prompt_tokens + rollouts.max_new_tokens * 2 / 3)
    groups = execution.groups(config.learning)
    trained = config.steps * rollouts.rollouts_per_step * length
    # A pass each by engine, learner (for the ratio) and reference, and an update of three for each epoch.
    passes = 2 + ("reference" in groups) + 3 * config.learning.epochs * (1 + ("critics" in groups))
    scored = (trained + looks * heldout * length) if "reward" in needs else 0
    batches = rollouts.prompts_per_step / rollouts.lot_prompts / execution.generators.workers
    heldout_batches = math.ceil(heldout / rollouts.lot_prompts) / execution.generators.workers
    model_gib, state_gib = mib(sizes, 4) / 1024, state_mib(sizes) / 1024
    held_gib = activation_gib(sizes, tokens=execution.micro_batch_size * length, length=length)
    learners, critics = execution.learners.workers, execution.critics.workers
    processes = [
        Processes(kind="engine", number=execution.generators.workers, own_gib=model_gib + execution.kv_cache_gib),
        Processes(kind="actor", number=learners, own_gib=state_gib / learners + held_gib),
        Processes(kind="actor", own_gib=model_gib),  # the scorer
    ]
    if "reference" in groups:
        processes.append(Processes(kind="actor", own_gib=model_gib))
    if "critics" in groups:
        processes.append(Processes(kind="actor", number=critics, own_gib=state_gib / critics + held_gib))
    return Work(
        processes=processes,
        flop=(trained * passes + scored + looks * heldout * length) * forward_flop(sizes, length),
        width=sizes.width,
        precision=resolved(config.learning.precision),
        threads=learners * execution.learners.threads_per_worker,
        steps=config.steps * config.learning.epochs * config.learning.minibatches,
        rl_steps=config.steps,
        engine_steps=rollouts.max_new_tokens * (config.steps * batches + looks * heldout_batches),
        disk_gib=(2 + ("critics" in groups)) * checkpoint_gib(sizes) + model_gib,
        on_gpu=any(group.gpus_per_worker > 0 for group in groups.values()),
    )


STAGE = Stage(
    name="rlhf",
    version=2,
    kind="model",
    config=RlhfConfig,
    run=run,
    sizes=sizes,
    check=check,
    check_sources=check_prompts,
    check_needs=check_needs,
    check_inputs=check_inputs,
    estimate=estimate,
    work=work,
    report=report_rlhf,
    groups=lambda config: (config.execution.groups(config.learning),),
)
