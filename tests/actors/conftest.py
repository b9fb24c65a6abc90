"""A tiny random policy with a byte tokenizer, one Ray session, and one engine for all tests of the actors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from model.huggingface import SpecialTokens, save_folder
from model.transformer import Transformer, TransformerConfig, initialise

os.environ.setdefault("OMP_NUM_THREADS", "1")

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
SIZES = {"width": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_width": 96, "max_length": 128}


def byte_tokenizer(folder: Path) -> None:
    """Save a tokenizer with one token a byte, four chat tokens and a template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(
        models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def save_policy(
    folder: Path, *, tied: bool, seed: int, scale: float = 10.0, vocab_size: int = 320
) -> Transformer:
    """Save a random policy; `scale` enlarges its matrices so that its distributions are far from uniform."""
    config = TransformerConfig(vocab_size=vocab_size, tie_embeddings=tied, **SIZES)
    model = Transformer(config)
    initialise(model, seed)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.mul_(scale)
    folder.mkdir(parents=True, exist_ok=True)
    byte_tokenizer(folder)
    tokens = SpecialTokens(bos=None, eos=257, pad=256)
    save_folder(folder, model.state_dict(), config, special_tokens=tokens, tokenizer_folder=folder)
    return model


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray of its own for the actor tests."""
    from cluster.session import connect

    with connect("local", num_cpus=2):
        yield
    assert not ray.is_initialized()
