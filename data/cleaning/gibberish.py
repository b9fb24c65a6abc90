"""The step `gibberish`: drop texts whose letters are in random order, in any language.

Prose in every language and script has a direction: `th` is frequent in English and `ht` is not. In random letters, in
shuffled text and in words whose letters are shuffled, each sequence of letters is as probable as its reverse. So the
step needs no model of any language. It counts in how many ways two places of the text have the same sequence of
letters, and in how many ways one place has the reverse of the other. In prose, the first number is much higher. In
random text, both have the same expected value, and their difference is about as large as the square root of their sum.
"""

from dataclasses import dataclass
from unicodedata import category

import numpy as np

from data.cleaning.step import Outcome, check_at_least, filter_outcome


@dataclass(frozen=True, kw_only=True)
class Gibberish:
    """Drop documents whose letters are in random order, such as random letters, shuffled text and typing at random.

    Repetition and sequences of real words in random order are not noticed.
    """

    min_direction: float = 2.0
    """Minimum number of standard deviations by which the sequences of two and three letters that occur again exceed
    those that occur in reverse. Of random texts, 1 % have more than 2. In prose, the number grows with the length: of
    texts of the Universal Declaration in 43 languages, 0.2 % of those with 300 letters have fewer than 2, and none of
    those with 450 letters."""
    min_letters: int = 160
    """Documents with fewer letters are kept, because there is too little to judge: of paragraphs of Debian's handbook
    and the Universal Declaration in 10 languages, 18 % of those with 100 to 129 letters have a direction below 2, 8 %
    of those with 130 to 159, 3 % of those with 160 to 199 and 0.5 % of those with 200 to 249. Prose that hardly repeats
    a word, such as classical Chinese, has less direction."""
    max_characters: int = 2000
    """Number of characters at the start of a document that are examined."""

    def check(self, field_path: str) -> None:
        check_at_least(f"{field_path}.min_letters", self.min_letters, 3)
        check_at_least(f"{field_path}.max_characters", self.max_characters, self.min_letters)


def gibberish(texts: list[str], settings: Gibberish) -> Outcome:
    """Drop the texts whose letters are in random order, with the reason `gibberish/letter_order`."""

    def drop_reason(text: str) -> str | None:
        letters = _letters(text[: settings.max_characters], _LETTERS_AND_MARKS)
        if np.count_nonzero(letters) < settings.min_letters:
            return None
        if _direction(letters) < settings.min_direction:
            return "gibberish/letter_order"
        # Where marks follow letters, also random letters have a direction. So the letters are judged alone as well.
        without_marks = _letters(text[: settings.max_characters], _LETTERS)
        if len(without_marks) == len(letters) or np.count_nonzero(without_marks) < _MIN_LETTERS_WITHOUT_MARKS:
            return None
        return "gibberish/letter_order" if _direction(without_marks) < settings.min_direction else None

    return filter_outcome(texts, drop_reason)


_MIN_LETTERS_WITHOUT_MARKS = 250
"""With fewer letters, some prose in scripts with many marks has no direction in its letters alone."""


class _LetterTable(dict[int, str]):
    """Table for `str.translate` that keeps letters and, if `keeps_marks`, marks. It removes marks otherwise, and
    replaces all other characters by NUL."""

    def __init__(self, keeps_marks: bool) -> None:
        self.keeps_marks = keeps_marks

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if category(character)[0] == "M":
            self[code] = character if self.keeps_marks else ""
        else:
            self[code] = character if character.isalpha() else "\0"
        return self[code]


_LETTERS_AND_MARKS = _LetterTable(keeps_marks=True)
_LETTERS = _LetterTable(keeps_marks=False)


def _letters(text: str, table: _LetterTable) -> np.ndarray:
    """Return the code points of a text in lower case (int64), with 0 for all that is neither a letter nor a mark."""
    # Python's lower case of İ is two characters, an i and a dot.
    letters = text.lower().replace("i̇", "i").translate(table)
    return np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.int64)


def _direction(letters: np.ndarray) -> float:
    """Return by how many standard deviations repeated sequences exceed reversed ones. 0 is expected of random text."""
    return sum(_direction_of_ngrams(letters, n) for n in (2, 3)) / 2**0.5


def _direction_of_ngrams(letters: np.ndarray, n: int) -> float:
    """Return the number of standard deviations for the sequences of n letters.

    Palindromes say nothing and are left out.
    """
    places = len(letters) - n + 1
    shifted = [letters[start : start + places] for start in range(n)]
    is_ngram = np.logical_and.reduce([part > 0 for part in shifted]) & (shifted[0] != shifted[-1])
    # A code point has 21 bits, so three of them fit in 63.
    forward = np.bitwise_or.reduce([part << 21 * position for position, part in enumerate(shifted)])[is_ngram]
    backward = np.bitwise_or.reduce([part << 21 * position for position, part in enumerate(shifted[::-1])])[is_ngram]
    num_same = _num_equal_pairs(forward)
    num_reversed = _num_equal_pairs(np.minimum(forward, backward)) - num_same
    return (num_same - num_reversed) / (num_same + num_reversed + 1) ** 0.5


def _num_equal_pairs(values: np.ndarray) -> float:
    """Return the number of pairs of equal values."""
    _, counts = np.unique(values, return_counts=True)
    return float((counts * (counts - 1)).sum()) / 2
