"""MinHash: words, shingles and signatures, compared with the definition in Python integers."""

import hashlib
import random

import numpy as np

from data.cleaning.duplicates import NearDuplicates
from data.cleaning.word_runs import WORD_AMOUNT
from data.corpus.minhash import minhash_signatures, shingle_words

SETTINGS = NearDuplicates()


def test_words_have_no_case_punctuation_or_invisible_characters() -> None:
    assert shingle_words("Don\u2019t  STOP\u2014\ufb01ne, na\u00efve co\u00adop_x 3.5!") == (
        ["don", "t", "stop", "fine", "na\u00efve", "coop", "x", "3", "5"]
    )


def test_scripts_without_spaces_are_split_into_units_and_vowel_signs_are_not_split() -> None:
    assert shingle_words("中文。カナ हिन्दी ok") == ["中", "文", "カナ", "हिन्दी", "ok"]
    assert shingle_words("!!!") == ["!!!"]


def shingles(text: str, settings: NearDuplicates = SETTINGS) -> list[str]:
    """The definition: all shortest runs of words and units that hold the amount of `ngram` words, or the whole text."""
    words = shingle_words(text)
    amount = settings.units_per_word.amount_of_words
    runs = [words[at:end] for at in range(len(words)) for end in range(at + 1, len(words) + 1)]
    least = settings.ngram * WORD_AMOUNT
    return [" ".join(run) for run in runs if amount(run) >= least > amount(run[:-1])] or [" ".join(words)]


def test_a_shingle_has_as_many_units_as_hold_five_words() -> None:
    """5 words are 8.5 ideographs or 15 syllables; in a mixture, they add up."""
    assert shingles("今天天气很好我们去") == ["今 天 天 气 很 好 我 们 去"]
    assert len(shingles("今天天气很好我们去吗")) == 2
    assert len(shingles("กาขาคางาจาชาซาดาตาถาทาธานาบาปา")) == 1
    texts = [
        "今天天气很好我们想沿着河走到老磨坊去看一看",
        "เมื่อวานนี้พวกเรารอที่ห้องสมุดนานมากหลังจากกินข้าวแล้วทุกคนก็กลับบ้าน",
        "မနေ့ကကျွန်တော်တို့စာကြည့်တိုက်မှာကြာကြာစောင့်ခဲ့တယ်ထမင်းစားပြီး",
        "我们用 Linux 和 Python 写了一个小程序 to compute the mean of 12 numbers",
        "きのう図書館でずっと待っていました。カレーを食べて帰りました",
        "今天天气",
        "two words",
        "one two three four five six",
    ]
    for text in texts:
        parts = shingles(text)
        alone = minhash_signatures([text], SETTINGS)
        together = minhash_signatures([*texts, *parts], SETTINGS)[len(texts) :].min(axis=0)
        assert (alone[0] == together).all(), text


def test_near_duplicates_of_a_script_without_spaces_are_as_similar_as_their_translations() -> None:
    """One changed word in 40 words, two ideographs in 68, three syllables in 120: about the same similarity.

    The change is in 5 of 36, 10 of 60 and 17 of 106 shingles. The rest is in both texts.
    """
    draw = random.Random(4)
    languages = [
        (draw.choices(VOCABULARY, k=40), " ", ["changed"]),
        (draw.choices([chr(code) for code in range(0x4E00, 0x4FFF)], k=68), "", ["改", "变"]),
        (draw.choices([f"{chr(code)}า" for code in range(0x0E01, 0x0E20)], k=120), "", ["เก", "โข", "ไค"]),
    ]
    similarities = []
    for words, space, change in languages:
        middle = len(words) // 2
        changed = [*words[:middle], *change, *words[middle + len(change) :]]
        one, other = set(shingles(space.join(words))), set(shingles(space.join(changed)))
        similarities.append(len(one & other) / len(one | other))
    assert similarities == [31 / 41, 50 / 70, 89 / 123]


def test_a_signature_is_the_minimum_over_the_signatures_of_its_shingles() -> None:
    """The signature of a text is the minimum over texts of one shingle each, whatever other texts are in the block."""
    text = random_text(random.Random(0), 40)
    words = shingle_words(text)
    shingles = [" ".join(words[at : at + 5]) for at in range(len(words) - 4)]
    signatures = minhash_signatures([text, "a b", *shingles, text], SETTINGS)
    assert (signatures[0] == signatures[2:-1].min(axis=0)).all() and (signatures[0] == signatures[-1]).all()


def test_a_text_shorter_than_a_shingle_is_one_shingle() -> None:
    signatures = minhash_signatures(["one two", "One, two!", "two one", "one two three"], SETTINGS)
    assert (signatures[0] == signatures[1]).all()
    assert (signatures[0] != signatures[2]).all() and (signatures[0] != signatures[3]).all()


def test_signatures_do_not_depend_on_the_batch() -> None:
    rng = random.Random(1)
    texts = [random_text(rng, rng.choice([0, 1, 3, 5, 50, 3000])) for _ in range(120)]
    alone = np.concatenate([minhash_signatures([text], SETTINGS) for text in texts])
    assert (minhash_signatures(texts, SETTINGS) == alone).all()


def test_signatures_equal_those_computed_with_python_integers() -> None:
    """Implements the definition a second time. It must never change, because stored signatures are compared later."""

    def mixed(value: int) -> int:
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            value = (value ^ (value >> 33)) * factor % 2**64
        return value ^ (value >> 33)

    def shingle_hash(shingle: list[str]) -> int:
        total = 0
        for word in shingle:
            digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
            total = (total * 0x9E3779B97F4A7C15 + int.from_bytes(digest, "little")) % 2**64
        return mixed(total)

    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    hashes = [shingle_hash(words[at : at + 5]) for at in range(5)]
    stream = hashlib.shake_256(b"raymill minhash").digest(16 * 120)
    numbers = [int.from_bytes(stream[at : at + 8], "little") for at in range(0, len(stream), 8)]
    orderings = zip(numbers[::2], numbers[1::2], strict=True)
    expected = [min(((a | 1) * one + b) % 2**64 >> 32 for one in hashes) for a, b in orderings]
    assert minhash_signatures([" ".join(words)], SETTINGS).tolist() == [expected]
    assert expected[:2] == [361037417, 584266552]


def test_different_texts_of_one_shingle_have_different_signatures() -> None:
    """With shingle hashes of 32 bits, about 10 pairs of the 300,000 texts would have equal signatures."""
    texts = [f"there are {number // 1000} and {number % 1000}" for number in range(300_000)]
    signatures = minhash_signatures(texts, NearDuplicates(bands=1, rows=2))
    assert len(np.unique(signatures.view(np.uint64))) == 300_000


def test_the_share_of_equal_values_estimates_the_jaccard_similarity() -> None:
    """The mean error is within four standard errors, and the errors vary as with independent hash functions."""
    rng = random.Random(2)
    errors = []
    for share in [0.2, 0.5, 0.8] * 100:
        one, other = pair_of_texts(rng, 300, share)
        exact = jaccard(one, other)
        first, second = minhash_signatures([one, other], SETTINGS)
        errors.append(((first == second).mean() - exact) / np.sqrt(exact * (1 - exact) / 120))
    assert abs(np.mean(errors)) < 4 / np.sqrt(len(errors))
    assert 0.85 < np.std(errors) < 1.15


VOCABULARY = ["".join(random.Random(seed).choices("abcdefghijklmnop", k=3 + seed % 6)) for seed in range(4000)]


def random_text(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choices(VOCABULARY, k=num_words))


def shingle_set(text: str) -> set[tuple[str, ...]]:
    words = shingle_words(text)
    return {tuple(words[at : at + 5]) for at in range(max(len(words) - 4, 1))}


def jaccard(one: str, other: str) -> float:
    first, second = shingle_set(one), shingle_set(other)
    return len(first & second) / len(first | second)


def pair_of_texts(rng: random.Random, num_words: int, similarity: float) -> tuple[str, str]:
    """Return two texts with a common beginning and about this Jaccard similarity."""
    common = int(num_words * 2 * similarity / (1 + similarity))
    begin = rng.choices(VOCABULARY, k=common)
    one, other = (" ".join(begin + rng.choices(VOCABULARY, k=num_words - common)) for _ in range(2))
    return one, other
