"""WordPiece, BERT's kind of vocabulary: whole characters and ## continuations, learned as BPE is."""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from tokenizers import models

from data.tokens.bpe import train_bpe
from data.tokens.tokenizer_recipe import UNKNOWN, TokenizerRecipe

_MAX_WORD_CHARACTERS = 100  # of WordPiece: a longer word is unknown (the default of BERT)


def train_wordpiece(
    words: Sequence[str], counts: Sequence[int], size: int, recipe: TokenizerRecipe
) -> models.WordPiece:
    """WordPiece as `tokenizers` learns it, by byte-pair merges of characters; encoding takes the longest token first.

    Words that will be unknown are left out: longer ones, and those with a character beyond the coverage.
    """
    known = set(_covered(words, counts, recipe.character_coverage))
    chosen = [
        (word, count)
        for word, count in zip(words, counts, strict=True)
        if len(word) <= _MAX_WORD_CHARACTERS and known.issuperset(word)
    ]
    subwords = train_bpe(
        [word for word, _ in chosen],
        [count for _, count in chosen],
        size=size,
        special_tokens=recipe.special_tokens,
        prefix="##",
    )
    if len(subwords.tokens) > size:
        raise ValueError(
            f"size: {size:,} has no room for the characters of the text, inside words and at their begin "
            f"({len(subwords.tokens):,} tokens); raise size, or lower character_coverage ({recipe.character_coverage})"
        )
    vocab = {token: number for number, token in enumerate(subwords.tokens)}
    return models.WordPiece(vocab=vocab, unk_token=UNKNOWN, max_input_chars_per_word=_MAX_WORD_CHARACTERS)


def _covered(words: Sequence[str], counts: Sequence[int], coverage: float) -> list[str]:
    """The most frequent characters that make up `coverage` of the text; of equals, those of the lowest code point."""
    occurrences: Counter[str] = Counter()
    for word, count in zip(words, counts, strict=True):
        for character in word:
            occurrences[character] += count
    ranked = sorted(occurrences, key=lambda character: (-occurrences[character], character))
    reached = accumulate(occurrences[character] for character in ranked)
    bound = coverage * occurrences.total()
    needed = next((number for number, total in enumerate(reached, start=1) if total >= bound), len(ranked))
    return ranked[:needed]
