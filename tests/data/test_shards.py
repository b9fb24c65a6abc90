"""The shard contract: layout, exactness of an epoch, order, and what a broken shard says."""

from pathlib import Path

import fsspec
import numpy as np
import pytest
from tokenizers import Tokenizer

from cluster.storage import Storage
from data.shards import (
    Generation,
    Rows,
    Sample,
    ShardManifest,
    ShardReader,
    TextDocument,
    document_key,
    document_samples,
    known_documents,
    read_manifest,
    shard_cache,
    to_rows,
    write_manifest,
    write_shard,
)
from data.tokenizer import train_tokenizer

S = 0  # the separator
TEXTS = {
    "shard-00000": ["abcde", "", "the <|endoftext|> cat", "zz"],
    "shard-00001": [],
    "shard-00002": ["the cat and the hat " * 5],
}
EMPTY = ShardManifest(tokenizer="t", vocab_size=300, separator=S, sources=("web", "books"), generations=())


@pytest.fixture(scope="module")
def encoder() -> Tokenizer:
    tokenizer = train_tokenizer(["the cat and the hat sat on the mat"] * 9, size=280)
    tokenizer.encode_special_tokens = True
    return tokenizer


def write_split(split: Storage, encoder: Tokenizer, *, dtype_size: int = 300) -> ShardManifest:
    empty = ShardManifest(**{**EMPTY.__dict__, "vocab_size": dtype_size})
    shards = tuple(
        write_shard(
            split, name, [TextDocument(f"{name}/{n}", text, "books") for n, text in enumerate(texts)], encoder, empty
        )
        for name, texts in TEXTS.items()
    )
    manifest = ShardManifest(**{**empty.__dict__, "generations": (Generation(corpus="c", shards=shards),)})
    write_manifest(split, manifest)
    return manifest


@pytest.fixture
def split(tmp_path: Path, encoder: Tokenizer) -> Storage:
    write_split(Storage(str(tmp_path)), encoder)
    return Storage(str(tmp_path))


def expected_stream(encoder: Tokenizer, name: str) -> list[int]:
    return [S, *(token for text in TEXTS[name] for token in (*encoder.encode(text).ids, S))]


def rows_at(reader: ShardReader, *places: int) -> Rows:
    """The rows at places of the stream, each found by its index in the first epoch's order."""
    order = reader.order(range(reader.num_samples)).tolist()
    return reader.rows([order.index(place) for place in places])


def test_the_stream_holds_every_document_between_separators(split: Storage, encoder: Tokenizer) -> None:
    for name in TEXTS:
        stored = np.frombuffer(split.read_bytes(f"{name}.tokens.bin"), dtype="<u2")
        assert stored.tolist() == expected_stream(encoder, name)
    # The text `<|endoftext|>` inside a document is characters: five separators for four documents.
    assert expected_stream(encoder, "shard-00000").count(S) == 5
    manifest = read_manifest(split)
    assert manifest.num_documents == 5
    assert manifest.num_bytes == sum(len(text) for texts in TEXTS.values() for text in texts)
    assert manifest.num_targets == sum(len(expected_stream(encoder, name)) - 1 for name in TEXTS)


def test_tokens_take_16_bits_until_the_vocabulary_needs_32(tmp_path: Path, encoder: Tokenizer) -> None:
    assert ShardManifest(**{**EMPTY.__dict__, "vocab_size": 65536}).dtype == np.dtype("<u2")
    manifest = write_split(Storage(str(tmp_path)), encoder, dtype_size=65537)
    assert manifest.dtype == np.dtype("<u4")
    reader = ShardReader(Storage(str(tmp_path)), sequence_length=1000)
    assert rows_at(reader, 0).input_ids[0, :6].tolist() == expected_stream(encoder, "shard-00000")[:6]


@pytest.mark.parametrize("sequence_length", [1, 2, 3, 7, 16, 1000])
def test_an_epoch_predicts_every_token_exactly_once(split: Storage, encoder: Tokenizer, sequence_length: int) -> None:
    reader = ShardReader(split, sequence_length=sequence_length, seed=3)
    pairs: list[tuple[int, int]] = []
    for index in range(reader.num_samples):
        sample = reader.sample(index)
        assert 2 <= len(sample.tokens) <= sequence_length + 1
        pairs += zip(sample.tokens[:-1].tolist(), sample.tokens[1:].tolist(), strict=True)
    streams = [expected_stream(encoder, name) for name in TEXTS]
    assert sorted(pairs) == sorted(pair for stream in streams for pair in zip(stream, stream[1:], strict=False))


def test_rows_mark_documents_positions_and_padding(split: Storage, encoder: Tokenizer) -> None:
    stream = expected_stream(encoder, "shard-00000")
    first = len(encoder.encode("abcde").ids)
    assert first == 5
    reader = ShardReader(split, sequence_length=4)
    rows = rows_at(reader, 0, 1)
    assert rows.input_ids.tolist() == [stream[0:4], stream[4:8]]
    assert rows.targets.tolist() == [stream[1:5], stream[5:9]]
    # Row 0: S a b c. Row 1: d e | S (an empty document) | S t …: what goes on from row 0 is a document of its own.
    assert rows.positions.tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert [len(set(ids)) for ids in rows.document_ids.tolist()] == [1, 3]
    assert rows.loss_mask.all()
    last = rows_at(reader, reader.num_samples - 1)
    filled = int(last.loss_mask.sum())
    assert 0 < filled < 4 and last.document_ids[0, filled:].tolist() == [-1] * (4 - filled)


def test_the_order_is_a_function_of_generations_seed_length_and_index(
    split: Storage, tmp_path: Path, encoder: Tokenizer
) -> None:
    def places(sequence_length: int = 2, seed: int = 0, at: Storage = split) -> list[int]:
        reader = ShardReader(at, sequence_length=sequence_length, seed=seed)
        return reader.order(range(2 * reader.num_samples)).tolist()

    order = places()
    half = len(order) // 2
    assert sorted(order[:half]) == sorted(order[half:]) == list(range(half)) and order[:half] != order[half:]
    assert order == places() and order != places(seed=1)
    reader = ShardReader(split, sequence_length=2)
    streams = [expected_stream(encoder, name) for name in TEXTS]
    windows = [stream[first : first + 3] for stream in streams for first in range(0, len(stream) - 1, 2)]
    assert [reader.sample(index).tokens.tolist() for index in (5, 1)] == [windows[order[5]], windows[order[1]]]
    manifest = read_manifest(split)
    grown = Storage(str(tmp_path))
    write_manifest(grown, ShardManifest(**{**manifest.__dict__, "generations": manifest.generations * 2}))
    assert places(at=grown)[:half] != order[:half]


def test_whole_documents_come_back_with_their_text_and_bytes(split: Storage, encoder: Tokenizer) -> None:
    documents = list(ShardReader(split, sequence_length=8).documents())
    texts = [text for texts in TEXTS.values() for text in texts]
    assert [encoder.decode(d.tokens[1:-1].tolist(), skip_special_tokens=False) for d in documents] == texts
    assert all(d.tokens[0] == d.tokens[-1] == S for d in documents)
    assert [(d.num_bytes, d.source) for d in documents] == [(len(text), "books") for text in texts]
    assert [d.key for d in documents[:2]] == [document_key("shard-00000/0"), document_key("shard-00000/1")]
    assert known_documents(split, read_manifest(split)).tolist() == sorted(d.key for d in documents)


@pytest.mark.parametrize(("length", "overlap"), [(4, 0), (4, 1), (4, 3), (100, 10), (11, 5)])
def test_a_document_is_scored_once_per_token_with_the_overlap_as_context(length: int, overlap: int) -> None:
    tokens = np.array([S, *range(1, 12), S])
    scored: list[int] = []
    for number, sample in enumerate(document_samples(tokens, length, overlap=overlap)):
        rows = to_rows([sample], length)
        assert sample.context == (overlap if number else 0)
        assert (rows.document_ids[0][rows.document_ids[0] >= 0] == rows.document_ids[0][0]).all()
        scored += rows.targets[0][rows.loss_mask[0]].tolist()
    assert scored == tokens[1:].tolist()


def test_overlap_must_leave_room(encoder: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"overlap: 4 must be at least 0 and below"):
        list(document_samples(np.array([S, 1, S]), 4, overlap=4))


def test_a_truncated_corrupt_or_missing_shard_is_named(split: Storage) -> None:
    name = "shard-00000.tokens.bin"
    whole = split.read_bytes(name)
    split.write_bytes(name, whole[:-2])
    with pytest.raises(ValueError, match=rf"{name} has {len(whole) - 2} bytes instead of {len(whole)}"):
        ShardReader(split, sequence_length=4).sample(0)
    split.write_bytes(name, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{name} is corrupt: its checksum"):
        list(ShardReader(split, sequence_length=4).documents())
    split.remove(name)
    with pytest.raises(ValueError, match=f"{name} is missing"):
        list(ShardReader(split, sequence_length=4).documents())


def test_another_tokenizer_or_no_manifest_is_refused_when_the_reader_is_made(split: Storage, tmp_path: Path) -> None:
    ShardReader(split, sequence_length=4, tokenizer="t")
    with pytest.raises(ValueError, match="made with tokenizer t, not other"):
        ShardReader(split, sequence_length=4, tokenizer="other")
    with pytest.raises(ValueError, match=r"holds no manifest\.json"):
        ShardReader(Storage(str(tmp_path / "none")), sequence_length=4)
    split.write_json("manifest.json", {**split.read_json("manifest.json"), "format": 9})
    with pytest.raises(ValueError, match="format 9 is not 1"):
        read_manifest(split)


def test_a_remote_split_reads_like_a_local_one_and_heals_a_broken_copy(split: Storage, encoder: Tokenizer) -> None:
    remote = Storage("memory://shards-test/train")
    write_split(remote, encoder)
    rows = ShardReader(remote, sequence_length=5, seed=1).rows(range(6))
    local = ShardReader(split, sequence_length=5, seed=1).rows(range(6))
    assert all((a == b).all() for a, b in zip(rows, local, strict=True))
    name = "shard-00000.tokens.bin"
    info = read_manifest(remote).shards[0]
    copy = shard_cache() / info.tokens_sha256
    copy.write_bytes(b"\0" * copy.stat().st_size)
    with pytest.raises(ValueError, match=f"{name} is corrupt"):
        list(ShardReader(remote, sequence_length=5).documents())
    assert len(list(ShardReader(remote, sequence_length=5).documents())) == 5
    fsspec.filesystem("memory").rm("/shards-test", recursive=True)


def test_a_sample_that_begins_inside_a_document_counts_positions_from_the_row() -> None:
    rows = to_rows([Sample(np.array([7, 8, S, 9]), np.array([2]))], 5)
    assert rows.positions.tolist() == [[0, 1, 0, 0, 0]]
    assert rows.document_ids.tolist() == [[0, 0, 1, -1, -1]]
    assert rows.loss_mask.tolist() == [[True, True, True, False, False]]
    assert rows.targets.tolist() == [[8, S, 9, 0, 0]]
