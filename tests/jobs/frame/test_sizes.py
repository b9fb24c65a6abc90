"""The sizes, estimates and workloads of jobs are computed before any job has run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.settings import GraphExecution, RolloutConfig
from cluster.placement import Placement
from cluster.storage import Storage
from data.document import Source
from jobs import compress, corpus, pretrain, reward, rlhf, serve, sft, shards, vocabulary
from jobs.compress import CompressConfig
from jobs.corpus import CorpusConfig
from jobs.frame import training_config
from jobs.frame.artifact import Artifact
from jobs.frame.calibration import Machine
from jobs.frame.cost_model import predict
from jobs.frame.job import Job
from jobs.frame.precision import resolve_precisions, with_precisions
from jobs.frame.record import Record
from jobs.frame.sizes import activation_gib, chat_tokens, forward_flop_per_token, model_config_of, shards_sizes
from jobs.frame.stage import PlannedInputs, Stage
from jobs.frame.training_config import OptimizerConfig, TrainingExecution, check_training
from jobs.frame.workload import Workload
from jobs.pretrain import NewModelConfig, PretrainConfig
from jobs.reward import RewardConfig
from jobs.rlhf import RLHFConfig
from jobs.serve import ServeConfig
from jobs.sft import SftConfig
from jobs.shards import ShardsConfig
from jobs.vocabulary import VocabularyConfig
from model.cross_entropy import CHUNK_POSITIONS
from model.learning import LearningConfig
from model.transformer_config import TransformerConfig, num_parameters

MODEL = NewModelConfig(width=8, num_layers=2, num_heads=2, num_kv_heads=1, ffn_width=16)
TWO = TrainingExecution(placement=Placement(workers=2))

VOCABULARY = Job(vocabulary.STAGE, "vocabulary", VocabularyConfig(corpus="corpus", size=1000), {})
CORPUS = Job(corpus.STAGE, "corpus", CorpusConfig(sources=[]), {})
SHARDS = Job(shards.STAGE, "shards", ShardsConfig(), {"corpus": CORPUS, "tokenizer": VOCABULARY})
PRETRAIN_CONFIG = PretrainConfig(model=MODEL, steps=10, global_batch_size=4, sequence_length=16, execution=TWO)
PRETRAIN = Job(pretrain.STAGE, "pretrain", PRETRAIN_CONFIG, {"shards": SHARDS})
SFT = Job(sft.STAGE, "sft", SftConfig(chats=[]), {"init": PRETRAIN})
REWARD = Job(
    reward.STAGE,
    "reward",
    RewardConfig(preferences=[], steps=10, global_batch_size=4, sequence_length=16),
    {"init": SFT},
)

MACHINE = Machine(processor="a", cores=2, python_s=0.02, step_flops=2e10, product_flops=3e10, bfloat16_speed=0.05)

# The embedding has 1000·8 parameters. A layer has q and o with 8·8 each, k and v with 8·4 each, three feed-forward
# matrices with 8·16 each, and two norms with 8 each. The final norm has 8.
PARAMETERS = 8000 + 2 * (2 * 64 + 2 * 32 + 3 * 128 + 16) + 8


def test_sizes_of_jobs_that_have_not_run_are_computed_from_their_configs() -> None:
    assert shards_sizes(SHARDS).vocab_size == 1000
    assert num_parameters(model_config_of(REWARD)) == PARAMETERS
    again = Job(pretrain.STAGE, "pretrain-adapted", PretrainConfig(init="sft"), {"init": SFT, "shards": SHARDS})
    assert model_config_of(again) == model_config_of(PRETRAIN)


def test_the_estimate_of_a_training_stage_has_its_tokens_flop_and_memory() -> None:
    estimate = pretrain.STAGE.estimate(PRETRAIN.config, PRETRAIN.planned)
    matmul = 2 * (2 * 64 + 2 * 32 + 3 * 128) + 8000
    assert estimate == {
        "parameters": PARAMETERS,
        "tokens": 640,
        "flop": 640 * (6 * matmul + 12 * 2 * 8 * 16),
        "state_mib_per_worker": PARAMETERS * 16 / 2 / 2**20,
    }
    assert reward.STAGE.estimate(REWARD.config, REWARD.planned)["tokens"] == 2 * 640  # a pair has two replies


def test_the_estimate_of_rlhf_has_the_memory_of_its_actors() -> None:
    config = RLHFConfig(prompts=[], reward="reward", steps=3)
    estimate = rlhf.STAGE.estimate(config, {"policy": SFT, "reward": REWARD})
    rollouts = 3 * config.rollouts.rollouts_per_step
    assert estimate == {
        "rollouts": rollouts,
        "sampled_tokens": rollouts * config.rollouts.max_new_tokens,
        "generator_mib": PARAMETERS * 4 / 2**20 + 512,
        "learner_mib": PARAMETERS * 16 / 2**20,
        "reference_mib": PARAMETERS * 4 / 2**20,
        "scorer_mib": PARAMETERS * 4 / 2**20,
    }


@pytest.mark.parametrize(("steps", "num_checkpoints"), [(99, 1), (100, 1), (101, 2), (200, 2), (201, 2)])
def test_the_forecast_disk_of_training_counts_the_checkpoints_that_are_kept(steps: int, num_checkpoints: int) -> None:
    assert pretrain.STAGE.workload is not None
    config = replace(PRETRAIN_CONFIG, steps=steps, precision="float32")
    forecast_bytes = pretrain.STAGE.workload(config, PRETRAIN.planned).disk_gib * 2**30
    assert forecast_bytes == pytest.approx(PARAMETERS * (12 * num_checkpoints + 4))


@pytest.mark.parametrize(("steps", "num_validations"), [(99, 1), (100, 1), (300, 3), (301, 4)])
def test_the_forecast_of_pretraining_counts_the_validations(steps: int, num_validations: int) -> None:
    assert pretrain.STAGE.workload is not None
    execution = replace(TWO, validation_interval=100)
    config = replace(PRETRAIN_CONFIG, steps=steps, precision="float32", execution=execution)
    with_more_samples = replace(config, validation_samples=config.validation_samples + 1)
    flop, flop_with_more = (
        pretrain.STAGE.workload(changed, PRETRAIN.planned).flop for changed in (config, with_more_samples)
    )
    # A forward pass of one token: two operations for each parameter of a matmul, and four for each layer, channel and
    # position of attention. The sample has 16 tokens.
    flop_of_a_sample = 16 * (2 * (2 * (2 * 64 + 2 * 32 + 3 * 128) + 8000) + 4 * 2 * 8 * 16)
    assert flop_with_more - flop == pytest.approx(num_validations * flop_of_a_sample)


@pytest.mark.parametrize(
    ("num_held_out", "num_evaluations", "num_engines", "num_batches"),
    [
        # A step has 16 / 8 = 2 batches, so 20 steps have 40. A batch has 8 · 4 = 32 held-out prompts.
        (0, 2, 1, 40),
        (400, 2, 1, 40 + 2 * 13),
        (384, 2, 1, 40 + 2 * 12),
        (400, 5, 1, 40 + 5 * 13),
        (400, 2, 4, (40 + 2 * 13) / 4),
    ],
)
def test_the_generation_batches_of_rlhf_are_divided_among_the_engines(
    num_held_out: int, num_evaluations: int, num_engines: int, num_batches: float
) -> None:
    config = RLHFConfig(
        prompts=[],
        steps=20,
        rollouts=RolloutConfig(prompts_per_step=16, group_size=4, generation_batch_prompts=8),
        execution=GraphExecution(generators=Placement(workers=num_engines)),
    )
    assert rlhf.generation_batches_per_engine(config, num_evaluations, num_held_out) == num_batches


def rlhf_workload(folder: Path, planned: PlannedInputs, **changes: Any) -> Workload:
    """Return the workload of 20 RLHF steps with 16 rollouts each. There are three held-out prompts."""
    path = folder / "prompts.jsonl"
    path.write_text('{"prompt": "Hello there"}\n' * 3)
    config = RLHFConfig(
        prompts=[str(path)],
        held_out_prompts=[str(path)],
        steps=20,
        rollouts=RolloutConfig(prompts_per_step=4, group_size=4, generation_batch_prompts=4, max_new_tokens=30),
        learning=LearningConfig(precision="float32"),
    )
    assert rlhf.STAGE.workload is not None
    return rlhf.STAGE.workload(replace(config, **changes), planned)


@pytest.mark.parametrize(("interval", "num_evaluations"), [(0, 2), (5, 2 + 3), (6, 2 + 3), (1, 2 + 19), (20, 2)])
def test_the_forecast_of_rlhf_counts_the_evaluations_before_during_and_after_training(
    tmp_path: Path, interval: int, num_evaluations: int
) -> None:
    forecast = rlhf_workload(tmp_path, {"policy": SFT}, execution=GraphExecution(held_out_interval=interval))
    # A step has one batch, and so has an evaluation. A batch is as many engine steps as a completion has tokens.
    assert forecast.engine_steps == 30 * (20 + num_evaluations)


@pytest.mark.parametrize(
    ("learning", "planned", "num_passes"),
    [
        # Engine, learner and reference, then the update, which counts as three passes.
        (LearningConfig(algorithm="grpo"), {"policy": SFT}, 3 + 3),
        (LearningConfig(algorithm="grpo", kl_coefficient=0.0), {"policy": SFT}, 2 + 3),
        (LearningConfig(algorithm="grpo", epochs=2), {"policy": SFT}, 3 + 2 * 3),
        # The critic has a pass before the updates, and an update of its own.
        (LearningConfig(algorithm="ppo"), {"policy": SFT}, 4 + 2 * 3),
        (LearningConfig(algorithm="ppo", epochs=2), {"policy": SFT}, 4 + 2 * 2 * 3),
        # The reward model has a pass.
        (LearningConfig(algorithm="grpo"), {"policy": SFT, "reward": REWARD}, 4 + 3),
    ],
)
def test_the_forecast_of_rlhf_counts_the_passes_of_every_model(
    tmp_path: Path, learning: LearningConfig, planned: PlannedInputs, num_passes: int
) -> None:
    learning = replace(learning, precision="float32")
    forecast = rlhf_workload(tmp_path, planned, learning=learning, held_out_prompts=[])
    length = round(chat_tokens(["Hello there"], 1000) + 20)
    flop_of_a_pass = 20 * 16 * length * forward_flop_per_token(model_config_of(SFT), length)
    assert forecast.flop == pytest.approx(num_passes * flop_of_a_pass)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_batch_size": 0}, "global_batch_size: 0 must be at least 1"),
        ({"optimizer": OptimizerConfig(beta2=1.0)}, "optimizer.beta2: 1.0 must be at least 0 and below 1"),
        ({"optimizer": OptimizerConfig(weight_decay=-0.1)}, "optimizer.weight_decay: -0.1 must not be negative"),
        ({"execution": replace(TWO, peak_tflops=-1.0)}, "execution.peak_tflops: -1.0 must not be negative"),
    ],
)
def test_training_settings_out_of_range_are_rejected(change: dict[str, Any], message: str) -> None:
    config = replace(PRETRAIN_CONFIG, optimizer=OptimizerConfig(warmup_steps=1))
    check_training(config)
    with pytest.raises(ValueError, match=message):
        check_training(replace(config, **change))


def test_the_forecast_time_of_a_stage_grows_with_the_size_of_its_work(tmp_path: Path) -> None:
    pair = {"prompt": "Hello there", "chosen": "Good morning to you", "rejected": "Go away at once"}
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair | {"number": n}) + "\n" for n in range(8)))
    (tmp_path / "text.jsonl").write_text('{"text": "words"}\n' * 1000)
    names = {"preferences": [str(tmp_path / "pairs.jsonl")], "prompts": [str(tmp_path / "pairs.jsonl")]}
    source = Source(name="text", path=str(tmp_path / "text.jsonl"), format="jsonl")
    text = Job(corpus.STAGE, "corpus", CorpusConfig(sources=[source]), {})
    token_ids = Job(shards.STAGE, "shards", ShardsConfig(), {"corpus": text, "tokenizer": VOCABULARY})
    for stage, config, planned, larger_settings in (
        (pretrain.STAGE, PRETRAIN_CONFIG, PRETRAIN.planned, {"steps": 20}),
        (sft.STAGE, SFT.config, SFT.planned, {"steps": 900}),
        (reward.STAGE, replace(REWARD.config, preferences=names["preferences"]), REWARD.planned, {"steps": 20}),
        (
            rlhf.STAGE,
            RLHFConfig(prompts=names["prompts"], reward="reward"),
            {"policy": SFT, "reward": REWARD},
            {"steps": 200},
        ),
        (vocabulary.STAGE, VOCABULARY.config, {"corpus": text}, {"size": 2000}),
        (
            compress.STAGE,
            CompressConfig(model="sft", text="shards", text_bytes=10),
            {"model": SFT, "text": token_ids},
            {"text_bytes": 100},
        ),
        (serve.STAGE, ServeConfig(model="sft"), {"model": SFT}, {"max_new_tokens": 640}),
    ):
        plain, larger = (seconds(stage, changed, planned) for changed in (config, replace(config, **larger_settings)))
        assert plain < larger, stage.name


def seconds(stage: Stage, config: Any, planned: PlannedInputs) -> float:
    """Return the predicted time of a stage on MACHINE."""
    assert stage.workload is not None
    return predict(
        stage.workload(with_precisions(config, resolve_precisions(config, (), {})), planned), MACHINE
    ).seconds


def test_the_memory_for_serving_a_compressed_model_includes_the_size_of_its_files(tmp_path: Path):
    folder = Storage(str(tmp_path / "compress-0"))
    folder.write_json("model/config.json", {"model_type": "llama", "quantization_config": {"quant_method": "int8"}})
    folder.write_bytes("model/model.safetensors", bytes(3 << 20))
    planned = {"model": Artifact(folder, Record(id="compress-0", stage="compress", kind="compressed_model"))}
    assert serve.STAGE.workload is not None
    (server,) = serve.STAGE.workload(ServeConfig(model="compress"), planned).processes
    assert server.memory_gib == pytest.approx(ServeConfig(model="sft").execution.kv_cache_gib + 3 / 1024, abs=1e-6)


def test_a_training_pass_is_forecast_to_have_the_logits_of_one_chunk_of_positions_in_memory() -> None:
    assert training_config._LOGIT_POSITIONS == CHUNK_POSITIONS
    sizes = TransformerConfig(
        vocab_size=128_000, max_length=2048, width=64, num_layers=2, num_heads=2, num_kv_heads=1, ffn_width=96
    )
    tokens = 4 * 2048
    all_logits = activation_gib(sizes, tokens=tokens, length=2048)
    one_chunk = activation_gib(sizes, tokens=tokens, length=2048, logit_positions=1024)
    assert all_logits - one_chunk == pytest.approx((tokens - 1024) * 3 * 4 * 128_000 / 2**30)
