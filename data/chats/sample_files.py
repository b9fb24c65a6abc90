"""Files with samples of tokens, which training reads by the number of a sample.

Tasks write one file of tokens each. An index says for each sample in which file it is, and where. Readers map the files
into memory, so they need memory only for the samples that they read.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cluster.storage import Storage
from data.chats.template import RenderedChat
from data.tokens.shard_cache import local_file

_INDEX_TYPE = np.dtype([("file", "<i4"), ("length", "<i4"), ("start", "<i8")])


class StoredArray(NamedTuple):
    """A file with an array in the format of NumPy."""

    name: str
    sha256: str
    num_bytes: int


class SampleFiles(NamedTuple):
    """The files of a set of samples."""

    tokens: list[StoredArray]
    """Each file has the tokens of its samples, one after the other, int32. A token that is not learned is stored as its
    id, and a learned one as -1 minus its id."""
    index: StoredArray
    """File, start and length of each sample (`_INDEX_TYPE`), in the order of the samples."""


def store_array(folder: Storage, name: str, array: np.ndarray) -> StoredArray:
    """Write an array to a file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    content = buffer.getvalue()
    folder.write_bytes(name, content)
    return StoredArray(name, hashlib.sha256(content).hexdigest(), len(content))


def open_array(folder: Storage, stored: StoredArray) -> np.ndarray:
    """Map an array into memory. The file of a remote folder is first copied to this node.

    Raises ValueError if the file is missing or damaged.
    """
    remedy = f"remove {folder.url} and run the stage again"
    path = local_file(folder, **stored._asdict(), kind="sample file", remedy=remedy)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def store_samples(folder: Storage, name: str, samples: Sequence[RenderedChat]) -> StoredArray:
    """Write the tokens of samples to a file (`SampleFiles.tokens`)."""
    tokens = [np.where(sample.loss_mask, -1 - sample.ids, sample.ids) for sample in samples]
    return store_array(folder, name, np.concatenate([np.empty(0, np.int32), *tokens]).astype(np.int32))


def store_index(
    folder: Storage, name: str, tokens: Sequence[StoredArray], lengths: Sequence[np.ndarray]
) -> SampleFiles:
    """Write the index of the samples in token files. `lengths` has the lengths of the samples of each file."""
    index = np.zeros(sum(map(len, lengths)), _INDEX_TYPE)
    position = 0
    for number, file_lengths in enumerate(lengths):
        part = index[position : position + len(file_lengths)]
        part["file"], part["length"] = number, file_lengths
        part["start"] = np.cumsum(file_lengths, dtype=np.int64) - file_lengths
        position += len(file_lengths)
    return SampleFiles(list(tokens), store_array(folder, name, index))


class SampleReader:
    """Reads samples by their numbers."""

    def __init__(self, folder: Storage, files: SampleFiles) -> None:
        self._index = open_array(folder, files.index)
        self._tokens = [open_array(folder, file) for file in files.tokens]

    def read(self, number: int) -> RenderedChat:
        entry = self._index[number]
        start = int(entry["start"])
        stored = self._tokens[int(entry["file"])][start : start + int(entry["length"])]
        is_learned = stored < 0
        return RenderedChat(np.where(is_learned, -1 - stored, stored).astype(np.int32), is_learned)


def learned_parts(sample: RenderedChat) -> Iterator[tuple[list[int], bool]]:
    """Yield the sample as (token ids, whether they are learned), each as long as possible."""
    borders = np.flatnonzero(np.diff(sample.loss_mask.astype(np.int8))) + 1
    for ids, mask in zip(np.split(sample.ids, borders), np.split(sample.loss_mask, borders), strict=True):
        yield ids.tolist(), bool(len(mask) and mask[0])
