"""Tests of Unigram vocabularies. The ids are compared with those of sentencepiece."""

from itertools import pairwise

import sentencepiece

from data.tokens.tokenizer_recipe import UNKNOWN, TokenizerRecipe
from data.tokens.tokenizer_training import count_words, train_tokenizer
from data.tokens.unigram import sentencepiece_model

SIZE = 320


def test_unigram_gives_the_ids_of_sentencepiece(plain_texts: list[str], odd_texts: tuple[str, ...]) -> None:
    recipe = TokenizerRecipe(kind="unigram", byte_fallback=True)
    (words,) = count_words(plain_texts, recipe)
    tokenizer = train_tokenizer(plain_texts, size=SIZE, recipe=recipe)
    sentencepiece_processor = sentencepiece.SentencePieceProcessor(
        model_proto=sentencepiece_model(list(words), list(words.values()), SIZE, recipe)
    )
    tokenizer.encode_special_tokens = True
    for text in (*plain_texts, *(text for text in odd_texts if "\u2581" not in text)):
        assert tokenizer.encode(text).ids == sentencepiece_processor.encode(text), text


def test_without_byte_fallback_only_the_number_of_unknown_tokens_differs_from_sentencepiece(
    plain_texts: list[str], odd_texts: tuple[str, ...]
) -> None:
    recipe = TokenizerRecipe(kind="unigram")
    (words,) = count_words(plain_texts, recipe)
    tokenizer = train_tokenizer(plain_texts, size=SIZE, recipe=recipe)
    sentencepiece_processor = sentencepiece.SentencePieceProcessor(
        model_proto=sentencepiece_model(list(words), list(words.values()), SIZE, recipe)
    )
    tokenizer.encode_special_tokens = True
    unknown_id = tokenizer.token_to_id(UNKNOWN)

    def with_single_unknowns(ids: list[int]) -> list[int]:
        return [number for previous, number in pairwise([-1, *ids]) if not previous == number == unknown_id]

    odd = ("\u65e57", "\u65e5\u65e5<\u65e5", "a\u65e5 \u65e5a", *(text for text in odd_texts if "\u2581" not in text))
    num_different = 0
    for text in (*plain_texts, *odd):
        ids, expected = tokenizer.encode(text).ids, sentencepiece_processor.encode(text)
        assert with_single_unknowns(ids) == with_single_unknowns(expected), text
        num_different += ids != expected
    assert 0 < num_different <= len(odd)
