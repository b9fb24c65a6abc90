"""Tests of the shard format and its reader: layout, epochs, order of rows, and errors for broken shards."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from tokenizers import Tokenizer

import data.tokens.shard_reader
from cluster.storage import Storage
from data.tokens.encode import PlainEncoder
from data.tokens.shard_cache import shard_cache
from data.tokens.shard_format import Generation, ShardManifest, document_key, read_manifest, write_manifest
from data.tokens.shard_reader import DocumentPosition, ShardReader, find_document, sorted_document_keys
from data.tokens.shard_writer import TextDocument, write_shard
from data.tokens.tokenizer_training import train_tokenizer
from data.tokens.training_rows import PaddedRows

S = 0  # the separator


TEXTS = {
    "shard-00000": ["abcde", "", "the <|endoftext|> cat", "zz"],
    "shard-00001": [],
    "shard-00002": ["the cat and the hat " * 5],
}


EMPTY = ShardManifest(tokenizer="t", vocab_size=300, begin=S, separator=S, sources=("web", "books"), generations=())


@pytest.fixture(scope="module")
def encoder() -> Tokenizer:
    tokenizer = train_tokenizer(["the cat and the hat sat on the mat"] * 9, size=280)
    tokenizer.encode_special_tokens = True
    return tokenizer


def write_split(split: Storage, encoder: Tokenizer, *, dtype_size: int = 300) -> ShardManifest:
    empty = ShardManifest(**{**EMPTY.__dict__, "vocab_size": dtype_size})
    shards = tuple(
        write_shard(
            split,
            name,
            [TextDocument(f"{name}/{n}", text, "books") for n, text in enumerate(texts)],
            PlainEncoder(encoder),
            empty,
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


def rows_by_number(reader: ShardReader, *row_numbers: int) -> PaddedRows:
    """Return the rows with these row numbers, which are read by their indices in the first epoch."""
    order = reader.row_numbers(range(reader.num_rows)).tolist()
    return reader.rows([order.index(number) for number in row_numbers])


def test_the_stream_has_every_document_between_separators(split: Storage, encoder: Tokenizer) -> None:
    for name in TEXTS:
        stored = np.frombuffer(split.read_bytes(f"{name}.tokens.bin"), dtype="<u2")
        assert stored.tolist() == expected_stream(encoder, name)
    # The text `<|endoftext|>` in a document is encoded as characters, so four documents have five separators.
    assert expected_stream(encoder, "shard-00000").count(S) == 5
    manifest = read_manifest(split)
    assert manifest.num_documents == 5
    assert manifest.num_bytes == sum(len(text) for texts in TEXTS.values() for text in texts)
    assert manifest.num_targets == sum(len(expected_stream(encoder, name)) - 1 for name in TEXTS)


def test_tokens_have_16_bits_unless_the_vocabulary_needs_32(tmp_path: Path, encoder: Tokenizer) -> None:
    assert ShardManifest(**{**EMPTY.__dict__, "vocab_size": 65536}).dtype == np.dtype("<u2")
    manifest = write_split(Storage(str(tmp_path)), encoder, dtype_size=65537)
    assert manifest.dtype == np.dtype("<u4")
    reader = ShardReader(Storage(str(tmp_path)), sequence_length=1000)
    assert rows_by_number(reader, 0).input_ids[0, :6].tolist() == expected_stream(encoder, "shard-00000")[:6]


@pytest.mark.parametrize("sequence_length", [1, 2, 3, 7, 16, 1000])
def test_an_epoch_predicts_every_token_exactly_once(split: Storage, encoder: Tokenizer, sequence_length: int) -> None:
    reader = ShardReader(split, sequence_length=sequence_length, seed=3)
    pairs: list[tuple[int, int]] = []
    for index in range(reader.num_rows):
        sample = reader.row(index)
        assert 1 <= len(sample.targets) <= sequence_length
        pairs += zip(sample.inputs.tolist(), sample.targets.tolist(), strict=True)
    streams = [expected_stream(encoder, name) for name in TEXTS]
    assert sorted(pairs) == sorted(pair for stream in streams for pair in zip(stream, stream[1:], strict=False))


def test_rows_mark_documents_positions_and_padding(split: Storage, encoder: Tokenizer) -> None:
    stream = expected_stream(encoder, "shard-00000")
    first = len(encoder.encode("abcde").ids)
    assert first == 5
    reader = ShardReader(split, sequence_length=4)
    rows = rows_by_number(reader, 0, 1)
    assert rows.input_ids.tolist() == [stream[0:4], stream[4:8]]
    assert rows.targets.tolist() == [stream[1:5], stream[5:9]]
    # Row 0 is S a b c. Row 1 is d e | S | S t. In row 1, the rest of the first document counts as a document, and the
    # second document is empty.
    assert rows.positions.tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert [len(set(ids)) for ids in rows.document_ids.tolist()] == [1, 3]
    assert rows.loss_mask.all()
    last = rows_by_number(reader, reader.num_rows - 1)
    filled = int(last.loss_mask.sum())
    assert 0 < filled < 4 and last.document_ids[0, filled:].tolist() == [-1] * (4 - filled)


def test_the_order_depends_only_on_generations_seed_length_and_index(
    split: Storage, tmp_path: Path, encoder: Tokenizer
) -> None:
    def row_numbers(sequence_length: int = 2, seed: int = 0, storage: Storage = split) -> list[int]:
        reader = ShardReader(storage, sequence_length=sequence_length, seed=seed)
        return reader.row_numbers(range(2 * reader.num_rows)).tolist()

    order = row_numbers()
    half = len(order) // 2
    assert sorted(order[:half]) == sorted(order[half:]) == list(range(half)) and order[:half] != order[half:]
    assert order == row_numbers() and order != row_numbers(seed=1)
    reader = ShardReader(split, sequence_length=2)
    streams = [expected_stream(encoder, name) for name in TEXTS]
    rows = [stream[first : first + 3] for stream in streams for first in range(0, len(stream) - 1, 2)]
    for index in (5, 1):
        row = reader.row(index)
        assert [row.inputs[0], *row.targets] == rows[order[index]]
    manifest = read_manifest(split)
    grown = Storage(str(tmp_path))
    write_manifest(grown, ShardManifest(**{**manifest.__dict__, "generations": manifest.generations * 2}))
    assert row_numbers(storage=grown)[:half] != order[:half]


def test_complete_documents_are_read_with_their_text_and_size(split: Storage, encoder: Tokenizer) -> None:
    documents = list(ShardReader(split, sequence_length=8).documents())
    texts = [text for texts in TEXTS.values() for text in texts]
    assert [encoder.decode(d.tokens[1:-1].tolist(), skip_special_tokens=False) for d in documents] == texts
    assert all(d.tokens[0] == d.tokens[-1] == S for d in documents)
    assert [(d.num_bytes, d.source) for d in documents] == [(len(text), "books") for text in texts]
    assert [d.key for d in documents[:2]] == [document_key("shard-00000/0"), document_key("shard-00000/1")]
    assert sorted_document_keys(split, read_manifest(split)).tolist() == sorted(d.key for d in documents)


def test_errors_name_the_truncated_corrupt_or_missing_shard(split: Storage) -> None:
    name = "shard-00000.tokens.bin"
    content = split.read_bytes(name)
    split.write_bytes(name, content[:-2])
    with pytest.raises(ValueError, match=rf"{name} has {len(content) - 2} bytes instead of {len(content)}"):
        ShardReader(split, sequence_length=4).row(0)
    split.write_bytes(name, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{name} is corrupt: its checksum"):
        list(ShardReader(split, sequence_length=4).documents())
    split.remove(name)
    with pytest.raises(ValueError, match=f"{name} is missing"):
        list(ShardReader(split, sequence_length=4).documents())


def test_creating_a_reader_fails_for_another_tokenizer_or_without_a_manifest(split: Storage, tmp_path: Path) -> None:
    ShardReader(split, sequence_length=4, tokenizer_fingerprint="t")
    with pytest.raises(ValueError, match="made with tokenizer t, not with tokenizer other"):
        ShardReader(split, sequence_length=4, tokenizer_fingerprint="other")
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        ShardReader(Storage(str(tmp_path / "none")), sequence_length=4)
    split.write_json("manifest.json", {**split.read_json("manifest.json"), "format": 9})
    with pytest.raises(ValueError, match="format version 9 is not supported, only version 3 is; make the shards"):
        read_manifest(split)


def test_a_remote_split_gives_the_same_rows_and_a_broken_cached_copy_is_replaced(
    split: Storage, encoder: Tokenizer
) -> None:
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
    copy.write_bytes(copy.read_bytes()[:-2])  # A copy with a wrong size is replaced immediately.
    assert len(list(ShardReader(remote, sequence_length=5).documents())) == 5
    remote.write_bytes(name, remote.read_bytes(name)[:-2])
    copy.unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{name} has"):
            list(ShardReader(remote, sequence_length=5).documents())
    fsspec.filesystem("memory").rm("/shards-test", recursive=True)


MIXED = {
    "shard-00000": [("web", "the cat"), ("books", "a hat"), ("web", "mat"), ("code", "x = 1"), ("books", "sat on it")],
    "shard-00001": [("code", "y = 2 * x"), ("web", "the hat and the cat")],
}


@pytest.fixture
def mixed(tmp_path: Path, encoder: Tokenizer) -> Storage:
    """Two shards with documents of three sources. The manifest lists a fourth source, `none`, without text."""
    split = Storage(str(tmp_path / "mixed"))
    empty = ShardManifest(**{**EMPTY.__dict__, "sources": ("web", "books", "none", "code")})
    shards = tuple(
        write_shard(
            split,
            name,
            [TextDocument(text, text, source) for source, text in documents],
            PlainEncoder(encoder),
            empty,
        )
        for name, documents in MIXED.items()
    )
    write_manifest(split, ShardManifest(**{**empty.__dict__, "generations": (Generation(corpus="c", shards=shards),)}))
    return split


def test_the_documents_of_a_source_follow_one_another_in_their_order(mixed: Storage, encoder: Tokenizer) -> None:
    texts = ["the cat", "mat", "a hat", "sat on it", "x = 1", "the hat and the cat", "y = 2 * x"]
    documents = list(ShardReader(mixed, sequence_length=4).documents())
    assert [encoder.decode(document.tokens.tolist()[1:-1]) for document in documents] == texts
    assert [document.source for document in documents] == ["web", "web", "books", "books", "code", "web", "code"]
    lengths = {text: len(encoder.encode(text).ids) + 1 for text in texts}
    manifest = read_manifest(mixed)
    first, second = ([(s.source, s.first, s.num_targets) for s in shard.source_ranges] for shard in manifest.shards)
    web, books = lengths["the cat"] + lengths["mat"], lengths["a hat"] + lengths["sat on it"]
    assert first == [(0, 0, web), (1, web, books), (3, web + books, lengths["x = 1"])]
    assert second == [(0, 0, lengths[texts[5]]), (3, lengths[texts[5]], lengths[texts[6]])]
    assert manifest.targets_by_source == {
        "web": web + lengths["the hat and the cat"],
        "books": books,
        "none": 0,
        "code": lengths["x = 1"] + lengths["y = 2 * x"],
    }


def sources_of_rows(reader: ShardReader) -> list[str]:
    """Return the source of every row by row number, computed from the manifest."""
    sources: list[str] = []
    for shard in reader.manifest.shards:
        for source_range in shard.source_ranges:
            num_rows = -(-source_range.num_targets // reader.sequence_length)
            sources += [reader.manifest.sources[source_range.source]] * num_rows
    return sources


def test_without_a_mixture_an_epoch_has_every_target_of_every_source_once(mixed: Storage, encoder: Tokenizer) -> None:
    reader = ShardReader(mixed, sequence_length=3, seed=1)
    assert sorted(reader.row_numbers(range(reader.num_rows))) == list(range(len(sources_of_rows(reader))))
    pairs: list[tuple[int, int]] = []
    for index in range(reader.num_rows):
        row = reader.row(index)
        pairs += zip(row.inputs.tolist(), row.targets.tolist(), strict=True)
    expected: list[tuple[int, int]] = []
    for _, text in (document for documents in MIXED.values() for document in documents):
        tokens = [S, *encoder.encode(text).ids, S]
        expected += zip(tokens[:-1], tokens[1:], strict=True)
    assert sorted(pairs) == sorted(expected)


def test_a_mixture_reads_by_weight_and_repeats_a_source_only_after_all_of_its_rows(mixed: Storage) -> None:
    weights = {"web": 3, "books": 1, "code": 2}
    reader = ShardReader(
        mixed, sequence_length=1, seed=5, mixture=weights
    )  # With one target each, all rows are equally long.
    sources = sources_of_rows(reader)
    num_rows = {source: sources.count(source) for source in weights}
    assert reader.num_rows_by_source == num_rows and reader.num_rows == sum(num_rows.values())
    order = reader.row_numbers(range(600)).tolist()
    for n in range(1, 601):
        for source, weight in weights.items():
            assert abs(sum(sources[number] == source for number in order[:n]) - weight / 6 * n) < 1
    for source, size in num_rows.items():
        rows_of_source = [number for number in order if sources[number] == source]
        last_start = len(rows_of_source) - size
        epochs = [rows_of_source[start : start + size] for start in range(0, last_start + 1, size)]
        assert len(epochs) > 3
        expected = [number for number, name in enumerate(sources) if name == source]
        assert all(sorted(epoch) == expected for epoch in epochs)
        assert epochs[0] != epochs[1] or size == 1
    assert reader.row_numbers([250, 17]).tolist() == [
        order[250],
        order[17],
    ]  # A row depends only on its index, so a run can resume.
    assert ShardReader(mixed, sequence_length=1, seed=6, mixture=weights).row_numbers(range(600)).tolist() != order


def test_a_source_of_many_small_ranges_gets_its_weight_in_tokens(tmp_path: Path, encoder: Tokenizer) -> None:
    split = Storage(str(tmp_path / "small"))
    plain = PlainEncoder(encoder)
    # Each shard has one short row of "books" and a long text of "web".
    documents = [TextDocument("w", "the cat and the hat " * 40, "web"), TextDocument("b", "a hat", "books")]
    shards = tuple(write_shard(split, f"shard-{n:05d}", documents, plain, EMPTY) for n in range(20))
    write_manifest(split, replace(EMPTY, generations=(Generation(corpus="c", shards=shards),)))
    lengths = {text: len(encoder.encode(text).ids) + 1 for _, text, _ in documents}
    for weights in ({"web": 0.5, "books": 0.5}, {"web": 3, "books": 1}):
        reader = ShardReader(split, sequence_length=64, mixture=weights)
        sources = sources_of_rows(reader)
        tokens = {"web": 0, "books": 0}
        for start in range(0, 20_000, 1000):
            rows = reader.rows(range(start, start + 1000))
            row_numbers = reader.row_numbers(range(start, start + 1000))
            for number, num_targets in zip(row_numbers, rows.loss_mask.sum(axis=1), strict=True):
                tokens[sources[number]] += int(num_targets)
        assert lengths["a hat"] < 10 and sources.count("books") == 20
        assert tokens["web"] / tokens["books"] == pytest.approx(weights["web"] / weights["books"], rel=0.01)


def test_after_a_restart_the_rows_of_a_mixture_are_the_same_as_without_a_restart(mixed: Storage) -> None:
    def batches_from(first: int) -> Iterator[PaddedRows]:
        reader = ShardReader(mixed, sequence_length=3, seed=5, mixture={"web": 3, "books": 0.7, "code": 2})
        return reader.read_ahead(range(6 * step, 6 * step + 6) for step in range(first, 20))

    uninterrupted = list(batches_from(0))
    for first in (1, 7, 19):
        for rows, expected in zip(batches_from(first), uninterrupted[first:], strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(rows, expected, strict=True))


def test_a_weight_of_zero_leaves_a_source_out(mixed: Storage) -> None:
    reader = ShardReader(mixed, sequence_length=2, mixture={"web": 0, "books": 1, "code": 0})
    sources = sources_of_rows(reader)
    assert {sources[number] for number in reader.row_numbers(range(50))} == {"books"}
    assert reader.num_rows == sources.count("books")


def test_weights_must_name_the_sources_of_the_split(mixed: Storage) -> None:
    def reader(**mixture: float) -> None:
        ShardReader(mixed, sequence_length=2, mixture=mixture)

    with pytest.raises(
        ValueError, match=r"has no text of source 'book'; did you mean 'books'\? \(its sources: books, "
    ):
        reader(web=1, book=1, code=1)
    with pytest.raises(ValueError, match=r"has no text of source 'none' \(its sources: books, code, web\)"):
        reader(web=1, books=1, code=1, none=1)
    with pytest.raises(ValueError, match=r"source 'code' has no weight; add one for it, or set it to 0"):
        reader(web=1, books=1)
    reader(web=1, books=1, code=1, none=0)


def test_reading_ahead_gives_the_same_rows(mixed: Storage) -> None:
    reader = ShardReader(mixed, sequence_length=3, seed=2)
    steps = [range(start, start + 4) for start in range(0, 40, 4)]
    ahead = list(ShardReader(mixed, sequence_length=3, seed=2).read_ahead(steps, num_batches=3))
    assert len(ahead) == len(steps)
    for indices, rows in zip(steps, ahead, strict=True):
        assert all((a == b).all() for a, b in zip(rows, reader.rows(indices), strict=True))


def test_a_shard_is_read_before_its_batch_and_a_broken_shard_is_an_error_at_its_batch(
    mixed: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ShardReader(mixed, sequence_length=1000)
    name = "shard-00001.tokens.bin"
    row_of_second_shard = len(sources_of_rows(reader)) - 1
    index = reader.row_numbers(range(reader.num_rows)).tolist().index(row_of_second_shard)
    first_shard = [n for n in range(reader.num_rows) if reader.row_numbers([n])[0] < 3]
    mixed.write_bytes(name, mixed.read_bytes(name)[:-2])
    was_opened = threading.Event()
    original_open = data.tokens.shard_reader._open_shard

    def open_and_watch(split: Storage, manifest: ShardManifest, shard_index: int, verified: set[str]) -> object:
        if shard_index == 1:
            was_opened.set()
        return original_open(split, manifest, shard_index, verified)

    monkeypatch.setattr(data.tokens.shard_reader, "_open_shard", open_and_watch)
    batches = reader.read_ahead([[first_shard[0]], [first_shard[1]], [index]], num_batches=1)
    next(batches)
    assert not was_opened.is_set()
    next(batches)
    assert was_opened.wait(30)  # The caller has not asked for its batch yet.
    with pytest.raises(ValueError, match=f"{name} has"):
        next(batches)


def test_only_a_limited_number_of_shards_stays_open(split: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    original_open = data.tokens.shard_reader._open_shard

    def open_and_count(split: Storage, manifest: ShardManifest, shard_index: int, verified: set[str]) -> object:
        opened.append(shard_index)
        return original_open(split, manifest, shard_index, verified)

    monkeypatch.setattr(data.tokens.shard_reader, "_open_shard", open_and_count)
    reader = ShardReader(split, sequence_length=4)
    rows = reader.rows(range(reader.num_rows))
    assert sorted(opened) == [0, 2]
    monkeypatch.setattr(data.tokens.shard_reader, "_MAX_OPEN_SHARDS", 1)
    opened.clear()
    again = ShardReader(split, sequence_length=4)
    assert all((a == b).all() for a, b in zip(rows, again.rows(range(again.num_rows)), strict=True))
    assert len(opened) > 2 and len(again._open_shards) == 1


def test_a_document_is_found_by_its_id(mixed: Storage, encoder: Tokenizer) -> None:
    manifest = read_manifest(mixed)
    for name, documents in MIXED.items():
        stream = np.frombuffer(mixed.read_bytes(f"{name}.tokens.bin"), dtype="<u2")
        for _, text in documents:
            position = find_document(mixed, manifest, text)
            assert position is not None and position.shard == name
            assert stream[position.first : position.first + position.num_tokens].tolist() == encoder.encode(text).ids
            assert stream[position.first - 1] == stream[position.first + position.num_tokens] == S
    assert find_document(mixed, manifest, "the cat") == DocumentPosition(
        "shard-00000", 1, len(encoder.encode("the cat").ids)
    )
    assert find_document(mixed, manifest, "no such document") is None
