"""What counts as offensive, how much of a document may be, and that the model is what it should be."""

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


def test_a_document_is_dropped_for_the_part_that_is_offensive_not_for_its_average() -> None:
    # 25 of 25 + 47 characters (spaces between sentences do not count): 0.347.
    text = f"{INSULT} {PLAIN}"
    assert (len(INSULT), len(PLAIN)) == (25, 47)
    assert toxicity([text], Toxicity(max_share=0.34)).reasons == ["toxicity/score"]
    assert toxicity([text], Toxicity(max_share=0.35)).reasons == [None]
    # In a long text the insult drowns in the model's average, and not here.
    long = f"{PLAIN} " * 20 + INSULT
    assert predict_prob([long])[0] < 0.9
    assert toxicity([long], Toxicity(max_share=0.0)).reasons == ["toxicity/score"]
    assert toxicity([long], Toxicity()).reasons == [None]


def test_sentences_end_at_marks_and_line_breaks() -> None:
    cut = data.cleaning.toxicity._sentences
    assert cut("One. Two!  Three?\n\nFour 3.5 five") == ["One.", "Two!", "Three?", "Four 3.5 five"]
    assert cut("") == []
    assert [len(piece) for piece in cut("x" * 4500)] == [2000, 2000, 500]


def test_documents_without_words_are_kept_and_the_batch_makes_no_difference() -> None:
    texts = ["", "\n\n", PLAIN, INSULT, f"{INSULT} {PLAIN}", f"{PLAIN}\n{PLAIN}"]
    outcome = toxicity(texts, Toxicity())
    assert outcome.reasons == [None, None, None, "toxicity/score", "toxicity/score", None]
    assert outcome.texts == texts
    assert outcome.reasons == [toxicity([text], Toxicity()).reasons[0] for text in texts]
    assert toxicity([], Toxicity()).reasons == []


def test_a_model_that_does_not_fit_the_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profanity_check, "model", SimpleNamespace(predict_proba=lambda texts: np.full((2, 2), 0.5)))
    data.cleaning.toxicity._model.cache_clear()
    with pytest.raises(RuntimeError, match="does not work with the installed scikit-learn"):
        score([PLAIN])
    monkeypatch.undo()
    data.cleaning.toxicity._model.cache_clear()
    assert score([PLAIN])[0] < 0.05


def test_bounds_are_shares() -> None:
    with pytest.raises(ValueError, match=r"steps\[1\].toxicity.max_score: 90 must be between 0 and 1"):
        Toxicity(max_score=90).check("steps[1].toxicity")
    with pytest.raises(ValueError, match=r"max_share: -1 must be between 0 and 1"):
        Toxicity(max_share=-1).check("steps[1].toxicity")
