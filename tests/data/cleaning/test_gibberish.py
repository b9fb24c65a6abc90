"""What the step `gibberish` takes for random letters, in made-up languages of many scripts."""

import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from cluster.plain import from_plain
from data.cleaning.gibberish import Gibberish, _direction_of_ngrams, gibberish
from data.cleaning.language_rules import rules_for
from data.cleaning.recipe import Step, clean
from data.document import Document

ALPHABETS = {
    "Latin": "abcdefghijklmnoprstuvz",
    "Cyrillic": "абвгдежзиклмнопрстуфхцч",
    "Greek": "αβγδεζηθικλμνξοπρστυφω",
    "Arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "Devanagari": "अकखगघचजटतथदधनपबमयरलवसहािीुेो",
    "Thai": "กขคงจชซดตถทนบปผพมยรลวสหอะาิีุเแไ",
    "Khmer": "កខគងចជញដតថទនបផពមយរលវសហអាិីុេោ",
    "Myanmar": "ကခဂငစဆညတထဒနပဖဗမယရလဝသဟအာိုေ",
    "Ethiopic": "ሀለመሰረቀበተነአከወዘየደገጠጸፈሁሉሙሱሩቁቡቱኑ",
    "Hangul": "가나다라마바사아자차카타파하고노도로모보소오조",
    "Han": "".join(chr(0x4E00 + 7 * number) for number in range(400)),
}


def made_up_prose(alphabet: str, num_letters: int, seed: int) -> str:
    """Text of a made-up language: few letters may follow each letter, and some words are much more frequent."""
    draw = random.Random(seed)
    following = {letter: draw.sample(alphabet, 4) for letter in alphabet}

    def word() -> str:
        letters = [draw.choice(alphabet)]
        while len(letters) < draw.randint(2, 7):
            letters.append(draw.choice(following[letters[-1]]))
        return "".join(letters)

    words = [word() for _ in range(200)]
    weights = [1 / (rank + 9) for rank in range(200)]
    return " ".join(draw.choices(words, weights, k=num_letters // 4)) + "."


def reasons(*texts: str, **settings: float) -> list[str | None]:
    return gibberish(list(texts), Gibberish(**settings)).reasons  # type: ignore[arg-type]


@pytest.mark.parametrize("script", ALPHABETS)
def test_prose_is_kept_and_random_letters_are_dropped_in_every_script(script: str) -> None:
    draw = random.Random(script)
    prose = [made_up_prose(ALPHABETS[script], 600, seed) for seed in range(20)]
    shuffled = ["".join(draw.sample(text, len(text))) for text in prose]
    in_words = [re.sub(r"\S+", lambda match: "".join(draw.sample(match[0], len(match[0]))), text) for text in prose]
    letters = ["".join(draw.choices(ALPHABETS[script] + " ", k=600)) for _ in prose]
    assert reasons(*prose) == [None] * 20
    num_dropped = sum(reason == "gibberish/letter_order" for reason in reasons(*shuffled, *in_words, *letters))
    # Of random texts, 1 % have more direction than 2. The words that are frequent here make it some more.
    assert num_dropped >= 55


def test_random_letters_between_real_marks_are_dropped() -> None:
    # Hebrew with points: the points stay where they are, and only the letters are random.
    draw = random.Random(1)
    prose = re.sub("([אבגדה])", "\\1ָּ", made_up_prose("אבגדהוזחטיכלמנסעפצקרשת", 900, 1))
    letters = [letter for letter in prose if letter.isalpha()]
    random_letters = "".join(draw.choice(letters) if character.isalpha() else character for character in prose)
    assert reasons(prose, random_letters) == [None, "gibberish/letter_order"]


def test_case_digits_and_punctuation_say_nothing() -> None:
    prose = made_up_prose(ALPHABETS["Latin"], 600, 1)
    assert reasons(prose.upper(), prose.title()) == [None, None]
    assert reasons("12:34 - 56.78 (90) " * 100) == [None], "there are too few letters to judge"
    assert reasons("", "kurz") == [None, None]


def test_only_the_start_of_a_text_is_examined_and_short_texts_are_kept() -> None:
    prose = made_up_prose(ALPHABETS["Latin"], 600, 2)
    noise = "".join(random.Random(0).choices(ALPHABETS["Latin"], k=5000))
    assert reasons(prose * 4 + noise, noise + prose) == [None, "gibberish/letter_order"]
    assert reasons(noise[:160]) == ["gibberish/letter_order"]
    assert reasons(noise[:159]) == [None]
    assert reasons(noise[:149], min_letters=150) == [None]


def test_the_direction_of_pairs_is_counted_as_by_hand() -> None:
    # a b a b c b: the pairs are ab, ba, ab, bc, cb. One pair of places has the same (ab, ab). Three have the reverse:
    # ab and ba twice, and bc and cb. So the result is (1 - 3) / sqrt(1 + 3 + 1).
    letters = np.array([1, 2, 1, 2, 3, 2])
    assert _direction_of_ngrams(letters, 2) == pytest.approx(-2 / 5**0.5)
    # The triples are aba, bab, abc, bcb. Only abc is not the same in reverse, and it occurs once.
    assert _direction_of_ngrams(letters, 3) == 0
    # A sequence does not extend over what is not a letter.
    assert _direction_of_ngrams(np.array([1, 2, 0, 1, 2, 0, 1, 2]), 2) == pytest.approx(3 / 4**0.5)


def test_the_error_names_the_wrong_setting() -> None:
    with pytest.raises(ValueError, match=r"steps\[0\].gibberish.max_characters: 50 must be at least 160"):
        Gibberish(max_characters=50).check("steps[0].gibberish")


# The multilingual recipe on made-up languages, each in a script of its own. benchmarks/multilingual.py does the same on
# real texts.

SPACED = {"Cyrillic": "ru", "Greek": "el", "Arabic": "ar", "Devanagari": "hi", "Ethiopic": "am"}
UNSPACED = {"Thai": "th", "Khmer": "km", "Han": "zh"}


def recipe() -> list[Step]:
    """The steps of the multilingual recipe that judge texts. Without a language, the script decides."""
    path = Path(__file__).parents[3] / "configs" / "recipes" / "multilingual.yaml"
    steps = from_plain(list[Step], yaml.safe_load(path.read_text())["steps"])
    return [step for step in steps if step.repetition or step.gibberish or step.gopher_quality or step.fineweb_quality]


def num_kept(texts: Sequence[str]) -> int:
    return len(clean([Document(f"s/{number}", text, "s") for number, text in enumerate(texts)], recipe()).kept)


def made_up_document(script: str, seed: int) -> str:
    """Sentences of made-up words and stop words of the language, in a few paragraphs."""
    draw = random.Random(seed)
    rules = rules_for((SPACED | UNSPACED)[script], "")
    assert rules is not None
    words = made_up_prose(ALPHABETS[script], 1600, seed).rstrip(".").split()
    words = [draw.choice(rules.stop_words) if draw.random() < 0.2 else word for word in words]
    joiner = " " if script in SPACED else ""
    mark = "。" if script == "Han" else "။"
    sentences = [joiner.join(words[start : start + 12]) + mark for start in range(0, 384, 12)]
    return "\n".join(joiner.join(sentences[start : start + 8]) for start in range(0, len(sentences), 8))


@pytest.mark.parametrize("script", [*SPACED, *UNSPACED])
def test_the_multilingual_recipe_keeps_prose_and_drops_repetition_and_gibberish(script: str) -> None:
    draw = random.Random(script)
    prose = [made_up_document(script, seed) for seed in range(12)]
    assert num_kept(prose) == 12
    sentences = [text.split("\n")[0].split("။")[0].split("。")[0] for text in prose]
    repeated = [sentence * 40 for sentence in sentences] + ["\n".join([sentence] * 40) for sentence in sentences]
    assert num_kept(repeated + [sentence[:6] * 200 for sentence in sentences]) == 0
    shuffled = ["".join(draw.sample(text, len(text))) for text in prose]
    random_words = [" ".join("".join(draw.choices(ALPHABETS[script], k=5)) for _ in range(150)) for _ in prose]
    assert num_kept(shuffled + random_words) <= 1
