"""Tests of Unigram vocabularies. The ids are compared with those of sentencepiece."""

import random
from itertools import pairwise

import sentencepiece

from data.tokens.tokenizer_recipe import UNKNOWN, TokenizerRecipe
from data.tokens.tokenizer_training import count_words, train_tokenizer
from data.tokens.unigram import sentencepiece_model

SIZE = 320


ODD_TEXTS = (
    "",
    " ",
    "   the  cats   \n\n\tsat\r\n  ",
    "na\u00efve nai\u0308ve, \u65e5\u672c\u8a9e \U0001f600 2018 \u00bd",
    "\u2581 a\u2581b \u2581\u2581",
    "".join(map(chr, range(256))),
    "<|end|> x<|endoftext|>y <|unk|><|mask|> <0x0A> <0xFF> </s> [UNK] ##a <<|pad|>>",
)


def sample(number: int = 400) -> list[str]:
    """Return texts of many words. The characters of ODD_TEXTS are rare or missing in them."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdluE", k=draw.randint(1, 8))) for _ in range(300)]
    return [" ".join([*draw.choices(words, k=30), str(draw.randint(0, 999)), "(end). </b>"]) for _ in range(number)]


def test_unigram_gives_the_ids_of_sentencepiece() -> None:
    recipe = TokenizerRecipe(kind="unigram", byte_fallback=True)
    words = count_words(sample(), recipe)
    tokenizer = train_tokenizer(sample(), size=SIZE, recipe=recipe)
    sentencepiece_processor = sentencepiece.SentencePieceProcessor(
        model_proto=sentencepiece_model(list(words), list(words.values()), SIZE, recipe)
    )
    tokenizer.encode_special_tokens = True
    for text in (*sample(), *(text for text in ODD_TEXTS if "\u2581" not in text)):
        assert tokenizer.encode(text).ids == sentencepiece_processor.encode(text), text


def test_without_byte_fallback_only_the_number_of_unknown_tokens_differs_from_sentencepiece() -> None:
    recipe = TokenizerRecipe(kind="unigram")
    words = count_words(sample(), recipe)
    tokenizer = train_tokenizer(sample(), size=SIZE, recipe=recipe)
    sentencepiece_processor = sentencepiece.SentencePieceProcessor(
        model_proto=sentencepiece_model(list(words), list(words.values()), SIZE, recipe)
    )
    tokenizer.encode_special_tokens = True
    unknown_id = tokenizer.token_to_id(UNKNOWN)

    def with_single_unknowns(ids: list[int]) -> list[int]:
        return [number for previous, number in pairwise([-1, *ids]) if not previous == number == unknown_id]

    odd = ("\u65e57", "\u65e5\u65e5<\u65e5", "a\u65e5 \u65e5a", *(text for text in ODD_TEXTS if "\u2581" not in text))
    num_different = 0
    for text in (*sample(), *odd):
        ids, expected = tokenizer.encode(text).ids, sentencepiece_processor.encode(text)
        assert with_single_unknowns(ids) == with_single_unknowns(expected), text
        num_different += ids != expected
    assert 0 < num_different <= len(odd)
