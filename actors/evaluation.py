"""What an evaluation needs of models, each as a Ray task or through an engine: likelihoods, answers, preferences.

Shape legend: B rows, T positions of a row, N positions where the loss mask is true, V vocabulary.
"""

from __future__ import annotations

import itertools
import json
import lzma
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from actors.generator import EngineSettings, Generator, engine_env
from actors.logprobs import batch_logprobs
from actors.pool import GeneratorPool
from actors.proof import check_gap, check_rollouts, logprob_gap
from actors.rollout import Lot, PromptTask, Rollout, Sampling, behaviour_logprobs, rollout_batch
from actors.settings import LOGPROB_BOUNDS, Gap
from actors.weights import ObjectStorePublisher, Publication
from cluster import stage_monitor
from cluster.heartbeat import monitored, monitored_class
from cluster.placement import Placement
from cluster.session import worker_env
from cluster.storage import Storage
from data.chats.template import PreferenceTokens
from data.tokens.samples import Sample, document_samples, to_rows
from data.tokens.shard_reader import ShardReader
from data.tokens.tokenizer import load_encoder, load_tokenizer, separator_id
from model.batch import Batch, from_sequences, pair_batch, to_device
from model.huggingface import load_folder, load_scalar_folder, read_config
from model.objectives import logprobs, nll_by_row, rewards
from model.precision import ComputePrecision, autocast_dtype, torch_dtype
from model.quantize import decompress_folder, simulate_int8
from model.train import autocast
from model.transformer import Transformer

SCORED_TOKENS = 4096
"""Positions of one forward pass: the logits of this many, in float32, are the largest thing in memory."""
ANSWERED_AT_ONCE = 64
"""Prompts that an engine answers at a time; fixed, so that answers do not depend on the number of engines."""
_PROVED_ANSWERS = 16
"""Answers of each model's first lot whose logprobs are computed again, by our own model, where there may be no GPU."""


def remote(
    function: Callable[..., Any], placement: Placement, environment: Mapping[str, str] | None = None
) -> Callable[..., ray.ObjectRef]:
    """`function` as a Ray task on one worker's share; it may be repeated after a death, being pure."""
    environment = {**worker_env(placement.threads_per_worker), **(environment or {})}
    stage, numbers = stage_monitor.current_stage(), itertools.count()

    def call(number: int, *arguments: Any, **named: Any) -> Any:
        with monitored(stage, function.__name__, number, log_death=True):
            return function(*arguments, **named)

    task = (
        ray.remote(call)
        .options(
            num_cpus=placement.cpus_per_worker,
            num_gpus=placement.gpus_per_worker,
            max_retries=placement.max_failures,
            runtime_env={"env_vars": environment},
        )
        .remote
    )
    return lambda *arguments, **named: task(next(numbers), *arguments, **named)


# Held-out text.


class TextScores(NamedTuple):
    """What each document of a part of a split costs, as arrays of equal length."""

    index: np.ndarray
    """Of the document in the split."""
    nats: np.ndarray
    """Negative log-likelihood of all its tokens and of its end, given the separator before it."""
    num_tokens: np.ndarray
    """Predicted tokens, the end included."""
    num_bytes: np.ndarray
    """Of its text."""


def score_text(
    model_folder: Storage,
    split: Storage,
    *,
    part: int,
    num_parts: int,
    overlap: int,
    precision: ComputePrecision,
    device: str,
) -> TextScores:
    """The likelihood of every num_parts-th document of a split, from `part` on, each on its own.

    A folder of int8 weights is computed as an engine would (`model.quantize`).
    Documents longer than the model's context are read in windows, of which each after the first sees `overlap`
    tokens again; every token is predicted exactly once.
    """
    model = _ready(load_any_folder(model_folder.local()), device)
    length = model.config.max_length
    reader = ShardReader(split, sequence_length=length)
    documents = list(itertools.islice(reader.documents(), part, None, num_parts))
    windows = [
        (place, sample)
        for place, document in enumerate(documents)
        for sample in document_samples(document.tokens, length, overlap=overlap)
    ]
    nats = np.zeros(len(documents))
    for batch_windows in _by_length(windows):
        places, samples = zip(*batch_windows, strict=True)
        with torch.no_grad(), autocast(torch.device(device), autocast_dtype(precision)):
            nats_B = nll_by_row(model, to_device(_batch(samples), torch.device(device)))
        np.add.at(nats, np.array(places), nats_B.double().cpu().numpy())
    return TextScores(
        index=np.arange(part, part + num_parts * len(documents), num_parts),
        nats=nats,
        num_tokens=np.array([len(document.tokens) - 1 for document in documents], dtype=np.int64),
        num_bytes=np.array([document.num_bytes for document in documents], dtype=np.int64),
    )


def load_any_folder(folder: Path) -> Transformer:
    """The language model in a folder, a compressed one with its rounding of weights and activations."""
    if "quantization_config" not in json.loads((folder / "config.json").read_text()):
        return load_folder(folder)
    with tempfile.TemporaryDirectory(prefix="raymill-int8-") as plain:
        decompress_folder(folder, Path(plain))
        model = load_folder(Path(plain))
    simulate_int8(model)
    return model


def _by_length(windows: Iterable[tuple[int, Sample]]) -> Iterator[list[tuple[int, Sample]]]:
    """Windows of like length together, at most SCORED_TOKENS padded positions a batch, the longest first."""
    waiting = sorted(windows, key=lambda window: -len(window[1].tokens))
    while waiting:
        rows = max(1, SCORED_TOKENS // (len(waiting[0][1].tokens) - 1))
        yield waiting[:rows]
        waiting = waiting[rows:]


def _batch(samples: Sequence[Sample]) -> Batch:
    """One window a row; causal attention alone keeps it apart from the padding on its right."""
    rows = to_rows(samples, max(len(sample.tokens) for sample in samples) - 1)
    input_ids, targets, loss_mask, positions = (torch.from_numpy(array) for array in rows[:4])
    return Batch(input_ids, targets, loss_mask, positions, None)


def xz_size(split: Storage, tokenizer: Storage) -> int:
    """Bytes of the split's text, all documents as one stream, after `xz -9e`.

    Raises ValueError when the tokenizer does not give the text back as it was.
    """
    encoder = load_encoder(tokenizer.local())
    pieces: list[bytes] = []
    for document in ShardReader(split, sequence_length=1).documents():
        text = encoder.decode(document.tokens[1:-1].tolist(), skip_special_tokens=False).encode()
        if len(text) != document.num_bytes:
            raise ValueError(
                "compare_with_xz: this tokenizer does not give texts back as they were, so xz would read another text; "
                "set compare_with_xz to false"
            )
        pieces.append(text)
    return len(lzma.compress(b"".join(pieces), preset=9 | lzma.PRESET_EXTREME))


# Stereotypes.


class SentencePair(NamedTuple):
    """Two sentences alike but for the group they name."""

    group: str
    stereotype: str
    counterpart: str


class PairScores(NamedTuple):
    """Log-likelihoods in nats, stereotype minus counterpart, [pairs]."""

    sentence: NDArray[np.float64]
    """Of the whole sentences."""
    continuation: NDArray[np.float64]
    """Of the tokens after the last one in which they differ, each given its own beginning: the same words about one
    group and about the other, so that how common a group's name is does not count."""


def score_pairs(model_folder: Storage, pairs: Sequence[SentencePair], *, device: str) -> PairScores:
    """How much more likely a model finds the stereotype than its counterpart, both as beginnings of a document."""
    folder = model_folder.local()
    encoder, separator = load_encoder(folder), separator_id(load_tokenizer(folder))
    sentences = [sentence for pair in pairs for sentence in (pair.stereotype, pair.counterpart)]
    ids = [[separator, *encoder.encode(sentence, add_special_tokens=False).ids] for sentence in sentences]
    by_sentence = sequence_logprobs(model_folder, ids, device=device)
    sentence, continuation = [], []
    for first in range(0, len(ids), 2):
        ours, theirs = by_sentence[first], by_sentence[first + 1]
        shared = common_suffix(ids[first], ids[first + 1])
        sentence.append(ours.sum() - theirs.sum())
        continuation.append(ours[len(ours) - shared :].sum() - theirs[len(theirs) - shared :].sum())
    return PairScores(np.array(sentence), np.array(continuation))


def common_suffix(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of equal items at the ends of two sequences."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False))
    return sum(1 for _ in same)


# Preferences.


def preference_margins(
    reward_folder: Storage, pairs: Sequence[PreferenceTokens], *, pad_id: int, precision: ComputePrecision, device: str
) -> NDArray[np.float64]:
    """Reward of the chosen minus that of the rejected answer, for each pair."""
    model = _ready(load_scalar_folder(reward_folder.local()), device)
    longest = max(len(side) for pair in pairs for side in pair)
    size = max(1, SCORED_TOKENS // (2 * longest))
    margins: list[NDArray[np.float64]] = []
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        length = max(len(side) for pair in part for side in pair)
        batch = pair_batch([p.chosen for p in part], [p.rejected for p in part], length=length, pad_id=pad_id)
        batch = to_device(batch, torch.device(device))
        with torch.no_grad(), autocast(torch.device(device), autocast_dtype(precision)):
            chosen_B = rewards(model, batch.chosen_ids, batch.chosen_last)
            rejected_B = rewards(model, batch.rejected_ids, batch.rejected_last)
        margins.append((chosen_B - rejected_B).double().cpu().numpy())
    return np.concatenate(margins)


# Answers.


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What one model is asked."""

    model: Storage
    """Hugging Face folder."""
    prompts: Sequence[PromptTask]
    """One sample each; the index tells the same prompt from another, whichever model is asked."""
    stop_ids: tuple[int, ...]


def answer(
    questions: Mapping[str, Questions],
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    precision: ComputePrecision,
    placement: Placement,
    kv_cache_gib: float,
    progress: Callable[[str], None] = lambda model: None,
) -> dict[str, list[Rollout]]:
    """Each model's answer to each of its prompts, in order.

    Models of equal sizes share engines: the next one's weights replace the last one's in tens of milliseconds, which
    starting an engine does in tens of seconds. A prompt has the same seed whichever model answers it.
    Raises a WeightSyncError when an engine does not compute what the model that is asked does.
    """
    answers: dict[str, list[Rollout]] = {}
    by_sizes: dict[Any, list[str]] = {}
    for name, asked in questions.items():
        by_sizes.setdefault(read_config(asked.model.local()), []).append(name)
    for sizes, names in by_sizes.items():
        settings = EngineSettings(
            model=questions[names[0]].model,
            max_length=sizes.max_length,
            max_sequences=ANSWERED_AT_ONCE,
            precision=precision,
            kv_cache_gib=kv_cache_gib,
            is_cuda=placement.gpus_per_worker > 0,
        )
        pool = GeneratorPool(
            lambda index, settings=settings: _start_engine(settings, placement, index),
            placement.workers,
            max_failures=placement.max_failures,
        )
        publisher = ObjectStorePublisher(rank=0, dtype=torch_dtype(precision))
        previous: Publication | None = None
        try:
            for version, name in enumerate(names):
                asked = questions[name]
                model = load_folder(asked.model.local())
                current = publisher.publish(model, version)
                pool.load(current)
                sampling = Sampling(
                    temperature=temperature, max_new_tokens=max_new_tokens, stop_ids=asked.stop_ids, seed=seed
                )
                answers[name] = _ask(pool, asked, sampling, version, sizes.vocab_size)
                prove_answers(model, answers[name][:_PROVED_ANSWERS], temperature, precision, current, previous)
                previous = current
                progress(name)
        finally:
            stage_monitor.expect_end("generator")
            for engine in pool.engines:
                ray.kill(engine)
    return answers


def _ask(pool: GeneratorPool, asked: Questions, sampling: Sampling, version: int, vocab_size: int) -> list[Rollout]:
    tasks = list(asked.prompts)
    starts = range(0, len(tasks), ANSWERED_AT_ONCE)
    lots = [Lot(0, version, tuple(tasks[start : start + ANSWERED_AT_ONCE]), sampling) for start in starts]
    groups = pool.generate(lots)
    check_rollouts(tasks, groups, version=version, vocab_size=vocab_size)
    return [group.rollouts[0] for group in groups]


def prove_answers(
    model: Transformer,
    rollouts: Sequence[Rollout],
    temperature: float,
    precision: ComputePrecision,
    current: Publication,
    previous: Publication | None,
) -> None:
    """Raise a WeightSyncError when these answers have other logprobs under our own model than the engine said."""
    temperature = temperature or 1.0  # a greedy engine reports logprobs that no temperature has changed
    batch = rollout_batch(rollouts, pad_id=0)
    engine_NT = behaviour_logprobs(rollouts, batch)
    ours_NT = batch_logprobs(
        model,
        batch,
        torch.arange(len(rollouts)),
        temperature=temperature,
        num_rows=max(1, SCORED_TOKENS // batch.input_ids.shape[1]),
        dtype=autocast_dtype(precision),
    )
    allowed, scale = LOGPROB_BOUNDS[precision], min(1.0, temperature)  # it divides the logits, and what was rounded too
    check_gap(
        logprob_gap(batch, engine_NT, ours_NT),
        Gap(max=allowed.max / scale, mean=allowed.mean / scale),
        batch,
        engine_NT,
        sizes=model.config,
        temperature=temperature,
        current=current,
        previous=previous,
    )


def _start_engine(settings: EngineSettings, placement: Placement, index: int) -> Any:
    environment = {**worker_env(placement.threads_per_worker), **engine_env()}
    return (
        ray.remote(monitored_class(Generator, stage_monitor.current_stage(), "generator", index))
        .options(
            num_cpus=placement.cpus_per_worker,
            num_gpus=placement.gpus_per_worker,
            runtime_env={"env_vars": environment},
        )
        .remote(settings)
    )


def sequence_logprobs(
    model_folder: Storage, sequences: Sequence[Sequence[int]], *, device: str
) -> list[NDArray[np.float64]]:
    """Our own log-probabilities, in float32, of all tokens of each sequence but the first."""
    model = _ready(load_any_folder(model_folder.local()), device)
    found: list[NDArray[np.float64]] = []
    rows = max(1, SCORED_TOKENS // max(map(len, sequences)))
    for start in range(0, len(sequences), rows):
        part = sequences[start : start + rows]
        whole = [[True] * len(sequence) for sequence in part]
        batch = from_sequences(part, whole, length=max(map(len, part)) - 1, pad_id=0)
        with torch.no_grad():
            logprobs_BT = logprobs(model, to_device(batch, torch.device(device))).double().cpu().numpy()
        found += [row[: len(sequence) - 1] for row, sequence in zip(logprobs_BT, part, strict=True)]
    return found


def engine_logprobs(
    model_folder: Storage, sequences: Sequence[Sequence[int]], *, device: str
) -> list[NDArray[np.float64]]:
    """vLLM's log-probabilities, computed in float32, of all tokens of each sequence but the first.

    Runs in a process of its own (`remote` with `engine_env()`), which the engine leaves no memory in.
    """
    import vllm  # late: only an engine's process pays for it

    own: dict[str, Any] = {} if device == "cuda" else {"distributed_executor_backend": "uni"}
    engine = vllm.LLM(
        model=str(model_folder.local()),
        dtype="float32",
        max_model_len=max(map(len, sequences)) + 1,
        enforce_eager=True,
        kv_cache_memory_bytes=2**28,
        disable_log_stats=True,
        **own,
    )
    asked = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    outputs = engine.generate([{"prompt_token_ids": list(s)} for s in sequences], asked, use_tqdm=False)
    return [
        np.array([next(iter(entry.values())).logprob for entry in (output.prompt_logprobs or [])[1:] if entry])
        for output in outputs
    ]


def device_of(placement: Placement) -> str:
    """Where a task of this placement computes."""
    return "cuda" if placement.gpus_per_worker > 0 else "cpu"


def _ready(model: Any, device: str) -> Any:
    """The model on its device, with nothing to learn."""
    return model.to(device).requires_grad_(False)
