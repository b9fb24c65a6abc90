"""Trains Unigram vocabularies with sentencepiece."""

import io
import re
import tempfile
from collections.abc import Sequence
from typing import Any

from tokenizers import models

from data.tokens.tokenizer_recipe import SPECIAL_TOKENS, UNKNOWN, TokenizerRecipe

_MAX_LINE_BYTES = 4192  # sentencepiece ignores longer lines


def train_unigram(words: Sequence[str], counts: Sequence[int], size: int, recipe: TokenizerRecipe) -> models.Unigram:
    """Return a Unigram language model (Kudo 2018) that sentencepiece has trained on the words and their counts."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(words, counts, size, recipe))
    tokens = [(processor.id_to_piece(n), processor.get_score(n)) for n in range(processor.get_piece_size())]
    # Scores are rounded, because the JSON reader of `tokenizers` changes numbers with more digits.
    vocab = [(token.replace("▁", " "), round(score, 9)) for token, score in tokens]
    return models.Unigram(vocab=vocab, unk_id=len(SPECIAL_TOKENS), byte_fallback=recipe.byte_fallback)


def sentencepiece_model(words: Sequence[str], counts: Sequence[int], size: int, recipe: TokenizerRecipe) -> bytes:
    """Return the content of the model file that sentencepiece writes after training.

    sentencepiece encodes text as the tokenizer of `train_unigram` does, with one exception. For a run of characters
    without a token, sentencepiece returns one unknown token, and the tokenizer returns one for each word in the run.
    With byte fallback there are no unknown tokens, so there is no difference.

    sentencepiece gets the words sorted and uses one thread, so the order of the words does not change the result. Line
    end and tab are added as tokens, because the words that sentencepiece gets do not contain them.

    Raises ValueError if no word can be trained on, or if sentencepiece cannot make a vocabulary of this size from the
    words.
    """
    import sentencepiece

    usable = sorted(
        (word, count)
        for word, count in zip(words, counts, strict=True)
        if not _UNUSABLE.search(word) and len(word.encode()) < _MAX_LINE_BYTES
    )
    if not usable:
        raise ValueError(
            "corpus: the sample of the corpus contains no word to train a tokenizer on; add more text to the corpus"
        )
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8", newline="") as file:
        file.writelines(f"{word}\t{count}\n" for word, count in usable)
        file.flush()
        try:
            sentencepiece.SentencePieceTrainer.train(
                input=file.name, model_writer=model, vocab_size=size, **_sentencepiece_options(recipe)
            )
        except RuntimeError as error:
            reason = str(error).rpartition("] ")[2].strip()
            raise ValueError(f"size: sentencepiece cannot train {size:,} tokens on this text: {reason}") from error
    return model.getvalue()


_UNUSABLE = re.compile(r"[\0\t\n\r▁▅]")
"""Characters that separate lines or fields in the input file of sentencepiece, and two characters that have a special
meaning for sentencepiece. Words with one of these characters are not trained on."""


def _sentencepiece_options(recipe: TokenizerRecipe) -> dict[str, Any]:
    return {
        "model_type": "unigram",
        "input_format": "tsv",
        "num_threads": 1,
        "shuffle_input_sentence": False,
        "max_sentence_length": _MAX_LINE_BYTES,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "character_coverage": recipe.character_coverage,
        "byte_fallback": recipe.byte_fallback,
        "control_symbols": list(SPECIAL_TOKENS),
        "unk_id": len(SPECIAL_TOKENS),
        "unk_piece": UNKNOWN,
        "bos_id": -1,
        "eos_id": -1,
        "pad_id": -1,
        "user_defined_symbols": ["\n", "\t"],
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
