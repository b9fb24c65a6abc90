"""The actor graph of RLHF: the actors, how they are connected, and one RLHF step.

    prompts → generators → rollouts → scorer, learner, reference, critic → advantages → learner, critic → weights

`build_graph` starts the actors. `Graph.rlhf_step` runs one RLHF step: it generates rollouts of some prompts, updates
learner and critic with these rollouts (in several optimizer steps), and syncs the weights. The argument `step` is the
index of an RLHF step, counted from 0.

Shape legend: N is the number of rollouts of an RLHF step, and T the number of positions of a row. For example,
`rewards_N` has the shape [N], and `engine_NT` has the shape [N, T] (see `actors.rollout`). A name before these letters
says whose logprobs the tensor has: `engine_NT` are the engine's.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor

from actors.algorithm import load_algorithm
from actors.critic import Critic, CriticGroup
from actors.engine import OBJECT_STORE, EngineSettings, engine_env
from actors.generator import Generator
from actors.generator_pool import GeneratorPool
from actors.graph_config import GraphConfig, Prompt
from actors.group_checkpoints import GroupCheckpoints
from actors.learner import Learner, LearnerGroup
from actors.rank_group import RankGroup, RanksDied
from actors.reference import Reference
from actors.reward_model import RewardModel
from actors.rollout import (
    GenerationBatch,
    PromptRequest,
    Rollout,
    RolloutGroup,
    SamplingParams,
    engine_logprobs,
    prompt_indices,
    rollout_batch,
    seeded_rng,
)
from actors.settings import GraphExecution
from actors.spawn import Reservation, Spawner, reserve
from actors.step_metrics import StepMetrics, Timer, reference_kl, rollout_metrics, update_metrics
from actors.sync_check import (
    LogprobDifference,
    check_logprobs,
    check_rollouts,
    is_within,
    logprob_bound,
    logprob_difference,
    rounding_bound,
)
from actors.training_rank import TrainingSettings
from actors.verifier import ScorerInput, Verifier
from actors.weight_sync import WeightSnapshot
from cluster import stage_monitor
from cluster.failures import explain
from cluster.placement import Placement
from cluster.storage import Storage
from data.chats.template import load_chat_tokenizer, read_special_tokens
from model.advantages import AdvantageInputs
from model.batch import Batch, PolicyBatch, ValueBatch
from model.huggingface_config import SpecialTokens, read_config
from model.precision import require_resolved

log = logging.getLogger(__name__)

_LEARNER, _CRITIC = "learner", "critic"
"""Names of the groups of training ranks. They are also the names of their folders of checkpoints."""
_HELD_OUT_SEED_STEP = -1
"""Replaces the RLHF step in the seeds of held-out completions. It is constant, so that the completions before and
after training are sampled with the same random numbers and can be compared in pairs."""
_SYNC_CHECK_SEED_STEP = -2
"""Replaces the RLHF step in the seeds of the completions that the sync check samples after a weight sync."""
_MIN_SYNC_CHECK_PROMPTS = 4
"""Minimum number of prompts that every engine completes after a weight sync. The sync check compares the engine's
logprobs of these completions with the learner's."""
_SYNC_CHECK_TOKENS = 16
"""Maximum number of tokens of a completion for the sync check after a weight sync."""


@dataclass(frozen=True)
class ScoredRollouts:
    """Rollouts with their texts and rewards. The three lists have the same order, by prompt and then by sample."""

    rollouts: list[Rollout]
    texts: list[str]
    """The completions as text, without the stop token. Other special tokens are part of the text."""
    rewards: list[float]
    """The scorer's rewards."""


class StepInference(NamedTuple):
    """What scorer, learner, reference and critic compute from the rollouts of an RLHF step."""

    scored: ScoredRollouts
    learner_NT: Tensor
    """Logprobs of the targets under the policy before the update, computed by the learner. `rlhf_step` compares the
    engine's logprobs of the rollouts with them. The sync check does the same for a few completions of its own, after
    each weight sync."""
    reference_NT: Tensor | None
    """Logprobs of the targets under the reference. None without a reference."""
    values_NT: Tensor | None
    """The critic's values. None without a critic."""

    @property
    def reference_log_ratio_NT(self) -> Tensor:
        """log policy - log reference for each target. 0 without a reference.

        The policy's logprobs are the learner's and not the engine's, so that the engine's rounding errors do not count
        as a distance from the reference.
        """
        return torch.zeros_like(self.learner_NT) if self.reference_NT is None else self.learner_NT - self.reference_NT


def build_graph(config: GraphConfig, execution: GraphExecution) -> Graph:
    """Reserve the resources of all actors at once, start the actors, and return their graph.

    `Graph.start` then loads the models of learner and critic and, with nccl or ipc, connects the learner with the
    generators.

    Raises ValueError when the actors do not fit into the cluster.
    """
    groups = execution.placements(config.learning, load_algorithm(config.algorithm))
    reservation = reserve(groups, colocate=execution.colocate)
    spawn = Spawner(reservation, groups)
    generators, learners, critics = execution.generators, execution.learners, execution.critics

    def start_generator(index: int) -> ActorHandle:
        return spawn("generators", index, Generator, engine_settings(config, execution), env=engine_env())

    def start_learner(rank: int) -> ActorHandle:
        settings = training_settings(config, execution, config.policy, learners, name=_LEARNER)
        arguments = (config.algorithm, config.rollouts.temperature, execution.weight_transfer)
        return spawn("learners", rank, Learner, settings, rank, *arguments)

    def start_critic(rank: int) -> ActorHandle:
        folder = config.reward or config.policy
        settings = training_settings(config, execution, folder, critics, name=_CRITIC)
        return spawn("critics", rank, Critic, settings, rank)

    return Graph(
        config,
        execution,
        reservation=reservation,
        generators=GeneratorPool(start_generator, generators.workers, max_restarts=execution.max_generator_restarts),
        learner=LearnerGroup(RankGroup(start_learner, learners.workers)),
        critic=CriticGroup(RankGroup(start_critic, critics.workers)) if "critics" in groups else None,
        reference=start_reference(spawn, config, execution) if "reference" in groups else None,
        scorer=start_scorer(spawn, config, execution),
    )


class Graph:
    """The running actors and the RLHF step. As a context manager, a graph kills all its actors at the end."""

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
        self._tokenizer = load_chat_tokenizer(folder)
        self._current_snapshot: WeightSnapshot | None = None
        self._previous_snapshot: WeightSnapshot | None = None
        self._restarts_left = execution.learners.max_failures
        self._logprob_bound = logprob_bound(config.learning)
        group_names = (_LEARNER,) if critic is None else (_LEARNER, _CRITIC)
        self._checkpoints = GroupCheckpoints({name: config.checkpoints / name for name in group_names})

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        self._reservation.release()

    def start(self) -> int:
        """Load the models and the newest checkpoint, if there is one. Returns the index of the next RLHF step.

        Also syncs the weights to the engines and runs the sync check. Raises RanksDied when a rank of the learner or
        the critic has died. After this error, call `recover`. Raises NoUsableCheckpointError if there are checkpoints,
        but none can be used.

        `rlhf_step`, `save`, `finish_save` and `export` raise the same error.
        """
        for ranks in self._rank_groups.values():
            ranks.load_models()
        optimizer_step = self._checkpoints.restore(self._rank_groups) or 0
        if self._execution.weight_transfer != OBJECT_STORE:
            self.learner.connect(self.generators.actors)
        step = optimizer_step // self._config.learning.optimizer_steps_per_rlhf_step
        self._sync_weights(step)
        return step

    def rlhf_step(self, step: int) -> StepMetrics:
        """Run the RLHF step with the index `step` and return its metrics."""
        timer = Timer()
        prompts = self._step_prompts(step)
        with timer("generate"):
            groups = self._generate(prompts, step=step, num_samples=self._config.rollouts.group_size)
        batch, engine_NT = self._to_batch(groups)
        with timer("score"):
            inference = self._infer(prompts, groups, batch)
        difference = self._check_logprobs(batch, engine_NT, inference.learner_NT)

        rewards_N = self._rewards(inference.scored, step)
        advantages_NT, returns_NT = self._algorithm.estimate(
            AdvantageInputs(
                rewards_N, group_ids(groups), batch.loss_mask, inference.reference_log_ratio_NT, inference.values_NT
            ),
            self._config.learning,
        )
        with timer("update"):
            # Learner and critic update at the same time.
            pending_policy_update = self.learner.update(
                PolicyBatch(batch, engine_NT, advantages_NT, inference.reference_NT), step
            )
            value_metrics = None
            if self.critic is not None:
                assert inference.values_NT is not None and returns_NT is not None, "the critic needs values and returns"
                value_batch = ValueBatch(batch, inference.values_NT, returns_NT)
                value_metrics = update_metrics(self.critic.update(value_batch, step).wait())
            policy_metrics = update_metrics(pending_policy_update.wait())
        with timer("weight_sync"):
            self._sync_weights(step + 1)

        scored, has_reference = inference.scored, inference.reference_NT is not None
        return StepMetrics(
            rollouts=rollout_metrics(scored.rollouts, scored.texts, scored.rewards),
            reference_kl=reference_kl(inference.reference_log_ratio_NT, batch) if has_reference else None,
            logprob_difference=difference,
            policy=policy_metrics,
            value=value_metrics,
            generator_restarts=self.generators.restarts,
            times=timer.times(num_sampled=int(batch.loss_mask.sum())),
        )

    def complete_and_score(self, prompts: Sequence[Prompt]) -> ScoredRollouts:
        """Sample and score one completion of each held-out prompt in `prompts`.

        Every call uses the same random numbers. Raises RanksDied when a generator must be restarted but rank 0 of the
        learner has died, because Ray has then deleted the weights that the generator would load.
        """
        groups = self._generate(prompts, step=_HELD_OUT_SEED_STEP, num_samples=1)
        scorer_inputs = self._to_scorer_inputs(prompts, groups)
        return _with_rewards(groups, scorer_inputs, ray.get(self.scorer.score.remote(scorer_inputs)))

    def save(self) -> None:
        """Start saving a checkpoint of learner and critic. The files are written in the background.

        The next call of `save`, `finish_save` or `export` waits until this checkpoint is complete.
        """
        self._checkpoints.save(self._rank_groups)

    def finish_save(self) -> None:
        """Wait until the checkpoint that `save` started last is complete."""
        self._checkpoints.finish_save(self._rank_groups)

    def saved_step(self) -> int:
        """Return how many RLHF steps were done when the newest complete checkpoint was saved, or 0 without one.

        A run resumes with the RLHF step that has this index.
        """
        newest = max(self._checkpoints.common_steps(), default=0)
        return newest // self._config.learning.optimizer_steps_per_rlhf_step

    def export(self, output: Storage) -> None:
        """Write the policy as a Hugging Face folder. Also waits until the last checkpoint is complete."""
        ids = read_special_tokens(self._config.policy.local())
        self.learner.export(output, SpecialTokens(bos=ids.bos, eos=ids.eos, pad=ids.pad))
        self.finish_save()

    def recover(self, error: RanksDied) -> None:
        """Restart all ranks of learner and critic after one of them has died. Call `start` afterwards.

        Raises RuntimeError when no restart is left. `execution.learners.max_failures` limits the restarts.
        """
        explanation = explain(error.__cause__ or error)
        if self._restarts_left == 0:
            raise explanation.to_error("; no restart is left (execution.learners.max_failures)") from error
        self._restarts_left -= 1
        log.warning("%s; all ranks of learner and critic restart from the last checkpoint", explanation.sentence)
        self._current_snapshot = None  # Ray deletes a weight snapshot when the learner that created it dies
        for role, ranks in self._rank_groups.items():
            stage_monitor.ignore_exits(role)  # the exits of the present ranks, which are killed on purpose
            ranks.restart()

    @property
    def _rank_groups(self) -> dict[str, RankGroup]:
        """The ranks of the learner, and those of the critic if there is one, by the role of their processes."""
        groups = {_LEARNER: self.learner.ranks}
        return groups if self.critic is None else {**groups, _CRITIC: self.critic.ranks}

    def _step_prompts(self, step: int) -> list[Prompt]:
        """Return the prompts of the RLHF step with the index `step`."""
        count = self._config.rollouts.prompts_per_step
        indices = prompt_indices(self._config.seed, len(self._config.prompts), step * count, count)
        return [self._config.prompts[index] for index in indices]

    def _generate(self, prompts: Sequence[Prompt], *, step: int, num_samples: int) -> list[RolloutGroup]:
        """Sample `num_samples` completions of each prompt from the current policy.

        Returns one group for each prompt, in order. `step` is the index of the RLHF step, or one of the negative
        constants that replace it in the seeds of other completions, such as `_HELD_OUT_SEED_STEP`.
        """
        config, version = self._config.rollouts, self._weight_version
        requests = [PromptRequest(index, prompt.prompt_ids, num_samples) for index, prompt in enumerate(prompts)]
        # A generation batch has generation_batch_prompts · group_size completions, as many as the engine runs at the
        # same time. Held-out prompts get one completion each, so there a batch has group_size times as many prompts.
        requests_per_batch = config.generation_batch_prompts * config.group_size // num_samples
        sampling = self._sampling_params(config.max_new_tokens)
        groups = self.generators.generate(
            [GenerationBatch(step, version, part, sampling) for part in split_requests(requests, requests_per_batch)]
        )
        check_rollouts(requests, groups, version=version, vocab_size=self._model_config.vocab_size)
        return groups

    def _sampling_params(self, max_new_tokens: int) -> SamplingParams:
        return SamplingParams(
            temperature=self._config.rollouts.temperature,
            max_new_tokens=max_new_tokens,
            stop_ids=self._tokenizer.stop_ids,
            seed=self._config.seed,
        )

    def _to_batch(self, groups: Sequence[RolloutGroup]) -> tuple[Batch, Tensor]:
        """Return all rollouts as the rows of a batch, and the engine's logprobs [N, T]."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        batch = rollout_batch(rollouts, pad_id=self._tokenizer.pad_id)
        return batch, engine_logprobs(rollouts, batch)

    def _to_scorer_inputs(self, prompts: Sequence[Prompt], groups: Sequence[RolloutGroup]) -> list[ScorerInput]:
        """Return the scorer's input for each rollout, by prompt and then by sample."""
        return [
            ScorerInput(
                prompt=prompt.text,
                completion=self._tokenizer.decode(rollout.text_ids),
                token_ids=self._with_end_token(rollout),
                record=prompt.record,
                truncated=not rollout.finished,
            )
            for prompt, group in zip(prompts, groups, strict=True)
            for rollout in group.rollouts
        ]

    def _with_end_token(self, rollout: Rollout) -> tuple[int, ...]:
        """Return the tokens of prompt and completion. A truncated completion gets the token that ends a chat message.

        A reward model gives the reward at such a token (see `ScorerInput.token_ids`).
        """
        end = () if rollout.finished else (self._tokenizer.end_id,)
        return rollout.prompt_ids + rollout.completion_ids + end

    def _infer(self, prompts: Sequence[Prompt], groups: Sequence[RolloutGroup], batch: Batch) -> StepInference:
        """Compute rewards, logprobs and values of a step's rollouts. The actors work at the same time."""
        scorer_inputs = self._to_scorer_inputs(prompts, groups)
        batch_ref = ray.put(batch)
        rewards = self.scorer.score.remote(scorer_inputs)
        learner_logprobs = self.learner.logprobs(batch_ref)
        reference: Any = None if self.reference is None else self.reference.logprobs.remote(batch_ref)
        values = None if self.critic is None else self.critic.values(batch_ref)
        return StepInference(
            scored=_with_rewards(groups, scorer_inputs, ray.get(rewards)),
            learner_NT=learner_logprobs.wait(),
            reference_NT=None if reference is None else ray.get(reference),
            values_NT=None if values is None else values.wait(),
        )

    def _rewards(self, scored: ScoredRollouts, step: int) -> Tensor:
        """Return the rewards [N] for training, shuffled if the config says so."""
        rewards_N = torch.tensor(scored.rewards, dtype=torch.float32)
        if self._config.shuffle_rewards:
            order = torch.randperm(len(rewards_N), generator=seeded_rng(self._config.seed, "shuffle", step))
            return rewards_N[order]
        return rewards_N

    def _sync_weights(self, version: int) -> None:
        """Load the learner's weights into all engines as weight version `version`, and run the sync check.

        For this check, each engine samples a few completions, and the engine's logprobs of these completions are
        compared with the learner's. The weight version is the number of RLHF steps that are done.
        """
        self._previous_snapshot, self._current_snapshot = self._current_snapshot, self.learner.send_weights(version)
        self.generators.load(self._current_snapshot)
        prompts = itertools.islice(itertools.cycle(self._config.prompts), self._num_sync_check_prompts)
        requests = tuple(PromptRequest(index, prompt.prompt_ids, 1) for index, prompt in enumerate(prompts))
        sampling = self._sampling_params(min(_SYNC_CHECK_TOKENS, self._config.rollouts.max_new_tokens))
        check_batch = GenerationBatch(_SYNC_CHECK_SEED_STEP, version, requests, sampling)
        for groups in self.generators.generate_on_each(check_batch):
            check_rollouts(requests, groups, version=version, vocab_size=self._model_config.vocab_size)
            batch, engine_NT = self._to_batch(groups)
            self._check_logprobs(batch, engine_NT, self.learner.logprobs(batch).wait())

    @property
    def _num_sync_check_prompts(self) -> int:
        """The number of prompts for the sync check.

        It is a multiple of the number of learner ranks, because the rows are divided equally among the ranks.
        """
        num_ranks = self._execution.learners.workers
        return math.ceil(_MIN_SYNC_CHECK_PROMPTS / num_ranks) * num_ranks

    def _check_logprobs(self, batch: Batch, engine_NT: Tensor, learner_NT: Tensor) -> LogprobDifference:
        """Return the logprob difference between engine and learner. Raises EngineMismatchError if it is too large.

        If it exceeds the bound, what rounding alone does to this model is measured on the batch, and sets a new bound.
        """
        assert self._current_snapshot is not None
        if not is_within(logprob_difference(batch, engine_NT, learner_NT), self._logprob_bound):
            perturbed_NT = self.learner.perturbed_logprobs(batch).wait()
            rounding = logprob_difference(batch, perturbed_NT, learner_NT)
            self._logprob_bound = rounding_bound(self._config.learning, rounding)
            log.info(
                "rounding alone changes this model's logprobs by up to %.3g (mean %.3g) nats; the engine's may "
                "differ by %.3g (mean %.3g)",
                rounding.max,
                rounding.mean,
                self._logprob_bound.max,
                self._logprob_bound.mean,
            )
        return check_logprobs(
            batch,
            engine_NT,
            learner_NT,
            bound=self._logprob_bound,
            model_config=self._model_config,
            temperature=self._config.rollouts.temperature,
            current=self._current_snapshot,
            previous=self._previous_snapshot,
        )

    @property
    def _weight_version(self) -> int:
        assert self._current_snapshot is not None, "`start` must be called first"
        return self._current_snapshot.version


def engine_settings(config: GraphConfig, execution: GraphExecution) -> EngineSettings:
    """Return the settings of the generators' engines."""
    return EngineSettings(
        model=config.policy,
        max_length=config.max_prompt_length + config.rollouts.max_new_tokens,
        max_sequences=config.rollouts.generation_batch_prompts * config.rollouts.group_size,
        precision=require_resolved(config.learning.precision),
        kv_cache_gib=execution.kv_cache_gib,
        gpu_memory_utilization=execution.gpu_memory_utilization,
        weight_transfer=execution.weight_transfer,
        is_cuda=execution.generators.gpus_per_worker > 0,
    )


def training_settings(
    config: GraphConfig, execution: GraphExecution, model_folder: Storage, placement: Placement, *, name: str
) -> TrainingSettings:
    """Return the settings of all ranks of the learner or of the critic.

    `name` is the subfolder of `GraphConfig.checkpoints` for the checkpoints of these ranks.
    """
    return TrainingSettings(
        folder=model_folder,
        checkpoints=config.checkpoints / name,
        learning=config.learning,
        seed=config.seed,
        placement=placement,
        micro_batch_size=execution.micro_batch_size,
    )


def start_reference(spawn: Spawner, config: GraphConfig, execution: GraphExecution) -> ActorHandle:
    """Start the actor of the reference."""
    temperature, precision = config.rollouts.temperature, require_resolved(config.learning.precision)
    arguments = (config.policy, temperature, execution.micro_batch_size, precision)
    return spawn("reference", 0, Reference, *arguments, restartable=True)


def start_scorer(spawn: Spawner, config: GraphConfig, execution: GraphExecution) -> ActorHandle:
    """Start the actor of the scorer, which has either a verifier or a reward model."""
    if config.verifier is not None:
        return spawn("scorer", 0, Verifier, config.verifier, restartable=True)
    assert config.reward is not None, "a graph needs a reward model or a verifier"
    arguments = (config.reward, execution.micro_batch_size, require_resolved(config.learning.precision))
    return spawn("scorer", 0, RewardModel, *arguments, restartable=True)


def _with_rewards(
    groups: Sequence[RolloutGroup], scorer_inputs: Sequence[ScorerInput], rewards: Sequence[float]
) -> ScoredRollouts:
    """Combine the rollouts of all groups with their texts and rewards."""
    return ScoredRollouts(
        rollouts=[rollout for group in groups for rollout in group.rollouts],
        texts=[scorer_input.completion for scorer_input in scorer_inputs],
        rewards=list(rewards),
    )


def group_ids(groups: Sequence[RolloutGroup]) -> Tensor:
    """Return the group ids [N]: for each rollout the position of its group in `groups`."""
    return torch.tensor([position for position, group in enumerate(groups) for _ in group.rollouts])


def split_requests(requests: Sequence[PromptRequest], part_size: int) -> Iterator[tuple[PromptRequest, ...]]:
    """Split the requests into consecutive parts of `part_size` requests. The last part may have fewer."""
    for start in range(0, len(requests), part_size):
        yield tuple(requests[start : start + part_size])
