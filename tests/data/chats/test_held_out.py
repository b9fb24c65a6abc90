"""The held-out samples are a random choice of prompts."""

import numpy as np
import pytest

from data.chats.held_out import prompt_key, split_by_prompt
from data.chats.messages import assistant_message, user_message


def test_no_prompt_is_on_both_sides_and_another_seed_chooses_others() -> None:
    keys = np.repeat(np.arange(100), 3)
    split = split_by_prompt(keys, 0.1, seed=0)
    assert not set(keys[split.train]) & set(keys[split.held_out]) and split.is_by_prompt
    assert sorted([*split.train, *split.held_out]) == list(range(300)) and len(split.held_out) == 30
    assert split.held_out.tolist() == split_by_prompt(keys, 0.1, seed=0).held_out.tolist()
    other = split_by_prompt(keys, 0.1, seed=1)
    assert len({*split.held_out.tolist()} & {*other.held_out.tolist()}) < 15
    assert min(split.held_out) < 200, "not the tail of the file"


@pytest.mark.parametrize(("fraction", "num_held_out"), [(0.01, 1), (0.3, 1), (0.5, 2), (0.99, 3)])
def test_both_parts_have_at_least_one_sample(fraction: float, num_held_out: int) -> None:
    assert len(split_by_prompt(np.arange(4), fraction, seed=0).held_out) == num_held_out


def test_a_prompt_of_most_samples_is_trained_on() -> None:
    keys = np.array([7] * 90 + list(range(10, 20)))
    for seed in range(20):
        split = split_by_prompt(keys, 0.05, seed=seed)
        assert len(split.held_out) == 5 and 7 not in keys[split.held_out]


def test_samples_of_a_single_prompt_are_divided_anyway() -> None:
    split = split_by_prompt(np.full(10, 3), 0.2, seed=0)
    assert len(split.held_out) == 2 and not split.is_by_prompt


def test_chats_with_the_same_first_prompt_have_the_same_key() -> None:
    short = [user_message("How  are you?"), assistant_message("Fine")]
    long = [
        {"role": "system", "content": "Be kind."},
        user_message("how are you?\n"),
        assistant_message("Well"),
        *short,
    ]
    assert prompt_key(short) == prompt_key(long) != prompt_key([user_message("Who?"), assistant_message("Me")])
    greeting = [assistant_message("Welcome"), user_message("Hi"), assistant_message("Hello")]
    assert prompt_key(greeting) != prompt_key([assistant_message("Welcome"), user_message("Who?")])
