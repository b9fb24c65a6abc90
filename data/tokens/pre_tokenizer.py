r"""Pre-tokenizers: the rules that split a text into words before its tokens are learned or looked up.

A word is a pre-token: a piece of text whose borders no token crosses. Together, the words of a text are the text, white
space included.

The rules for byte-level BPE are regular expressions. Both libraries that encode (`tokenizers` and tiktoken) read the
same expression. Of the rules, only `words` keeps combining marks inside words. The vowel signs of Devanagari, Bengali,
Thai, Khmer or Burmese are such marks, as are the vowel points of Arabic and Hebrew. The other two rules are the
published ones. They cut a word before and after every mark, because a mark is not a letter (`\p{L}`).
"""

from functools import lru_cache
from typing import Any, Literal

from tokenizers import Regex, pre_tokenizers

PreTokenizerName = Literal["words", "gpt2", "llama3"]
"""Name of a rule that splits text for byte-level BPE."""

_JOINERS = r"\x{200c}\x{200d}"
"""Zero-width non-joiner and joiner. They stand inside words of Persian, Hindi or Malayalam and between emoji."""

_CONTRACTIONS = r"'(?:[sdmt]|ll|ve|re)"
_WORD = rf" ?\p{{L}}[\p{{L}}\p{{M}}{_JOINERS}]*+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]++"  # with the marks after them, such as the variation selector of an emoji
_SPACES = r"\s+(?=\s)|\s"


def byte_level_splits(name: PreTokenizerName, *, split_digits: bool) -> list[Any]:
    """Return the pre-tokenizer of byte-level BPE as a list of steps.

    words: a word is a letter with the letters, marks and joiners after it, and the space before it. On text without
        marks and joiners it is the same as gpt2.
    gpt2: the rule of GPT-2 (Radford et al. 2019).
    llama3: the rule that Llama 3 publishes in its tokenizer.json. With `split_digits`, it is that of Qwen 2.
    split_digits: whether each digit is a word of its own. Otherwise digits are grouped as the rule does: all of a
        number together, or for llama3 up to three.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name == "gpt2")
    if name == "gpt2":
        return [*([pre_tokenizers.Digits(individual_digits=True)] if split_digits else []), byte_level]
    pattern = _words_pattern(split_digits) if name == "words" else _llama3_pattern(split_digits)
    return [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), byte_level]


def _words_pattern(split_digits: bool) -> str:
    """Return the expression of `words`. If digits are split, white space before a digit is a word of its own."""
    numbers, last_spaces = (r"\p{N}", r"\s++(?=\p{N}|\z)") if split_digits else (r" ?\p{N}++", r"\s++\z")
    return "|".join([_CONTRACTIONS, _WORD, numbers, _SYMBOLS, last_spaces, _SPACES])


def _llama3_pattern(split_digits: bool) -> str:
    numbers = r"\p{N}" if split_digits else r"\p{N}{1,3}"
    return (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


WORDPIECE_MAX_CHARACTERS = 100
"""Longest word that a WordPiece model encodes, in characters. It encodes longer words as unknown."""


def wordpiece_splits() -> list[Any]:
    """Return the pre-tokenizer of BERT, which splits at white space and punctuation, as a list of steps.

    Words are cut after 80 characters and the marks and joiners that follow, up to 20 of them. So no word is too long
    for a WordPiece model, to which a long sentence of a script without spaces would be unknown.
    """
    cut = Regex(rf".{{1,{WORDPIECE_MAX_CHARACTERS - 20}}}[\p{{M}}{_JOINERS}]{{0,20}}")
    return [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(cut, behavior="isolated")]


def unigram_splits() -> list[Any]:
    """Return the pre-tokenizer of Unigram models as a list of steps.

    A word begins with the spaces before it. Line ends and tabs are words of their own. Spaces are not replaced by
    U+2581, as sentencepiece does, because a text can contain U+2581 as well. A word ends after each "<", because a
    Unigram model would otherwise find the special tokens and the byte tokens <0x00> to <0xFF> in texts that contain
    their names.
    """
    return [pre_tokenizers.Split(Regex(r" *[^ \n\t<]*<| *[^ \n\t<]+| +|[\n\t]"), behavior="isolated")]


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """Return the byte for each character with which byte-level BPE writes bytes in its vocabulary.

    A printable byte is written as the character with this code. The other bytes are written, in ascending order, as the
    characters from U+0100 on (Radford et al. 2019, the published encoder).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
