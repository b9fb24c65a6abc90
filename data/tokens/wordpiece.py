"""Trains WordPiece vocabularies, the kind that BERT uses.

A token inside a word begins with ##. The vocabulary is trained by byte-pair merges of characters.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from tokenizers import models

from data.tokens.bpe import train_bpe
from data.tokens.pre_tokenizer import WORDPIECE_MAX_CHARACTERS
from data.tokens.tokenizer_recipe import UNKNOWN, TokenizerRecipe


def train_wordpiece(
    words: Sequence[str], counts: Sequence[int], size: int, recipe: TokenizerRecipe
) -> models.WordPiece:
    """Return a WordPiece model, trained in the same way as `tokenizers` trains it.

    Words that the model will encode as unknown are not trained on. These are words that are too long, and words with a
    rare character (see `TokenizerRecipe.character_coverage`).

    Raises ValueError if `size` is too small for the characters.
    """
    alphabet = set(_frequent_characters(words, counts, recipe.character_coverage))
    word_counts = [
        (word, count)
        for word, count in zip(words, counts, strict=True)
        if len(word) <= WORDPIECE_MAX_CHARACTERS and alphabet.issuperset(word)
    ]
    subwords = train_bpe(
        [word for word, _ in word_counts],
        [count for _, count in word_counts],
        size=size,
        special_tokens=recipe.special_tokens,
        prefix="##",
    )
    if len(subwords.tokens) > size:
        raise ValueError(
            f"size: {size:,} is too small, because the characters of the text need {len(subwords.tokens):,} tokens; "
            f"raise size, or lower character_coverage ({recipe.character_coverage})"
        )
    vocab = {token: token_id for token_id, token in enumerate(subwords.tokens)}
    return models.WordPiece(vocab=vocab, unk_token=UNKNOWN, max_input_chars_per_word=WORDPIECE_MAX_CHARACTERS)


def _frequent_characters(words: Sequence[str], counts: Sequence[int], coverage: float) -> list[str]:
    """Return the most frequent characters, as many as make up the fraction `coverage` of the text.

    Of equally frequent characters, the one with the lowest code point comes first.
    """
    occurrences: Counter[str] = Counter()
    for word, count in zip(words, counts, strict=True):
        for character in word:
            occurrences[character] += count
    ranked = sorted(occurrences, key=lambda character: (-occurrences[character], character))
    cumulative = accumulate(occurrences[character] for character in ranked)
    target = coverage * occurrences.total()
    num_characters = next((number for number, total in enumerate(cumulative, start=1) if total >= target), len(ranked))
    return ranked[:num_characters]
