"""Scorers: rewards of a program and of a reward model, and clear errors from a user's program."""

from __future__ import annotations

import pytest
import torch

from actors.scorer import RewardModel, ScorerInput, Verifier
from cluster.storage import Storage
from cluster.user_program import Program, load_function, split_function_name
from model.heads import ScalarHead
from model.objectives import rewards

SOURCE = """
def length(prompt, response, record):
    return len(response) / record["scale"]
"""


def sample(completion: str, ids: tuple[int, ...] = (1, 2, 3)) -> ScorerInput:
    return ScorerInput("prompt", completion, ids, {"scale": 2})


def test_a_verifier_sees_the_record_of_its_prompt() -> None:
    assert Verifier(Program(SOURCE, "v.py", "length")).score([sample("abcd"), sample("")]) == [2.0, 0.0]


def test_a_verifier_that_fails_is_named_with_what_it_was_given() -> None:
    broken = Verifier(Program("def f(prompt, response, record):\n    return record['no']", "v.py", "f"))
    with pytest.raises(
        RuntimeError, match=r"verifier v.py:f failed with KeyError.*, at .*; prompt .*completion 'hello'"
    ):
        broken.score([sample("hello")])


def test_a_reward_that_is_no_number_is_refused() -> None:
    with pytest.raises(
        RuntimeError, match="v.py:f failed with ValueError: the reward must be finite, but it is nan.*completion 'x'"
    ):
        Verifier(Program("def f(p, r, record):\n    return float('nan')", "v.py", "f")).score([sample("x")])


def test_a_source_without_the_function_is_refused() -> None:
    with pytest.raises(ValueError, match="v.py does not define 'width'"):
        load_function(Program(SOURCE, "v.py", "width"))
    with pytest.raises(ValueError, match="failed when it was run: SyntaxError"):
        load_function(Program("def", "v.py", "width"))


@pytest.mark.parametrize("name", ["verifier.py", "verifier:f", "dir/verifier.py:", "verifier.py:no-name"])
def test_a_verifier_is_named_by_file_and_function(name: str) -> None:
    with pytest.raises(ValueError, match="must have the form"):
        split_function_name(name)


def test_a_reward_model_scores_the_last_token_whatever_stands_beside_it(reward_folder) -> None:
    folder, model = reward_folder
    scorer = RewardModel(Storage(str(folder)), 2, "float32")
    samples = [sample("", (7, 8, 9)), sample("", (3, 4, 5, 6, 7)), sample("", (2, 2))]
    assert isinstance(model, ScalarHead)
    alone = [rewards(model, torch.tensor([s.token_ids]), torch.tensor([len(s.token_ids) - 1])).item() for s in samples]
    assert scorer.score(samples) == pytest.approx(alone, abs=1e-4)
    assert len(set(alone)) == 3


def test_a_program_may_define_dataclasses_and_annotate_as_if_it_were_imported() -> None:
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


def test_an_async_verifier_scores_completions_at_the_same_time_and_keeps_its_event_loop() -> None:
    source = """
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
    await all_here.wait()  # for ever, if the other call began only after this one
    return helpers.size(completion) + 10 * len(loops)
"""
    verifier = Verifier(Program(source, "v.py", "f", {"helpers.py": "def size(text):\n    return len(text)\n"}))
    assert verifier.score([sample("abc"), sample("a")]) == [13.0, 11.0]
    assert verifier.score([sample("ab")]) == [12.0]


def test_an_async_verifier_that_fails_is_named_with_what_it_was_given() -> None:
    broken = Verifier(Program("async def f(prompt, completion, record):\n    return record['no']", "v.py", "f"))
    with pytest.raises(RuntimeError, match=r"verifier v.py:f failed with KeyError.*, at .*; .*completion 'hello'"):
        broken.score([sample("hello")])
