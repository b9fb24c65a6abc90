"""Growing shards: older generations are copied, and the documents that they hold are not added again."""

# pyarrow.compute makes its functions while it is imported, where no type checker sees them.
# pyright: reportAttributeAccessIssue=false

import hashlib
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyarrow.parquet as pq

from cluster.storage import Storage
from data.tokens.shard_cache import local_file
from data.tokens.shard_format import (
    SPLITS,
    ShardFile,
    ShardManifest,
    SplitManifests,
    document_key,
    read_manifest,
    shard_files,
)
from data.tokens.shard_reader import sorted_document_keys
from data.tokens.shard_writer import TextDocument

_KNOWN = "known.bin"


@dataclass(frozen=True)
class ExcludedDocuments:
    """The file of the sorted keys of the documents that are not added: those in older generations, and those that the
    corpus kept in place of one of them."""

    name: str
    sha256: str
    num_bytes: int


# Copying the older generations.


def copy_generations(old: Storage, new: Storage, empty: SplitManifests) -> SplitManifests:
    """Copy the shards of older generations; their manifests, with the sources of the new corpus added."""
    pairs = zip(SPLITS, empty, strict=True)
    return SplitManifests(*(_copy_split(old / split, new / split, manifest) for split, manifest in pairs))


def _copy_split(old: Storage, new: Storage, empty: ShardManifest) -> ShardManifest:
    manifest = read_manifest(old)
    for shard in manifest.shards:
        for file in shard_files(manifest, shard):
            if not _is_copied(old, new, file):
                _copy_file(old, new, file.name)
    return replace(manifest, sources=tuple(dict.fromkeys([*manifest.sources, *empty.sources])))


def _is_copied(source: Storage, target: Storage, file: ShardFile) -> bool:
    """Whether the target has the whole file already: it is the same file, or has its checksum."""
    if not target.exists(file.name):
        return False
    if source.is_local and target.is_local and os.path.samefile(source.path(file.name), target.path(file.name)):
        return True
    with target.open(file.name, read_ahead=True) as reading:
        return hashlib.file_digest(reading, "sha256").hexdigest() == file.sha256


def _copy_file(source: Storage, target: Storage, name: str) -> None:
    """Copy a file; by a hard link, which takes no time, where both storages are on one disk.

    A shard is never written in place, so files may be shared.
    """
    if source.is_local and target.is_local and _link(source.path(name), target.path(name)):
        return
    source.copy(name, target)


def _link(source: str, target: str) -> bool:
    """Put a hard link in the target's place; False where the disks do not allow one."""
    partial_path = f"{target}.{uuid.uuid4().hex[:8]}.partial"
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        os.link(source, partial_path)
    except OSError:  # another disk, or one without links
        return False
    os.replace(partial_path, target)
    return True


# Documents that are not added again.


def write_excluded(old: Storage, work: Storage, corpus: Storage) -> ExcludedDocuments:
    """Write the keys of the documents that are not added into `work`, for the tasks to search."""
    keys = [sorted_document_keys(old / split, read_manifest(old / split)) for split in SPLITS]
    content = _with_kept_twins(np.unique(np.concatenate(keys)), corpus).astype("<u8").tobytes()
    work.write_bytes(_KNOWN, content)
    return ExcludedDocuments(name=_KNOWN, sha256=hashlib.sha256(content).hexdigest(), num_bytes=len(content))


def _with_kept_twins(known: np.ndarray, corpus: Storage) -> np.ndarray:
    """The sorted keys, and those of the documents that the corpus kept in place of a known one.

    Of duplicates a corpus keeps the one of the lowest id, which a new source may bring: its text is in the shards
    already. An exact duplicate may have been dropped for a near one, so drops/ is read until a pass finds no more.
    """
    drops = corpus.glob("drops/part-*.parquet")
    while True:
        kept = [_kept_keys(corpus, name, known) for name in drops]
        grown = np.union1d(known, np.concatenate([known[:0], *kept]))
        if len(grown) == len(known):
            return known
        known = grown


def _kept_keys(corpus: Storage, name: str, known: np.ndarray) -> np.ndarray:
    """Keys (uint64) of the documents that are kept in place of a known one, among the dropped documents of a part."""
    keys: list[int] = []
    with corpus.open(name, read_ahead=True) as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=["id", "kept_id"]):
            batch = batch.filter(batch.column("kept_id").is_valid())
            ids, kept_ids = (batch.column(column).to_pylist() for column in ("id", "kept_id"))
            keys += [document_key(kept_ids[position]) for position in np.flatnonzero(_is_known(ids, known))]
    return np.array(keys, dtype=np.uint64)


def without_excluded(
    documents: Sequence[TextDocument], work: Storage, known: ExcludedDocuments | None
) -> Sequence[TextDocument]:
    """The documents that no older generation holds, under this id or another one."""
    if known is None:
        return documents
    is_known = _is_known([document.id for document in documents], _known_keys(work, known))
    return [document for document, skip in zip(documents, is_known, strict=True) if not skip]


def _is_known(ids: Sequence[str], known: np.ndarray) -> np.ndarray:
    """Whether each id's key is among the sorted keys, bool [number of ids]."""
    keys = np.array([document_key(name) for name in ids], dtype=np.uint64)
    if not len(known):
        return np.zeros(len(keys), dtype=np.bool_)
    positions = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return known[positions] == keys


@lru_cache(maxsize=1)
def _known_keys(work: Storage, known: ExcludedDocuments) -> np.ndarray:
    file = local_file(work, known.name, sha256=known.sha256, num_bytes=known.num_bytes)
    return np.memmap(file, dtype="<u8", mode="r")
