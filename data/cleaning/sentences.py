"""Sentences: how the quality steps count them."""

from functools import lru_cache

import regex

from data.cleaning.words import split_words

_TERMINAL = regex.compile(r"\p{Sentence_Terminal}")


_ONLY_PUNCTUATION = regex.compile(r"\p{P}+")


@lru_cache(maxsize=1 << 12)
def ends_sentence(character: str) -> bool:
    """Whether Unicode says that this character ends sentences."""
    return _TERMINAL.fullmatch(character) is not None


def num_sentences(line: str) -> int:
    """Number of sentences in a line. A mark ends one only where it is a word of its own, no part of an abbreviation."""
    number, ended = 0, True
    for word in split_words(line):
        if len(word) == 1 and ends_sentence(word):
            number, ended = max(number, 1), True
        elif ended and not _ONLY_PUNCTUATION.fullmatch(word):
            number, ended = number + 1, False
    return number
