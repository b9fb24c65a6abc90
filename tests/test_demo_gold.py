"""The demo's gold measure counts questions that are asked, and nothing that only looks like one."""

import importlib.util
from pathlib import Path

import pytest


def load_gold():
    path = Path(__file__).parent.parent / "configs" / "tiny" / "gold.py"
    spec = importlib.util.spec_from_file_location("gold", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("I am fine. How about you?", 1.0),
        ("What do you do for fun? I like to read.", 1.0),
        ("do you have any pets?? i love dogs", 1.0),
        ("I am fine, thank you.", 0.0),
        ("?", 0.0),
        ("Why?", 0.0),
        ("? ? ? ? ? ?", 0.0),
        ("Really? Oh? No way?", 0.0),
        ("What do you do for fun", 0.0),
        ("", 0.0),
    ],
)
def test_a_question_is_a_sentence_that_ends_in_its_mark(response: str, expected: float) -> None:
    assert load_gold().asks_question("Hello there.", response, {}) == expected


def test_an_echo_of_the_prompts_question_is_none() -> None:
    gold = load_gold().asks_question
    assert gold("Hi! How are you today?", "how are you today?", {}) == 0.0
    assert gold("Hi! How are you today?", "How are you today? And how is your sister?", {}) == 1.0


def test_more_questions_and_more_words_gain_nothing() -> None:
    gold = load_gold().asks_question
    assert gold("Hi.", "What do you like?", {}) == gold("Hi.", "What do you like? " * 20, {}) == 1.0
    assert gold("Hi.", "I like very many things. " * 50, {}) == 0.0
