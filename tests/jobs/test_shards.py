"""The shards stage on Ray Data: whole documents on either side, bytes that do not depend on workers, growth."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs.shards
from cluster.session import connect
from cluster.storage import Storage
from cluster.tracking import Tracker
from data.document import unit_hash
from data.shards import ShardReader, document_key, read_manifest
from data.tokenizer import fingerprint, load_encoder, load_tokenizer, save_tokenizer, train_tokenizer
from jobs.config import build
from jobs.job import Artifact, Context
from jobs.shards import STAGE, WORK, ShardsConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with connect("local", num_cpus=2):
        yield


def corpus_artifact(folder: Path, ids: range, *, source: str = "web") -> Artifact:
    """A corpus of three parts with one document for each number."""
    (folder / "documents").mkdir(parents=True)
    for part in range(3):
        rows = [{"id": f"{source}/{n}", "text": f"text number {n}", "source": source} for n in ids[part::3]]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"documents/part-{part:05d}.parquet")
    summary = {"sources": {source: {}}, "content_digest": f"digest of {ids}"}
    return Artifact(Storage(str(folder)), {"id": "corpus-1", "stage": "corpus", "digest": "", "summary": summary})


def vocabulary_artifact(folder: Path, size: int = 285) -> Artifact:
    save_tokenizer(train_tokenizer(["text number one two three and four"] * 5, size=size), folder / "tokenizer")
    record = {"id": "vocabulary-1", "stage": "vocabulary", "digest": "", "summary": {}}
    record |= {"inputs": {"corpus": {"id": "corpus-1"}}, "config": {"held_out_fraction": 0.2}}
    return Artifact(Storage(str(folder)), record)


def run(inputs: dict[str, Artifact], folder: Path, *overrides: str) -> dict[str, Any]:
    grow = {"grow": "x"} if "grow" in inputs else {}
    config = build(ShardsConfig, {"validation_fraction": 0.2, **grow}, list(overrides))
    STAGE.check(config)
    STAGE.check_inputs(config, inputs)
    output = Storage(str(folder))
    tracker = Tracker(storage=output, run_id="test", name="shards", group="test")
    return dict(STAGE.run(config, Context(output=output, inputs=inputs, tracker=tracker)))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("inputs")
    return {
        "corpus": corpus_artifact(folder / "corpus", range(100)),
        "tokenizer": vocabulary_artifact(folder / "vocabulary"),
    }


def texts(folder: Path, split: str) -> list[str]:
    encoder = load_encoder(folder / "tokenizer")
    documents = ShardReader(Storage(str(folder / split)), sequence_length=8).documents()
    return [encoder.decode(document.tokens[1:-1].tolist()) for document in documents]


def contents(folder: Path) -> dict[str, bytes]:
    storage = Storage(str(folder))
    return {name: storage.read_bytes(name) for name in storage.files() if name != "metrics.jsonl"}


def test_whole_documents_stand_on_one_side_by_a_hash_of_their_id(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    summary = run(inputs, tmp_path / "out")
    held_out = {f"text number {n}" for n in range(100) if unit_hash(f"web/{n}", "split") < 0.2}
    assert set(texts(tmp_path / "out", "validation")) == held_out
    assert set(texts(tmp_path / "out", "train")) == {f"text number {n}" for n in range(100)} - held_out
    assert summary["train"]["documents"] + summary["validation"]["documents"] == 100
    everything = sum(len(f"text number {n}") for n in range(100))
    assert summary["train"]["bytes"] + summary["validation"]["bytes"] == everything
    assert summary["tokenizer"] == fingerprint(tmp_path / "out/tokenizer") and summary["vocab_size"] == 285
    ShardReader(Storage(str(tmp_path / "out/train")), sequence_length=8, tokenizer=summary["tokenizer"])
    assert not (tmp_path / "out/work").exists()


def test_bytes_depend_neither_on_workers_nor_on_a_kill(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(inputs, tmp_path / "a")
    run(inputs, tmp_path / "b", "execution.workers=1")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(jobs.shards, "write_manifest", interrupt)
        run(inputs, tmp_path / "c")
    (tmp_path / "c" / WORK / "shard-00001.json").unlink()
    (tmp_path / "c/train/shard-00001.tokens.bin").write_bytes(b"torn")
    untouched = tmp_path / "c/train/shard-00002.tokens.bin"
    made = untouched.stat().st_mtime_ns
    run(inputs, tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "c")
    assert untouched.stat().st_mtime_ns == made


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_corpus_grows_by_a_generation_of_the_documents_that_are_new(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    summary = run(inputs, tmp_path / "old")
    record = {"id": "shards-1", "stage": "shards", "digest": "", "summary": summary}
    old = Artifact(Storage(str(tmp_path / "old")), record)
    more = corpus_artifact(tmp_path / "more", range(90, 130))
    grown = run({**inputs, "corpus": more, "grow": old}, tmp_path / "new")
    assert grown["train"]["documents"] + grown["validation"]["documents"] == 130
    manifest = read_manifest(Storage(str(tmp_path / "new/train")))
    assert [len(generation.shards) for generation in manifest.generations] == [3, 3]
    assert manifest.generations[0] == read_manifest(Storage(str(tmp_path / "old/train"))).generations[0]
    keys = [d.key for d in ShardReader(Storage(str(tmp_path / "new/train")), sequence_length=8).documents()]
    expected = {document_key(f"web/{n}") for n in range(130) if unit_hash(f"web/{n}", "split") >= 0.2}
    assert len(keys) == len(set(keys)) and set(keys) == expected
    other = vocabulary_artifact(tmp_path / "other", size=280)
    with pytest.raises(ValueError, match="these shards were made with tokenizer"):
        run({**inputs, "tokenizer": other, "grow": old}, tmp_path / "refused")


def foreign_artifact(folder: Path) -> Artifact:
    """A Hugging Face folder in SmolLM2's manner: more tokenizer files than ours, and files of a model."""
    save_tokenizer(train_tokenizer(["text number one two three and four"] * 5, size=285), folder)
    load_tokenizer(folder).save_pretrained(folder)  # as transformers writes it, the template in a file of its own
    for name in ("special_tokens_map.json", "vocab.json", "config.json"):
        (folder / name).write_text("{}")
    (folder / "merges.txt").write_text("")
    return Artifact(Storage(str(folder)), {"id": "huggingface-1", "stage": "huggingface", "digest": "", "summary": {}})


def test_the_tokenizer_of_a_foreign_folder_is_copied_whole(tmp_path: Path) -> None:
    foreign = foreign_artifact(tmp_path / "foreign")
    jobs.shards._copy_tokenizer(foreign.storage, Storage(str(tmp_path / "copy")))
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {
        "chat_template.jinja",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    (tmp_path / "foreign/tokenizer_config.json").unlink()
    jobs.shards._copy_tokenizer(foreign.storage, Storage(str(tmp_path / "bare")))
    assert fingerprint(tmp_path / "bare") == fingerprint(tmp_path / "copy")
    (tmp_path / "foreign/tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer: .*foreign holds no tokenizer\.json; give a folder"):
        jobs.shards._copy_tokenizer(foreign.storage, Storage(str(tmp_path / "none")))


def test_a_fraction_that_holds_out_nothing_is_an_error(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"validation_fraction: 1e-06 leaves no document for validation"):
        run(inputs, tmp_path / "out", "validation_fraction=0.000001")
    with pytest.raises(ValueError, match="validation_fraction: 1.0 must be above 0 and below 1"):
        run(inputs, tmp_path / "out", "validation_fraction=1.0")


def test_a_vocabulary_that_may_have_learnt_from_held_out_documents_is_refused(inputs: dict[str, Artifact]) -> None:
    config = build(ShardsConfig, {"validation_fraction": 0.3})
    with pytest.raises(ValueError, match=r"validation_fraction: 0.3 is more than the held_out_fraction 0.2"):
        STAGE.check_needs(config, inputs)
    of_another_corpus = Artifact(inputs["corpus"].storage, {**inputs["corpus"].record, "id": "corpus-2"})
    STAGE.check_needs(config, {**inputs, "corpus": of_another_corpus})
