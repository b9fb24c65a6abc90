"""Invalid settings are rejected before any actor starts, with a message that names the field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from actors.settings import GraphExecution, RolloutConfig
from cluster.placement import Placement
from model.algorithms import ALGORITHMS, Algorithm
from model.learning import LearningConfig

ROLLOUTS = RolloutConfig(prompts_per_step=8, group_size=4, generation_batch_prompts=4)
LEARNING = LearningConfig()
GRPO, PPO = ALGORITHMS["grpo"], ALGORITHMS["ppo"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"temperature": 0.0}, "rollouts.temperature: 0.0 must be above 0"),
        ({"top_p": 0.9}, "rollouts.top_p=0.9, top_k=0: must be 1 and 0"),
        ({"top_k": 20}, "top_k=20: must be 1 and 0"),
        (
            {"generation_batch_prompts": 3},
            "rollouts.prompts_per_step: 8 must be a multiple of generation_batch_prompts, which is 3; set gen",
        ),
        ({"group_size": 0}, "rollouts.group_size: 0 must be at least 1"),
    ],
)
def test_rollout_settings_that_do_not_allow_training_are_rejected(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ROLLOUTS, **changed).check("rollouts")


def test_the_number_of_rollouts_must_be_a_multiple_of_minibatches_times_ranks() -> None:
    execution = GraphExecution(learners=Placement(workers=3, cpus_per_worker=0.1))
    with pytest.raises(ValueError, match=r"= 32 must be a multiple of minibatches · execution.learners.workers = 3"):
        execution.check("execution", ROLLOUTS, LEARNING, GRPO)


def test_the_critics_workers_matter_only_for_an_algorithm_with_a_critic() -> None:
    execution = GraphExecution(critics=Placement(workers=3, cpus_per_worker=0.1))
    with pytest.raises(ValueError, match=r"execution\.critics: this setting would .* because grpo has no critic"):
        execution.check("execution", ROLLOUTS, LEARNING, GRPO)
    with pytest.raises(ValueError, match="execution.critics.workers = 3"):
        execution.check("execution", ROLLOUTS, LEARNING, PPO)


def test_nccl_transfer_needs_gpus() -> None:
    with pytest.raises(ValueError, match="execution.weight_transfer: nccl needs"):
        replace(GraphExecution(), weight_transfer="nccl").check("execution", ROLLOUTS, LEARNING, GRPO)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_gpu_memory_utilization_must_be_a_fraction(share: float) -> None:
    with pytest.raises(ValueError, match=f"execution.gpu_memory_utilization: {share} must be above 0 and at most 1"):
        GraphExecution(gpu_memory_utilization=share).check("execution", ROLLOUTS, LEARNING, GRPO)


def test_generators_are_restarted_only_with_the_object_store() -> None:
    execution = GraphExecution(generators=Placement(max_failures=5))
    assert execution.max_generator_restarts == 5
    assert replace(execution, weight_transfer="ipc").max_generator_restarts == 0


def test_the_algorithm_determines_the_groups() -> None:
    execution = GraphExecution()
    assert set(execution.placements(LEARNING, GRPO)) == {"generators", "learners", "scorer", "reference"}
    without_kl = replace(LEARNING, kl_coefficient=0.0)
    assert set(execution.placements(without_kl, GRPO)) == {"generators", "learners", "scorer"}
    assert "critics" in execution.placements(LEARNING, PPO)


def test_a_ppo_graph_with_two_generators_and_two_ranks_fits_into_two_cores() -> None:
    two = GraphExecution(
        generators=replace(GraphExecution().generators, workers=2),
        learners=replace(GraphExecution().learners, workers=2),
    )
    groups = two.placements(LEARNING, PPO).values()
    assert sum(group.resources["CPU"] for group in groups) <= 2.0


GPU = Placement(gpus_per_worker=1.0)
GPU_LEARNER = Placement(gpus_per_worker=1.0, backend="nccl")


@pytest.mark.parametrize(
    ("changed", "algorithm", "message"),
    [
        ({"generators": Placement(workers=3)}, GRPO, "execution.generators.workers: 3 engines, but a step has only 2 "),
        ({"generators": Placement(workers=8)}, PPO, "so 8 - 2 engines would be idle"),
        ({"gpu_memory_utilization": 0.5}, GRPO, "execution.gpu_memory_utilization: 0.5 would .* engines run on CPUs"),
        ({"kv_cache_gib": 4.0, "generators": GPU}, GRPO, "execution.kv_cache_gib: 4.0 would .* engines run on GPUs"),
        ({"critics": Placement(max_failures=1)}, PPO, "execution.critics.max_failures: 1 would have no effect"),
        (
            {"weight_transfer": "ipc", "generators": replace(GPU, max_failures=5), "learners": GPU_LEARNER},
            GRPO,
            "execution.generators.max_failures: 5 would have no effect, because with weight_transfer=ipc generators",
        ),
        ({"scorer": GPU_LEARNER}, GRPO, "execution.scorer.backend: nccl would .* do not form a process group"),
        ({"generators": GPU_LEARNER}, GRPO, "execution.generators.backend: nccl would have no effect"),
    ],
)
def test_a_setting_that_would_have_no_effect_is_rejected(
    changed: dict[str, Any], algorithm: Algorithm, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GraphExecution(), **changed).check("execution", ROLLOUTS, LEARNING, algorithm)


def test_the_placement_of_a_reference_needs_a_kl_penalty() -> None:
    execution = GraphExecution(reference=Placement(cpus_per_worker=2.0))
    execution.check("execution", ROLLOUTS, LEARNING, GRPO)
    with pytest.raises(ValueError, match="execution.reference: this setting would .* no reference without a KL"):
        execution.check("execution", ROLLOUTS, replace(LEARNING, kl_coefficient=0.0), GRPO)


def test_as_many_engines_as_generation_batches_are_accepted() -> None:
    GraphExecution(generators=Placement(workers=2)).check("execution", ROLLOUTS, LEARNING, GRPO)
