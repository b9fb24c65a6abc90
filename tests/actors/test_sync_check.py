"""The sync check tells apart stale weights, a stale output head, unexpected tokens, and numerical differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from torch import Tensor

from actors.logprobs import logprobs_under
from actors.rollout import PromptRequest, Rollout, RolloutGroup, rollout_batch
from actors.sync_check import (
    LogprobBound,
    LogprobDifference,
    check_load,
    check_logprobs,
    check_rollouts,
    logprob_bound,
    logprob_difference,
    rounding_bound,
)
from actors.weight_sync import (
    InvalidRolloutError,
    LoadReport,
    NumericsError,
    ObjectStoreSender,
    StaleWeightsError,
    WeightSnapshot,
    read_weights,
)
from model.batch import Batch
from model.huggingface import load_hf_model
from model.learning import LearningConfig
from model.objectives import logprobs
from model.rounding import perturbed
from model.transformer import Transformer

REQUEST = PromptRequest(4, (1, 2), 1)
ROLLOUT = Rollout((1, 2), (3, 4), (-1.0, -2.0), weight_version=5, finished=True)


def check_rollout(changed: Rollout) -> None:
    check_rollouts([REQUEST], [RolloutGroup(4, (changed,))], version=5, vocab_size=10)


def test_a_rollout_from_another_weight_version_is_stale() -> None:
    check_rollout(ROLLOUT)
    with pytest.raises(StaleWeightsError, match="prompt 4 was sampled from weight version 4, but the current"):
        check_rollout(replace(ROLLOUT, weight_version=4))


def test_unexpected_tokens_are_an_invalid_rollout() -> None:
    with pytest.raises(InvalidRolloutError, match="prompt 4 was sent to the engine as"):
        check_rollout(replace(ROLLOUT, prompt_ids=(1, 9)))
    with pytest.raises(InvalidRolloutError, match="sampled token id 10, but the model's vocabulary has 10"):
        check_rollout(replace(ROLLOUT, completion_ids=(3, 10)))
    with pytest.raises(InvalidRolloutError, match="1 logprobs for 2 completion tokens"):
        check_rollout(replace(ROLLOUT, logprobs=(-1.0,)))
    with pytest.raises(InvalidRolloutError, match="the engine returned an empty completion for prompt 4"):
        check_rollout(replace(ROLLOUT, completion_ids=(), logprobs=()))


def test_an_engine_with_another_weight_version_or_other_bytes_is_stale() -> None:
    snapshot = WeightSnapshot(3, [], {"model.norm.weight": "aa", "model.embed_tokens.weight": "bb"})
    check_load(snapshot, LoadReport(3, {"model.norm.weight": "aa", "fused.weight": "zz"}), generator=0)
    with pytest.raises(StaleWeightsError, match="generator 1 has weight version 2 after version 3 was sent"):
        check_load(snapshot, LoadReport(2, {}), generator=1)
    with pytest.raises(StaleWeightsError, match=r"checksum of 1 of its parameters, such as model.norm.weight, differs"):
        check_load(snapshot, LoadReport(3, {"model.norm.weight": "old"}), generator=0)


def test_an_engine_without_any_comparable_checksum_is_stale() -> None:
    snapshot = WeightSnapshot(3, [], {"model.norm.weight": "aa"})
    with pytest.raises(StaleWeightsError, match="generator 0 reports weight version 3, but the parameters whose"):
        check_load(snapshot, LoadReport(3, {"norm.weight": "aa"}), generator=0)
    check_load(WeightSnapshot(3, [], {}), LoadReport(3, {}), generator=0)  # nccl and ipc have no checksums


class Case:
    """Weight snapshots of two versions of a policy, and logprobs of some rollouts at temperature 0.7."""

    def __init__(self, old_model: Transformer, new_model: Transformer) -> None:
        send = ObjectStoreSender(rank=0, dtype=torch.float32).send
        self.old_snapshot, self.new_snapshot = send(old_model, 1), send(new_model, 2)
        self.model, self.model_config = new_model, new_model.config
        rollouts = [Rollout((5, 6, 7), tuple(range(10 + i, 26 + i)), (0.0,) * 16, 2, False) for i in range(4)]
        self.batch: Batch = rollout_batch(rollouts, pad_id=0)
        self.learner_logprobs = self.logprobs_under_snapshot(self.new_snapshot)

    def logprobs_under_snapshot(self, snapshot: WeightSnapshot) -> Tensor:
        return logprobs_under(self.model_config, read_weights(snapshot), self.batch, temperature=0.7)

    def check(self, engine: Tensor) -> None:
        check_logprobs(
            self.batch,
            engine,
            self.learner_logprobs,
            bound=LogprobBound(max=1e-4, mean=1e-4),
            model_config=self.model_config,
            temperature=0.7,
            current=self.new_snapshot,
            previous=self.old_snapshot,
        )


@pytest.fixture(params=["tied", "untied"])
def case(request: pytest.FixtureRequest, policies: dict[str, Path], ray_session: None) -> Case:
    folders = [policies[f"{request.param}-{seed}"] for seed in (1, 2)]
    return Case(*(load_hf_model(folder) for folder in folders))


def test_a_snapshot_has_the_logprobs_of_its_model(case: Case) -> None:
    with torch.no_grad():
        case.check(logprobs(case.model, case.batch, temperature=0.7))


def test_an_engine_that_kept_the_old_weights_is_stale(case: Case) -> None:
    with pytest.raises(StaleWeightsError, match="with the weights of version 1 instead of 2 they differ by up to"):
        case.check(case.logprobs_under_snapshot(case.old_snapshot))


def test_an_engine_that_kept_only_the_old_head_is_stale(case: Case) -> None:
    old_weights, new_weights = dict(read_weights(case.old_snapshot)), dict(read_weights(case.new_snapshot))
    head = old_weights.get("lm_head.weight", old_weights["model.embed_tokens.weight"])
    mixed_weights = {**new_weights, "lm_head.weight": head}
    untied = replace(case.model_config, tie_embeddings=False)
    engine = logprobs_under(untied, mixed_weights.items(), case.batch, temperature=0.7)
    with pytest.raises(StaleWeightsError, match="with the output head of version 1 instead of 2"):
        case.check(engine)


def test_a_difference_that_older_weights_do_not_explain_is_a_numerics_error(case: Case) -> None:
    noise = torch.rand(case.learner_logprobs.shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    with pytest.raises(NumericsError, match="older weights do not explain the difference"):
        case.check(case.learner_logprobs + noise)


def test_a_wrong_temperature_is_a_numerics_error(case: Case) -> None:
    at_temperature_1 = logprobs_under(case.model_config, read_weights(case.new_snapshot), case.batch, temperature=1.0)
    with pytest.raises(NumericsError):
        case.check(at_temperature_1)


def test_a_difference_of_nan_is_a_numerics_error(case: Case) -> None:
    with pytest.raises(NumericsError):
        case.check(torch.full_like(case.learner_logprobs, float("nan")))


def test_bfloat16_weights_are_sent_unchanged(ray_session: None, policies: dict[str, Path]) -> None:
    model = load_hf_model(policies["tied-1"])
    snapshot = ObjectStoreSender(rank=0, dtype=torch.bfloat16).send(model, 1)
    received = dict(read_weights(snapshot))
    table = received["model.embed_tokens.weight"]
    assert table.dtype == torch.bfloat16
    assert torch.equal(table, model.embedding.weight.detach().bfloat16())
    assert ray.is_initialized()


def test_the_bound_is_a_multiple_of_what_rounding_does_unless_it_is_configured() -> None:
    large, small = LogprobDifference(max=2.0, mean=0.2), LogprobDifference(max=1e-6, mean=1e-6)
    learning = LearningConfig(precision="bfloat16")
    assert rounding_bound(learning, large) == LogprobBound(max=6.0, mean=pytest.approx(0.6))
    assert rounding_bound(learning, small) == logprob_bound(learning)
    configured = replace(learning, mean_logprob_difference=0.05)
    assert rounding_bound(configured, large) == LogprobBound(max=6.0, mean=0.05)


def test_a_perturbed_model_moves_by_about_a_rounding_step_and_is_unchanged_afterwards(
    policies: dict[str, Path],
) -> None:
    model = load_hf_model(policies["untied-1"]).requires_grad_(False)
    rollouts = [Rollout((5, 6, 7), tuple(range(10 + i, 26 + i)), (0.0,) * 16, 2, False) for i in range(4)]
    batch = rollout_batch(rollouts, pad_id=0)
    before = logprobs(model, batch)
    with perturbed(model, "float32"):
        float32 = logprob_difference(batch, logprobs(model, batch), before)
    with perturbed(model, "bfloat16"):
        bfloat16 = logprob_difference(batch, logprobs(model, batch), before)
    assert torch.equal(logprobs(model, batch), before)
    assert 0 < float32.mean < 1e-4
    assert 1e3 < bfloat16.mean / float32.mean < 1e6  # a rounding step is 2^16 times as large
