"""Rewards of a verifier, and the error messages of a verifier that fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
import ray

from actors.verifier import ScorerInput, Verifier
from cluster.user_program import Program, load_function, split_function_name

SOURCE = """
def length(prompt, response, record):
    return len(response) / record["scale"]
"""


def sample(completion: str, ids: tuple[int, ...] = (1, 2, 3)) -> ScorerInput:
    return ScorerInput("prompt", completion, ids, {"scale": 2}, truncated=False)


def test_a_verifier_receives_the_record_of_its_prompt() -> None:
    assert Verifier(Program(SOURCE, "v.py", "length")).score([sample("abcd"), sample("")]) == [2.0, 0.0]


@pytest.mark.parametrize(
    "source",
    [
        "def f(prompt, completion, record, truncated):\n    return -1 if truncated else len(completion)",
        "def f(prompt, completion, record, *, truncated=None):\n    return -1 if truncated else len(completion)",
        "async def f(p, *others, truncated):\n    return -1 if truncated else len(others[0])",
        "def f(p, c, record, strict=False, truncated=False):\n    return strict - 1 if truncated else len(c)",
    ],
)
def test_a_verifier_with_this_parameter_is_told_whether_a_completion_was_cut(source: str) -> None:
    inputs = [sample("abc"), replace(sample("abc"), truncated=True), sample("")]
    assert Verifier(Program(source, "v.py", "f")).score(inputs) == [3.0, -1.0, 0.0]


def test_the_error_of_a_verifier_names_its_line_and_its_arguments() -> None:
    broken = Verifier(Program("def f(prompt, response, record):\n    return record['no']", "v.py", "f"))
    with pytest.raises(
        RuntimeError, match=r"verifier v.py:f failed with KeyError.*, at .*; prompt .*completion 'hello'"
    ):
        broken.score([sample("hello")])


def test_a_reward_that_is_not_finite_is_rejected() -> None:
    with pytest.raises(
        RuntimeError, match="v.py:f failed with ValueError: the reward must be finite, but it is nan.*completion 'x'"
    ):
        Verifier(Program("def f(p, r, record):\n    return float('nan')", "v.py", "f")).score([sample("x")])


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def f(p, r, record):\n    return None", "TypeError: float.. argument must be .*, not 'NoneType'"),
        ("def f(p, r, record):\n    return float('inf')", "ValueError: the reward must be finite, but it is inf"),
        ("def f(prompt):\n    return 1.0", "TypeError: f.. takes 1 positional argument but 3 were given"),
        ("async def f(prompt):\n    return 1.0", "TypeError: f.. takes 1 positional argument but 3 were given"),
    ],
)
def test_the_error_for_wrong_arguments_or_a_wrong_result_names_no_line_of_raymill(source: str, error: str) -> None:
    with pytest.raises(RuntimeError, match=f"^verifier v.py:f failed with {error}; prompt 'prompt', completion 'x'$"):
        Verifier(Program(source, "v.py", "f")).score([sample("x")])


def test_a_program_without_the_function_is_rejected() -> None:
    with pytest.raises(ValueError, match="v.py does not define 'width'"):
        load_function(Program(SOURCE, "v.py", "width"))
    with pytest.raises(ValueError, match="failed when it was run: SyntaxError"):
        load_function(Program("def", "v.py", "width"))


@pytest.mark.parametrize("name", ["verifier.py", "verifier:f", "dir/verifier.py:", "verifier.py:no-name"])
def test_a_verifier_name_must_have_a_file_and_a_function(name: str) -> None:
    with pytest.raises(ValueError, match="must have the form"):
        split_function_name(name)


def test_a_verifier_file_may_define_dataclasses_and_annotations() -> None:
    source = """
from dataclasses import dataclass, field, fields

@dataclass
class Rule:
    weight: float = 2.0
    words: list[str] = field(default_factory=list)

def f(prompt, response, record):
    assert fields(Rule)[0].type is float
    return Rule().weight
"""
    assert Verifier(Program(source, "v.py", "f")).score([sample("x")]) == [2.0]
    string_types = "from __future__ import annotations\n" + source.replace("is float", "== 'float'")
    assert Verifier(Program(string_types, "v.py", "f")).score([sample("x")]) == [2.0]


ASYNC_SOURCE = """
import asyncio
import helpers

loops = set()
waiting = 0
all_here = asyncio.Event()

async def f(prompt, completion, record):
    global waiting
    loops.add(id(asyncio.get_running_loop()))
    waiting += 1
    if waiting == 2:
        all_here.set()
    await all_here.wait()  # waits forever unless the two calls run at the same time
    return helpers.size(completion) + 10 * len(loops)
"""
ASYNC_PROGRAM = Program(ASYNC_SOURCE, "v.py", "f", {"helpers.py": "def size(text):\n    return len(text)\n"})


def test_an_async_verifier_scores_completions_at_the_same_time_and_keeps_its_event_loop() -> None:
    verifier = Verifier(ASYNC_PROGRAM)
    assert verifier.score([sample("abc"), sample("a")]) == [13.0, 11.0]
    assert verifier.score([sample("ab")]) == [12.0]


@pytest.mark.slow
def test_an_async_verifier_works_in_an_actor(ray_session: None) -> None:
    actor = ray.remote(Verifier).options(num_cpus=0.1).remote(ASYNC_PROGRAM)
    assert ray.get(actor.score.remote([sample("abc"), sample("a")])) == [13.0, 11.0]
    assert ray.get(actor.score.remote([sample("ab")])) == [12.0]


def test_the_error_of_an_async_verifier_names_its_line_and_its_arguments() -> None:
    broken = Verifier(Program("async def f(prompt, completion, record):\n    return record['no']", "v.py", "f"))
    with pytest.raises(RuntimeError, match=r"verifier v.py:f failed with KeyError.*, at .*; .*completion 'hello'"):
        broken.score([sample("hello")])
