"""Tests of the complete graph with tiny random models: training raises the reward, and dead actors are replaced."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from actors.graph import Graph, ScoredRollouts, StepInference, _with_rewards, build_graph, group_ids
from actors.graph_config import GraphConfig, Prompt
from actors.rank_group import RanksDied
from actors.rollout import Rollout, RolloutGroup
from actors.settings import GraphExecution, RolloutConfig
from actors.step_metrics import StepMetrics
from cluster.placement import Placement
from cluster.storage import Storage
from cluster.user_program import Program
from data.chats.template import load_chat_tokenizer
from model.learning import LearningConfig

VERIFIER = """
def share_of_e(prompt, response, record):
    return sum(letter in "eE" for letter in response) / max(1, len(response))
"""
ROLLOUTS = RolloutConfig(
    prompts_per_step=4, group_size=4, generation_batch_prompts=2, max_new_tokens=12, temperature=0.7
)


def make_graph_config(folder: Path, checkpoints: Path, algorithm: str) -> GraphConfig:
    tokenizer = load_chat_tokenizer(folder)
    texts = [f"hello {number}" for number in range(10)]
    ids = [tuple(tokenizer.prompt_ids([{"role": "user", "content": text}])) for text in texts]
    return GraphConfig(
        policy=Storage(str(folder)),
        reward=None,
        verifier=Program(VERIFIER, "letters.py", "share_of_e"),
        prompts=[Prompt(text, prompt_ids, {}) for text, prompt_ids in zip(texts, ids, strict=True)],
        max_prompt_length=24,
        rollouts=ROLLOUTS,
        learning=LearningConfig(algorithm=algorithm, lr=1e-3, minibatches=2, precision="float32"),
        algorithm=algorithm,
        seed=1,
        shuffle_rewards=False,
        checkpoints=Storage(str(checkpoints)),
    )


def execution(*, generators: int, learners: int) -> GraphExecution:
    return GraphExecution(
        generators=Placement(workers=generators, cpus_per_worker=0.2),
        learners=Placement(workers=learners, cpus_per_worker=0.2),
        kv_cache_gib=0.05,
        micro_batch_size=4,
    )


@pytest.fixture(scope="module")
def graph(policies: dict[str, Path], ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    """A started graph for PPO with two generators and two learner ranks."""
    config = make_graph_config(policies["tied-1"], tmp_path_factory.mktemp("checkpoints"), "ppo")
    with build_graph(config, execution(generators=2, learners=2)) as graph:
        assert graph.start() == 0
        yield graph


def kill_process(actor: ray.actor.ActorHandle) -> None:
    os.kill(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


REPRODUCIBLE_METRICS = (
    "rollout/reward_mean",
    "rollout/completion_length",
    "policy/loss",
    "policy/grad_norm",
    "value/loss",
)
"""Metrics that are equal when an RLHF step is repeated. Times are not."""


def reproducible_values(metrics: StepMetrics) -> list[float]:
    by_key = metrics.by_key()
    return [by_key[name] for name in REPRODUCIBLE_METRICS]


@pytest.mark.slow
def test_dead_actors_are_replaced_and_no_prompt_is_lost_or_repeated(graph: Graph) -> None:
    prompts = graph._config.prompts
    before = graph.complete_and_score(prompts)
    assert len(before.rollouts) == 10

    kill_process(graph.generators.actors[0])
    after = graph.complete_and_score(prompts)
    assert graph.generators.restarts == 1
    assert after == before  # another generator repeated the batch, with the same result

    first, second = graph.rlhf_step(0), graph.rlhf_step(1)
    graph.save()
    third = graph.rlhf_step(2)
    for metrics in (first, second, third):
        assert metrics.logprob_difference.max <= 1e-4
        assert 0.0 <= metrics.rollouts.reward_mean <= 1.0
    assert reproducible_values(third) != reproducible_values(second)
    assert first.reference_kl is not None
    assert first.reference_kl.mean == pytest.approx(
        0.0, abs=1e-6
    )  # before the first update, policy and reference are equal

    kill_process(graph.learner.ranks.actors[1])
    with pytest.raises(RanksDied) as death:
        graph.rlhf_step(3)
    graph.recover(death.value)
    assert graph.start() == 2  # the checkpoint before step 2 was complete when the rank died
    assert reproducible_values(graph.rlhf_step(2)) == reproducible_values(third)

    kill_process(graph.scorer)
    graph.rlhf_step(3)


@pytest.mark.slow
def test_grpo_raises_its_reward(policies: dict[str, Path], ray_session: None, tmp_path: Path) -> None:
    config = make_graph_config(policies["untied-1"], tmp_path, "grpo")
    rollouts = replace(ROLLOUTS, prompts_per_step=8, group_size=8, generation_batch_prompts=8)
    config = replace(config, rollouts=rollouts, learning=replace(config.learning, lr=3e-3, kl_coefficient=0.0))
    with build_graph(config, execution(generators=1, learners=1)) as graph:
        graph.start()
        rewards = [graph.rlhf_step(step).rollouts.reward_mean for step in range(30)]
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 0.25


def test_group_ids_are_equal_for_rollouts_of_one_prompt() -> None:
    assert group_ids([RolloutGroup(7, (None,) * 2), RolloutGroup(3, (None,))]).tolist() == [0, 0, 1]  # pyright: ignore


def test_the_log_ratio_to_the_reference_uses_the_learners_logprobs() -> None:
    scored = ScoredRollouts([], [], [])
    learner = torch.tensor([[-1.0, -2.0]])
    assert not StepInference(scored, learner, learner.clone(), None).reference_log_ratio_NT.any()
    assert StepInference(scored, learner, learner - 0.5, None).reference_log_ratio_NT.tolist() == [[0.5, 0.5]]
    assert StepInference(scored, learner, None, None).reference_log_ratio_NT.tolist() == [[0.0, 0.0]]


def graph_without_actors(config: GraphConfig) -> Graph:
    no_actors = dict.fromkeys(("reservation", "generators", "learner", "critic", "reference", "scorer"))
    return Graph(config, execution(generators=1, learners=1), **no_actors)  # pyright: ignore[reportArgumentType]


def test_every_rollout_gets_its_own_text_and_reward(policies: dict[str, Path], tmp_path: Path) -> None:
    config = make_graph_config(policies["tied-1"], tmp_path, "grpo")
    graph, tokenizer = graph_without_actors(config), load_chat_tokenizer(policies["tied-1"])
    prompt_ids = config.prompts[0].prompt_ids
    completions = [prompt_ids[:1], prompt_ids[:2], prompt_ids[:3], prompt_ids[:4]]
    first, second, third, fourth = (Rollout((1,), ids, (0.0,) * len(ids), 0, False) for ids in completions)
    groups = [RolloutGroup(0, (first, second)), RolloutGroup(1, (third, fourth))]
    scorer_inputs = graph._to_scorer_inputs(config.prompts[:2], groups)
    assert [scorer_input.prompt for scorer_input in scorer_inputs] == ["hello 0", "hello 0", "hello 1", "hello 1"]
    scored = _with_rewards(groups, scorer_inputs, [0.1, 0.2, 0.3, 0.4])
    texts = [tokenizer.decode(ids) for ids in completions]
    assert len(set(texts)) == 4
    assert scored == ScoredRollouts([first, second, third, fourth], texts, [0.1, 0.2, 0.3, 0.4])


def test_the_text_for_the_scorer_contains_special_tokens(policies: dict[str, Path], tmp_path: Path) -> None:
    config = make_graph_config(policies["tied-1"], tmp_path, "grpo")
    graph = graph_without_actors(config)
    tokenizer = load_chat_tokenizer(policies["tied-1"])
    text_ids = (tokenizer.pad_id, *config.prompts[0].prompt_ids[:2])
    finished_rollout = Rollout((1,), (*text_ids, tokenizer.end_id), (0.0,) * 4, 0, True)
    truncated_rollout = replace(finished_rollout, finished=False)
    scorer_inputs = graph._to_scorer_inputs(
        config.prompts[:1], [RolloutGroup(0, (finished_rollout, truncated_rollout))]
    )
    end_text = tokenizer.decode([tokenizer.end_id])
    assert end_text.strip() and tokenizer.decode(text_ids).startswith(tokenizer.decode([tokenizer.pad_id]))
    texts = [tokenizer.decode(text_ids), tokenizer.decode(text_ids) + end_text]
    assert [scorer_input.completion for scorer_input in scorer_inputs] == texts
