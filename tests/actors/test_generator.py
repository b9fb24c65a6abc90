"""Tests with real vLLM engines in actors: weight syncs are exact, and a sync that did not happen is detected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from ray.actor import ActorHandle

from actors.engine import EngineSettings, engine_env
from actors.generator import Generator
from actors.logprobs import batch_logprobs
from actors.rollout import GenerationBatch, PromptRequest, Rollout, SamplingParams, engine_logprobs, rollout_batch
from actors.sync_check import LogprobDifference, check_load, check_logprobs, check_rollouts, logprob_bound
from actors.weight_sync import ObjectStoreSender, StaleWeightsError, WeightSnapshot
from cluster.storage import Storage
from model.huggingface import load_hf_model
from model.learning import LearningConfig
from model.precision import autocast_dtype, require_resolved, torch_dtype
from model.transformer import Transformer

pytestmark = pytest.mark.slow

REQUESTS = tuple(PromptRequest(index, tuple(range(20 + index, 30 + 2 * index)), 2) for index in range(4))
STOP = 5
KINDS = [(tied, precision) for precision in ("float32", "bfloat16") for tied in ("tied", "untied")]


@dataclass
class Engine:
    """A generator that was started with the first policy of its kind, and the weights that tests load into it."""

    actor: ActorHandle
    learning: LearningConfig
    """The precision of engine and learner, and the bound of the sync check."""
    models: dict[int, Transformer]
    """The learner's models by weight version."""
    snapshots: dict[int, WeightSnapshot]

    def load(self, version: int) -> None:
        check_load(self.snapshots[version], ray.get(self.actor.load.remote(self.snapshots[version])), generator=0)

    def generate(self, version: int, temperature: float, *, step: int = 0, length: int = 24) -> list[Rollout]:
        sampling = SamplingParams(temperature=temperature, max_new_tokens=length, stop_ids=(STOP,), seed=1)
        groups = ray.get(self.actor.generate.remote(GenerationBatch(step, version, REQUESTS, sampling)))
        check_rollouts(REQUESTS, groups, version=version, vocab_size=self.models[version].config.vocab_size)
        return [rollout for group in groups for rollout in group.rollouts]

    def check(self, rollouts: list[Rollout], version: int, temperature: float) -> LogprobDifference:
        """Run the sync check as an RLHF step does, with the learner's model of this weight version."""
        model = self.models[version]
        batch = rollout_batch(rollouts, pad_id=0)
        dtype = autocast_dtype(require_resolved(self.learning.precision))
        learner = batch_logprobs(model, batch, temperature=temperature, micro_batch_size=8, dtype=dtype)
        return check_logprobs(
            batch,
            engine_logprobs(rollouts, batch),
            learner,
            bound=logprob_bound(self.learning),
            model_config=model.config,
            temperature=temperature,
            current=self.snapshots[version],
            previous=self.snapshots.get(version - 1),
        )


@pytest.fixture(scope="module")
def engines(policies: dict[str, Path], ray_session: None) -> Iterator[dict[str, Engine]]:
    """Four engines: with tied and with untied embeddings, each in float32 and in bfloat16."""
    engines: dict[str, Engine] = {}
    for kind, precision in KINDS:
        send = ObjectStoreSender(rank=0, dtype=torch_dtype(precision)).send
        settings = EngineSettings(
            model=Storage(str(policies[f"{kind}-1"])),
            max_length=64,
            max_sequences=8,
            precision=precision,
            kv_cache_gib=0.05,
        )
        env = {**engine_env(), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        actor = ray.remote(Generator).options(num_cpus=0.3, runtime_env={"env_vars": env}).remote(settings)
        models = {version: load_hf_model(policies[f"{kind}-{version + 1}"]) for version in (0, 1, 2)}
        snapshots = {version: send(model, version) for version, model in models.items()}
        name = kind if precision == "float32" else f"{kind}-{precision}"
        engines[name] = Engine(actor, LearningConfig(precision=precision), models, snapshots)
    yield engines
    for engine in engines.values():
        ray.kill(engine.actor)


@pytest.mark.parametrize("kind", ["tied", "untied", "tied-bfloat16", "untied-bfloat16"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_engine_and_learner_agree_after_every_sync(engines: dict[str, Engine], kind: str, temperature: float) -> None:
    for version in (0, 1, 2):
        engines[kind].load(version)
        rollouts = engines[kind].generate(version, temperature)
        difference = engines[kind].check(rollouts, version, temperature)
        print(f"{kind}, temperature {temperature}, version {version}: {difference}")
        # This bound is for these tiny models. LOGPROB_BOUNDS has larger bounds, because larger models round more.
        assert difference.max <= (0.2 if "bfloat16" in kind else 1e-4)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_an_engine_with_only_the_new_version_number_is_stale(engines: dict[str, Engine], kind: str) -> None:
    engines[kind].load(0)
    ray.get(engines[kind].actor.set_weight_version.remote(1))
    with pytest.raises(StaleWeightsError, match="with the weights of version 0 instead of 1"):
        engines[kind].check(engines[kind].generate(1, 1.0), 1, 1.0)


def test_checksums_detect_old_weights(engines: dict[str, Engine]) -> None:
    engine = engines["untied"]
    engine.load(0)
    report = ray.get(engine.actor.load.remote(WeightSnapshot(1, [], {})))
    assert report.version == 0
    ray.get(engine.actor.set_weight_version.remote(1))
    report = ray.get(engine.actor.load.remote(WeightSnapshot(1, [], {})))
    with pytest.raises(StaleWeightsError, match="the checksum of .* differs from the snapshot's"):
        check_load(engine.snapshots[1], report, generator=0)


def test_a_generator_rejects_a_batch_for_other_weights(engines: dict[str, Engine]) -> None:
    engines["tied"].load(1)
    with pytest.raises(StaleWeightsError, match="requires weight version 2, but the engine has version 1"):
        engines["tied"].generate(2, 1.0)


def test_a_repeated_batch_has_equal_completions_and_another_step_has_others(engines: dict[str, Engine]) -> None:
    engines["tied"].load(0)
    once, again = (engines["tied"].generate(0, 1.0) for _ in range(2))
    assert once == again
    assert engines["tied"].generate(0, 1.0, step=1) != once
    # Two completions of one prompt have different seeds.
    assert once[0].prompt_ids == once[1].prompt_ids
    assert once[0].completion_ids != once[1].completion_ids


def test_a_completion_ends_with_a_stop_token_or_is_marked_as_unfinished(engines: dict[str, Engine]) -> None:
    engines["tied"].load(0)
    rollouts = [r for step in range(20) for r in engines["tied"].generate(0, 1.0, step=step, length=48)]
    finished = [rollout for rollout in rollouts if rollout.finished]
    cut = [rollout for rollout in rollouts if not rollout.finished]
    assert finished
    assert cut
    assert all(r.completion_ids[-1] == STOP and STOP not in r.completion_ids[:-1] for r in finished)
    assert all(len(r.completion_ids) == 48 and STOP not in r.completion_ids for r in cut)


def test_a_batch_that_needs_two_prefills_has_equal_completions_when_repeated(engines: dict[str, Engine]) -> None:
    """A prefill has at most 2,048 tokens here. The 3,200 prompt tokens need two, and no prompt may be split."""
    engine = engines["tied"]
    engine.load(0)
    requests = tuple(PromptRequest(index, tuple(range(10 + index, 60 + index)), 8) for index in range(8))
    sampling = SamplingParams(temperature=1.0, max_new_tokens=8, stop_ids=(STOP,), seed=1)
    once, again = (ray.get(engine.actor.generate.remote(GenerationBatch(0, 0, requests, sampling))) for _ in range(2))
    check_rollouts(requests, once, version=0, vocab_size=engine.models[0].config.vocab_size)
    assert once == again
    engine.check([rollout for group in once for rollout in group.rollouts], 0, 1.0)
