"""Fixtures for the tests of the actors: tiny random policies with a byte tokenizer, and a random reward model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from data.tokens.tokenizer import read_chat_special_tokens, save_tokenizer
from data.tokens.tokenizer_recipe import MIN_BPE_SIZE
from data.tokens.tokenizer_training import train_tokenizer
from model.heads import ScalarModel
from model.huggingface import load_hf_scalar_model, save_hf_model
from model.huggingface_config import SpecialTokens
from model.transformer import Transformer, initialize
from model.transformer_config import TransformerConfig

os.environ.setdefault("OMP_NUM_THREADS", "1")

MODEL_CONFIG = {"width": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_width": 96, "max_length": 128}


def save_policy(folder: Path, *, tied: bool, seed: int, scale: float = 5.0) -> Transformer:
    """Save a random policy as a Hugging Face folder, and return it.

    The weight matrices are multiplied by `scale`, so that the predicted distributions are far from uniform.
    """
    config = TransformerConfig(vocab_size=MIN_BPE_SIZE, tie_embeddings=tied, **MODEL_CONFIG)
    model = Transformer(config)
    initialize(model, seed)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.8, 1.2, generator=torch.Generator().manual_seed(seed))
        else:
            parameter.data.mul_(scale)
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(train_tokenizer([""], size=MIN_BPE_SIZE), folder)
    ids = read_chat_special_tokens(folder)
    tokens = SpecialTokens(bos=ids.bos, eos=ids.eos, pad=ids.pad)
    save_hf_model(folder, model.state_dict(), config, special_tokens=tokens, tokenizer_folder=folder)
    return model


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of six random policies, named tied-1 to tied-3 and untied-1 to untied-3 (tied embeddings or not)."""
    root = tmp_path_factory.mktemp("policies")
    names = [(kind, seed) for kind in ("tied", "untied") for seed in (1, 2, 3)]
    for kind, seed in names:
        save_policy(root / f"{kind}-{seed}", tied=kind == "tied", seed=seed)
    return {f"{kind}-{seed}": root / f"{kind}-{seed}" for kind, seed in names}


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ScalarModel]:
    """The folder of a random reward model, and the model."""
    folder = tmp_path_factory.mktemp("reward")
    save_policy(folder, tied=True, seed=4)
    model = load_hf_scalar_model(folder)
    model.score.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    ids = read_chat_special_tokens(folder)
    tokens = SpecialTokens(bos=ids.bos, eos=ids.eos, pad=ids.pad)
    save_hf_model(folder, model.state_dict(), model.config, special_tokens=tokens, tokenizer_folder=folder)
    return folder, model
