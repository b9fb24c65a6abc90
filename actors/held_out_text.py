"""The held-out documents of a split as the tokens of a model.

A model whose tokenizer made the shards reads their tokens. For another model, the documents are decoded and tokenized
again, so that both predict the same bytes. A document whose text a tokenizer changes, for example by a normalization,
cannot be compared: `ModelDocument.is_exact` is then false.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cluster.storage import Storage
from data.tokens.encode import encode_documents, fast_encoder
from data.tokens.shard_reader import ShardReader, StoredDocument
from data.tokens.tokenizer import document_tokens, load_encoder

_PROBE = "Two words,  two spaces: (A)\n\tanother line."
"""A text that a tokenizer which lowercases, or which joins or splits white space, does not keep."""


class ModelDocument(NamedTuple):
    """A document as the tokens of a model."""

    tokens: np.ndarray
    """The token that documents begin with, the document's n tokens and the separator, int64 [n + 2]."""
    num_bytes: int
    """Size of the document's text in bytes."""
    is_exact: bool
    """Whether the tokens that were made again stand for exactly the document's text. True for the shards' tokens."""


class DecodedDocument(NamedTuple):
    """A document as text."""

    text: str
    is_exact: bool
    """Whether the text has the size of the document's original text."""


def shard_documents(split: Storage, *, part: int, num_parts: int) -> list[ModelDocument]:
    """Return the documents with the indices `part`, `part + num_parts` and so on, with the tokens of the shards."""
    return [ModelDocument(document.tokens, document.num_bytes, True) for document in _read(split, part, num_parts)]


def retokenized_documents(
    split: Storage, shards_tokenizer: Path, model_tokenizer: Path, *, part: int, num_parts: int
) -> list[ModelDocument]:
    """Return the documents of `shard_documents` with the tokens of a model's own tokenizer.

    The arguments are the folders of the two tokenizers.
    """
    documents = list(_read(split, part, num_parts))
    decoded = list(decode_documents(documents, shards_tokenizer))
    texts = [document.text for document in decoded]
    begin, end = document_tokens(model_tokenizer)
    encoder = load_encoder(model_tokenizer)
    model_documents: list[ModelDocument] = []
    encoded = encode_documents(fast_encoder(model_tokenizer, texts), texts, (begin, end))
    for document, (text, is_exact), ids in zip(documents, decoded, encoded, strict=True):
        is_exact = is_exact and encoder.decode(ids.tolist(), skip_special_tokens=False) == text
        tokens = np.concatenate([[begin], ids, [end]]).astype(np.int64)
        model_documents.append(ModelDocument(tokens, document.num_bytes, is_exact))
    return model_documents


def decode_documents(documents: Iterable[StoredDocument], tokenizer: Path) -> Iterator[DecodedDocument]:
    """Yield the text of each document. `tokenizer` is the folder of the tokenizer that made the shards."""
    encoder = load_encoder(tokenizer)
    for document in documents:
        text = encoder.decode(document.tokens[1:-1].tolist(), skip_special_tokens=False)
        yield DecodedDocument(text, len(text.encode()) == document.num_bytes)


def keeps_text(tokenizer: Path) -> bool:
    """Return whether a tokenizer decodes the tokens of an ordinary text to the same text."""
    encoder = load_encoder(tokenizer)
    return encoder.decode(encoder.encode(_PROBE, add_special_tokens=False).ids, skip_special_tokens=False) == _PROBE


def _read(split: Storage, part: int, num_parts: int) -> Iterator[StoredDocument]:
    return islice(ShardReader(split, sequence_length=1).documents(), part, None, num_parts)
