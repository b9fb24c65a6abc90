"""The example of an RL algorithm: its advantages, one update by a learner, and a config that uses it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.algorithm import load_algorithm
from actors.learner import Learner
from actors.training_rank import TrainingSettings
from cluster.placement import Placement
from cluster.storage import Storage
from data.tokens.tokenizer import read_chat_special_tokens, save_tokenizer
from data.tokens.tokenizer_recipe import MIN_BPE_SIZE
from data.tokens.tokenizer_training import train_tokenizer
from jobs.frame.config_loader import build
from jobs.frame.identity import changed_fields
from jobs.frame.references import find_functions, match_sources
from jobs.frame.user_code import read_algorithm_program
from jobs.rlhf import STAGE, RLHFConfig
from model.advantages import AdvantageInputs
from model.batch import PolicyBatch, batch_from_sequences
from model.huggingface import save_hf_model
from model.huggingface_config import SpecialTokens
from model.learning import LearningConfig
from model.transformer import Transformer, initialize
from model.transformer_config import TransformerConfig

EXAMPLE = "examples/rl_algorithm/opo.py:OPO"


def test_the_baseline_is_weighted_by_length() -> None:
    mask = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 1, 1]]).bool()
    inputs = AdvantageInputs(torch.tensor([4.0, 0.0, 7.0]), torch.tensor([5, 5, 2]), mask, torch.zeros(3, 3))
    advantages, _ = load_algorithm(read_algorithm_program(EXAMPLE)).estimate(inputs, LearningConfig())
    # Group 5 has the lengths 1 and 3, so its baseline is 4 / 4. The single completion of group 2 has the advantage 0.
    assert advantages.tolist() == [[3.0, 0.0, 0.0], [-1.0, -1.0, -1.0], [0.0, 0.0, 0.0]]


def test_an_update_raises_the_logprob_of_the_completion_with_the_higher_advantage(tmp_path: Path) -> None:
    model_config = TransformerConfig(
        vocab_size=MIN_BPE_SIZE, width=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_width=24, max_length=16
    )
    model = Transformer(model_config)
    initialize(model, seed=0)
    folder = tmp_path / "policy"
    save_tokenizer(train_tokenizer([""], size=MIN_BPE_SIZE), folder)
    tokens = SpecialTokens(**read_chat_special_tokens(folder)._asdict())
    save_hf_model(folder, model.state_dict(), model_config, special_tokens=tokens, tokenizer_folder=folder)
    training = TrainingSettings(
        folder=Storage(str(folder)),
        checkpoints=Storage(str(tmp_path / "checkpoints")),
        learning=LearningConfig(algorithm=EXAMPLE, lr=1e-2, precision="float32"),
        seed=0,
        placement=Placement(),
        micro_batch_size=1,
    )
    learner = Learner(training, 0, read_algorithm_program(EXAMPLE), 1.0, "object_store")
    learner.load_model("")
    rows = [[10, 11, 12, 13], [10, 11, 14, 15]]
    batch = batch_from_sequences(rows, [[False, False, True, True]] * 2, length=3, pad_id=0)
    before = learner.logprobs(batch)
    advantages = torch.tensor([[1.0], [-1.0]]) * batch.loss_mask
    (report,) = learner.update(PolicyBatch(batch, before, advantages, None), step=0)
    assert report.loss == pytest.approx(-(advantages * before).sum().item() / 4, abs=1e-5)
    preferred, other = (learner.logprobs(batch) - before).sum(1).tolist()
    assert preferred > 0 > other


def test_the_artifact_id_depends_on_the_content_of_the_file_and_not_on_its_path(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "hi"}))
    values = {"verifier": "configs/tiny/gold.py:asks_question", "prompts": [str(prompts)]}
    config = build(RLHFConfig, {**values, "learning": {"algorithm": EXAMPLE}})
    STAGE.check(config)
    (groups,) = STAGE.placements(config)
    assert "critics" not in groups
    shutil.copy("examples/rl_algorithm/opo.py", tmp_path / "mine.py")
    moved = build(RLHFConfig, {**values, "learning": {"algorithm": f"{tmp_path}/mine.py:OPO"}})
    assert changed_fields(config) == changed_fields(moved) and "algorithm" not in json.dumps(changed_fields(config))
    assert find_functions(moved)["learning.algorithm"] == ":OPO"
    assert match_sources(moved)["learning.algorithm"] == [f"{tmp_path}/mine.py"]
    named = build(RLHFConfig, {**values, "learning": {"algorithm": "ppo"}})
    assert changed_fields(named)["learning"] == {"algorithm": "ppo"} and "learning.algorithm" not in match_sources(
        named
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OPO = 3", "OPO is a int; it must be a model.algorithms.Algorithm"),
        ("PPO = 3", "does not define 'OPO'"),
        ("import missing_module", "neither in the folder of the file nor installed"),
    ],
)
def test_a_file_without_an_algorithm_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    config = RLHFConfig(prompts=[], verifier="configs/tiny/gold.py:asks_question")
    with pytest.raises(ValueError, match=message):
        STAGE.check(replace(config, learning=replace(config.learning, algorithm=f"{tmp_path}/mine.py:OPO")))
