"""Does RLHF learn what its reward says, and only that? Sorting digits, from demonstrations that are mostly wrong.

Two in three demonstrations have two digits exchanged, so a model that imitates them perfectly is right one time in
three, however long it is trained. A verifier knows the right answer. Held-out prompts hold sets of digits that occur in
no training prompt. Each seed trains a decoder of 0.35M parameters from nothing, then compares on the held-out prompts,
with completions sampled at temperature 1:

    sft          the decoder after training on the demonstrations until its validation loss is flat
    more sft     as many further optimizer steps on demonstrations as GRPO takes, on as many sequences each
    grpo, ppo    the actor graph (vLLM engine, verifier, reference, learner, critic), as `raymill run rlhf` runs it
    shuffled     grpo with each step's rewards permuted: nothing to learn from

It ends with status 1, naming what failed, when a seed misses what `missed` asks of it.

    python benchmarks/rlhf_verifiable.py [--seeds 3]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import logging
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
import torch

from actors.engine import EngineSettings, engine_env
from actors.generator import Generator
from actors.graph import build_graph
from actors.graph_config import GraphConfig, Prompt
from actors.rollout import GenerationBatch, PromptRequest, SamplingParams, seeded_rng
from actors.settings import GraphExecution, RolloutConfig
from actors.step_metrics import StepMetrics
from cluster.placement import Placement
from cluster.session import connect, worker_env
from cluster.storage import Storage
from cluster.user_program import Program
from data.chats.layouts import parse_chat
from data.chats.rendering import render_chat
from data.chats.template import RenderedChat, load_chat_tokenizer
from data.tokens.tokenizer import read_chat_special_tokens, save_tokenizer
from data.tokens.tokenizer_recipe import MIN_BPE_SIZE
from data.tokens.tokenizer_training import train_tokenizer
from model.batch import Batch, batch_from_sequences
from model.huggingface import load_hf_model, save_hf_model
from model.huggingface_config import SpecialTokens
from model.learning import LearningConfig
from model.metrics import Interval, bootstrap_interval, paired_bootstrap
from model.objectives import causal_lm
from model.optim import adamw, constant_schedule, warmup_cosine
from model.train import TrainState, fit
from model.transformer import Transformer, initialize
from model.transformer_config import TransformerConfig

NUM_DIGITS = 5
WRONG_SHARE = 2 / 3
NUM_HELD_OUT = 400
SFT_STEPS = 1000
SFT_BATCH = 128
MAX_NEW_TOKENS = NUM_DIGITS + 2

ROLLOUTS = RolloutConfig(
    prompts_per_step=16, group_size=8, temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, generation_batch_prompts=16
)
GRPO = LearningConfig(algorithm="grpo", lr=1e-4, precision="float32", kl_coefficient=0.01, minibatches=2)
PPO = LearningConfig(
    algorithm="ppo", lr=1e-4, precision="float32", critic_lr=3e-4, kl_coefficient=0.01, minibatches=2, gae_lambda=1.0
)
RL_STEPS = 60
MINUTES = 10
"""Of one seed."""

VERIFIER = """
def is_sorted(prompt, completion, record):
    return float(completion == record["answer"])
"""


@dataclass(frozen=True)
class Task:
    """Prompts of digits; those of `held_out` share no set of digits with `train`."""

    train: list[str]
    held_out: list[str]


def make_task(seed: int) -> Task:
    """A tenth of all multisets of digits is held out; a prompt is one order of a multiset."""
    shuffler = random.Random(f"task:{seed}")
    multisets = list(itertools.combinations_with_replacement("0123456789", NUM_DIGITS))
    multisets = [digits for digits in multisets if len(set(digits)) > 2]  # an exchange must be visible
    shuffler.shuffle(multisets)
    held_out, kept = multisets[:NUM_HELD_OUT], multisets[NUM_HELD_OUT:]

    def ordered(digits: Sequence[str]) -> str:
        return "".join(shuffler.sample(list(digits), NUM_DIGITS))

    return Task([ordered(digits) for digits in kept for _ in range(12)], [ordered(digits) for digits in held_out])


def answer(prompt: str) -> str:
    return "".join(sorted(prompt))


def demonstration(prompt: str, draw: random.Random) -> str:
    """The sorted digits, in WRONG_SHARE of the cases with two different ones exchanged."""
    digits = sorted(prompt)
    if draw.random() < WRONG_SHARE:
        first, second = draw.choice(
            [(i, j) for i, j in itertools.combinations(range(NUM_DIGITS), 2) if digits[i] != digits[j]]
        )
        digits[first], digits[second] = digits[second], digits[first]
    return "".join(digits)


class Benchmark:
    """One seed's task, tokenizer and models, in a scratch folder."""

    def __init__(self, seed: int, scratch: Path) -> None:
        self.seed, self.scratch = seed, scratch
        self.task = make_task(seed)
        save_tokenizer(train_tokenizer([""], size=MIN_BPE_SIZE), scratch / "tokenizer")
        self.tokenizer = load_chat_tokenizer(scratch / "tokenizer")
        self.sizes = TransformerConfig(
            vocab_size=MIN_BPE_SIZE, width=96, num_layers=3, num_heads=3, num_kv_heads=3, ffn_width=256, max_length=32
        )
        draw = random.Random(f"demonstrations:{seed}")
        self.demonstrations = [self._rendered(prompt, demonstration(prompt, draw)) for prompt in self.task.train]

    def sft(self) -> tuple[Path, list[float]]:
        """Train from nothing on the demonstrations; the model's folder and the validation losses along the way."""
        model = Transformer(self.sizes)
        initialize(model, self.seed)
        schedule = warmup_cosine(peak_lr=3e-3, warmup_steps=50, total_steps=SFT_STEPS, final_ratio=0.05)
        state = TrainState(model, adamw(model, lr=3e-3), schedule)
        validation = self._batch(self.demonstrations[-1024:])
        losses: list[float] = []
        for report in fit(state, self._batches(SFT_STEPS, SFT_BATCH, "sft"), causal_lm):
            if report.step % (SFT_STEPS // 10) == 0:
                with torch.no_grad():
                    loss = causal_lm(model, validation)
                losses.append((loss.sum / loss.num_loss_terms).item())
        return self._save(model, "sft"), losses

    def more_sft(self, start: Path) -> Path:
        """As many further steps and sequences of demonstrations as GRPO's."""
        model = load_hf_model(start)
        steps = RL_STEPS * GRPO.optimizer_steps_per_rlhf_step
        state = TrainState(model, adamw(model, lr=GRPO.lr, weight_decay=0.0), constant_schedule(GRPO.lr))
        global_batch_size = ROLLOUTS.rollouts_per_step // GRPO.minibatches
        for _ in fit(state, self._batches(steps, global_batch_size, "more"), causal_lm):
            pass
        return self._save(model, "more-sft")

    def rl(
        self, start: Path, learning: LearningConfig, *, name: str, shuffle_rewards: bool = False
    ) -> tuple[list[float], list[float]]:
        """Learn in the actor graph; the held-out rewards before and after learning, by prompt."""
        config = GraphConfig(
            policy=Storage(str(start)),
            reward=None,
            verifier=Program(VERIFIER, "sorting.py", "is_sorted"),
            prompts=self._prompts(self.task.train),
            max_prompt_length=NUM_DIGITS + 3,
            rollouts=ROLLOUTS,
            learning=learning,
            algorithm=learning.algorithm,
            seed=self.seed,
            shuffle_rewards=shuffle_rewards,
            checkpoints=Storage(str(self.scratch / name)),
        )
        threads = Placement(cpus_per_worker=0.3, threads_per_worker=2)
        execution = GraphExecution(learners=threads, generators=threads, critics=threads, micro_batch_size=64)
        held_out = self._prompts(self.task.held_out)
        with build_graph(config, execution) as graph:
            graph.start()
            before = graph.complete_and_score(held_out).rewards
            for step in range(RL_STEPS):
                metrics = graph.rlhf_step(step)
                if step % 10 == 9:
                    logging.info("%s step %d: %s", name, step + 1, _brief(metrics))
            return before, graph.complete_and_score(held_out).rewards

    def accuracy(self, folder: Path) -> list[float]:
        """Held-out rewards of a model, sampled by an engine."""
        settings = EngineSettings(model=Storage(str(folder)), max_length=32, max_sequences=128, kv_cache_gib=0.25)
        env = {**worker_env(2), **engine_env()}
        engine = ray.remote(Generator).options(num_cpus=1, runtime_env={"env_vars": env}).remote(settings)
        tasks = [PromptRequest(i, p.prompt_ids, 1) for i, p in enumerate(self._prompts(self.task.held_out))]
        sampling = SamplingParams(
            temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, stop_ids=self.tokenizer.stop_ids, seed=self.seed
        )
        groups = ray.get(engine.generate.remote(GenerationBatch(-1, -1, tuple(tasks), sampling)))
        ray.kill(engine)
        texts = [self.tokenizer.decode(group.rollouts[0].text_ids) for group in groups]
        return [float(text == answer(prompt)) for text, prompt in zip(texts, self.task.held_out, strict=True)]

    def _rendered(self, prompt: str, completion: str) -> RenderedChat:
        (chat,) = render_chat(self.tokenizer, parse_chat({"prompt": prompt, "completion": completion})).samples
        return chat

    def _prompts(self, texts: Sequence[str]) -> list[Prompt]:
        return [
            Prompt(
                text,
                tuple(self.tokenizer.prompt_ids([{"role": "user", "content": text}])),
                {"prompt": text, "answer": answer(text)},
            )
            for text in texts
        ]

    def _batches(self, steps: int, global_batch_size: int, purpose: str) -> Iterator[list[Batch]]:
        for step in range(steps):
            chosen = torch.randint(
                len(self.demonstrations) - 1024, (global_batch_size,), generator=seeded_rng(self.seed, purpose, step)
            )
            yield [self._batch([self.demonstrations[index] for index in chosen.tolist()])]

    def _batch(self, chats: Sequence[RenderedChat]) -> Batch:
        longest = max(len(chat.ids) for chat in chats) - 1
        return batch_from_sequences(
            [chat.ids.tolist() for chat in chats],
            [chat.loss_mask.tolist() for chat in chats],
            length=longest,
            pad_id=self.tokenizer.pad_id,
        )

    def _save(self, model: Transformer, name: str) -> Path:
        folder = self.scratch / name
        ids = read_chat_special_tokens(self.scratch / "tokenizer")
        save_hf_model(
            folder,
            model.state_dict(),
            self.sizes,
            special_tokens=SpecialTokens(bos=ids.bos, eos=ids.eos, pad=ids.pad),
            tokenizer_folder=self.scratch / "tokenizer",
        )
        return folder


_SHOWN = (
    "rollout/reward_mean",
    "policy/entropy",
    "rollout/reference_kl",
    "sync_check/logprob_difference_max",
    "perf/step_s",
)


def _brief(metrics: StepMetrics) -> str:
    by_key = metrics.by_key()
    return "  ".join(f"{key.split('/')[1]} {by_key[key]:.3g}" for key in _SHOWN if key in by_key)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    accuracy: Interval
    gain: Interval | None
    """Over sft, by prompt."""
    seconds: float


def run_seed(seed: int, scratch: Path) -> tuple[list[Row], list[float]]:
    """All models of one seed, and the validation losses of sft along the way."""
    benchmark = Benchmark(seed, scratch)
    rows: list[Row] = []

    def timed(function):
        started = time.perf_counter()
        return function(), time.perf_counter() - started

    def in_worker(method, *arguments):
        """Run with two threads in a process of its own, as the graph's actors do."""
        options = {"num_cpus": 1, "runtime_env": {"env_vars": worker_env(2)}}
        return ray.get(ray.remote(method).options(**options).remote(benchmark, *arguments))

    (sft, losses), sft_s = timed(lambda: in_worker(Benchmark.sft))
    logging.info("seed %d: validation loss of sft %s", seed, " ".join(f"{loss:.4f}" for loss in losses))
    runs = {
        "grpo": functools.partial(benchmark.rl, sft, GRPO, name="grpo"),
        "ppo": functools.partial(benchmark.rl, sft, PPO, name="ppo"),
        "shuffled": functools.partial(benchmark.rl, sft, GRPO, name="shuffled", shuffle_rewards=True),
    }
    before: list[float] = []
    for name, run in runs.items():
        (before, after), seconds = timed(run)
        rows.append(Row(name, bootstrap_interval(after), paired_bootstrap(before, after), seconds))
    more, seconds = timed(lambda: benchmark.accuracy(in_worker(Benchmark.more_sft, sft)))
    rows.append(Row("more sft", bootstrap_interval(more), paired_bootstrap(before, more), seconds))
    return [Row("sft", bootstrap_interval(before), None, sft_s), *rows], losses


def missed(rows: Sequence[Row], losses: Sequence[float], minutes: float) -> list[str]:
    """The bounds that one seed does not keep."""
    accuracy = {row.name: row.accuracy for row in rows}
    gain = {row.name: row.gain for row in rows if row.gain is not None}
    grpo = accuracy["grpo"]
    kept = {
        "sft is right in less than half of the cases": accuracy["sft"].value < 0.5,
        "sft's last two validation losses are within 1 percent": abs(losses[-1] / losses[-2] - 1) < 0.01,
        "grpo is right in more than 80 percent": grpo.value > 0.8,
        "ppo's gain is above 0 with its whole interval": gain["ppo"].low > 0,
        "more sft is below grpo": accuracy["more sft"].high < grpo.low,
        "shuffled is below grpo": accuracy["shuffled"].high < grpo.low,
        f"it takes at most {MINUTES} minutes": minutes <= MINUTES,
    }
    return [bound for bound, holds in kept.items() if not holds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    failures: list[str] = []
    for seed in range(options.seeds):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="raymill-bench-") as scratch, connect("local", num_cpus=2):
            rows, losses = run_seed(seed, Path(scratch))
        minutes = (time.perf_counter() - started) / 60
        print(f"\nseed {seed}, {NUM_HELD_OUT} held-out prompts, {minutes:.1f} minutes, 95% bootstrap intervals")
        print(f"{'':<10} {'accuracy':>24} {'gain over sft':>24} {'seconds':>8}")
        for row in rows:
            print(f"{row.name:<10} {_text(row.accuracy):>24} {_text(row.gain):>24} {row.seconds:>8.0f}")
        failures += [f"seed {seed}: missed: {bound}" for bound in missed(rows, losses, minutes)]
    print("\n".join(failures))
    return 1 if failures else 0


def _text(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
