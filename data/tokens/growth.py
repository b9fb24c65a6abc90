"""Adding a generation of shards to existing shards (the option `grow` of the stage `shards`).

The older generations are copied. Documents that they already contain are excluded from the new generation.
"""

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

_EXCLUDED_FILE = "known.bin"


@dataclass(frozen=True)
class ExcludedDocuments:
    """The file that lists the documents to exclude from the new generation, as sorted document keys.

    A document is excluded if an older generation contains it. It is also excluded if the corpus dropped a document of
    an older generation as its duplicate, because then the older generation already contains its text.
    """

    name: str
    """Name of the file in the temporary folder of the tokenization tasks."""
    sha256: str
    """Checksum of the file."""
    num_bytes: int
    """Size of the file."""


# Copying the older generations.


def copy_generations(old: Storage, new: Storage, new_manifests: SplitManifests) -> SplitManifests:
    """Copy the shards of the older generations from `old` to `new`.

    `new_manifests` have no shards yet and name the sources of the new corpus. Returns the manifests of the copied
    shards with these sources added.
    """
    pairs = zip(SPLITS, new_manifests, strict=True)
    return SplitManifests(*(_copy_split(old / split, new / split, manifest) for split, manifest in pairs))


def _copy_split(old: Storage, new: Storage, new_manifest: ShardManifest) -> ShardManifest:
    """Copy the shards of one split. Returns their manifest with the sources of `new_manifest` added."""
    manifest = read_manifest(old)
    for shard in manifest.shards:
        for file in shard_files(manifest, shard):
            if not _is_copied(old, new, file):
                _copy_file(old, new, file.name)
    return replace(manifest, sources=tuple(dict.fromkeys([*manifest.sources, *new_manifest.sources])))


def _is_copied(source: Storage, target: Storage, file: ShardFile) -> bool:
    """Return whether the folder `target` already has the complete file of the folder `source`.

    The file in `target` is a hard link to the file in `source`, or a copy with the checksum of `file`.
    """
    if not target.exists(file.name):
        return False
    if source.is_local and target.is_local and os.path.samefile(source.path(file.name), target.path(file.name)):
        return True
    with target.open(file.name, prefetch=True) as copied_file:
        return hashlib.file_digest(copied_file, "sha256").hexdigest() == file.sha256


def _copy_file(source: Storage, target: Storage, name: str) -> None:
    """Copy a file from the folder `source` to the folder `target`.

    If both folders are on the same local disk, a hard link is created instead, because this takes no time.

    Hard links are safe because a shard file is never changed in place. A new version replaces the file.
    """
    if source.is_local and target.is_local and _link(source.path(name), target.path(name)):
        return
    source.copy(name, target)


def _link(source: str, target: str) -> bool:
    """Create a hard link at the path `target`. Returns False if the file system does not allow it."""
    partial_path = f"{target}.{uuid.uuid4().hex[:8]}.partial"
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        os.link(source, partial_path)
    except OSError:  # The target is on another disk, or its file system has no hard links.
        return False
    os.replace(partial_path, target)
    return True


# Excluded documents.


def write_excluded(old: Storage, work: Storage, corpus: Storage) -> ExcludedDocuments:
    """Write the list of excluded documents to `work`, where the tokenization tasks read it."""
    keys = [sorted_document_keys(old / split, read_manifest(old / split)) for split in SPLITS]
    content = _with_kept_duplicates(np.unique(np.concatenate(keys)), corpus).astype("<u8").tobytes()
    work.write_bytes(_EXCLUDED_FILE, content)
    return ExcludedDocuments(name=_EXCLUDED_FILE, sha256=hashlib.sha256(content).hexdigest(), num_bytes=len(content))


def _with_kept_duplicates(excluded: np.ndarray, corpus: Storage) -> np.ndarray:
    """Return the keys in `excluded` and the keys of the documents that the corpus kept instead of these, sorted.

    Of several duplicates, a corpus keeps the document with the lowest id. So it may keep a document of a new source and
    drop its duplicate, which the older generations contain. The list of dropped documents (drops/) names the kept
    document of each. A kept document may itself have been dropped for another duplicate, so the list is read again
    until no more documents are found.
    """
    drops = corpus.glob("drops/part-*.parquet")
    while True:
        kept = [_kept_keys(corpus, name, excluded) for name in drops]
        extended = np.union1d(excluded, np.concatenate([excluded[:0], *kept]))
        if len(extended) == len(excluded):
            return excluded
        excluded = extended


def _kept_keys(corpus: Storage, name: str, excluded: np.ndarray) -> np.ndarray:
    """Return the keys of the documents that were kept instead of an excluded document, as uint64.

    `name` is a file of the corpus that lists dropped documents, each with the id of the document that was kept.
    """
    keys: list[int] = []
    with corpus.open(name, prefetch=True) as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=["id", "kept_id"]):
            batch = batch.filter(batch.column("kept_id").is_valid())
            ids, kept_ids = (batch.column(column).to_pylist() for column in ("id", "kept_id"))
            keys += [document_key(kept_ids[position]) for position in np.flatnonzero(_is_excluded(ids, excluded))]
    return np.array(keys, dtype=np.uint64)


def without_excluded(
    documents: Sequence[TextDocument], work: Storage, excluded: ExcludedDocuments | None
) -> Sequence[TextDocument]:
    """Return the documents that are not excluded. `work` contains the file that `excluded` describes.

    If `excluded` is None, all documents are returned.
    """
    if excluded is None:
        return documents
    is_excluded = _is_excluded([document.id for document in documents], _excluded_keys(work, excluded))
    return [document for document, skip in zip(documents, is_excluded, strict=True) if not skip]


def _is_excluded(ids: Sequence[str], excluded_keys: np.ndarray) -> np.ndarray:
    """Return for each document id whether its key is among the sorted keys, bool [number of ids]."""
    keys = np.array([document_key(document_id) for document_id in ids], dtype=np.uint64)
    if not len(excluded_keys):
        return np.zeros(len(keys), dtype=np.bool_)
    positions = np.minimum(np.searchsorted(excluded_keys, keys), len(excluded_keys) - 1)
    return excluded_keys[positions] == keys


@lru_cache(maxsize=1)
def _excluded_keys(work: Storage, excluded: ExcludedDocuments) -> np.ndarray:
    """Return the sorted keys in the file of excluded documents, memory-mapped, as uint64."""
    path = local_file(work, excluded.name, sha256=excluded.sha256, num_bytes=excluded.num_bytes)
    if not excluded.num_bytes:  # all documents of the older generations were forgotten; an empty file cannot be mapped
        return np.empty(0, dtype="<u8")
    return np.memmap(path, dtype="<u8", mode="r")
