"""Tests of the rules that split text into words: words are compared with lists written by hand."""

import random
from typing import Literal

import pytest
import regex
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from data.tokens.pre_tokenizer import PreTokenizerName, byte_level_splits, unigram_splits, wordpiece_splits
from data.tokens.tokenizer_recipe import SPECIAL_TOKENS, TokenizerRecipe
from data.tokens.tokenizer_training import train_tokenizer

TEXTS = {
    "Devanagari": ("हिन्दी में किताबें", ["हिन्दी", " में", " किताबें"]),
    "Devanagari with a joiner": ("क्‍ष और", ["क्‍ष", " और"]),
    "Bengali": ("বাংলা ভাষা।", ["বাংলা", " ভাষা", "।"]),
    "Tamil": ("தமிழ்", ["தமிழ்"]),
    "Thai": ("ภาษาไทยที่นี่ เก้า", ["ภาษาไทยที่นี่", " เก้า"]),
    "Khmer": ("ភាសាខ្មែរ។", ["ភាសាខ្មែរ", "។"]),
    "Burmese": ("မြန်မာဘာသာ", ["မြန်မာဘာသာ"]),
    "vocalised Arabic": ("اللُّغَةُ العَرَبِيَّة", ["اللُّغَةُ", " العَرَبِيَّة"]),
    "vocalised Hebrew": ("שָׁלוֹם עוֹלָם", ["שָׁלוֹם", " עוֹלָם"]),
    "Persian with a non-joiner": ("می‌خواهم", ["می‌خواهم"]),
    "decomposed Vietnamese": ("tie\u0302\u0301ng Vie\u0323\u0302t", ["tie\u0302\u0301ng", " Vie\u0323\u0302t"]),
    "emoji": ("❤️ok 👨‍👩‍👧 1️⃣", ["❤️", "ok", " 👨‍👩‍👧", " ", "1", "️⃣"]),
    "English": ("We'll go  at 12:30.\n\n", ["We", "'ll", " go", " ", " at", " ", "1", "2", ":", "3", "0", ".", "\n\n"]),
}


def words_of(text: str, name: PreTokenizerName = "words", *, split_digits: bool = True) -> list[str]:
    sequence = pre_tokenizers.Sequence(byte_level_splits(name, split_digits=split_digits))
    spans = [span for _, span in sequence.pre_tokenize_str(text)]
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize("name", TEXTS)
def test_marks_and_joiners_stay_in_words(name: str) -> None:
    text, expected = TEXTS[name]
    assert words_of(text) == expected
    assert "".join(words_of(text)) == text


def test_the_published_rules_cut_words_at_marks() -> None:
    assert words_of("हिन्दी", "gpt2") == ["ह", "ि", "न", "्", "द", "ी"]
    assert words_of("हिन्दी", "llama3") == ["ह", "िन", "्द", "ी"]


def test_digits_are_grouped_as_the_rule_says() -> None:
    assert words_of("a 1234567", split_digits=False) == ["a", " 1234567"]
    assert words_of("a 1234567", "gpt2", split_digits=False) == ["a", " 1234567"]
    assert words_of("a 1234567", "llama3", split_digits=False) == ["a", " ", "123", "456", "7"]
    for name in ("words", "gpt2", "llama3"):
        assert words_of("a 12", name) == ["a", " ", "1", "2"]


def test_without_marks_and_joiners_the_words_are_those_of_gpt2() -> None:
    draw = random.Random(0)
    pieces = [*" \n\t'1é²Ⅷ-_", "  ", "\r\n", "'s", "'ll", "the", "def ", "23", "日本", "\u3000", "ſ", "x", "."]
    for _ in range(3000):
        text = "".join(draw.choices(pieces, k=draw.randint(0, 15)))
        for split_digits in (True, False):
            assert words_of(text, split_digits=split_digits) == words_of(text, "gpt2", split_digits=split_digits)


REGEX_MODULE = {
    "words": (
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}[\p{L}\p{M}\u200c\u200d]*|\p{N}| ?[^\s\p{L}\p{N}]+"
        r"|\s+(?=\p{N}|\Z)|\s+(?=\s)|\s"
    ),
    "llama3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""The expressions in the syntax of the module `regex`."""


@pytest.mark.parametrize("name", ["words", "llama3"])
def test_the_words_are_those_of_another_library(name: PreTokenizerName) -> None:
    draw = random.Random(1)
    pieces = [*" \n'1-_", "\r\n", "the", "हि", "ก็", "နို", "\u0301", "\u200d", "日"]
    for _ in range(2000):
        text = "".join(draw.choices(pieces, k=draw.randint(0, 15)))
        assert words_of(text, name) == regex.findall(REGEX_MODULE[name], text)


SCRIPTS = {  # consonants and dependent vowel signs, all of which are combining marks
    "Devanagari": ("कखगघचजटडतदनपबमयरलवशसह", "ािीुूेैोौं्"),
    "Bengali": ("কখগঘচজটডতদনপবমযরলশসহ", "ািীুূেৈোৌং"),
    "Thai": ("กขคงจชซญดตถทนบปพฟมยรลวสห", "ัิีึืุู็่้"),
    "Khmer": ("កខគឃងចឆជញដណតថទនបផពមយរលវសហ", "ាិីឹឺុូោៅំ"),
    "Burmese": ("ကခဂငစဆညတထဒနပဖဗမယရလဝသဟ", "ာိီုူေဲံ့း်"),
}


def generated_text(script: str, *, seed: int) -> str:
    """Words of a made-up language with Zipf's frequencies. `seed` chooses the text, not the language."""
    consonants, signs = SCRIPTS[script]
    draw = random.Random(script)
    words = [
        "".join(draw.choice(consonants) + draw.choice(signs) for _ in range(draw.randint(1, 4))) for _ in range(800)
    ]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    return " ".join(random.Random(seed).choices(words, weights, k=6000))


@pytest.mark.parametrize("script", SCRIPTS)
def test_tokens_per_word_are_those_of_bpe_with_marks_inside_words(script: str) -> None:
    learned, text = generated_text(script, seed=0), generated_text(script, seed=1)
    reference = Tokenizer(models.BPE())
    marks_inside = pre_tokenizers.Split(Regex(r" ?[\p{L}\p{M}]+|\s+|[^\s\p{L}\p{M}]+"), "isolated")
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [marks_inside, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    reference.train_from_iterator([learned], trainer)

    def tokens_per_word(tokenizer: Tokenizer) -> float:
        return len(tokenizer.encode(text, add_special_tokens=False).ids) / len(text.split())

    expected = tokens_per_word(reference)
    assert tokens_per_word(train_tokenizer([learned], size=1000)) == pytest.approx(expected, rel=0.05)
    with_gpt2 = train_tokenizer([learned], size=1000, recipe=TokenizerRecipe(pre_tokenizer="gpt2"))
    assert tokens_per_word(with_gpt2) > 1.5 * expected


def test_wordpiece_cuts_a_sentence_without_spaces_and_keeps_marks_with_their_letters() -> None:
    sentence = "ก็ที่นี่" * 40
    words = [word for word, _ in pre_tokenizers.Sequence(wordpiece_splits()).pre_tokenize_str(f"a {sentence}, b")]
    assert words[0] == "a" and words[-2:] == [",", "b"] and "".join(words[1:-2]) == sentence
    assert all(len(word) <= 100 and not regex.match(r"\p{M}", word) for word in words)
    tokenizer = train_tokenizer([sentence, "a b"], size=60, recipe=TokenizerRecipe(kind="wordpiece"))
    assert "<|unk|>" not in tokenizer.encode(sentence).tokens


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_marks_and_joiners_survive_the_other_kinds(kind: Literal["wordpiece", "unigram"]) -> None:
    text = "می‌خواهم क्‍ष हिन्दी"
    tokenizer = train_tokenizer([text] * 9, size=40, recipe=TokenizerRecipe(kind=kind))
    ids = tokenizer.encode(text).ids
    assert "".join(tokenizer.decode(ids, skip_special_tokens=False).split()) == "".join(text.split())
    steps = wordpiece_splits() if kind == "wordpiece" else unigram_splits()
    words = [word for word, _ in pre_tokenizers.Sequence(steps).pre_tokenize_str(text)]
    assert [word.strip() for word in words] == text.split()
