"""Toxicity: the linear classifier of the alt-profanity-check package, sentence by sentence.

It is a word-weight model (TF-IDF and a calibrated linear SVM, trained on English comments): quick, English only, and
unfair. It scores neutral mentions of minorities high, so a recipe with this step needs the ledger of
`data/cleaning/fairness.py`, and better a `keep` that thins out such documents in place of removing them.
"""

import re
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from data.cleaning.step import Outcome, check_share


@dataclass(frozen=True, kw_only=True)
class Toxicity:
    """Drop a document when too large a share of it is offensive.

    Sentences are judged, not documents: the score of a long text is an average over its words, in which an insult
    is lost. A sentence ends at a line break, or at a full stop, an exclamation or a question mark before white space.
    """

    max_score: float = 0.9
    """A sentence that scores above this is offensive."""
    max_share: float = 0.1
    """Share of the document's characters that may be in offensive sentences; 0 drops it for a single one."""

    def check(self, where: str) -> None:
        check_share(f"{where}.max_score", self.max_score)
        check_share(f"{where}.max_share", self.max_share)


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_MAX_SENTENCE = 2000
"""Characters after which a sentence without an end is cut."""


def toxicity(texts: list[str], rule: Toxicity) -> Outcome:
    sentences = [_sentences(text) for text in texts]
    scores = score([sentence for of_text in sentences for sentence in of_text])
    reasons: list[str | None] = []
    start = 0
    for of_text in sentences:
        lengths = np.array([len(sentence) for sentence in of_text], dtype=np.int64)
        offensive = lengths[scores[start : start + len(of_text)] > rule.max_score].sum()
        start += len(of_text)
        reasons.append("toxicity/score" if offensive > rule.max_share * lengths.sum() else None)
    return Outcome(texts, reasons)


def score(sentences: list[str]) -> np.ndarray:
    """How offensive the model finds each sentence, from 0 to 1."""
    if not sentences:
        return np.zeros(0)
    vectorizer, classifier = _model()
    return classifier.predict_proba(vectorizer.transform(sentences))[:, 1]


def _sentences(text: str) -> list[str]:
    sentences = (sentence for sentence in _SENTENCE_END.split(text) if sentence)
    return [
        sentence[at : at + _MAX_SENTENCE] for sentence in sentences for at in range(0, len(sentence), _MAX_SENTENCE)
    ]


@lru_cache(maxsize=1)
def _model() -> tuple[Any, Any]:
    """The vectorizer and the classifier, loaded once in a process. Raises RuntimeError when they score wrongly."""
    with warnings.catch_warnings():
        # scikit-learn warns of a pickle of another version; the scores below show whether it works.
        warnings.filterwarnings("ignore", message="Trying to unpickle estimator")
        from profanity_check import profanity_check
    vectorizer, classifier = profanity_check.vectorizer, profanity_check.model
    probe = vectorizer.transform(["The weather is fine today.", "You stupid fucking idiot."])
    harmless, offensive = classifier.predict_proba(probe)[:, 1]
    if not (harmless < 0.1 and offensive > 0.95):
        raise RuntimeError(
            f"toxicity: alt-profanity-check scores a harmless sentence {harmless:.2f} and an insult {offensive:.2f}; "
            "its model does not fit the installed scikit-learn, install the versions of the lock file"
        )
    return vectorizer, classifier
