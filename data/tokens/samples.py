"""Samples: windows of a token stream, and the arrays that a training batch is made of."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

PADDING_DOCUMENT = -1


class Sample(NamedTuple):
    """A window of a stream."""

    tokens: np.ndarray
    """[n + 1] int64, n at most T: inputs are all but the last, targets all but the first."""
    starts: np.ndarray
    """Positions among the inputs where a document begins (its separator)."""
    context: int = 0
    """Targets before this position are not scored: they overlap with the window before."""


class Rows(NamedTuple):
    """Samples side by side, with the fields of a training batch: all [B, T], int64 but for the mask."""

    input_ids: np.ndarray
    targets: np.ndarray
    loss_mask: np.ndarray
    """bool, true where the target counts."""
    positions: np.ndarray
    """From 0 inside each document's part of the row."""
    document_ids: np.ndarray
    """Equal within a document's part of the row; -1 is padding."""


def to_rows(samples: Sequence[Sample], sequence_length: int) -> Rows:
    """Samples as arrays [B, T], padded on the right where a sample is shorter."""
    shape = (len(samples), sequence_length)
    rows = Rows(
        input_ids=np.zeros(shape, dtype=np.int64),
        targets=np.zeros(shape, dtype=np.int64),
        loss_mask=np.zeros(shape, dtype=np.bool_),
        positions=np.zeros(shape, dtype=np.int64),
        document_ids=np.full(shape, PADDING_DOCUMENT, dtype=np.int64),
    )
    for row, sample in enumerate(samples):
        n = len(sample.tokens) - 1
        begins = np.zeros(n, dtype=np.int64)
        begins[sample.starts] = 1
        indices = np.arange(n)
        rows.input_ids[row, :n] = sample.tokens[:-1]
        rows.targets[row, :n] = sample.tokens[1:]
        rows.loss_mask[row, sample.context : n] = True
        rows.document_ids[row, :n] = np.cumsum(begins)
        rows.positions[row, :n] = indices - np.maximum.accumulate(indices * begins)
    return rows


def document_samples(tokens: np.ndarray, sequence_length: int, *, overlap: int = 0) -> Iterator[Sample]:
    """Windows of one document (separators at both ends) in which every target is scored exactly once.

    Each window after the first begins with `overlap` tokens that are read but not scored, so that no target is
    predicted from less than that (0: windows side by side).
    """
    if not 0 <= overlap < sequence_length:
        raise ValueError(f"overlap: {overlap} must be at least 0 and below the sequence length ({sequence_length})")
    num_targets = len(tokens) - 1
    scored = 0
    while scored < num_targets:
        context = overlap if scored else 0
        first = scored - context
        window = tokens[first : first + sequence_length + 1]
        yield Sample(window, np.array([0] if first == 0 else [], dtype=np.int64), context)
        scored = first + len(window) - 1
