"""A user's own step: what it keeps, changes and drops, and what a failing call costs."""

import pytest

from cluster.user_program import Program
from data.cleaning.user_step import UserStep, user_step, with_program


def bound(source: str, function: str = "step", **modules: str) -> UserStep:
    files = {f"{name}.py": text for name, text in modules.items()}
    return with_program(UserStep(function=f"steps.py:{function}"), Program(source, "steps.py", function, files))


def test_a_text_is_kept_changed_or_dropped() -> None:
    settings = bound("def step(text):\n    return None if 'bad' in text else text.strip()\n")
    outcome = user_step(["one", " two ", "bad"], settings)
    assert outcome.texts == ["one", "two", "bad"]
    assert outcome.reasons == [None, None, "user_step/step"]
    assert outcome.counts == {"step/documents": 1}


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_call_that_fails_costs_one_document(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = bound(f"{kind} step(text):\n    return int(text) if text.isdigit() else text[0] + text[1:]\n")
    outcome = user_step(["fine", "", "7"], settings)
    assert outcome.texts == ["fine", "", "7"]
    assert outcome.reasons == [None, "user_step/step failed", "user_step/step failed"]
    assert "IndexError: string index out of range" in caplog.text
    assert "TypeError: returned int, not str or None" in caplog.text


def test_async_calls_wait_at_the_same_time_and_answers_keep_their_order() -> None:
    source = (
        "import asyncio\nwaiting = []\nasync def step(text):\n    waiting.append(text)\n"
        "    while len(waiting) < 3:\n        await asyncio.sleep(0)\n    return f'{text} of {len(waiting)}'\n"
    )
    assert user_step(["a", "b", "c"], bound(source)).texts == ["a of 3", "b of 3", "c of 3"]


def test_modules_beside_it_are_imported() -> None:
    settings = bound(
        "from words import BAD\ndef step(text):\n    return None if text in BAD else text\n", words="BAD = ['x']"
    )
    assert user_step(["x", "y"], settings).reasons == ["user_step/step", None]
