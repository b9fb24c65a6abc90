"""How likely a model finds given text: held-out documents, and single sequences by our own model or by vLLM.

Shape legend: B rows, T positions of a row.
"""

from __future__ import annotations

import itertools
import json
import lzma
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.storage import Storage
from data.tokens.shard_reader import ShardReader
from data.tokens.tokenizer import load_encoder
from data.tokens.training_rows import TrainingRow, document_rows, pad_rows
from model.batch import Batch, batch_from_sequences, to_device
from model.huggingface import load_hf_model
from model.objectives import logprobs, nll_by_row
from model.precision import ComputePrecision, autocast_dtype
from model.quantize import decompress_folder, simulate_int8
from model.train import autocast
from model.transformer import Transformer

MAX_PASS_TOKENS = 4096
"""Positions of one forward pass: their logits, in float32, are the largest thing in memory."""


class TextScores(NamedTuple):
    """The cost of documents of a split, as arrays of equal length."""

    index: np.ndarray
    """Index of the document in the split."""
    nats: np.ndarray
    """Negative log-likelihood of all its tokens and of its end, given the separator before it."""
    num_tokens: np.ndarray
    """Predicted tokens, the end included."""
    num_bytes: np.ndarray
    """Bytes of its text."""


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
    """The likelihood of every num_parts-th document of a split, from `part` on, each by itself.

    A folder of int8 weights is computed as an engine would (`model.quantize`). Documents longer than the model's
    context are read in windows; each window after the first begins with `overlap` tokens of the one before, and every
    token is predicted exactly once.
    """
    model = load_language_model(model_folder.local()).to(device).requires_grad_(False)
    length = model.config.max_length
    reader = ShardReader(split, sequence_length=length)
    documents = list(itertools.islice(reader.documents(), part, None, num_parts))
    windows = [
        (number, sample)
        for number, document in enumerate(documents)
        for sample in document_rows(document.tokens, length, overlap=overlap)
    ]
    nats = np.zeros(len(documents))
    for batch_windows in _by_length(windows):
        numbers, samples = zip(*batch_windows, strict=True)
        with torch.no_grad(), autocast(torch.device(device), autocast_dtype(precision)):
            nats_B = nll_by_row(model, to_device(_batch(samples), torch.device(device)))
        np.add.at(nats, np.array(numbers), nats_B.double().cpu().numpy())
    return TextScores(
        index=np.arange(part, part + num_parts * len(documents), num_parts),
        nats=nats,
        num_tokens=np.array([len(document.tokens) - 1 for document in documents], dtype=np.int64),
        num_bytes=np.array([document.num_bytes for document in documents], dtype=np.int64),
    )


def merge_scores(parts: Sequence[TextScores]) -> TextScores:
    """The parts as one, in the order of the documents, so that nothing depends on their number."""
    whole = TextScores(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    order = np.argsort(whole.index)
    return TextScores(*(column[order] for column in whole))


def load_language_model(folder: Path) -> Transformer:
    """The language model in a folder; a compressed one rounds weights and activations as an engine does."""
    if "quantization_config" not in json.loads((folder / "config.json").read_text()):
        return load_hf_model(folder)
    with tempfile.TemporaryDirectory(prefix="raymill-int8-") as plain:
        decompress_folder(folder, Path(plain))
        model = load_hf_model(Path(plain))
    simulate_int8(model)
    return model


def xz_size(split: Storage, tokenizer: Storage) -> int:
    """Bytes of the split's text, all documents as one stream, after `xz -9e`.

    Raises ValueError when the tokenizer does not decode the texts to what they were.
    """
    encoder = load_encoder(tokenizer.local())
    texts: list[bytes] = []
    for document in ShardReader(split, sequence_length=1).documents():
        text = encoder.decode(document.tokens[1:-1].tolist(), skip_special_tokens=False).encode()
        if len(text) != document.num_bytes:
            raise ValueError(
                "compare_with_xz: this tokenizer does not decode texts to what they were, so xz would read another "
                "text; set compare_with_xz to false"
            )
        texts.append(text)
    return len(lzma.compress(b"".join(texts), preset=9 | lzma.PRESET_EXTREME))


def sequence_logprobs(
    model_folder: Storage, sequences: Sequence[Sequence[int]], *, device: str
) -> list[NDArray[np.float64]]:
    """Our own logprobs, in float32, of all tokens of each sequence but the first."""
    model = load_language_model(model_folder.local()).to(device).requires_grad_(False)
    result: list[NDArray[np.float64]] = []
    num_rows = max(1, MAX_PASS_TOKENS // max(map(len, sequences)))
    for start in range(0, len(sequences), num_rows):
        part = sequences[start : start + num_rows]
        masks = [[True] * len(sequence) for sequence in part]
        batch = batch_from_sequences(part, masks, length=max(map(len, part)) - 1, pad_id=0)
        with torch.no_grad():
            logprobs_BT = logprobs(model, to_device(batch, torch.device(device))).double().cpu().numpy()
        result += [row[: len(sequence) - 1] for row, sequence in zip(logprobs_BT, part, strict=True)]
    return result


def vllm_sequence_logprobs(
    model_folder: Storage, sequences: Sequence[Sequence[int]], *, device: str
) -> list[NDArray[np.float64]]:
    """vLLM's logprobs, in float32, of all tokens of each sequence but the first.

    Run it in a process of its own (`ray_task` with `engine_env()`), so that the engine's memory is freed.
    """
    import vllm  # late: only an engine's process pays for it

    executor: dict[str, Any] = {} if device == "cuda" else {"distributed_executor_backend": "uni"}
    engine = vllm.LLM(
        model=str(model_folder.local()),
        dtype="float32",
        max_model_len=max(map(len, sequences)) + 1,
        enforce_eager=True,
        kv_cache_memory_bytes=2**28,
        disable_log_stats=True,
        **executor,
    )
    sampling = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    outputs = engine.generate([{"prompt_token_ids": list(s)} for s in sequences], sampling, use_tqdm=False)
    return [
        np.array([next(iter(entry.values())).logprob for entry in (output.prompt_logprobs or [])[1:] if entry])
        for output in outputs
    ]


def _by_length(windows: Iterable[tuple[int, TrainingRow]]) -> Iterator[list[tuple[int, TrainingRow]]]:
    """Batches of windows of similar length, at most MAX_PASS_TOKENS padded positions each, the longest first."""
    pending = sorted(windows, key=lambda window: -len(window[1].tokens))
    while pending:
        num_rows = max(1, MAX_PASS_TOKENS // (len(pending[0][1].tokens) - 1))
        yield pending[:num_rows]
        pending = pending[num_rows:]


def _batch(samples: Sequence[TrainingRow]) -> Batch:
    """One window a row; causal attention alone keeps it apart from the padding on its right."""
    rows = pad_rows(samples, max(len(sample.tokens) for sample in samples) - 1)
    input_ids, targets, loss_mask, positions = (torch.from_numpy(array) for array in rows[:4])
    return Batch(input_ids, targets, loss_mask, positions, None)
