"""Learning a tokenizer from counted words, so that many processes can count and one can learn."""

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
    """A tokenizer of at most `size` tokens, special ones included (bpe without a recipe). The same texts in any order
    give the same bytes."""
    recipe = recipe or TokenizerRecipe()
    words = count_words(texts, recipe)
    return train_on_word_counts(list(words), list(words.values()), size=size, recipe=recipe)


# Counting.


_SAFE_BREAK = re.compile(r"(?=[ \n])(?<=\w)")
"""Where a text may be cut without cutting a word of any kind: after a letter or digit, before a space or line end."""

_MANY_SUBSTRINGS = 1 << 18


def count_words(texts: Iterable[str], recipe: TokenizerRecipe) -> Counter[str]:
    """How often each word occurs, spelled as the model will see it. No token reaches beyond a word."""
    blank = _blank(recipe)
    normalize = blank.normalizer.normalize_str if blank.normalizer else str
    words: Counter[str] = Counter()
    substrings: Counter[str] = (
        Counter()
    )  # most substrings occur many times, and splitting one into words takes the time
    for text in texts:
        substrings.update(_SAFE_BREAK.split(normalize(text)))
        if len(substrings) > _MANY_SUBSTRINGS:
            _count_substrings(substrings, blank, words)
            substrings.clear()
    _count_substrings(substrings, blank, words)
    return words


def _count_substrings(substrings: Counter[str], blank: Tokenizer, words: Counter[str]) -> None:
    for substring, count in substrings.items():
        for word, _ in blank.pre_tokenizer.pre_tokenize_str(substring):
            words[word] += count


def _blank(recipe: TokenizerRecipe) -> Tokenizer:
    """A tokenizer with the normalizer, pre-tokenizer and decoder of a recipe, and no model yet."""
    tokenizer = Tokenizer(models.BPE())
    parts: list[Any] = [] if recipe.normalization == "none" else [_NORMALIZERS[recipe.normalization]()]
    digits = [pre_tokenizers.Digits(individual_digits=True)] if recipe.split_digits else []
    if recipe.kind == "bpe":
        cuts = [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.decoder = decoders.ByteLevel()
    elif recipe.kind == "wordpiece":
        parts.append(normalizers.BertNormalizer(strip_accents=False, lowercase=recipe.lowercase))
        cuts = [pre_tokenizers.BertPreTokenizer(), *digits]
        tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # else "do not" became "don't"
    else:
        cuts = [pre_tokenizers.Split(_UNIGRAM_WORD, behavior="isolated"), *digits]
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    if parts:
        tokenizer.normalizer = normalizers.Sequence(parts) if len(parts) > 1 else parts[0]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    return tokenizer


_NORMALIZERS = {"NFC": normalizers.NFC, "NFKC": normalizers.NFKC}

_UNIGRAM_WORD = Regex(r" *[^ \n\t<]*<| *[^ \n\t<]+| +|[\n\t]")
"""A word with the spaces before it; line ends and tabs by themselves. Spaces stay spaces, for sentencepiece's sign for
them, U+2581, may occur in a text too. A Unigram model finds all of its vocabulary in a word, also <|end|> and the bytes
<0x00> to <0xFF>; so that a document cannot hold these tokens, a word ends after a <."""


# Learning.


def train_on_word_counts(
    words: Sequence[str], counts: Sequence[int], *, size: int, recipe: TokenizerRecipe
) -> Tokenizer:
    """A tokenizer of at most `size` tokens from distinct words and their counts, in any order.

    Raises ValueError when `size` has no room for the characters that need a token.
    """
    tokenizer = _blank(recipe)
    learn = {"bpe": _train_bpe_model, "wordpiece": train_wordpiece, "unigram": train_unigram}[recipe.kind]
    tokenizer.model = learn(words, counts, size, recipe)
    tokenizer.add_special_tokens(list(recipe.special_tokens))
    return tokenizer


def _train_bpe_model(words: Sequence[str], counts: Sequence[int], size: int, recipe: TokenizerRecipe) -> models.BPE:
    """Byte-level BPE; the same as `tokenizers.trainers.BpeTrainer` learns."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    subwords = train_bpe(words, counts, size=size, special_tokens=recipe.special_tokens, alphabet=alphabet)
    vocab = {token: token_id for token_id, token in enumerate(subwords.tokens)}
    return models.BPE(vocab=vocab, merges=subwords.merges)
