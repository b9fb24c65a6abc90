"""The actor graph of RLHF: who there is, how they are wired, and what one step does.

    prompts → generators → rollouts → scorer, reference, critic → advantages → learner, critic → weights → generators

`build_graph` does all the wiring; `Graph.step` is the algorithm.
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

from actors.critic import Critic, CriticSettings
from actors.generator import EngineSettings, Generator, engine_env
from actors.learner import Learner, PolicySettings
from actors.pool import GeneratorPool
from actors.program import Program
from actors.proof import check_gap, check_rollouts, logprob_gap
from actors.ranks import RankGroup, RanksDied, RankSettings, whole_rows
from actors.reference import Reference
from actors.rollout import (
    Lot,
    Prompt,
    PromptTask,
    Rollout,
    RolloutGroup,
    Sampling,
    behaviour_logprobs,
    prompt_order,
    rollout_batch,
    seeded,
)
from actors.scorer import RewardModel, Sample, Verifier
from actors.settings import Gap, GraphExecution, LearningConfig, RolloutConfig
from actors.spawn import Reservation, Spawner, reserve
from actors.step_metrics import Timer, kl_metrics, rollout_metrics, update_metrics
from actors.weights import OBJECT_STORE, Publication
from cluster import stage_monitor
from cluster.failures import explain
from cluster.placement import Placement
from cluster.storage import Storage
from data.chats.template import load_tokenizer
from data.tokens.tokenizer import chat_special_tokens
from model.advantages import ALGORITHMS, AdvantageSettings, Scores
from model.batch import Batch, PolicyBatch, ValueBatch
from model.checkpoint import whole_steps
from model.huggingface import SpecialTokens, read_config
from model.precision import resolved
from model.train import StepReport

log = logging.getLogger(__name__)

_HELDOUT_STEP = -1
"""The step in the seeds of held-out responses: the same draw before and after, so that they pair."""
_PROBE_STEP = -2
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
    """In tokens, of any prompt that the graph will be given, held-out ones included."""
    rollouts: RolloutConfig
    learning: LearningConfig
    seed: int
    shuffle_rewards: bool
    """A control experiment: rewards are permuted over the rollouts of a step."""
    checkpoints: Storage


@dataclass(frozen=True)
class Scored:
    """Responses to some prompts with their texts and rewards."""

    rollouts: list[Rollout]
    responses: list[str]
    """Without the stop token; other special tokens stay visible."""
    rewards: list[float]


class Judged(NamedTuple):
    """What the graph says of a step's rollouts."""

    scored: Scored
    learner_NT: Tensor
    """Logprobs under the policy that is about to learn: the engine's must be the same."""
    reference_NT: Tensor | None
    values_NT: Tensor | None

    @property
    def log_ratio_NT(self) -> Tensor:
        """log policy - log reference, 0 without one. Both by our own model: what an engine rounds is no distance."""
        return torch.zeros_like(self.learner_NT) if self.reference_NT is None else self.learner_NT - self.reference_NT


def build_graph(config: GraphConfig, execution: GraphExecution) -> Graph:
    """All actors of the graph, started side by side in one reservation and wired to each other.

    Raises ValueError when the cluster has not the room.
    """
    groups = execution.groups(config.learning)
    place = reserve(groups, colocate=execution.colocate)
    spawn = Spawner(place, groups)

    def make_engine(index: int) -> ActorHandle:
        return spawn("generators", index, Generator, engine_settings(config, execution), env=engine_env())

    def make_learner(rank: int) -> ActorHandle:
        group = rank_settings(config, execution, execution.learners, lr=config.learning.lr, name="learner")
        return spawn("learners", rank, Learner, policy_settings(config, execution), group, rank)

    def make_critic(rank: int) -> ActorHandle:
        group = rank_settings(config, execution, execution.critics, lr=config.learning.critic_lr, name="critic")
        return spawn("critics", rank, Critic, critic_settings(config), group, rank)

    return Graph(
        config,
        execution,
        place=place,
        generators=GeneratorPool(make_engine, execution.generators.workers, max_failures=execution.engine_restarts),
        learner=RankGroup(make_learner, execution.learners.workers),
        critic=RankGroup(make_critic, execution.critics.workers) if "critics" in groups else None,
        reference=make_reference(spawn, config, execution) if "reference" in groups else None,
        scorer=make_scorer(spawn, config, execution),
    )


class Graph:
    """The running actors and one step of learning. As a context manager it ends every actor when left."""

    def __init__(
        self,
        config: GraphConfig,
        execution: GraphExecution,
        *,
        place: Reservation,
        generators: GeneratorPool,
        learner: RankGroup,
        critic: RankGroup | None,
        reference: ActorHandle | None,
        scorer: ActorHandle,
    ) -> None:
        self.generators, self.learner, self.critic = generators, learner, critic
        self.reference, self.scorer = reference, scorer
        self._config, self._execution, self._place = config, execution, place
        self._algorithm = ALGORITHMS[config.learning.algorithm]
        folder = config.policy.local()
        self._sizes = read_config(folder)
        self._tokenizer = load_tokenizer(folder)
        self._current: Publication | None = None
        self._previous: Publication | None = None
        self._failures_left = execution.learners.max_failures

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        self._place.release()

    def start(self) -> int:
        """Load every model, go back to the newest checkpoint if there is one, and prove the engines; the next step.

        Raises RanksDied when a training rank is gone, as `step`, `heldout`, `save` and `export` do: `recover` then.
        """
        for group in self._trained:
            group.form()
        optimizer_step = self._newest_checkpoint()
        for group in self._trained:
            group.call("restore", optimizer_step)
        if self._execution.weight_transfer != OBJECT_STORE:
            self.learner.call("connect", self.generators.engines, self.learner.free_address())
        step = self.saved_step()
        self._publish(step)
        return step

    def step(self, step: int) -> dict[str, float]:
        """One step of learning; its metrics."""
        timer = Timer()
        prompts = self._prompts_of(step)
        with timer("generate"):
            groups = self._generate(prompts, step=step, num_samples=self._config.rollouts.group_size)
        batch, behaviour_NT = self._to_batch(groups)
        with timer("judge"):
            judged = self._judge(prompts, groups, batch)
        scored, learner_NT, reference_NT, values_NT = judged
        gap = self._prove(batch, behaviour_NT, learner_NT)

        rewards_N = self._rewards(scored, step)
        scores = Scores(rewards_N, group_ids(groups), batch.loss_mask, judged.log_ratio_NT, values_NT)
        advantages_NT, returns_NT = self._algorithm.estimate(scores, advantage_settings(self._config.learning))

        with timer("update"):
            in_loss = reference_NT if self._algorithm.kl_place == "loss" else None
            policy_batch = PolicyBatch(batch, behaviour_NT, advantages_NT, in_loss)
            policy_reports = self.learner.start("update", policy_batch, step)
            value_reports: list[StepReport] = []
            if self.critic is not None:
                assert values_NT is not None and returns_NT is not None, "an algorithm with a critic gives returns"
                value_reports = self.critic.call("update", ValueBatch(batch, values_NT, returns_NT), step)[0]
            reports = self.learner.wait(policy_reports)[0]
        with timer("publish"):
            self._publish(step + 1)

        return {
            **rollout_metrics(scored.rollouts, scored.responses, scored.rewards),
            **({} if reference_NT is None else kl_metrics(judged.log_ratio_NT, batch)),
            "proof/logprob_gap_max": gap.max,
            "proof/logprob_gap_mean": gap.mean,
            **update_metrics(reports, "policy"),
            **update_metrics(value_reports, "value"),
            "perf/generator_restarts": self.generators.restarts,
            **timer.metrics(num_sampled=int(batch.loss_mask.sum())),
        }

    def heldout(self, prompts: Sequence[Prompt]) -> Scored:
        """One sampled and scored response to each prompt, by the same draw whenever it is asked."""
        groups = self._generate(prompts, step=_HELDOUT_STEP, num_samples=1)
        scored, samples = self._to_samples(prompts, groups)
        return replace(scored, rewards=ray.get(self.scorer.score.remote(samples)))

    def save(self) -> None:
        """Begin a checkpoint of learner and critic as they are; it is whole at the next save, or `export`."""
        for group in self._trained:
            group.call("save")

    def finish_save(self) -> None:
        """Return when the last checkpoint is whole."""
        for group in self._trained:
            group.call("finish_save")

    def saved_step(self) -> int:
        """The step from which a run would go on: that of the newest whole checkpoint, 0 without one."""
        return (self._newest_checkpoint() or 0) // self._config.learning.optimizer_steps

    def export(self, output: Storage) -> None:
        """Write the policy as a Hugging Face folder, and wait for the last checkpoint."""
        ids = chat_special_tokens(self._config.policy.local())
        self.learner.call("export", output, SpecialTokens(bos=ids.bos, eos=ids.eos, pad=ids.pad))
        self.finish_save()

    def recover(self, error: RanksDied) -> None:
        """Bring up all training ranks anew; `start` goes back to the last checkpoint afterwards.

        Raises RuntimeError when ranks have died more than `execution.learners.max_failures` times.
        """
        found = explain(error.__cause__ or error)
        if self._failures_left == 0:
            raise found.error("; no restart is left (execution.learners.max_failures)") from error
        self._failures_left -= 1
        log.warning("%s; all training ranks start again from the last checkpoint", found.sentence)
        self._current = None  # what a dead learner had published went with it
        for role, group in zip(("learner", "critic"), self._trained, strict=False):
            stage_monitor.expect_end(role)
            group.restart()

    @property
    def _trained(self) -> list[RankGroup]:
        return [self.learner] if self.critic is None else [self.learner, self.critic]

    def _newest_checkpoint(self) -> int | None:
        """The newest optimizer step of which learner and critic both have a whole checkpoint."""
        folders = [self._config.checkpoints / name for name in ("learner", "critic")[: len(self._trained)]]
        common = set.intersection(*(set(whole_steps(folder.fs, folder.root)) for folder in folders))
        return max(common, default=None)

    def _prompts_of(self, step: int) -> list[Prompt]:
        count = self._config.rollouts.prompts_per_step
        order = prompt_order(self._config.seed, len(self._config.prompts), step * count, count)
        return [self._config.prompts[index] for index in order]

    def _generate(self, prompts: Sequence[Prompt], *, step: int, num_samples: int) -> list[RolloutGroup]:
        """Every prompt's responses, in order, from the weights that the learner has."""
        version = self._version
        tasks = [PromptTask(index, prompt.prompt_ids, num_samples) for index, prompt in enumerate(prompts)]
        in_lot = self._config.rollouts.lot_prompts * self._config.rollouts.group_size // num_samples
        sampling = self._sampling(self._config.rollouts.max_new_tokens)
        lots = [Lot(step, version, part, sampling) for part in batched(tasks, in_lot)]
        groups = self.generators.generate(lots)
        check_rollouts(tasks, groups, version=version, vocab_size=self._sizes.vocab_size)
        return groups

    def _sampling(self, max_new_tokens: int) -> Sampling:
        return Sampling(
            temperature=self._config.rollouts.temperature,
            max_new_tokens=max_new_tokens,
            stop_ids=self._tokenizer.stop_ids,
            seed=self._config.seed,
        )

    def _to_batch(self, groups: Sequence[RolloutGroup]) -> tuple[Batch, Tensor]:
        """All rollouts as rows in order, and the engine's logprobs [N, T] of them."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        batch = rollout_batch(rollouts, pad_id=self._tokenizer.pad_id)
        return batch, behaviour_logprobs(rollouts, batch)

    def _to_samples(self, prompts: Sequence[Prompt], groups: Sequence[RolloutGroup]) -> tuple[Scored, list[Sample]]:
        """All rollouts with their texts, still without rewards, and what a scorer is given."""
        pairs = [(p, rollout) for p, group in zip(prompts, groups, strict=True) for rollout in group.rollouts]
        texts = [self._tokenizer.decode(rollout.said_ids) for _, rollout in pairs]
        samples = [
            Sample(prompt.text, text, self._closed(rollout), prompt.record)
            for (prompt, rollout), text in zip(pairs, texts, strict=True)
        ]
        return Scored([rollout for _, rollout in pairs], texts, []), samples

    def _judge(self, prompts: Sequence[Prompt], groups: Sequence[RolloutGroup], batch: Batch) -> Judged:
        """What every other actor says of a step's rollouts, asked side by side."""
        scored, samples = self._to_samples(prompts, groups)
        shared = ray.put(batch)
        scoring = self.scorer.score.remote(samples)
        proving = self.learner.start("logprobs", shared)
        referring = None if self.reference is None else self.reference.logprobs.remote(shared)
        valuing = None if self.critic is None else self.critic.start("values", shared)
        return Judged(
            scored=replace(scored, rewards=ray.get(scoring)),
            learner_NT=whole_rows(self.learner.wait(proving)),
            reference_NT=None if referring is None else ray.get(referring),  # pyright: ignore[reportArgumentType]
            values_NT=None if self.critic is None or valuing is None else whole_rows(self.critic.wait(valuing)),
        )

    def _closed(self, rollout: Rollout) -> tuple[int, ...]:
        """The whole sequence with its end token, which a response that was cut lacks."""
        return rollout.prompt_ids + rollout.response_ids + (() if rollout.finished else (self._tokenizer.end_id,))

    def _rewards(self, scored: Scored, step: int) -> Tensor:
        rewards_N = torch.tensor(scored.rewards, dtype=torch.float32)
        if self._config.shuffle_rewards:
            order = torch.randperm(len(rewards_N), generator=seeded(self._config.seed, "shuffle", step))
            return rewards_N[order]
        return rewards_N

    def _publish(self, version: int) -> None:
        """Give the engines the learner's weights, and let each prove it on a few prompts."""
        self._previous, self._current = self._current, self.learner.call("publish", version)[0]
        assert self._current is not None
        self.generators.load(self._current)
        prompts = itertools.islice(itertools.cycle(self._config.prompts), self._num_probes)
        tasks = tuple(PromptTask(index, prompt.prompt_ids, 1) for index, prompt in enumerate(prompts))
        lot = Lot(
            _PROBE_STEP,
            version,
            tasks,
            self._sampling(min(_PROBE_TOKENS, self._config.rollouts.max_new_tokens)),
        )
        for groups in self.generators.generate_on_each(lot):
            check_rollouts(tasks, groups, version=version, vocab_size=self._sizes.vocab_size)
            batch, engine_NT = self._to_batch(groups)
            self._prove(batch, engine_NT, whole_rows(self.learner.call("logprobs", batch)))

    @property
    def _num_probes(self) -> int:
        """A few, and a multiple of the learner's ranks, among which rows are shared out."""
        ranks = self._execution.learners.workers
        return -(-_NUM_PROBES // ranks) * ranks

    def _prove(self, batch: Batch, engine_NT: Tensor, learner_NT: Tensor) -> Gap:
        """The distance of engine and learner on sampled tokens. Raises a WeightSyncError beyond the bound."""
        gap = logprob_gap(batch, engine_NT, learner_NT)
        assert self._current is not None
        check_gap(
            gap,
            self._config.learning.logprob_bound,
            batch,
            engine_NT,
            sizes=self._sizes,
            temperature=self._config.rollouts.temperature,
            current=self._current,
            previous=self._previous,
        )
        return gap

    @property
    def _version(self) -> int:
        assert self._current is not None, "start the graph first"
        return self._current.version


def engine_settings(config: GraphConfig, execution: GraphExecution) -> EngineSettings:
    """What each generator's engine is made with."""
    return EngineSettings(
        model=config.policy,
        max_length=config.max_prompt_length + config.rollouts.max_new_tokens,
        max_sequences=config.rollouts.lot_prompts * config.rollouts.group_size,
        precision=resolved(config.learning.precision),
        kv_cache_gib=execution.kv_cache_gib,
        gpu_memory_utilization=execution.gpu_memory_utilization,
        transfer=execution.weight_transfer,
        is_cuda=execution.generators.gpus_per_worker > 0,
    )


def policy_settings(config: GraphConfig, execution: GraphExecution) -> PolicySettings:
    """What an update of the policy is."""
    learning, algorithm = config.learning, ALGORITHMS[config.learning.algorithm]
    return PolicySettings(
        folder=config.policy,
        temperature=config.rollouts.temperature,
        clip_range=learning.clip_range if algorithm.clips_ratio else None,
        kl_in_loss=learning.kl_coefficient if algorithm.kl_place == "loss" else 0.0,
        epochs=learning.epochs,
        minibatches=learning.minibatches,
        seed=config.seed,
        engine_precision=resolved(learning.precision),
        transfer=execution.weight_transfer,
    )


def critic_settings(config: GraphConfig) -> CriticSettings:
    """What an update of the critic is; it starts from the reward model where there is one."""
    learning = config.learning
    return CriticSettings(
        folder=config.reward or config.policy,
        clip_range=learning.value_clip_range,
        epochs=learning.epochs,
        minibatches=learning.minibatches,
        seed=config.seed,
    )


def rank_settings(
    config: GraphConfig, execution: GraphExecution, placement: Placement, *, lr: float, name: str
) -> RankSettings:
    """How a training group works."""
    learning = config.learning
    return RankSettings(
        num_ranks=placement.workers,
        backend=placement.backend,
        lr=lr,
        warmup_steps=learning.warmup_steps,
        weight_decay=learning.weight_decay,
        clip_norm=learning.clip_norm,
        precision=resolved(learning.precision),
        micro_batch_rows=execution.micro_batch_size,
        checkpoints=config.checkpoints / name,
    )


def make_reference(spawn: Spawner, config: GraphConfig, execution: GraphExecution) -> ActorHandle:
    return spawn(
        "reference",
        0,
        Reference,
        config.policy,
        config.rollouts.temperature,
        execution.micro_batch_size,
        resolved(config.learning.precision),
        pure=True,
    )


def make_scorer(spawn: Spawner, config: GraphConfig, execution: GraphExecution) -> ActorHandle:
    if config.verifier is not None:
        return spawn("scorer", 0, Verifier, config.verifier, pure=True)
    assert config.reward is not None, "a graph needs a reward model or a verifier"
    return spawn(
        "scorer",
        0,
        RewardModel,
        config.reward,
        execution.micro_batch_size,
        resolved(config.learning.precision),
        pure=True,
    )


def advantage_settings(learning: LearningConfig) -> AdvantageSettings:
    """The numbers that the estimators share."""
    return AdvantageSettings(
        kl_coefficient=learning.kl_coefficient, gamma=learning.gamma, gae_lambda=learning.gae_lambda
    )


def group_ids(groups: Sequence[RolloutGroup]) -> Tensor:
    """The position [N] of each rollout's group."""
    return torch.tensor([position for position, group in enumerate(groups) for _ in group.rollouts])


def batched(tasks: Sequence[PromptTask], size: int) -> Iterator[tuple[PromptTask, ...]]:
    """Tasks in order, `size` at a time."""
    for start in range(0, len(tasks), size):
        yield tuple(tasks[start : start + size])
