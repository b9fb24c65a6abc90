"""Log-likelihoods of given text under a model: of held-out documents with Raymill's PyTorch model, and of single
sequences with Raymill's model or vLLM.

Shape legend: B is the number of rows, and T the number of positions of a row.
"""

from __future__ import annotations

import lzma
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from actors.held_out_text import decode_documents, retokenized_documents, shard_documents
from actors.settings import MAX_PASS_TOKENS
from cluster.storage import Storage
from data.tokens.shard_reader import ShardReader
from data.tokens.training_rows import TrainingRow, document_rows, pad_rows
from model.batch import Batch, batch_from_sequences, to_device
from model.huggingface import load_hf_model
from model.huggingface_config import is_quantized
from model.objectives import logprobs, nll_by_row
from model.precision import ComputePrecision, autocast_dtype
from model.quantize import decompress_folder, simulate_int8
from model.train import autocast
from model.transformer import Transformer


class TextScores(NamedTuple):
    """Scores of documents of a split. Each field is an array with one item per document."""

    index: np.ndarray
    """Index of the document in the split."""
    nats: np.ndarray
    """Negative log-likelihood of the document in nats: of all its tokens and of the separator after it, given the
    token that documents begin with."""
    num_tokens: np.ndarray
    """Number of predicted tokens, the separator after the document included."""
    num_bytes: np.ndarray
    """Bytes of the document's text in UTF-8."""
    is_exact: np.ndarray
    """Whether the tokens stand for exactly the document's text (`actors.held_out_text`)."""

    def select(self, is_selected: NDArray[np.bool_]) -> TextScores:
        """Return the scores of the documents for which `is_selected` is true."""
        return TextScores(*(column[is_selected] for column in self))


def score_text(
    model_folder: Storage,
    split: Storage,
    *,
    part: int,
    num_parts: int,
    overlap: int,
    precision: ComputePrecision,
    device: str,
    shards_tokenizer: Storage | None = None,
) -> TextScores:
    """Return the scores of documents of a split. No document has the text of another document as context.

    The documents are those with the indices `part`, `part + num_parts`, `part + 2 * num_parts` and so on, so that
    `num_parts` workers can share the split. A document that is longer than the model's context is split into several
    rows. The first `overlap` targets of each row after the first are context: the row before has scored them. So every
    token is scored exactly once. A model with int8 weights computes with the rounding of vLLM (`model.quantize`).

    `shards_tokenizer` is the tokenizer of the shards if the model has another one. Then the documents are tokenized
    again.
    """
    folder = model_folder.local()
    model = load_language_model(folder).to(device).requires_grad_(False)
    length = model.config.max_length
    if shards_tokenizer is None:
        documents = shard_documents(split, part=part, num_parts=num_parts)
    else:
        documents = retokenized_documents(split, shards_tokenizer.local(), folder, part=part, num_parts=num_parts)
    rows = [
        (position, row)
        for position, document in enumerate(documents)
        for row in document_rows(document.tokens, length, overlap=overlap)
    ]
    nats = np.zeros(len(documents))
    for batch_rows in _batches_by_length(rows):
        positions, training_rows = zip(*batch_rows, strict=True)
        with torch.no_grad(), autocast(torch.device(device), autocast_dtype(precision)):
            nats_B = nll_by_row(model, to_device(_to_batch(training_rows), torch.device(device)))
        np.add.at(nats, np.array(positions), nats_B.double().cpu().numpy())
    return TextScores(
        index=np.arange(part, part + num_parts * len(documents), num_parts),
        nats=nats,
        num_tokens=np.array([len(document.tokens) - 1 for document in documents], dtype=np.int64),
        num_bytes=np.array([document.num_bytes for document in documents], dtype=np.int64),
        is_exact=np.array([document.is_exact for document in documents], dtype=np.bool_),
    )


def merge_scores(parts: Sequence[TextScores]) -> TextScores:
    """Return the scores of all parts in the order of the documents. The result is the same for any number of parts."""
    merged = TextScores(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    order = np.argsort(merged.index)
    return TextScores(*(column[order] for column in merged))


def common_documents(scores: Sequence[TextScores], xz: XzSize | None) -> NDArray[np.bool_]:
    """Return for each document whether its results can be compared: all have the text exactly.

    `xz` is None if the text is not compressed.
    """
    is_common = np.logical_and.reduce([model_scores.is_exact for model_scores in scores])
    return is_common if xz is None else is_common & np.isin(scores[0].index, xz.index)


def load_language_model(folder: Path, *, rounding: torch.Generator | None = None) -> Transformer:
    """Load a language model from a Hugging Face folder.

    A compressed (int8) model is loaded in floating point. It then rounds its weights and activations as vLLM does, or
    with the generator `rounding` it rounds the activations up or down at random.
    """
    if not is_quantized(folder):
        return load_hf_model(folder)
    with tempfile.TemporaryDirectory(prefix="raymill-int8-") as decompressed:
        decompress_folder(folder, Path(decompressed))
        model = load_hf_model(Path(decompressed))
    simulate_int8(model, generator=rounding)
    return model


class XzSize(NamedTuple):
    """The result of compressing documents of a split with `xz -9e`."""

    num_bytes: int
    """Size of all documents together after compression."""
    index: np.ndarray
    """Indices of the documents in the split."""


def xz_size(split: Storage, tokenizer: Storage, index: NDArray[np.int64] | None = None) -> XzSize:
    """Compress the texts of the documents with these indices as one stream.

    Without `index`, all documents are compressed whose tokens decode to a text of the original size. `tokenizer` is the
    tokenizer of the shards.
    """
    documents = ShardReader(split, sequence_length=1).documents()
    compressor, num_bytes = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME), 0
    selected, compressed = None if index is None else set(index.tolist()), []
    for number, document in enumerate(decode_documents(documents, tokenizer.local())):
        if document.is_exact if selected is None else number in selected:
            num_bytes += len(compressor.compress(document.text.encode()))
            compressed.append(number)
    return XzSize(num_bytes + len(compressor.flush()), np.array(compressed, dtype=np.int64))


def sequence_logprobs(
    model_folder: Storage, sequences: Sequence[Sequence[int]], *, device: str, rounds_at_random: bool = False
) -> list[NDArray[np.float64]]:
    """Return for each sequence the logprobs of all tokens but the first, computed by Raymill's model in float32.

    With `rounds_at_random`, a compressed model rounds its activations up or down at random (`simulate_int8`).
    """
    rounding = torch.Generator(device).manual_seed(0) if rounds_at_random else None
    model = load_language_model(model_folder.local(), rounding=rounding).to(device).requires_grad_(False)
    result: list[NDArray[np.float64]] = []
    num_rows = max(1, MAX_PASS_TOKENS // max(map(len, sequences)))
    for start in range(0, len(sequences), num_rows):
        batch_sequences = sequences[start : start + num_rows]
        masks = [[True] * len(sequence) for sequence in batch_sequences]
        batch = batch_from_sequences(batch_sequences, masks, length=max(map(len, batch_sequences)) - 1, pad_id=0)
        with torch.no_grad():
            logprobs_BT = logprobs(model, to_device(batch, torch.device(device))).double().cpu().numpy()
        result += [row[: len(sequence) - 1] for row, sequence in zip(logprobs_BT, batch_sequences, strict=True)]
    return result


def vllm_sequence_logprobs(
    model_folder: Storage, sequences: Sequence[Sequence[int]], *, device: str
) -> list[NDArray[np.float64]]:
    """Return for each sequence the logprobs of all tokens but the first, computed by vLLM in float32.

    Run this function in a separate process (`ray_task` with `engine_env()`), so that the engine's memory is freed.
    """
    import vllm  # imported here, because importing vllm is slow and only the engine's process needs it

    executor: dict[str, Any] = {} if device == "cuda" else {"distributed_executor_backend": "uni"}
    engine = vllm.LLM(
        model=str(model_folder.local()),
        dtype="float32",
        max_model_len=max(map(len, sequences)) + 1,  # vLLM must sample at least one token after each sequence
        enforce_eager=True,
        kv_cache_memory_bytes=2**28,
        disable_log_stats=True,
        **executor,
    )
    sampling = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    outputs = engine.generate([{"prompt_token_ids": list(s)} for s in sequences], sampling, use_tqdm=False)
    # The first token of a sequence has no logprob. Every other entry maps the token's id to an object with its logprob.
    return [
        np.array([next(iter(entry.values())).logprob for entry in (output.prompt_logprobs or [])[1:] if entry])
        for output in outputs
    ]


def _batches_by_length(rows: Iterable[tuple[int, TrainingRow]]) -> Iterator[list[tuple[int, TrainingRow]]]:
    """Yield batches of rows of similar length, the longest first. A batch has at most MAX_PASS_TOKENS positions.

    A row that has more positions is a batch by itself. The items of `rows` and of the batches are pairs (position of
    the document in the list of documents, row of this document).
    """
    pending = sorted(rows, key=lambda row: -len(row[1].targets))
    while pending:
        num_rows = max(1, MAX_PASS_TOKENS // len(pending[0][1].targets))
        yield pending[:num_rows]
        pending = pending[num_rows:]


def _to_batch(rows: Sequence[TrainingRow]) -> Batch:
    """Pad the rows to equal length. The padding is on the right, where causal attention does not see it."""
    padded = pad_rows(rows, max(len(row.targets) for row in rows))
    input_ids, targets, loss_mask, positions = (torch.from_numpy(array) for array in padded[:4])
    return Batch(input_ids, targets, loss_mask, positions, None)
