"""Trains a tokenizer from word counts. Many processes can count words, and one process trains on the sums.

A word is a pre-token: a piece of text whose borders no token crosses. Before training, each text is normalized and
split into words as the finished tokenizer will do it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from data.tokens.bpe import train_bpe
from data.tokens.pre_tokenizer import byte_level_splits, unigram_splits, wordpiece_splits
from data.tokens.tokenizer_recipe import TokenizerRecipe
from data.tokens.unigram import train_unigram
from data.tokens.wordpiece import train_wordpiece


def train_tokenizer(texts: Iterable[str], *, size: int, recipe: TokenizerRecipe | None = None) -> Tokenizer:
    """Return a tokenizer that is trained on the texts. It has at most `size` tokens, including the special tokens.

    Without a recipe, it is a byte-level BPE tokenizer. The order of the texts does not change the result. Raises
    ValueError in the cases of `train_on_word_counts`.
    """
    recipe = recipe or TokenizerRecipe()
    words: Counter[str] = Counter()
    for counts in count_words(texts, recipe):
        words.update(counts)
    return train_on_word_counts(list(words), list(words.values()), size=size, recipe=recipe)


# Counting.


_SAFE_BREAK = re.compile(r"(?=[ \n])(?:(?<=[^\W_])|(?<=\S)(?= ))")
"""Where a text can be cut without cutting a word, for every rule of `data/tokens/pre_tokenizer.py`: between a letter or
digit and the line end after it, and between any character but white space and the space after it."""

# Limits of what is in memory. In a script without spaces, every sentence is a word, and nearly all are distinct.
_MAX_SUBSTRINGS = 1 << 18  # distinct substrings before they are split into words
_MAX_SUBSTRING_CHARACTERS = 1 << 22  # characters of the texts that these substrings are from
_MAX_WORD_BYTES = 1 << 26  # memory of the distinct words and their counts before they are yielded

MAX_COUNTED_CHARACTERS = 1024
"""Longer words are counted as several words of this length, so that no word needs much memory in training. Their pairs
of characters are counted, but for those at the cuts. Encoding does not cut words."""


def count_words(texts: Iterable[str], recipe: TokenizerRecipe) -> Iterator[Counter[str]]:
    """Yield how often each word occurs in some of the texts, after normalization. The sums are those of all texts.

    The memory that this needs does not grow with the number of texts.
    """
    untrained = _untrained_tokenizer(recipe)
    normalize = untrained.normalizer.normalize_str if untrained.normalizer else str
    words: Counter[str] = Counter()
    # Splitting into words is slow and most substrings occur many times, so each distinct substring is split only once.
    substrings: Counter[str] = Counter()
    num_characters = 0
    for text in texts:
        substrings.update(_SAFE_BREAK.split(normalize(text)))
        num_characters += len(text)
        if len(substrings) > _MAX_SUBSTRINGS or num_characters > _MAX_SUBSTRING_CHARACTERS:
            _count_words_of_substrings(substrings, untrained, words)
            substrings.clear()
            num_characters = 0
            # A string takes up to 2 bytes per character and, with its count and its entry in the table, 200 bytes more.
            if 2 * sum(map(len, words)) + 200 * len(words) > _MAX_WORD_BYTES:
                yield words
                words = Counter()
    _count_words_of_substrings(substrings, untrained, words)
    yield words


def _count_words_of_substrings(substrings: Counter[str], tokenizer: Tokenizer, words: Counter[str]) -> None:
    """Add to `words` the words of all substrings, multiplied by the counts of the substrings."""
    for substring, count in substrings.items():
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(substring):
            if len(word) <= MAX_COUNTED_CHARACTERS:
                words[word] += count
                continue
            for start in range(0, len(word), MAX_COUNTED_CHARACTERS):
                words[word[start : start + MAX_COUNTED_CHARACTERS]] += count


def _untrained_tokenizer(recipe: TokenizerRecipe) -> Tokenizer:
    """Return a tokenizer with the normalizer, pre-tokenizer and decoder of the recipe and an empty vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    normalizer_steps: list[Any] = [] if recipe.normalization == "none" else [_NORMALIZERS[recipe.normalization]()]
    digits = [pre_tokenizers.Digits(individual_digits=True)] if recipe.split_digits else []
    if recipe.kind == "bpe":
        splits = byte_level_splits(recipe.pre_tokenizer, split_digits=recipe.split_digits)
        tokenizer.decoder = decoders.ByteLevel()
    elif recipe.kind == "wordpiece":
        normalizer_steps.append(normalizers.Replace(_CONTROL_CHARACTERS, ""))
        bert = normalizers.BertNormalizer(clean_text=False, strip_accents=False, lowercase=recipe.lowercase)
        normalizer_steps.append(bert)
        splits = [*wordpiece_splits(), *digits]
        tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # a cleanup would change "do not" to "don't"
    else:
        splits = [*unigram_splits(), *digits]
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    if normalizer_steps:
        several = len(normalizer_steps) > 1
        tokenizer.normalizer = normalizers.Sequence(normalizer_steps) if several else normalizer_steps[0]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return tokenizer


_NORMALIZERS = {"NFC": normalizers.NFC, "NFKC": normalizers.NFKC}

_CONTROL_CHARACTERS = Regex(r"[\p{C}&&[^\t\n\r\x{200c}\x{200d}]]|\x{fffd}")
"""The characters that BERT removes from a text, without the zero-width joiners, which belong to words."""


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
