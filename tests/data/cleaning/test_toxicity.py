"""Which sentences and documents the step `toxicity` finds offensive, and the check of its model."""

from types import SimpleNamespace

import numpy as np
import pytest
from profanity_check import predict_prob, profanity_check

import data.cleaning.toxicity
from data.cleaning.toxicity import Toxicity, score, toxicity

INSULT = "You stupid fucking idiot."
PLAIN = "The weather is fine, and we went to the market."


def test_scores_are_those_of_the_package() -> None:
    sentences = [INSULT, PLAIN, "kill all of them", "I am a gay person and I love my family", ""]
    np.testing.assert_array_equal(score(sentences), predict_prob(sentences))
    assert score([INSULT])[0] > 0.99 and score([PLAIN])[0] < 0.05


def test_a_document_is_dropped_because_of_its_offensive_share_and_not_its_average_score() -> None:
    # The share is 25 of 25 + 47 characters, which is 0.347. Spaces between sentences are not counted.
    text = f"{INSULT} {PLAIN}"
    assert (len(INSULT), len(PLAIN)) == (25, 47)
    assert toxicity([text], Toxicity(max_share=0.34)).reasons == ["toxicity/score"]
    assert toxicity([text], Toxicity(max_share=0.35)).reasons == [None]
    # The score of the whole text would be low, because it is an average. The score of the sentence is high.
    long = f"{PLAIN} " * 20 + INSULT
    assert predict_prob([long])[0] < 0.9
    assert toxicity([long], Toxicity(max_share=0.0)).reasons == ["toxicity/score"]
    assert toxicity([long], Toxicity()).reasons == [None]


def test_sentences_end_at_punctuation_marks_and_line_breaks() -> None:
    cut = data.cleaning.toxicity._sentences
    assert cut("One. Two!  Three?\n\nFour 3.5 five") == ["One.", "Two!", "Three?", "Four 3.5 five"]
    assert cut("") == []
    assert [len(piece) for piece in cut("x" * 4500)] == [2000, 2000, 500]


def test_documents_without_words_are_kept_and_the_batch_does_not_matter() -> None:
    texts = ["", "\n\n", PLAIN, INSULT, f"{INSULT} {PLAIN}", f"{PLAIN}\n{PLAIN}"]
    outcome = toxicity(texts, Toxicity())
    assert outcome.reasons == [None, None, None, "toxicity/score", "toxicity/score", None]
    assert outcome.texts == texts
    assert outcome.reasons == [toxicity([text], Toxicity()).reasons[0] for text in texts]
    assert toxicity([], Toxicity()).reasons == []


def test_a_model_that_does_not_work_with_scikit_learn_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profanity_check, "model", SimpleNamespace(predict_proba=lambda texts: np.full((2, 2), 0.5)))
    data.cleaning.toxicity._model.cache_clear()
    with pytest.raises(RuntimeError, match="does not work with the installed scikit-learn"):
        score([PLAIN])
    monkeypatch.undo()
    data.cleaning.toxicity._model.cache_clear()
    assert score([PLAIN])[0] < 0.05


def test_settings_must_be_shares() -> None:
    with pytest.raises(ValueError, match=r"steps\[1\].toxicity.max_score: 90 must be between 0 and 1"):
        Toxicity(max_score=90).check("steps[1].toxicity")
    with pytest.raises(ValueError, match=r"max_share: -1 must be between 0 and 1"):
        Toxicity(max_share=-1).check("steps[1].toxicity")
