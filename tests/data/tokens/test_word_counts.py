"""Tests of counting words in tasks, and of the sample of words if there are too many for one process."""

import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.storage import Storage
from data.tokens import word_counts
from data.tokens.documents import CorpusText
from data.tokens.tokenizer_recipe import TokenizerRecipe
from data.tokens.tokenizer_training import count_words
from data.tokens.word_counts import WordCounts, count_sample

pytestmark = pytest.mark.usefixtures("without_ray")


def texts() -> list[str]:
    """English-like words that repeat, and sentences without spaces of which every one is a word that occurs once."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(200)]
    sentences = ["".join(draw.choices("กขคงจฉชซดตถท", k=30)) for _ in range(4000)]
    return [" ".join([*draw.choices(words, k=30), sentence]) for sentence in sentences]


def count(folder: Path, *, parts: int, num_bytes: int = 1) -> WordCounts:
    (folder / "corpus/documents").mkdir(parents=True)
    rows = [{"id": str(n), "text": text, "source": "s", "metadata": "{}"} for n, text in enumerate(texts())]
    for part in range(parts):
        table = pa.Table.from_pylist(rows[part::parts])
        pq.write_table(table, folder / f"corpus/documents/part-{part:05d}.parquet")
    corpus = CorpusText(Storage(str(folder / "corpus")), "digest")
    work = Storage(str(folder / "work"))
    return count_sample(corpus, work, TokenizerRecipe(), first=0.0, num_bytes=num_bytes, workers=None)


def test_without_a_limit_all_words_have_their_counts(tmp_path: Path) -> None:
    expected: Counter[str] = Counter()
    for counts in count_words(texts(), TokenizerRecipe()):
        expected.update(counts)
    sample = count(tmp_path, parts=3, num_bytes=1 << 30)
    assert dict(zip(sample.words, sample.counts, strict=True)) == expected
    assert (sample.threshold, sample.distinct) == (1, len(expected))
    assert len(list((tmp_path / "work/merged").iterdir())) == 64  # 16 MiB of text for each bucket


def test_the_sample_is_small_unbiased_and_the_same_for_any_number_of_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = count(tmp_path / "whole", parts=1)
    monkeypatch.setattr(word_counts, "_MAX_TRAINED_CHARACTERS", 100_000)
    monkeypatch.setattr("data.tokens.tokenizer_training._MAX_SUBSTRING_CHARACTERS", 20_000)
    monkeypatch.setattr("data.tokens.tokenizer_training._MAX_WORD_BYTES", 50_000)  # so that each part has many files
    samples = [count(tmp_path / f"{parts}", parts=parts) for parts in (1, 4)]
    first, second = (dict(zip(sample.words, sample.counts, strict=True)) for sample in samples)
    assert first == second
    assert sum(map(len, whole.words)) > 350_000 and 80_000 < sum(map(len, first)) < 105_000
    threshold = samples[0].threshold
    assert threshold > 1 and samples[0].distinct == len(whole.words) == whole.distinct
    counts = dict(zip(whole.words, whole.counts, strict=True))
    assert all(first[word] == number for word, number in counts.items() if number >= threshold)
    assert all(number == max(threshold, counts[word]) for word, number in first.items())

    def characters(words: dict[str, int]) -> Counter[str]:
        totals: Counter[str] = Counter()
        for word, number in words.items():
            for character in word:
                totals[character] += number
        return totals

    expected, sampled = characters(counts), characters(first)
    for character, total in expected.items():
        assert sampled[character] == pytest.approx(total, rel=0.1)
