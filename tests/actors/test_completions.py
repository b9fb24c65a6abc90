"""Models that share engines have the same completions as alone, and the completions are checked before use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.completions import ModelPrompts, check_completions, complete
from actors.logprobs import batch_logprobs
from actors.rollout import PromptRequest, Rollout
from actors.settings import SamplingConfig
from actors.weight_sync import NumericsError, WeightSnapshot
from cluster.placement import Placement
from cluster.storage import Storage
from model.batch import batch_from_sequences
from model.huggingface import load_hf_model
from model.objectives import logprobs
from model.rounding import perturbed
from model.transformer import Transformer


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_completions_of_another_model_are_rejected(policies: dict[str, Path], temperature: float) -> None:
    model, other = (load_hf_model(policies[name]) for name in ("tied-1", "tied-2"))
    prompt, completion = [10, 11, 12], [20, 21, 22, 23]
    mask = [False] * len(prompt) + [True] * len(completion)
    batch = batch_from_sequences([prompt + completion], [mask], length=len(mask) - 1, pad_id=0)

    def sampled_from(sampler: Transformer) -> list[Rollout]:
        with torch.no_grad():
            # With greedy decoding (temperature 0), the engine reports logprobs at temperature 1.
            by_token = logprobs(sampler, batch, temperature or 1.0)[batch.loss_mask].tolist()
        return [Rollout(tuple(prompt), tuple(completion), tuple(by_token), 0, False)]

    snapshot = WeightSnapshot(0, [], {})
    check_completions(model, sampled_from(model), temperature, "float32", snapshot, None)
    for previous in (None, WeightSnapshot(1, [], {})):  # with nccl and ipc a snapshot has no weights
        with pytest.raises(NumericsError, match="PyTorch logprobs differ .* older weights were not available"):
            check_completions(model, sampled_from(other), temperature, "float32", snapshot, previous)


def test_a_model_that_amplifies_rounding_is_accepted(policies: dict[str, Path]) -> None:
    prompt, completion = list(range(10, 26)), list(range(40, 72))
    mask = [False] * len(prompt) + [True] * len(completion)
    batch = batch_from_sequences([prompt + completion], [mask], length=len(mask) - 1, pad_id=0)
    model, other = (load_hf_model(policies[name]) for name in ("untied-1", "untied-2"))
    with torch.no_grad():
        for loaded in (model, other):
            loaded.head_weight.mul_(100)  # so that one rounding step of bfloat16 changes logprobs by more than 1

    def rollouts(sampler: Transformer, seed: int) -> list[Rollout]:
        with torch.no_grad(), perturbed(sampler, "bfloat16", seed=seed):
            by_token = batch_logprobs(sampler, batch, temperature=1.0, micro_batch_size=1, dtype=torch.bfloat16)
        return [Rollout(tuple(prompt), tuple(completion), tuple(by_token[batch.loss_mask].tolist()), 0, False)]

    snapshot = WeightSnapshot(0, [], {})
    for seed in range(1, 6):
        check_completions(model, rollouts(model, seed), 1.0, "bfloat16", snapshot, None)
    with pytest.raises(NumericsError):
        check_completions(model, rollouts(other, 1), 1.0, "bfloat16", snapshot, None)


@pytest.mark.slow
def test_models_that_share_an_engine_have_the_same_completions_as_alone(
    policies: dict[str, Path], ray_session: None
) -> None:
    prompts = [PromptRequest(index, tuple(range(10, 20 + index)), 1) for index in range(3)]

    def complete_with(**models: str) -> dict[str, list[tuple[int, ...]]]:
        requests = {
            name: ModelPrompts(model=Storage(str(policies[policy])), prompts=prompts, stop_ids=(0,))
            for name, policy in models.items()
        }
        sampling = SamplingConfig(temperature=1.0, max_new_tokens=12, seed=3, precision="float32")
        completions = complete(requests, sampling, Placement(cpus_per_worker=0.5), kv_cache_gib=0.1)
        return {name: [rollout.completion_ids for rollout in rollouts] for name, rollouts in completions.items()}

    together = complete_with(first="tied-1", second="tied-2", first_again="tied-1")
    alone = complete_with(second="tied-2")
    assert together["second"] == alone["second"]
    assert together["first"] == together["first_again"] != together["second"]
