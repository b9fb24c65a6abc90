"""Unigram vocabularies, learned by sentencepiece."""

import io
import re
import tempfile
from collections.abc import Sequence
from typing import Any

from tokenizers import models

from data.tokens.tokenizer_recipe import SPECIAL_TOKENS, UNKNOWN, TokenizerRecipe

_MAX_LINE_BYTES = 4192  # of sentencepiece: a longer line is left out


def train_unigram(words: Sequence[str], counts: Sequence[int], size: int, recipe: TokenizerRecipe) -> models.Unigram:
    """A unigram language model (Kudo 2018), learned by sentencepiece."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(words, counts, size, recipe))
    tokens = [(processor.id_to_piece(n), processor.get_score(n)) for n in range(processor.get_piece_size())]
    # With more digits the JSON reader of `tokenizers` would not give each score back as it was written.
    vocab = [(token.replace("▁", " "), round(score, 9)) for token, score in tokens]
    return models.Unigram(vocab=vocab, unk_id=len(SPECIAL_TOKENS), byte_fallback=recipe.byte_fallback)


def sentencepiece_model(words: Sequence[str], counts: Sequence[int], size: int, recipe: TokenizerRecipe) -> bytes:
    """sentencepiece's own model file. It encodes as the tokenizer does, with one exception: a run of characters without
    a token is one unknown token for sentencepiece, and one in each of its words for the tokenizer (with byte fallback
    there is none).

    It reads sorted words and counts in one thread, so the order of texts has no influence. Line end and tab, which
    are in no word, are tokens by themselves. Raises ValueError for a size that the words do not allow.
    """
    import sentencepiece

    usable = sorted(
        (word, count)
        for word, count in zip(words, counts, strict=True)
        if not _UNUSABLE.search(word) and len(word.encode()) < _MAX_LINE_BYTES
    )
    if not usable:
        raise ValueError("corpus: the sample holds no word to learn from; give more text")
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
            raise ValueError(f"size: sentencepiece cannot learn {size:,} tokens from this text: {reason}") from error
    return model.getvalue()


_UNUSABLE = re.compile(r"[\0\t\n\r▁▅]")
"""Characters that end a line or a field of sentencepiece's file, and its own two signs."""


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
