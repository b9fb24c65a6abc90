"""A tiny random policy with a byte tokenizer, one Ray session, and one engine for all tests of the actors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cluster.session import connect
from data.tokenizer import MIN_SIZE, chat_special_tokens, save_tokenizer, train_tokenizer
from model.huggingface import SpecialTokens, save_folder
from model.transformer import Transformer, TransformerConfig, initialise

os.environ.setdefault("OMP_NUM_THREADS", "1")

SIZES = {"width": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_width": 96, "max_length": 128}


def save_policy(folder: Path, *, tied: bool, seed: int, scale: float = 5.0) -> Transformer:
    """Save a random policy; `scale` enlarges its matrices so that its distributions are far from uniform."""
    config = TransformerConfig(vocab_size=MIN_SIZE, tie_embeddings=tied, **SIZES)
    model = Transformer(config)
    initialise(model, seed)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.mul_(scale)
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(train_tokenizer([""], size=MIN_SIZE), folder)
    ids = chat_special_tokens(folder)
    tokens = SpecialTokens(bos=ids.bos, eos=ids.eos, pad=ids.pad)
    save_folder(folder, model.state_dict(), config, special_tokens=tokens, tokenizer_folder=folder)
    return model


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of two CPUs for all tests that need one."""
    with connect("local", num_cpus=2):
        yield
    assert not ray.is_initialized()
