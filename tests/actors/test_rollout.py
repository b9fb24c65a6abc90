"""The conversion of rollouts to tensors, and deterministic seeds and orders."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from actors.rollout import (
    Rollout,
    completion_seed,
    engine_logprobs,
    micro_batches,
    minibatch_rows,
    prompt_indices,
    rank_rows,
    rollout_batch,
)
from model.batch import PolicyBatch


def rollout(prompt: list[int], response: list[int], logprobs: list[float]) -> Rollout:
    return Rollout(tuple(prompt), tuple(response), tuple(logprobs), weight_version=0, finished=True)


TWO = [rollout([1, 2], [3, 4], [-0.5, -0.25]), rollout([5], [6, 7, 8], [-1.0, -2.0, -3.0])]


def test_a_logprob_is_at_the_position_that_predicts_its_token() -> None:
    batch = rollout_batch(TWO, pad_id=0)
    # The rows are 1 2 3 4 and 5 6 7 8. Each has three positions, and position t predicts targets[t].
    assert batch.input_ids.tolist() == [[1, 2, 3], [5, 6, 7]]
    assert batch.targets.tolist() == [[2, 3, 4], [6, 7, 8]]
    assert batch.loss_mask.tolist() == [[False, True, True], [True, True, True]]
    assert engine_logprobs(TWO, batch).tolist() == [[0.0, -0.5, -0.25], [-1.0, -2.0, -3.0]]


def test_micro_batches_have_each_row_once_without_extra_padding() -> None:
    rows = [rollout([1, 2], [3] * length, [-float(length)] * length) for length in (1, 5, 2, 4)]
    batch = rollout_batch(rows, pad_id=0)
    behavior = engine_logprobs(rows, batch)
    policy_batch = PolicyBatch(batch, behavior, behavior * 2, None)
    parts = list(micro_batches(policy_batch, torch.tensor([2, 0, 3, 1]), 2))
    assert [part.tokens.input_ids.shape for part in parts] == [(2, 3), (2, 6)]  # longest rows: 2 + 2 - 1, 2 + 5 - 1
    assert [part.behavior_logprobs.sum().item() for part in parts] == [-(2 * 2 + 1), -(4 * 4 + 5 * 5)]
    assert parts[0].advantages[0].tolist() == [0.0, -4.0, -4.0]


def test_minibatches_divide_the_rows_and_ranks_divide_the_minibatches() -> None:
    minibatches = minibatch_rows(12, 3, seed=1, step=2, epoch=0)
    assert sorted(torch.cat(minibatches).tolist()) == list(range(12))
    assert minibatches[0].tolist() != minibatch_rows(12, 3, seed=1, step=2, epoch=1)[0].tolist()
    ranks = [rank_rows(minibatches[0], rank, 2) for rank in range(2)]
    assert torch.cat(ranks).tolist() == minibatches[0].tolist()


def test_every_epoch_has_each_prompt_once_from_any_start_position() -> None:
    stream = prompt_indices(3, 10, 0, 25)
    assert sorted(stream[:10]) == sorted(stream[10:20]) == list(range(10))
    assert stream[:10] != stream[10:20]
    assert prompt_indices(3, 10, 8, 5) == stream[8:13]
    assert prompt_indices(4, 10, 0, 25) != stream


def test_an_empty_list_of_prompts_is_an_error() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        prompt_indices(0, 0, 0, 1)


def test_seeds_depend_on_every_argument_and_are_below_2_to_the_63() -> None:
    arguments = ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
    seeds = [completion_seed(*one_call) for one_call in arguments]
    assert len(set(seeds)) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds[0] == completion_seed(0, 0, 0, 0)


def test_text_ids_leave_out_the_stop_token_and_keep_all_of_a_truncated_completion() -> None:
    ended = rollout([1], [7, 8, 9], [-1.0] * 3)
    assert ended.text_ids == (7, 8)
    assert replace(ended, finished=False).text_ids == (7, 8, 9)
