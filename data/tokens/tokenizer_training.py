"""Trains a tokenizer from word counts. Many processes can count words, and one process trains on the sums.

A word is a pre-token: a piece of text whose borders no token crosses. Before training, each text is normalized and
split into words as the finished tokenizer will do it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from data.tokens.bpe import train_bpe
from data.tokens.tokenizer_recipe import TokenizerRecipe
from data.tokens.unigram import train_unigram
from data.tokens.wordpiece import train_wordpiece


def train_tokenizer(texts: Iterable[str], *, size: int, recipe: TokenizerRecipe | None = None) -> Tokenizer:
    """Return a tokenizer that is trained on the texts. It has at most `size` tokens, including the special tokens.

    Without a recipe, it is a byte-level BPE tokenizer. The order of the texts does not change the result. Raises
    ValueError in the cases of `train_on_word_counts`.
    """
    recipe = recipe or TokenizerRecipe()
    words = count_words(texts, recipe)
    return train_on_word_counts(list(words), list(words.values()), size=size, recipe=recipe)


# Counting.


_SAFE_BREAK = re.compile(r"(?=[ \n])(?<=\w)")
"""Where a text can be cut without cutting a word, for every kind of tokenizer: between a letter, a digit or an
underscore and the space or line end after it."""

_MAX_SUBSTRINGS = 1 << 18  # distinct substrings that are kept in memory before they are split into words


def count_words(texts: Iterable[str], recipe: TokenizerRecipe) -> Counter[str]:
    """Return how often each word occurs in the texts, after normalization."""
    untrained = _untrained_tokenizer(recipe)
    normalize = untrained.normalizer.normalize_str if untrained.normalizer else str
    words: Counter[str] = Counter()
    # Splitting into words is slow and most substrings occur many times, so each distinct substring is split only once.
    substrings: Counter[str] = Counter()
    for text in texts:
        substrings.update(_SAFE_BREAK.split(normalize(text)))
        if len(substrings) > _MAX_SUBSTRINGS:
            _count_words_of_substrings(substrings, untrained, words)
            substrings.clear()
    _count_words_of_substrings(substrings, untrained, words)
    return words


def _count_words_of_substrings(substrings: Counter[str], tokenizer: Tokenizer, words: Counter[str]) -> None:
    """Add to `words` the words of all substrings, multiplied by the counts of the substrings."""
    for substring, count in substrings.items():
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(substring):
            words[word] += count


def _untrained_tokenizer(recipe: TokenizerRecipe) -> Tokenizer:
    """Return a tokenizer with the normalizer, pre-tokenizer and decoder of the recipe and an empty vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    normalizer_steps: list[Any] = [] if recipe.normalization == "none" else [_NORMALIZERS[recipe.normalization]()]
    digits = [pre_tokenizers.Digits(individual_digits=True)] if recipe.split_digits else []
    if recipe.kind == "bpe":
        splits = [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.decoder = decoders.ByteLevel()
    elif recipe.kind == "wordpiece":
        normalizer_steps.append(normalizers.BertNormalizer(strip_accents=False, lowercase=recipe.lowercase))
        splits = [pre_tokenizers.BertPreTokenizer(), *digits]
        tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # a cleanup would change "do not" to "don't"
    else:
        splits = [pre_tokenizers.Split(_UNIGRAM_WORD, behavior="isolated"), *digits]
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    if normalizer_steps:
        several = len(normalizer_steps) > 1
        tokenizer.normalizer = normalizers.Sequence(normalizer_steps) if several else normalizer_steps[0]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return tokenizer


_NORMALIZERS = {"NFC": normalizers.NFC, "NFKC": normalizers.NFKC}

_UNIGRAM_WORD = Regex(r" *[^ \n\t<]*<| *[^ \n\t<]+| +|[\n\t]")
"""The words of a Unigram tokenizer. A word begins with the spaces before it. Line ends and tabs are words of their own.

Spaces are not replaced by U+2581, as sentencepiece does, because a text can contain U+2581 as well. A word ends after
each "<", because a Unigram model would otherwise find the special tokens and the byte tokens <0x00> to <0xFF> in texts
that contain their names."""


# Training.


def train_on_word_counts(
    words: Sequence[str], counts: Sequence[int], *, size: int, recipe: TokenizerRecipe
) -> Tokenizer:
    """Return a tokenizer of at most `size` tokens, trained on distinct words and their counts.

    The order of the words does not change the result. Raises ValueError if `size` is too small for the special tokens,
    bytes and characters that need a token, and for `unigram` also if no word can be trained on.
    """
    if size < recipe.min_size:
        raise ValueError(
            f"size: {size:,} must be at least {recipe.min_size:,}, the number of special tokens and byte tokens"
        )
    tokenizer = _untrained_tokenizer(recipe)
    train = {"bpe": _train_bpe_model, "wordpiece": train_wordpiece, "unigram": train_unigram}[recipe.kind]
    tokenizer.model = train(words, counts, size, recipe)
    tokenizer.add_special_tokens(list(recipe.special_tokens))
    return tokenizer


def _train_bpe_model(words: Sequence[str], counts: Sequence[int], size: int, recipe: TokenizerRecipe) -> models.BPE:
    """Return a byte-level BPE model. `tokenizers.trainers.BpeTrainer` would return the same model."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    subwords = train_bpe(words, counts, size=size, special_tokens=recipe.special_tokens, alphabet=alphabet)
    vocab = {token: token_id for token_id, token in enumerate(subwords.tokens)}
    return models.BPE(vocab=vocab, merges=subwords.merges)
