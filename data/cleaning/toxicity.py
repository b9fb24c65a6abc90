"""The step `toxicity`: drop offensive documents, with the classifier of the Python package alt-profanity-check.

The classifier (TF-IDF features and a calibrated linear SVM, trained on English comments) is fast, but it works only for
English and is unfair: it gives high scores to neutral sentences that mention minorities. Look at the fairness ledger
(`data/cleaning/fairness.py`) of a recipe with this step, and set `keep` so that the step does not remove all such
documents.
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
    """Drop documents of which too large a share is offensive.

    Each sentence has its own score, because the score of a long text is an average over its words and hides a single
    insult. A sentence ends at a line break, and at a full stop, exclamation mark or question mark before white space.
    """

    max_score: float = 0.9
    """A sentence with a higher score is offensive. Scores are between 0 and 1."""
    max_share: float = 0.1
    """Maximum share of the document's characters that are in offensive sentences. With 0, a single offensive sentence
    drops the document."""

    def check(self, field_path: str) -> None:
        check_share(f"{field_path}.max_score", self.max_score)
        check_share(f"{field_path}.max_share", self.max_share)


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_MAX_SENTENCE_CHARACTERS = 2000
"""A longer sentence is split into pieces of this length."""


def toxicity(texts: list[str], settings: Toxicity) -> Outcome:
    """Drop the texts in which the share of offensive sentences, by characters, is above `max_share`."""
    sentences_by_text = [_sentences(text) for text in texts]
    scores = score([sentence for sentences in sentences_by_text for sentence in sentences])
    reasons: list[str | None] = []
    start = 0
    for sentences in sentences_by_text:
        lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
        offensive_length = lengths[scores[start : start + len(sentences)] > settings.max_score].sum()
        start += len(sentences)
        reasons.append("toxicity/score" if offensive_length > settings.max_share * lengths.sum() else None)
    return Outcome(texts, reasons)


def score(sentences: list[str]) -> np.ndarray:
    """Return for each sentence the probability, according to the classifier, that it is offensive."""
    if not sentences:
        return np.zeros(0)
    vectorizer, classifier = _model()
    return classifier.predict_proba(vectorizer.transform(sentences))[:, 1]


def _sentences(text: str) -> list[str]:
    sentences = (sentence for sentence in _SENTENCE_END.split(text) if sentence)
    return [
        sentence[start : start + _MAX_SENTENCE_CHARACTERS]
        for sentence in sentences
        for start in range(0, len(sentence), _MAX_SENTENCE_CHARACTERS)
    ]


@lru_cache(maxsize=1)
def _model() -> tuple[Any, Any]:
    """Return the vectorizer and the classifier. Each process loads them once.

    Raises RuntimeError if they give a wrong score to one of two test sentences.
    """
    with warnings.catch_warnings():
        # scikit-learn warns because another version wrote the model's pickle. The test below shows whether it works.
        warnings.filterwarnings("ignore", message="Trying to unpickle estimator")
        from profanity_check import profanity_check
    vectorizer, classifier = profanity_check.vectorizer, profanity_check.model
    test_features = vectorizer.transform(["The weather is fine today.", "You stupid fucking idiot."])
    harmless, offensive = classifier.predict_proba(test_features)[:, 1]
    if not (harmless < 0.1 and offensive > 0.95):
        raise RuntimeError(
            f"toxicity: alt-profanity-check gives a score of {harmless:.2f} to a harmless sentence and of "
            f"{offensive:.2f} to an insult, so its model does not work with the installed scikit-learn; install the "
            "versions of the lock file"
        )
    return vectorizer, classifier
