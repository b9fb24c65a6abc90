"""Texts for the tests of tokenizers."""

import random

import pytest


@pytest.fixture(scope="session")
def plain_texts() -> list[str]:
    """Texts of many words. The characters of `odd_texts` are rare or missing in them."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdluE", k=draw.randint(1, 8))) for _ in range(300)]
    return [" ".join([*draw.choices(words, k=30), str(draw.randint(0, 999)), "(end). </b>"]) for _ in range(400)]


@pytest.fixture(scope="session")
def odd_texts() -> tuple[str, ...]:
    """Texts with unusual white space, characters of many scripts, and the spelling of special tokens."""
    return (
        "",
        " ",
        "   the  cats   \n\n\tsat\r\n  ",
        "na\u00efve nai\u0308ve, \u65e5\u672c\u8a9e \U0001f600 2018 \u00bd",
        "\u2581 a\u2581b \u2581\u2581",
        "".join(map(chr, range(256))),
        "<|end|> x<|endoftext|>y <|unk|><|mask|> <0x0A> <0xFF> </s> [UNK] ##a <<|pad|>>",
    )
