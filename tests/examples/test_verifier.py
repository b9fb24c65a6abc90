"""The example of a verifier in docs/rlhf.md."""

import json
from pathlib import Path

from actors.verifier import ScorerInput, Verifier
from data.chats.records import read_prompts
from jobs.frame.user_code import read_verifier_program

EXAMPLE = Path(__file__).parents[2] / "examples" / "verifier"


def test_the_reward_is_1_for_the_correct_answer_and_0_for_a_wrong_one():
    verifier = Verifier(read_verifier_program(f"{EXAMPLE}/sums.py:is_right"))
    records = [record.record for record in read_prompts([f"{EXAMPLE}/sums.jsonl"])]
    answers = [
        ScorerInput(record["prompt"], f" {record['answer']}\n", (), record, truncated=False) for record in records
    ]
    assert verifier.score(answers) == [1.0] * len(records)
    assert verifier.score([ScorerInput("2 + 3 =", "6", (), {"answer": "5"}, truncated=False)]) == [0.0]
    assert all(eval(record["prompt"].removesuffix(" =")) == int(record["answer"]) for record in records)
    assert json.loads((EXAMPLE / "sums.jsonl").read_text().splitlines()[0]) == records[0]
