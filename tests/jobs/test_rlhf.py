"""The rlhf stage: mistakes are found before an actor starts, and a run resumes where it was killed."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from actors.graph import ScoredRollouts
from actors.rank_group import RanksDied
from actors.settings import GraphExecution, RolloutConfig
from actors.step_metrics import RolloutMetrics, StepMetrics, StepTimes, UpdateMetrics
from actors.sync_check import LogprobDifference
from cluster.metrics_log import read_metrics
from cluster.placement import Placement
from cluster.storage import Storage
from cluster.tracking import Tracker
from cluster.user_program import Program
from data.tokens.tokenizer import load_encoder, read_chat_special_tokens, save_tokenizer
from data.tokens.tokenizer_recipe import MIN_BPE_SIZE
from data.tokens.tokenizer_training import train_tokenizer
from jobs.frame.artifact import Artifact, open_artifact
from jobs.frame.config_loader import build
from jobs.frame.stage import Context
from jobs.frame.user_code import read_verifier_program
from jobs.rlhf import RLHFConfig, check, check_inputs, check_planned_inputs, check_prompts, run, tokenize_prompts, train
from model.huggingface import save_hf_model
from model.huggingface_config import SpecialTokens
from model.learning import LearningConfig
from model.transformer import Transformer, initialize
from model.transformer_config import TransformerConfig

SIZES = TransformerConfig(
    vocab_size=MIN_BPE_SIZE, width=64, num_layers=2, num_heads=2, num_kv_heads=1, ffn_width=96, max_length=96
)
VERIFIER = """
def letters(prompt, response, record):
    return sum(letter in record["letters"] for letter in response) / max(1, len(response))

def two_arguments(prompt, response):
    return 0.0
"""


def save_model(folder: Path, sizes: TransformerConfig = SIZES, *, digits: str = "") -> Artifact:
    """A random chat model; `digits` is text that its tokenizer learns from, to make another one."""
    model = Transformer(sizes)
    initialize(model, 0)
    folder.mkdir(parents=True)
    save_tokenizer(train_tokenizer([digits], size=MIN_BPE_SIZE + (10 if digits else 0)), folder)
    ids = read_chat_special_tokens(folder)
    tokens = SpecialTokens(bos=ids.bos, eos=ids.eos, pad=ids.pad)
    save_hf_model(folder, model.state_dict(), sizes, special_tokens=tokens, tokenizer_folder=folder)
    artifact = open_artifact(str(folder))
    assert artifact is not None
    return artifact


@pytest.fixture
def config(tmp_path: Path) -> RLHFConfig:
    """Four steps on twelve prompts with a verifier."""
    (tmp_path / "verifier.py").write_text(VERIFIER)
    lines = [json.dumps({"prompt": f"say {number}", "letters": "aeiou"}) for number in range(16)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines[:12]))
    (tmp_path / "held_out.jsonl").write_text("\n".join(lines[12:]))
    return RLHFConfig(
        policy="sft",
        verifier=f"{tmp_path}/verifier.py:letters",
        prompts=[f"{tmp_path}/prompts.jsonl"],
        held_out_prompts=[f"{tmp_path}/held_out.jsonl"],
        steps=4,
        rollouts=RolloutConfig(prompts_per_step=4, group_size=4, generation_batch_prompts=4, max_new_tokens=12),
        learning=LearningConfig(algorithm="grpo", lr=1e-3, precision="float32"),
        execution=GraphExecution(
            generators=Placement(cpus_per_worker=0.3), kv_cache_gib=0.05, checkpoint_interval=2, micro_batch_size=8
        ),
    )


def test_exactly_one_thing_scores(config: RLHFConfig) -> None:
    check(config)
    for both_or_none in (replace(config, reward="reward"), replace(config, verifier=None)):
        with pytest.raises(ValueError, match="reward, verifier: set exactly one"):
            check(both_or_none)


def test_a_verifier_must_be_a_function_of_three(config: RLHFConfig) -> None:
    file = str(config.verifier).partition(":")[0]
    assert read_verifier_program(f"{file}:letters") == Program(VERIFIER, file, "letters")
    with pytest.raises(ValueError, match="has no function 'words'; it defines letters, two_arguments"):
        read_verifier_program(f"{file}:words")
    with pytest.raises(
        ValueError, match=r"two_arguments in .* must accept the parameters \(prompt, completion, record\)"
    ):
        read_verifier_program(f"{file}:two_arguments")
    with pytest.raises(ValueError, match="cannot be read as a Python file"):
        read_verifier_program("nowhere/verifier.py:f")


def test_groups_of_one_cannot_be_compared(config: RLHFConfig) -> None:
    alone = replace(config, rollouts=replace(config.rollouts, group_size=1))
    with pytest.raises(ValueError, match="rollouts.group_size: 1, but grpo compares"):
        check(alone)
    check(replace(alone, learning=replace(config.learning, algorithm="ppo")))


def test_looking_at_held_out_prompts_needs_some(config: RLHFConfig) -> None:
    execution = replace(config.execution, held_out_interval=2)
    with pytest.raises(ValueError, match="execution.held_out_interval"):
        check(replace(config, held_out_prompts=[], execution=execution))


def test_a_yaml_names_a_wrong_key_with_the_right_one(config: RLHFConfig) -> None:
    with pytest.raises(ValueError, match="group_size"):
        build(RLHFConfig, {"prompts": ["p"], "rollouts": {"groupsize": 4}})


def test_an_unknown_algorithm_is_named_with_the_known_ones(config: RLHFConfig) -> None:
    with pytest.raises(ValueError, match="learning.algorithm: 'dpo' is not one of grpo, ppo, rloo, reinforce"):
        check(replace(config, learning=replace(config.learning, algorithm="dpo")))


def test_a_reward_model_with_another_tokenizer_is_refused(config: RLHFConfig, tmp_path: Path) -> None:
    policy = save_model(tmp_path / "policy")
    other = save_model(
        tmp_path / "other", replace(SIZES, vocab_size=MIN_BPE_SIZE + 10), digits="hello hello hello " * 9
    )
    with pytest.raises(ValueError, match="reward: the tokenizer of huggingface-.* differs from that of the policy"):
        check_inputs(replace(config, verifier=None, reward="r"), {"policy": policy, "reward": other})


def test_heads_that_the_cpu_engine_cannot_compute_are_refused(config: RLHFConfig, tmp_path: Path) -> None:
    policy = save_model(tmp_path / "policy", replace(SIZES, num_heads=4))
    with pytest.raises(ValueError, match="its head dim is 16"):
        check_planned_inputs(config, {"policy": policy})


def test_answers_as_long_as_the_whole_context_are_refused(config: RLHFConfig, tmp_path: Path) -> None:
    long = replace(config, rollouts=replace(config.rollouts, max_new_tokens=96))
    with pytest.raises(ValueError, match="max_new_tokens: 96 must be below the policy's max_length 96"):
        check_planned_inputs(long, {"policy": save_model(tmp_path / "policy")})


def test_prompts_without_room_for_an_answer_are_refused(config: RLHFConfig, tmp_path: Path) -> None:
    inputs = {"policy": save_model(tmp_path / "policy")}
    long = replace(config, rollouts=replace(config.rollouts, max_new_tokens=90))
    with pytest.raises(ValueError, match="none of the 12 prompts leaves room for rollouts.max_new_tokens=90"):
        check_inputs(long, inputs)


def test_held_out_prompts_without_room_for_an_answer_are_refused(config: RLHFConfig, tmp_path: Path) -> None:
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"prompt": "long " * 40}))
    with pytest.raises(ValueError, match="held_out_prompts: none of the 1 prompts leaves room for"):
        check_inputs(config, {"policy": save_model(tmp_path / "policy")})


def test_prompts_that_cannot_be_used_are_set_aside_with_their_lines(config: RLHFConfig, tmp_path: Path) -> None:
    inputs = {"policy": save_model(tmp_path / "policy")}
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    reply = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join([*lines, json.dumps({"messages": reply})]))
    check_prompts(config)
    prompts = tokenize_prompts(config, inputs)
    (line,) = prompts.files["prompts"].quarantined
    assert (line.file, line.line) == (f"{tmp_path}/prompts.jsonl", 13) and "must have the role user" in line.reason
    assert (len(prompts.train), len(prompts.held_out), prompts.counts.num_quarantined) == (12, 4, 1)
    (tmp_path / "prompts.jsonl").write_text("\n".join([*lines, "broken", "{}"]))
    with pytest.raises(ValueError, match=r"prompts: 2 of 14 records cannot be used, .*prompts\.jsonl:1[34]: "):
        check_prompts(config)


def test_a_policy_without_a_template_continues_the_text_of_a_prompt(config: RLHFConfig, tmp_path: Path) -> None:
    policy = save_model(tmp_path / "policy")
    path = tmp_path / "policy" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": ""}))
    prompt = tokenize_prompts(config, {"policy": policy}).train[0]
    assert prompt.text == "say 0" and load_encoder(tmp_path / "policy").decode(prompt.prompt_ids[1:]) == "say 0"
    assert prompt.prompt_ids[0] == load_encoder(tmp_path / "policy").token_to_id("<|endoftext|>")
    messages = {"messages": [{"role": "user", "content": "Hi"}]}
    (tmp_path / "prompts.jsonl").write_text("\n".join([json.dumps(messages)] * 3))
    with pytest.raises(ValueError, match=r"3 of 3 records cannot be used, .*the tokenizer has no chat template"):
        check_inputs(config, {"policy": policy})


def make_context(output: Path, policy: Artifact) -> Context:
    storage = Storage(str(output))
    return Context(storage, {"policy": policy}, Tracker(storage, run_id="test", name="rlhf", group="test"))


class FakeGraph:
    """A graph in which a rank dies once, when it is at `place` for the `time`-th time."""

    def __init__(self, context: Context, place: str, time: int) -> None:
        self._context, self._place, self._left = context, place, time
        self._saved = self._done = self.recoveries = 0
        self.exported_after = -1

    def __enter__(self) -> FakeGraph:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _reach(self, place: str) -> None:
        self._left -= place == self._place
        if place == self._place and self._left == 0:
            raise RanksDied("rank 1 died")

    def start(self) -> int:
        self._reach("start")
        self._done = self._saved
        return self._saved

    def rlhf_step(self, step: int) -> StepMetrics:
        assert step == self._done
        self._reach("step")
        self._done += 1
        return StepMetrics(
            rollouts=RolloutMetrics(reward_mean=step, reward_std=0, completion_length=1, finished=1, distinct_2=1),
            reference_kl=None,
            logprob_difference=LogprobDifference(max=0, mean=0),
            policy=UpdateMetrics(loss=0, grad_norm=0, lr=0, objective={}),
            value=None,
            generator_restarts=0,
            times=StepTimes(seconds={}, step_s=1, tokens_per_s=1),
        )

    def complete_and_score(self, prompts: list) -> ScoredRollouts:
        self._reach("held_out")
        return ScoredRollouts([], ["line\u2028break"] * len(prompts), [float(self._done)] * len(prompts))

    def save(self) -> None:
        self._reach("save")
        assert read_metrics(self._context.output)[-1]["step"] == self._done, "a kill now would lose the step's line"
        self._saved = self._done

    def export(self, output: Storage) -> None:
        self._reach("export")
        self.exported_after = self._done

    def recover(self, error: RanksDied) -> None:
        self.recoveries += 1


@pytest.mark.parametrize(
    ("place", "time"),
    [
        ("start", 1),
        ("held_out", 1),
        ("step", 1),
        ("step", 4),
        ("save", 1),
        ("save", 2),
        ("held_out", 2),
        ("held_out", 3),
        ("export", 1),
    ],
)
def test_a_run_survives_the_death_of_a_rank_wherever_it_comes(
    config: RLHFConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
    time: int,
) -> None:
    context = make_context(tmp_path / "output", save_model(tmp_path / "policy"))
    graph = FakeGraph(context, place, time)
    monkeypatch.setattr("actors.graph.build_graph", lambda *_: graph)
    summary = run(replace(config, execution=replace(config.execution, held_out_interval=2)), context)
    assert graph.recoveries == 1
    assert graph.exported_after == 4
    # These deaths come after the second step and before the first checkpoint is complete.
    loses_steps = (place, time) in (("held_out", 2), ("save", 1))
    assert ("no complete checkpoint; it starts at step 0" in caplog.text) == loses_steps
    lines = read_metrics(context.output)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert ["held_out/reward_mean" in line for line in lines] == [False, True, False, False]
    assert summary.steps == 4
    assert (summary.reward_before, summary.reward_after) == (0.0, 4.0)
    samples = context.output.read_jsonl("samples.jsonl")
    assert [sample["before"] for sample in samples] == ["line\u2028break"] * 4


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint_to_the_same_end(
    ray_session: None, config: RLHFConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = save_model(tmp_path / "policy")

    class Killed(Exception):
        """Stands for SIGKILL of the driver after three of four steps."""

    def train_three(config, context, graph, prompts, step):
        train(replace(config, steps=3), context, graph, prompts, step)
        raise Killed

    context = make_context(tmp_path / "output", policy)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("jobs.rlhf.train", train_three)
        run(config, context)
    first = read_metrics(context.output)
    summary = run(config, context)
    steps = read_metrics(context.output)
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert steps[:2] == first[:2]  # not done again: even the times are the first run's
    assert summary.steps == 4
    assert summary.logprob_difference_max <= 1e-4
    samples = [json.loads(line) for line in (tmp_path / "output/samples.jsonl").read_text().splitlines()]
    assert [sample["prompt"] for sample in samples] == [f"say {number}" for number in range(12, 16)]
    assert summary.reward_after == pytest.approx(statistics.fmean(s["reward_after"] for s in samples))
    exported = open_artifact(str(tmp_path / "output/model"))
    assert exported is not None
    check_inputs(config, {"policy": exported})  # what RLHF leaves is a policy again
