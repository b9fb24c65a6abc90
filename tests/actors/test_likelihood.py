"""Log-likelihoods equal those of a direct computation with the model."""

from __future__ import annotations

import dataclasses
import lzma
from pathlib import Path

import pytest

from actors.likelihood import TextScores, merge_scores, score_text, xz_size
from cluster.storage import Storage
from data.tokens.encode import fast_encoder
from data.tokens.shard_format import Generation, ShardManifest, write_manifest
from data.tokens.shard_reader import ShardReader
from data.tokens.shard_writer import TextDocument, write_shard
from data.tokens.tokenizer import fingerprint, load_tokenizer, separator_id
from data.tokens.tokenizer_recipe import MIN_BPE_SIZE
from model.batch import batch_from_sequences
from model.huggingface import load_hf_model
from model.objectives import logprobs
from model.quantize import compress_folder, simulate_int8

TEXTS = [
    "a short one",
    "the second document is a little longer than that",
    "x",
    "wörds that are not ascii …",
    "".join(chr(97 + 7 * place * place % 26) for place in range(300)),
]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory, policies: dict[str, Path]) -> Storage:
    """The texts as a split, with the policies' byte tokenizer. The last text is longer than their context of 128."""
    folder = policies["tied-1"]
    storage = Storage(str(tmp_path_factory.mktemp("split")))
    manifest = ShardManifest(
        tokenizer=fingerprint(folder),
        vocab_size=MIN_BPE_SIZE,
        begin=separator_id(load_tokenizer(folder)),
        separator=separator_id(load_tokenizer(folder)),
        sources=("test",),
        generations=(),
    )
    documents = [TextDocument(str(number), text, "test") for number, text in enumerate(TEXTS)]
    shard = write_shard(storage, "shard-00000", documents, fast_encoder(folder), manifest)
    write_manifest(storage, dataclasses.replace(manifest, generations=(Generation(corpus="c", shards=(shard,)),)))
    return storage


def scores(folder: Path, split: Storage, *, part: int = 0, num_parts: int = 1, overlap: int = 16) -> TextScores:
    return score_text(
        Storage(str(folder)),
        split,
        part=part,
        num_parts=num_parts,
        overlap=overlap,
        precision="float32",
        device="cpu",
    )


def test_scores_equal_the_models_logprobs_and_count_every_byte_and_document_end(
    policies: dict[str, Path], split: Storage
) -> None:
    computed = scores(policies["tied-1"], split)
    model = load_hf_model(policies["tied-1"])
    documents = list(ShardReader(split, sequence_length=1).documents())
    assert computed.num_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert computed.num_tokens.tolist() == [
        len(text.encode()) + 1 for text in TEXTS
    ]  # one token per byte, and the separator after the document
    for index, document in enumerate(documents[:4]):
        ids = document.tokens.tolist()
        batch = batch_from_sequences([ids], [[True] * len(ids)], length=len(ids) - 1, pad_id=0)
        assert computed.nats[index] == pytest.approx(-logprobs(model, batch).sum().item(), rel=1e-5)


def test_overlap_changes_only_documents_longer_than_the_context(policies: dict[str, Path], split: Storage) -> None:
    small_overlap, large_overlap = (scores(policies["tied-1"], split, overlap=overlap) for overlap in (1, 100))
    assert small_overlap.nats[:4] == pytest.approx(large_overlap.nats[:4], rel=1e-6)
    assert small_overlap.nats[4] != pytest.approx(large_overlap.nats[4], rel=1e-3)
    assert small_overlap.num_tokens[4] == large_overlap.num_tokens[4] == 301


def test_merged_parts_equal_the_scores_of_all_documents(policies: dict[str, Path], split: Storage) -> None:
    whole, parts = (
        scores(policies["tied-1"], split),
        [scores(policies["tied-1"], split, part=p, num_parts=2) for p in (0, 1)],
    )
    merged = merge_scores(parts)
    assert merged.index.tolist() == [0, 1, 2, 3, 4]
    assert merged.nats == pytest.approx(whole.nats, rel=1e-6)


def test_a_compressed_folder_is_scored_with_its_rounding(
    policies: dict[str, Path], split: Storage, tmp_path: Path
) -> None:
    compress_folder(policies["tied-1"], tmp_path / "int8", kept_dtype="float32")
    computed = scores(tmp_path / "int8", split)
    simulated = load_hf_model(policies["tied-1"])
    simulate_int8(simulated)
    ids = next(iter(ShardReader(split, sequence_length=1).documents())).tokens.tolist()
    batch = batch_from_sequences([ids], [[True] * len(ids)], length=len(ids) - 1, pad_id=0)
    assert computed.nats[0] == pytest.approx(-logprobs(simulated, batch).sum().item(), rel=1e-4)
    assert computed.nats[0] != pytest.approx(scores(policies["tied-1"], split).nats[0], rel=1e-5)


def test_xz_reads_all_texts_as_one_stream(policies: dict[str, Path], split: Storage) -> None:
    text = "".join(TEXTS).encode()
    expected = len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    assert xz_size(split, Storage(str(policies["tied-1"]))).num_bytes == expected
