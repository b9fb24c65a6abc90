"""Merges on counted words: worked by hand, and against the trainer of `tokenizers` and a naive one."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from data.tokens.bpe import train_bpe

SHAKESPEARE = Path(__file__).parent / "shakespeare.txt"

Found = tuple[list[str], list[list[str]]]


def trained(tokenizer: Tokenizer, texts: list[str], size: int, alphabet: list[str]) -> Found:
    """Tokens by id, and merges, of `tokenizers`' own trainer."""
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "<e>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), model["merges"]


def learnt(tokenizer: Tokenizer, texts: list[str], size: int, alphabet: list[str]) -> Found:
    """The same by ours, from the words' counts."""
    cut = tokenizer.pre_tokenizer.pre_tokenize_str
    counts = Counter(word for text in texts for word, _ in cut(text))
    words = sorted(counts)
    found = train_bpe(
        words, [counts[word] for word in words], size=size, special_tokens=["<s>", "<e>"], alphabet=alphabet
    )
    return found.tokens, [list(merge) for merge in found.merges]


def naive(words: list[str], counts: list[int], size: int, prefix: str) -> list[str]:
    """Tokens by the rules alone: every pair counted anew before every merge."""
    spelt = [[letter if place == 0 else prefix + letter for place, letter in enumerate(word)] for word in words]
    tokens = sorted({letter for word in words for letter in word})
    if prefix:
        tokens += sorted({symbol for word in spelt for symbol in word[1:]})
    while len(tokens) < size:
        pairs: Counter[tuple[int, int]] = Counter()
        for word, count in zip(spelt, counts, strict=True):
            for left, right in zip(word, word[1:], strict=False):
                pairs[tokens.index(left), tokens.index(right)] += count
        if not pairs:
            break
        left, right = (tokens[part] for part in min(pairs, key=lambda pair: (-pairs[pair], pair)))
        tokens.append(left + right.removeprefix(prefix))
        for word in spelt:
            place = 0
            while place < len(word) - 1:
                if word[place : place + 2] == [left, right]:
                    word[place : place + 2] = [tokens[-1]]
                place += 1
    return tokens


def test_merges_worked_by_hand() -> None:
    # a b: 5 + 2; b c: 2; a a: 3 x 3 in aaaa, two of which merge; then aa aa: 3, ab c: 2.
    found = train_bpe(["ab", "abc", "aaaa"], [5, 2, 3], size=7)
    assert found.tokens == ["a", "b", "c", "aa", "ab", "aaaa", "abc"]
    assert found.merges == [("a", "a"), ("a", "b"), ("aa", "aa"), ("ab", "c")]


def test_of_equally_frequent_pairs_the_lowest_ids_come_first() -> None:
    assert train_bpe(["dc", "ab", "ba"], [1, 1, 1], size=9).tokens[4:] == ["ab", "ba", "dc"]


@pytest.mark.parametrize("letters", ["a", "ab", "abcde", "aé日😀1"])
def test_random_words_give_the_merges_of_the_known_trainer(letters: str) -> None:
    draw = random.Random(letters)
    for _ in range(60):
        words = ["".join(draw.choices(letters, k=draw.randint(1, 12))) for _ in range(draw.randint(1, 60))]
        texts = [" ".join(draw.choices(words, k=draw.randint(1, 100))) for _ in range(3)]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        size = draw.randint(3, 150)
        assert learnt(tokenizer, texts, size, []) == trained(tokenizer, texts, size, [])


@pytest.mark.parametrize("size", [300, 1000, 3000])
@pytest.mark.parametrize("corpus", ["shakespeare", "generated"])
def test_real_text_gives_the_merges_of_the_known_trainer(corpus: str, size: int) -> None:
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
    assert learnt(tokenizer, texts, size, alphabet) == trained(tokenizer, texts, size, alphabet)


@pytest.mark.parametrize("prefix", ["", "##"])
def test_random_words_give_the_tokens_of_a_naive_trainer(prefix: str) -> None:
    draw = random.Random(1)
    for _ in range(60):
        words = sorted({"".join(draw.choices("abc", k=draw.randint(1, 7))) for _ in range(draw.randint(1, 12))})
        counts = [draw.randint(1, 5) for _ in words]
        size = draw.randint(3, 40)
        alone = naive(words, counts, size, prefix)
        assert train_bpe(words, counts, size=size, prefix=prefix).tokens == alone
        mixed = sorted(zip(words, counts, strict=True), key=lambda _: draw.random())
        again = train_bpe([word for word, _ in mixed], [count for _, count in mixed], size=size, prefix=prefix)
        assert again.tokens == alone  # the order of the words is nothing


def test_a_merge_that_spells_a_special_token_takes_its_id() -> None:
    found = train_bpe(["abc"], [1], size=9, special_tokens=["ab"])
    assert found.tokens == ["ab", "a", "b", "c", "abc"] and found.merges == [("a", "b"), ("ab", "c")]


def test_no_words_leave_the_alphabet() -> None:
    assert train_bpe([], [], size=9, special_tokens=["<s>"], alphabet="ba") == (["<s>", "a", "b"], [])


def test_counts_beyond_32_bits_do_not_wrap() -> None:
    assert train_bpe(["ab", "bc"], [2**31 - 1, 2**40], size=5).tokens[3:] == ["bc", "ab"]


def test_one_word_of_a_million_letters_is_no_trap() -> None:
    word = "".join(random.Random(2).choices("abcdefgh", k=1_000_000))
    assert len(train_bpe([word], [1], size=200).tokens) == 200
    # Equal letters double with every merge.
    assert train_bpe(["a" * 2**20], [1], size=99).tokens == ["a" * 2**power for power in range(21)]
