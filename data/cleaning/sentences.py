"""Where sentences end, in all scripts: how the quality steps count sentences and judge the ends of lines."""

from functools import lru_cache

import regex

from data.words import split_words

_TERMINAL = regex.compile(r"[\p{Sentence_Terminal}\u037e།-༔]|፡፡")
"""The marks that end sentences according to Unicode, and three more: the Greek question mark, the strokes of Tibetan,
and two Ethiopic word spaces, which are often typed for the full stop."""
_CLOSING = "」』》〉】）〕］｣"
"""Quotation marks and brackets that are written after the mark that ends a sentence."""


_ONLY_PUNCTUATION = regex.compile(r"\p{P}+")


@lru_cache(maxsize=1 << 12)
def ends_sentence(mark: str) -> bool:
    """Return whether the punctuation mark ends sentences."""
    return _TERMINAL.fullmatch(mark) is not None


def line_ends_sentence(line: str) -> bool:
    """Return whether the last character of a line ends a sentence. Closing marks of Chinese and Japanese may follow."""
    if line[-1].isascii():
        return ends_sentence(line[-1])
    line = line.rstrip(_CLOSING)
    return bool(line) and (ends_sentence(line[-1]) or ends_sentence(line[-2:]))


def num_sentences(line: str) -> int:
    """Return the number of sentences in a line.

    A punctuation mark ends a sentence only if `split_words` separates it from the word before. The full stop of an
    abbreviation is not separated.
    """
    num_started, has_ended = 0, True
    for word in split_words(line):
        if len(word) <= 2 and ends_sentence(word):
            num_started, has_ended = max(num_started, 1), True
        elif has_ended and not _ONLY_PUNCTUATION.fullmatch(word):
            num_started, has_ended = num_started + 1, False
    return num_started
