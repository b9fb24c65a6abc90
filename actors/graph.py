"""The actor graph of RLHF: its actors, their wiring, and one step of learning.

    prompts → generators → rollouts → scorer, reference, critic → advantages → learner, critic → weights → generators

`build_graph` does all the wiring; `Graph.train_step` is the algorithm.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor

from actors.algorithm import load_algorithm
from actors.critic import Critic, CriticGroup
from actors.engine import OBJECT_STORE, EngineSettings, engine_env
from actors.generator import Generator
from actors.generator_pool import GeneratorPool
from actors.learner import Learner, LearnerGroup
from actors.rank_group import RankGroup, RanksDied
from actors.reference import Reference
from actors.rollout import (
    GenerationBatch,
    Prompt,
    PromptRequest,
    Rollout,
    RolloutGroup,
    SamplingParams,
    engine_logprobs,
    prompt_indices,
    rollout_batch,
    seeded_rng,
)
from actors.scorer import RewardModel, ScorerInput, Verifier
from actors.settings import GraphExecution, RolloutConfig
from actors.spawn import Reservation, Spawner, reserve
from actors.step_metrics import StepMetrics, Timer, reference_kl, rollout_metrics, update_metrics
from actors.sync_check import LogprobDifference, check_logprobs, check_rollouts, logprob_bound
from actors.training_rank import TrainingSettings
from actors.weight_sync import WeightSnapshot
from cluster import stage_monitor
from cluster.failures import explain
from cluster.placement import Placement
from cluster.storage import Storage
from cluster.user_program import Program
from data.chats.template import load_tokenizer
from data.tokens.tokenizer import chat_special_tokens
from model.advantages import AdvantageInputs
from model.batch import Batch, PolicyBatch, ValueBatch
from model.checkpoint_steps import complete_steps
from model.huggingface_config import SpecialTokens, read_config
from model.learning import LearningConfig
from model.precision import resolved_precision

log = logging.getLogger(__name__)

_HELDOUT_STEP = -1
"""The step in the seeds of held-out completions: the same draw before and after learning, so that they pair."""
_PROBE_STEP = -2
"""The step in the seeds of the sync check's completions."""
_NUM_PROBES = 4
_PROBE_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """What a graph is built from, beside where it runs."""

    policy: Storage
    """Hugging Face folder of the policy that training starts from."""
    reward: Storage | None
    """Hugging Face folder of a reward model; None when a verifier scores."""
    verifier: Program | None
    """None when a reward model scores."""
    prompts: Sequence[Prompt]
    max_prompt_length: int
    """Of all prompts that the graph will be given, held-out ones included, in tokens."""
    rollouts: RolloutConfig
    learning: LearningConfig
    algorithm: str | Program
    """A row of the table by its name, or a program of the user's that defines one."""
    seed: int
    shuffle_rewards: bool
    """A control experiment: rewards are permuted over the rollouts of a step."""
    checkpoints: Storage


@dataclass(frozen=True)
class ScoredRollouts:
    """Rollouts with their texts and rewards."""

    rollouts: list[Rollout]
    texts: list[str]
    """Completions without the stop token; other special tokens stay visible."""
    rewards: list[float]


class StepScores(NamedTuple):
    """What the other actors compute of a step's rollouts."""

    scored: ScoredRollouts
    learner_NT: Tensor
    """Logprobs under the policy before the update; the engine's must agree with them."""
    reference_NT: Tensor | None
    values_NT: Tensor | None

    @property
    def reference_log_ratio_NT(self) -> Tensor:
        """log policy - log reference, 0 without a reference. Both by our own model, so that an engine's rounding does
        not count as distance."""
        return torch.zeros_like(self.learner_NT) if self.reference_NT is None else self.learner_NT - self.reference_NT


def build_graph(config: GraphConfig, execution: GraphExecution) -> Graph:
    """All actors of the graph, started side by side in one reservation and wired to each other.

    Raises ValueError when they do not fit into the cluster.
    """
    groups = execution.placements(config.learning, load_algorithm(config.algorithm))
    reservation = reserve(groups, colocate=execution.colocate)
    spawn = Spawner(reservation, groups)
    generators, learners, critics = execution.generators, execution.learners, execution.critics

    def make_generator(index: int) -> ActorHandle:
        return spawn("generators", index, Generator, engine_settings(config, execution), env=engine_env())

    def make_learner(rank: int) -> ActorHandle:
        settings = training_settings(config, execution, config.policy, learners, name="learner")
        arguments = (config.algorithm, config.rollouts.temperature, execution.weight_transfer)
        return spawn("learners", rank, Learner, settings, rank, *arguments)

    def make_critic(rank: int) -> ActorHandle:
        folder = config.reward or config.policy
        settings = training_settings(config, execution, folder, critics, name="critic")
        return spawn("critics", rank, Critic, settings, rank)

    return Graph(
        config,
        execution,
        reservation=reservation,
        generators=GeneratorPool(make_generator, generators.workers, max_failures=execution.max_generator_restarts),
        learner=LearnerGroup(RankGroup(make_learner, learners.workers)),
        critic=CriticGroup(RankGroup(make_critic, critics.workers)) if "critics" in groups else None,
        reference=make_reference(spawn, config, execution) if "reference" in groups else None,
        scorer=make_scorer(spawn, config, execution),
    )


class Graph:
    """The running actors and one step of learning. Leaving it as a context manager kills every actor."""

    def __init__(
        self,
        config: GraphConfig,
        execution: GraphExecution,
        *,
        reservation: Reservation,
        generators: GeneratorPool,
        learner: LearnerGroup,
        critic: CriticGroup | None,
        reference: ActorHandle | None,
        scorer: ActorHandle,
    ) -> None:
        self.generators, self.learner, self.critic = generators, learner, critic
        self.reference, self.scorer = reference, scorer
        self._config, self._execution, self._reservation = config, execution, reservation
        self._algorithm = load_algorithm(config.algorithm)
        folder = config.policy.local()
        self._model_config = read_config(folder)
        self._tokenizer = load_tokenizer(folder)
        self._current: WeightSnapshot | None = None
        self._previous: WeightSnapshot | None = None
        self._failures_left = execution.learners.max_failures

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        self._reservation.release()

    def start(self) -> int:
        """Load all models and the newest checkpoint, if there is one. Returns the step to continue from.

        The engines are checked against the learner before this method returns. Raises RanksDied when a training rank
        has died, as do `train_step`, `score_held_out`, `save` and `export`. Call `recover` after that error.
        """
        for ranks in self._rank_groups:
            ranks.join()
        optimizer_step = self._newest_checkpoint()
        for ranks in self._rank_groups:
            ranks.restore(optimizer_step)
        if self._execution.weight_transfer != OBJECT_STORE:
            self.learner.connect(self.generators.actors)
        step = self.saved_step()
        self._sync_weights(step)
        return step

    def train_step(self, step: int) -> StepMetrics:
        """One step of learning; its metrics."""
        timer = Timer()
        prompts = self._prompts_of(step)
        with timer("generate"):
            groups = self._generate(prompts, step=step, num_samples=self._config.rollouts.group_size)
        batch, engine_NT = self._to_batch(groups)
        with timer("score"):
            scores = self._score(prompts, groups, batch)
        difference = self._check_sync(batch, engine_NT, scores.learner_NT)

        rewards_N = self._rewards(scores.scored, step)
        advantages_NT, returns_NT = self._algorithm.estimate(
            AdvantageInputs(
                rewards_N, group_ids(groups), batch.loss_mask, scores.reference_log_ratio_NT, scores.values_NT
            ),
            self._config.learning,
        )
        with timer("update"):
            policy_update = self.learner.update(PolicyBatch(batch, engine_NT, advantages_NT, scores.reference_NT), step)
            value_metrics = None
            if self.critic is not None:
                assert scores.values_NT is not None and returns_NT is not None, "a critic needs returns to learn"
                value_batch = ValueBatch(batch, scores.values_NT, returns_NT)
                value_metrics = update_metrics(self.critic.update(value_batch, step).wait())
            policy_metrics = update_metrics(policy_update.wait())
        with timer("weight_sync"):
            self._sync_weights(step + 1)

        scored = scores.scored
        return StepMetrics(
            rollouts=rollout_metrics(scored.rollouts, scored.texts, scored.rewards),
            reference_kl=None if scores.reference_NT is None else reference_kl(scores.reference_log_ratio_NT, batch),
            logprob_difference=difference,
            policy=policy_metrics,
            value=value_metrics,
            generator_restarts=self.generators.restarts,
            times=timer.times(num_sampled=int(batch.loss_mask.sum())),
        )

    def score_held_out(self, prompts: Sequence[Prompt]) -> ScoredRollouts:
        """One sampled and scored completion of each prompt, by the same draw at every call."""
        groups = self._generate(prompts, step=_HELDOUT_STEP, num_samples=1)
        scored, samples = self._to_samples(prompts, groups)
        return replace(scored, rewards=ray.get(self.scorer.score.remote(samples)))

    def save(self) -> None:
        """Begin a checkpoint of learner and critic; it is whole after the next `save`, `finish_save` or `export`."""
        for ranks in self._rank_groups:
            ranks.save()

    def finish_save(self) -> None:
        """Wait until the last checkpoint is whole."""
        for ranks in self._rank_groups:
            ranks.finish_save()

    def saved_step(self) -> int:
        """The step that a resumed run begins with: that of the newest whole checkpoint, 0 without one."""
        return (self._newest_checkpoint() or 0) // self._config.learning.optimizer_steps

    def export(self, output: Storage) -> None:
        """Write the policy as a Hugging Face folder, and wait for the last checkpoint."""
        ids = chat_special_tokens(self._config.policy.local())
        self.learner.export(output, SpecialTokens(bos=ids.bos, eos=ids.eos, pad=ids.pad))
        self.finish_save()

    def recover(self, error: RanksDied) -> None:
        """Start all training ranks anew; `start` then loads the last checkpoint.

        Raises RuntimeError when ranks have died more than `execution.learners.max_failures` times.
        """
        explanation = explain(error.__cause__ or error)
        if self._failures_left == 0:
            raise explanation.to_error("; no restart is left (execution.learners.max_failures)") from error
        self._failures_left -= 1
        log.warning("%s; all training ranks start again from the last checkpoint", explanation.sentence)
        self._current = None  # a snapshot is lost with the learner that made it
        for role, ranks in zip(("learner", "critic"), self._rank_groups, strict=False):
            stage_monitor.ignore_exits(role)
            ranks.restart()

    @property
    def _rank_groups(self) -> list[RankGroup]:
        return [self.learner.ranks] if self.critic is None else [self.learner.ranks, self.critic.ranks]

    def _newest_checkpoint(self) -> int | None:
        """The newest optimizer step of which learner and critic both have a whole checkpoint."""
        folders = [self._config.checkpoints / name for name in ("learner", "critic")[: len(self._rank_groups)]]
        common = set.intersection(*(set(complete_steps(folder.fs, folder.root)) for folder in folders))
        return max(common, default=None)

    def _prompts_of(self, step: int) -> list[Prompt]:
        count = self._config.rollouts.prompts_per_step
        order = prompt_indices(self._config.seed, len(self._config.prompts), step * count, count)
        return [self._config.prompts[index] for index in order]

    def _generate(self, prompts: Sequence[Prompt], *, step: int, num_samples: int) -> list[RolloutGroup]:
        """Every prompt's completions, in order, from the learner's current weights."""
        rollouts, version = self._config.rollouts, self._version
        tasks = [PromptRequest(index, prompt.prompt_ids, num_samples) for index, prompt in enumerate(prompts)]
        size = rollouts.generation_batch_prompts * rollouts.group_size // num_samples
        sampling = self._sampling(rollouts.max_new_tokens)
        groups = self.generators.generate(
            [GenerationBatch(step, version, part, sampling) for part in batched(tasks, size)]
        )
        check_rollouts(tasks, groups, version=version, vocab_size=self._model_config.vocab_size)
        return groups

    def _sampling(self, max_new_tokens: int) -> SamplingParams:
        return SamplingParams(
            temperature=self._config.rollouts.temperature,
            max_new_tokens=max_new_tokens,
            stop_ids=self._tokenizer.stop_ids,
            seed=self._config.seed,
        )

    def _to_batch(self, groups: Sequence[RolloutGroup]) -> tuple[Batch, Tensor]:
        """All rollouts as rows in order, and the engine's logprobs [N, T] of them."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        batch = rollout_batch(rollouts, pad_id=self._tokenizer.pad_id)
        return batch, engine_logprobs(rollouts, batch)

    def _to_samples(
        self, prompts: Sequence[Prompt], groups: Sequence[RolloutGroup]
    ) -> tuple[ScoredRollouts, list[ScorerInput]]:
        """All rollouts with their texts, still without rewards, and the samples for the scorer."""
        pairs = [(p, rollout) for p, group in zip(prompts, groups, strict=True) for rollout in group.rollouts]
        texts = [self._tokenizer.decode(rollout.text_ids) for _, rollout in pairs]
        samples = [
            ScorerInput(prompt.text, text, self._with_end_token(rollout), prompt.record)
            for (prompt, rollout), text in zip(pairs, texts, strict=True)
        ]
        return ScoredRollouts([rollout for _, rollout in pairs], texts, []), samples

    def _with_end_token(self, rollout: Rollout) -> tuple[int, ...]:
        """Prompt and completion with the end token, which a completion that was cut lacks."""
        end = () if rollout.finished else (self._tokenizer.end_id,)
        return rollout.prompt_ids + rollout.completion_ids + end

    def _score(self, prompts: Sequence[Prompt], groups: Sequence[RolloutGroup], batch: Batch) -> StepScores:
        """Rewards, logprobs and values of a step's rollouts, computed by the actors side by side."""
        scored, samples = self._to_samples(prompts, groups)
        batch_ref = ray.put(batch)
        rewards = self.scorer.score.remote(samples)
        learner = self.learner.logprobs(batch_ref)
        reference = None if self.reference is None else self.reference.logprobs.remote(batch_ref)
        values = None if self.critic is None else self.critic.values(batch_ref)
        return StepScores(
            scored=replace(scored, rewards=ray.get(rewards)),
            learner_NT=learner.wait(),
            reference_NT=None if reference is None else ray.get(reference),  # pyright: ignore[reportArgumentType]
            values_NT=None if values is None else values.wait(),
        )

    def _rewards(self, scored: ScoredRollouts, step: int) -> Tensor:
        rewards_N = torch.tensor(scored.rewards, dtype=torch.float32)
        if self._config.shuffle_rewards:
            order = torch.randperm(len(rewards_N), generator=seeded_rng(self._config.seed, "shuffle", step))
            return rewards_N[order]
        return rewards_N

    def _sync_weights(self, version: int) -> None:
        """Load the learner's weights into the engines, and check each engine on a few prompts."""
        self._previous, self._current = self._current, self.learner.send_weights(version)
        self.generators.load(self._current)
        prompts = itertools.islice(itertools.cycle(self._config.prompts), self._num_probes)
        tasks = tuple(PromptRequest(index, prompt.prompt_ids, 1) for index, prompt in enumerate(prompts))
        sampling = self._sampling(min(_PROBE_TOKENS, self._config.rollouts.max_new_tokens))
        for groups in self.generators.generate_on_each(GenerationBatch(_PROBE_STEP, version, tasks, sampling)):
            check_rollouts(tasks, groups, version=version, vocab_size=self._model_config.vocab_size)
            batch, engine_NT = self._to_batch(groups)
            self._check_sync(batch, engine_NT, self.learner.logprobs(batch).wait())

    @property
    def _num_probes(self) -> int:
        """A few, and a multiple of the learner's ranks, among which the rows are divided."""
        ranks = self._execution.learners.workers
        return -(-_NUM_PROBES // ranks) * ranks

    def _check_sync(self, batch: Batch, engine_NT: Tensor, learner_NT: Tensor) -> LogprobDifference:
        """The logprob difference of engine and learner. Raises a WeightSyncError when it is beyond the bound."""
        assert self._current is not None
        return check_logprobs(
            batch,
            engine_NT,
            learner_NT,
            bound=logprob_bound(self._config.learning),
            model_config=self._model_config,
            temperature=self._config.rollouts.temperature,
            current=self._current,
            previous=self._previous,
        )

    @property
    def _version(self) -> int:
        assert self._current is not None, "start the graph first"
        return self._current.version


def engine_settings(config: GraphConfig, execution: GraphExecution) -> EngineSettings:
    """The settings of every generator's engine."""
    return EngineSettings(
        model=config.policy,
        max_length=config.max_prompt_length + config.rollouts.max_new_tokens,
        max_sequences=config.rollouts.generation_batch_prompts * config.rollouts.group_size,
        precision=resolved_precision(config.learning.precision),
        kv_cache_gib=execution.kv_cache_gib,
        gpu_memory_utilization=execution.gpu_memory_utilization,
        weight_transfer=execution.weight_transfer,
        is_cuda=execution.generators.gpus_per_worker > 0,
    )


def training_settings(
    config: GraphConfig, execution: GraphExecution, folder: Storage, placement: Placement, *, name: str
) -> TrainingSettings:
    """The settings of every rank of the learner, or of the critic."""
    return TrainingSettings(
        folder=folder,
        checkpoints=config.checkpoints / name,
        learning=config.learning,
        seed=config.seed,
        placement=placement,
        micro_batch_size=execution.micro_batch_size,
    )


def make_reference(spawn: Spawner, config: GraphConfig, execution: GraphExecution) -> ActorHandle:
    """The reference's actor."""
    temperature, precision = config.rollouts.temperature, resolved_precision(config.learning.precision)
    arguments = (config.policy, temperature, execution.micro_batch_size, precision)
    return spawn("reference", 0, Reference, *arguments, restartable=True)


def make_scorer(spawn: Spawner, config: GraphConfig, execution: GraphExecution) -> ActorHandle:
    """The scorer's actor: a verifier or a reward model."""
    if config.verifier is not None:
        return spawn("scorer", 0, Verifier, config.verifier, restartable=True)
    assert config.reward is not None, "a graph needs a reward model or a verifier"
    arguments = (config.reward, execution.micro_batch_size, resolved_precision(config.learning.precision))
    return spawn("scorer", 0, RewardModel, *arguments, restartable=True)


def group_ids(groups: Sequence[RolloutGroup]) -> Tensor:
    """The position [N] of each rollout's group."""
    return torch.tensor([position for position, group in enumerate(groups) for _ in group.rollouts])


def batched(tasks: Sequence[PromptRequest], size: int) -> Iterator[tuple[PromptRequest, ...]]:
    """The tasks in order, `size` at a time."""
    for start in range(0, len(tasks), size):
        yield tuple(tasks[start : start + size])
