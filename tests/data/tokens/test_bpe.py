"""Tests of byte-pair encoding on counted words.

The results are compared with results worked out by hand, with the trainer of `tokenizers`, and with a slow, simple
implementation.
"""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from data.tokens.bpe import train_bpe

SHAKESPEARE = Path(__file__).parent / "shakespeare.txt"

TokensAndMerges = tuple[list[str], list[list[str]]]


def train_with_library(tokenizer: Tokenizer, texts: list[str], size: int, alphabet: list[str]) -> TokensAndMerges:
    """Return the tokens in the order of their ids, and the merges, from the trainer of `tokenizers`."""
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "<e>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), model["merges"]


def train_on_counts(tokenizer: Tokenizer, texts: list[str], size: int, alphabet: list[str]) -> TokensAndMerges:
    """Return the same as `train_with_library`, from `train_bpe` and the counts of the words."""
    split = tokenizer.pre_tokenizer.pre_tokenize_str
    counts = Counter(word for text in texts for word, _ in split(text))
    words = sorted(counts)
    subwords = train_bpe(
        words, [counts[word] for word in words], size=size, special_tokens=["<s>", "<e>"], alphabet=alphabet
    )
    return subwords.tokens, [list(merge) for merge in subwords.merges]


def train_slowly(words: list[str], counts: list[int], size: int, prefix: str) -> list[str]:
    """Return the tokens of a simple implementation, which counts all pairs again before every merge."""
    symbols_of_words = [
        [letter if position == 0 else prefix + letter for position, letter in enumerate(word)] for word in words
    ]
    tokens = sorted({letter for word in words for letter in word})
    if prefix:
        tokens += sorted({symbol for word in symbols_of_words for symbol in word[1:]})
    while len(tokens) < size:
        pairs: Counter[tuple[int, int]] = Counter()
        for word, count in zip(symbols_of_words, counts, strict=True):
            for left, right in zip(word, word[1:], strict=False):
                pairs[tokens.index(left), tokens.index(right)] += count
        if not pairs:
            break
        left, right = (tokens[part] for part in min(pairs, key=lambda pair: (-pairs[pair], pair)))
        tokens.append(left + right.removeprefix(prefix))
        for word in symbols_of_words:
            position = 0
            while position < len(word) - 1:
                if word[position : position + 2] == [left, right]:
                    word[position : position + 2] = [tokens[-1]]
                position += 1
    return tokens


def test_merges_worked_by_hand() -> None:
    # Counts of the pairs: a b is 5 + 2, b c is 2, and a a is 3 x 3 in aaaa. Only two of the three pairs a a in aaaa can
    # be merged. After the merges of a a and a b, the count of aa aa is 3 and that of ab c is 2.
    subwords = train_bpe(["ab", "abc", "aaaa"], [5, 2, 3], size=7)
    assert subwords.tokens == ["a", "b", "c", "aa", "ab", "aaaa", "abc"]
    assert subwords.merges == [("a", "a"), ("a", "b"), ("aa", "aa"), ("ab", "c")]


def test_equally_frequent_pairs_are_merged_in_the_order_of_their_ids() -> None:
    assert train_bpe(["dc", "ab", "ba"], [1, 1, 1], size=9).tokens[4:] == ["ab", "ba", "dc"]


@pytest.mark.parametrize("letters", ["a", "ab", "abcde", "aé日😀1"])
def test_random_words_give_the_merges_of_the_library(letters: str) -> None:
    draw = random.Random(letters)
    for _ in range(60):
        words = ["".join(draw.choices(letters, k=draw.randint(1, 12))) for _ in range(draw.randint(1, 60))]
        texts = [" ".join(draw.choices(words, k=draw.randint(1, 100))) for _ in range(3)]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        size = draw.randint(3, 150)
        assert train_on_counts(tokenizer, texts, size, []) == train_with_library(tokenizer, texts, size, [])


@pytest.mark.parametrize("size", [300, 1000, 3000])
@pytest.mark.parametrize("corpus", ["shakespeare", "generated"])
def test_real_text_gives_the_merges_of_the_library(corpus: str, size: int) -> None:
    if corpus == "shakespeare":
        texts = SHAKESPEARE.read_text().split("\n\n")
    else:
        draw = random.Random(0)
        stems = ["".join(draw.choices("etaoinshrdlu éñ日本", k=draw.randint(1, 5))) for _ in range(300)]
        texts = [f"{''.join(draw.choices(stems, k=40))}, {draw.randint(0, 9999)};\n" for _ in range(500)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    assert train_on_counts(tokenizer, texts, size, alphabet) == train_with_library(tokenizer, texts, size, alphabet)


@pytest.mark.parametrize("prefix", ["", "##"])
def test_random_words_give_the_tokens_of_a_simple_implementation(prefix: str) -> None:
    draw = random.Random(1)
    for _ in range(60):
        words = sorted({"".join(draw.choices("abc", k=draw.randint(1, 7))) for _ in range(draw.randint(1, 12))})
        counts = [draw.randint(1, 5) for _ in words]
        size = draw.randint(3, 40)
        expected = train_slowly(words, counts, size, prefix)
        assert train_bpe(words, counts, size=size, prefix=prefix).tokens == expected
        shuffled = sorted(zip(words, counts, strict=True), key=lambda _: draw.random())
        again = train_bpe([word for word, _ in shuffled], [count for _, count in shuffled], size=size, prefix=prefix)
        assert again.tokens == expected  # The order of the words does not matter.


def test_a_merge_that_spells_a_special_token_takes_its_id() -> None:
    subwords = train_bpe(["abc"], [1], size=9, special_tokens=["ab"])
    assert subwords.tokens == ["ab", "a", "b", "c", "abc"] and subwords.merges == [("a", "b"), ("ab", "c")]


def test_without_words_the_tokens_are_the_alphabet() -> None:
    assert train_bpe([], [], size=9, special_tokens=["<s>"], alphabet="ba") == (["<s>", "a", "b"], [])


def test_counts_above_32_bits_do_not_overflow() -> None:
    assert train_bpe(["ab", "bc"], [2**31 - 1, 2**40], size=5).tokens[3:] == ["bc", "ab"]


def test_one_word_of_a_million_letters_is_fast() -> None:
    word = "".join(random.Random(2).choices("abcdefgh", k=1_000_000))
    assert len(train_bpe([word], [1], size=200).tokens) == 200
    # With equal letters, every merge doubles the length of the longest token.
    assert train_bpe(["a" * 2**20], [1], size=99).tokens == ["a" * 2**power for power in range(21)]
