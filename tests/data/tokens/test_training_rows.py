"""Tests of training rows: positions, document ids, padding, and which targets are scored."""

import numpy as np
import pytest

from data.tokens.training_rows import TrainingRow, document_rows, pad_rows

S = 0  # the separator


@pytest.mark.parametrize(("length", "overlap"), [(4, 0), (4, 1), (4, 3), (100, 10), (11, 5)])
def test_every_token_of_a_document_is_scored_once_with_the_overlap_as_context(length: int, overlap: int) -> None:
    tokens = np.array([S, *range(1, 12), S])
    scored: list[int] = []
    for number, row in enumerate(document_rows(tokens, length, overlap=overlap)):
        rows = pad_rows([row], length)
        assert row.num_context == (overlap if number else 0)
        assert (rows.document_ids[0][rows.document_ids[0] >= 0] == rows.document_ids[0][0]).all()
        scored += rows.targets[0][rows.loss_mask[0]].tolist()
    assert scored == tokens[1:].tolist()


def test_an_overlap_as_long_as_the_row_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"overlap: 4 must be at least 0 and below"):
        list(document_rows(np.array([S, 1, S]), 4, overlap=4))


def test_positions_begin_at_0_in_a_row_that_begins_inside_a_document() -> None:
    rows = pad_rows([TrainingRow(np.array([7, 8, S]), np.array([8, S, 9]), np.array([2]))], 5)
    assert rows.positions.tolist() == [[0, 1, 0, 0, 0]]
    assert rows.document_ids.tolist() == [[0, 0, 1, -1, -1]]
    assert rows.loss_mask.tolist() == [[True, True, True, False, False]]
    assert rows.targets.tolist() == [[8, S, 9, 0, 0]]
