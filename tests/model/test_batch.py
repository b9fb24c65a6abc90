"""Building batches from lists of token ids, and splitting batches."""

from __future__ import annotations

import pytest
import torch

from model.batch import Batch, PolicyBatch, batch_from_sequences, pair_batch, split_rows, to_device


def test_targets_are_the_next_tokens_and_the_loss_mask_is_that_of_the_targets() -> None:
    batch = batch_from_sequences([[5, 6, 7], [8, 9]], [[False, False, True], [True, True]], length=4, pad_id=1)
    assert batch.input_ids.tolist() == [[5, 6, 1, 1], [8, 1, 1, 1]]
    assert batch.targets.tolist() == [[6, 7, 1, 1], [9, 1, 1, 1]]
    assert batch.loss_mask.tolist() == [[False, True, False, False], [True, False, False, False]]
    assert batch.positions.tolist() == [[0, 1, 2, 3]] * 2
    assert batch.document_ids is None


def test_a_pair_batch_has_the_index_of_each_last_token() -> None:
    batch = pair_batch([[1, 2], [3]], [[4, 5, 6], [7, 8]], length=3, pad_id=0)
    assert batch.chosen_ids.tolist() == [[1, 2, 0], [3, 0, 0]]
    assert batch.chosen_last.tolist() == [1, 0]
    assert batch.rejected_last.tolist() == [2, 1]
    assert batch.num_tokens == 8


def test_padding_tokens_are_not_counted() -> None:
    ids = torch.zeros(1, 5, dtype=torch.long)
    batch = Batch(ids, ids, ids.bool(), ids, torch.tensor([[0, 0, 1, -1, -1]]))
    assert batch.num_tokens == 3


def test_split_rows_splits_every_tensor_and_leaves_none() -> None:
    tokens = batch_from_sequences([[1, 2], [3, 4], [5, 6]], [[True, True]] * 3, length=2, pad_id=0)
    batch = PolicyBatch(tokens, torch.arange(6.0).view(3, 2), torch.zeros(3, 2), None)
    first, second = split_rows(to_device(batch, torch.device("cpu")), 2)
    assert first.tokens.input_ids[:, 0].tolist() == [1, 3]
    assert second.tokens.targets[:, 0].tolist() == [6]
    assert second.behavior_logprobs.tolist() == [[4.0, 5.0]]
    assert first.reference_logprobs is None and first.tokens.document_ids is None


def test_a_sequence_that_is_too_long_or_too_short_is_rejected() -> None:
    with pytest.raises(ValueError, match="must have 2 to 3"):
        batch_from_sequences([[1, 2, 3, 4]], [[True] * 4], length=2, pad_id=0)
    with pytest.raises(ValueError, match="must have 2 to 3"):
        batch_from_sequences([[1]], [[True]], length=2, pad_id=0)
    with pytest.raises(ValueError, match="loss mask has length 1"):
        batch_from_sequences([[1, 2]], [[True]], length=2, pad_id=0)
    with pytest.raises(ValueError, match="must have 1 to 2"):
        pair_batch([[1, 2, 3]], [[1]], length=2, pad_id=0)
    with pytest.raises(ValueError, match="every pair needs one of each"):
        pair_batch([[1]], [], length=2, pad_id=0)
