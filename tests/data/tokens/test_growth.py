"""Documents that a new generation of shards excludes."""

import hashlib
from pathlib import Path

from cluster.storage import Storage
from data.tokens.growth import ExcludedDocuments, without_excluded
from data.tokens.shard_writer import TextDocument


def test_an_empty_list_of_excluded_documents_excludes_none(tmp_path: Path) -> None:
    work = Storage(str(tmp_path))
    work.write_bytes("known.bin", b"")
    excluded = ExcludedDocuments(name="known.bin", sha256=hashlib.sha256(b"").hexdigest(), num_bytes=0)
    documents = [TextDocument("s/1", "a text", "s")]
    assert without_excluded(documents, work, excluded) == documents
