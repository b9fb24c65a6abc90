"""What a user-provided step keeps, changes and drops, and the effect of a failing call."""

import bdb

import pytest

from cluster.user_program import Program
from data.cleaning.user_step import UserStep, user_step, with_program


def step_of(source: str, function: str = "step", **modules: str) -> UserStep:
    files = {f"{name}.py": text for name, text in modules.items()}
    return with_program(UserStep(function=f"steps.py:{function}"), Program(source, "steps.py", function, files))


def test_a_text_is_kept_changed_or_dropped() -> None:
    settings = step_of("def step(text):\n    return None if 'bad' in text else text.strip()\n")
    outcome = user_step(["one", " two ", "bad"], settings)
    assert outcome.texts == ["one", "two", "bad"]
    assert outcome.reasons == [None, None, "user_step/step"]
    assert outcome.counts == {}


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_failing_call_drops_only_its_document(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = step_of(f"{kind} step(text):\n    return int(text) if text.isdigit() else text[0] + text[1:]\n")
    outcome = user_step(["fine", "", "7"], settings)
    assert outcome.texts == ["fine", "", "7"]
    assert outcome.reasons == [None, "user_step/step failed", "user_step/step failed"]
    assert "IndexError: string index out of range" in caplog.text
    assert "TypeError: returned int, not str or None" in caplog.text


def test_leaving_the_debugger_ends_the_step() -> None:
    settings = step_of("import bdb\n\ndef step(text):\n    raise bdb.BdbQuit\n")
    with pytest.raises(bdb.BdbQuit):
        user_step(["one"], settings)


def test_async_calls_run_concurrently_and_results_keep_their_order() -> None:
    source = (
        "import asyncio\nwaiting = []\nasync def step(text):\n    waiting.append(text)\n"
        "    while len(waiting) < 3:\n        await asyncio.sleep(0)\n    return f'{text} of {len(waiting)}'\n"
    )
    assert user_step(["a", "b", "c"], step_of(source)).texts == ["a of 3", "b of 3", "c of 3"]


def test_modules_of_the_same_folder_are_imported() -> None:
    settings = step_of(
        "from words import BAD\ndef step(text):\n    return None if text in BAD else text\n", words="BAD = ['x']"
    )
    assert user_step(["x", "y"], settings).reasons == ["user_step/step", None]
