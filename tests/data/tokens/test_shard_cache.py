"""Errors of the cache for shard files of a remote store."""

import uuid

import pytest

from cluster.storage import Storage
from data.tokens.shard_cache import local_file


def test_a_missing_remote_file_is_a_value_error_that_names_the_file() -> None:
    split = Storage(f"memory://shards-{uuid.uuid4().hex[:8]}/train")
    with pytest.raises(ValueError, match=r"/train/a\.bin is missing; make the shards again"):
        local_file(split, "a.bin", sha256=uuid.uuid4().hex * 2, num_bytes=3)
