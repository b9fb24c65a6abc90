"""How the quality steps count sentences."""

from functools import lru_cache

import regex

from data.words import split_words

_TERMINAL = regex.compile(r"\p{Sentence_Terminal}")


_ONLY_PUNCTUATION = regex.compile(r"\p{P}+")


@lru_cache(maxsize=1 << 12)
def ends_sentence(character: str) -> bool:
    """Return whether the character ends sentences according to Unicode."""
    return _TERMINAL.fullmatch(character) is not None


def num_sentences(line: str) -> int:
    """Return the number of sentences in a line.

    A punctuation mark ends a sentence only if `split_words` separates it from the word before. The full stop of an
    abbreviation is not separated.
    """
    num_started, has_ended = 0, True
    for word in split_words(line):
        if len(word) == 1 and ends_sentence(word):
            num_started, has_ended = max(num_started, 1), True
        elif has_ended and not _ONLY_PUNCTUATION.fullmatch(word):
            num_started, has_ended = num_started + 1, False
    return num_started
