"""The shards stage: whole documents on either side, bytes that do not depend on workers, growth, forgetting."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data.tokens.shard_cache
import data.tokens.shard_tasks
import jobs.shards
from cluster.plain import to_plain
from cluster.storage import Storage
from cluster.tracking import Tracker
from data.corpus.accounting import SourceCounts, summarize
from data.corpus.parts import PartRecord
from data.document import unit_hash
from data.tokens.shard_format import document_key, read_manifest
from data.tokens.shard_reader import ShardReader, find_document
from data.tokens.shards_summary import ShardsSummary
from data.tokens.tokenizer import fingerprint, load_encoder, load_tokenizer, save_tokenizer
from data.tokens.tokenizer_training import train_tokenizer
from jobs.frame.artifact import Artifact
from jobs.frame.config_loader import build
from jobs.frame.record import InputRecord, Record
from jobs.frame.stage import Context
from jobs.pretrain import STAGE as PRETRAIN
from jobs.pretrain import PretrainConfig
from jobs.shards import STAGE, WORK, ShardsConfig, rebuild_stale

SOURCES = ("web", "books")


def document_id(number: int) -> str:
    return f"{SOURCES[number % 2]}/{number}"


def corpus_artifact(folder: Path, numbers: Iterable[int]) -> Artifact:
    """A corpus of three parts with one document for each number, of two sources in turn."""
    (folder / "documents").mkdir(parents=True, exist_ok=True)
    parts: list[PartRecord] = []
    for part in range(3):
        ids = [(n, document_id(n)) for n in numbers if n % 3 == part]
        rows = [{"id": name, "text": f"text number {n}", "source": name.partition("/")[0]} for n, name in sorted(ids)]
        schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("source", pa.string())])
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"documents/part-{part:05d}.parquet")
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        parts.append(PartRecord(f"documents/part-{part:05d}.parquet", digest, len(rows), 0, {}))
    return finished_corpus(folder, SOURCES, parts)


def finished_corpus(folder: Path, sources: Iterable[str], parts: list[PartRecord]) -> Artifact:
    """The artifact of a corpus of these parts."""
    (folder / "parts.json").write_text(json.dumps(to_plain(parts)))
    summary = to_plain(summarize({source: SourceCounts() for source in sources}, parts, {}))
    return Artifact(Storage(str(folder)), Record(id="corpus-1", stage="corpus", kind="corpus", summary=summary))


def vocabulary_artifact(folder: Path, size: int = 285, text: str = "text number one two three and four") -> Artifact:
    save_tokenizer(train_tokenizer([text] * 5, size=size), folder / "tokenizer")
    corpus = InputRecord(id="corpus-1", digest="", url="")
    config = {"size": 300, "held_out_fraction": 0.2}
    record = Record(id="vocabulary-1", stage="vocabulary", kind="tokenizer", inputs={"corpus": corpus}, config=config)
    return Artifact(Storage(str(folder)), record)


def run(inputs: dict[str, Artifact], folder: Path, *overrides: str, rebuild: bool = False) -> ShardsSummary:
    grow = {"grow": "x"} if "grow" in inputs else {}
    config = build(ShardsConfig, {"validation_fraction": 0.2, **grow}, list(overrides))
    STAGE.check(config)
    STAGE.check_inputs(config, inputs)
    make = rebuild_stale if rebuild else STAGE.run
    output = Storage(str(folder))
    tracker = Tracker(storage=output, run_id="test", name="shards", group="test")
    summary = make(config, Context(output=output, inputs=inputs, tracker=tracker))
    assert isinstance(summary, ShardsSummary)
    return summary


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


@pytest.mark.usefixtures("without_ray")
def test_whole_documents_stand_on_one_side_by_a_hash_of_their_id(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    summary = run(inputs, tmp_path / "out")
    held_out = {f"text number {n}" for n in range(100) if unit_hash(document_id(n), "split") < 0.2}
    assert set(texts(tmp_path / "out", "validation")) == held_out
    assert set(texts(tmp_path / "out", "train")) == {f"text number {n}" for n in range(100)} - held_out
    assert summary.train.documents + summary.validation.documents == 100
    everything = sum(len(f"text number {n}") for n in range(100))
    assert summary.train.bytes + summary.validation.bytes == everything
    assert summary.tokenizer == fingerprint(tmp_path / "out/tokenizer") and summary.vocab_size == 285
    assert summary.encoder == {"tiktoken": 3}
    train = [tokens.train for tokens in summary.tokens_by_source.values()]
    assert list(summary.tokens_by_source) == list(SOURCES) and sum(train) == summary.train.tokens
    ShardReader(Storage(str(tmp_path / "out/train")), sequence_length=8, tokenizer_fingerprint=summary.tokenizer)
    assert not (tmp_path / "out/work").exists()


@pytest.mark.usefixtures("without_ray")
def test_a_part_whose_texts_tiktoken_encodes_otherwise_is_encoded_with_tokenizers(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(inputs, tmp_path / "fast")
    really = data.tokens.shard_tasks.fast_encoder

    def slow_for_one_part(folder: Path, sample: list[str]) -> object:
        # The text that differs is in one part's sample; each part chooses its own library.
        with monkeypatch.context() as patch:
            if "text number 0" in sample:
                patch.setattr(
                    "data.tokens.encode._give_equal_ids", lambda fast, plain, texts: "text number 0" not in texts
                )
            return really(folder, sample)

    monkeypatch.setattr(data.tokens.shard_tasks, "fast_encoder", slow_for_one_part)
    assert run(inputs, tmp_path / "slow").encoder == {"tiktoken": 2, "tokenizers": 1}
    manifest = read_manifest(Storage(str(tmp_path / "slow/train")))
    assert [shard.encoder for shard in manifest.shards] == ["tokenizers", "tiktoken", "tiktoken"]
    assert manifest.digest == read_manifest(Storage(str(tmp_path / "fast/train"))).digest


@pytest.mark.slow
def test_bytes_depend_neither_on_workers_nor_on_a_kill(
    ray_session: None, inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(inputs, tmp_path / "a")
    run(inputs, tmp_path / "b", "execution.workers=1")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(jobs.shards, "write_manifest", interrupt)
        run(inputs, tmp_path / "c")
    (answer,) = [p for p in (tmp_path / "c" / WORK).iterdir() if "shard-00001" in p.read_text()]
    answer.unlink()
    (tmp_path / "c/train/shard-00001.tokens.bin").write_bytes(b"torn")
    untouched = tmp_path / "c/train/shard-00002.tokens.bin"
    made = untouched.stat().st_mtime_ns
    run(inputs, tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "c")
    assert untouched.stat().st_mtime_ns == made


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def as_artifact(folder: Path) -> Artifact:
    return Artifact(Storage(str(folder)), Record(id="shards-1", stage="shards", kind="shards"))


@pytest.mark.usefixtures("without_ray")
def test_a_corpus_grows_by_a_generation_of_the_documents_that_are_new(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    run(inputs, tmp_path / "old")
    before = contents(tmp_path / "old")
    old = as_artifact(tmp_path / "old")
    more = corpus_artifact(tmp_path / "more", range(90, 130))
    grown = run({**inputs, "corpus": more, "grow": old}, tmp_path / "new")
    assert grown.train.documents + grown.validation.documents == 130
    manifest = read_manifest(Storage(str(tmp_path / "new/train")))
    assert [len(generation.shards) for generation in manifest.generations] == [3, 3]
    assert manifest.generations[0] == read_manifest(Storage(str(tmp_path / "old/train"))).generations[0]
    keys = [d.key for d in ShardReader(Storage(str(tmp_path / "new/train")), sequence_length=8).documents()]
    expected = {document_key(document_id(n)) for n in range(130) if unit_hash(document_id(n), "split") >= 0.2}
    assert len(keys) == len(set(keys)) and set(keys) == expected
    # The old shards are the same files, not written again, and stay when the old folder goes.
    for name in (f"train/shard-0000{n}.tokens.bin" for n in range(3)):
        assert (tmp_path / "old" / name).samefile(tmp_path / "new" / name)
    assert contents(tmp_path / "old") == before
    shutil.rmtree(tmp_path / "old")
    after = contents(tmp_path / "new")
    assert all(after[name] == data for name, data in before.items() if "manifest" not in name)
    assert len(list(ShardReader(Storage(str(tmp_path / "new/train")), sequence_length=8).documents())) == len(keys)


def write_rows(folder: Path, name: str, rows: list[dict[str, str | None]], columns: tuple[str, ...]) -> PartRecord:
    """Write a part of a corpus; its record."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(column, pa.string()) for column in columns])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / name)
    return PartRecord(name, hashlib.sha256(json.dumps(rows).encode()).hexdigest(), len(rows), 0, {})


@pytest.mark.usefixtures("without_ray")
def test_growth_does_not_take_in_again_what_a_duplicate_of_an_old_document_says(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    run(inputs, tmp_path / "old")
    # A new source a brings lower ids, and the corpus keeps those: of an exact twin, of a near one, and of an exact
    # one whose own kept one was dropped for a near one, which is in a part before it.
    kept = ["a/exact", "a/near", "a/chain", "a/new"]
    columns = ("id", "reason", "kept_id")
    drops = [
        [("b/chain", "near_duplicates", "a/chain"), (document_id(0), "exact_duplicates", "a/exact")],
        [(document_id(1), "near_duplicates", "a/near"), (document_id(2), "exact_duplicates", "b/chain")],
        [("b/new", "exact_duplicates", "a/new"), (document_id(3), "repetition/lines", None)],
    ]
    folder = tmp_path / "more"
    rows: list[dict[str, str | None]] = [{"id": name, "text": f"{name} of a", "source": "a"} for name in kept]
    parts = [write_rows(folder, "documents/part-00000.parquet", rows, ("id", "text", "source"))]
    for number, part in enumerate(drops):
        dropped: list[dict[str, str | None]] = [dict(zip(columns, row, strict=True)) for row in part]
        write_rows(folder, f"drops/part-{number:05d}.parquet", dropped, columns)
    more = finished_corpus(folder, ("a", "b"), parts)
    grown = run({**inputs, "corpus": more, "grow": as_artifact(tmp_path / "old")}, tmp_path / "new")
    assert grown.train.documents + grown.validation.documents == 101
    assert "a/new of a" in texts(tmp_path / "new", "train") + texts(tmp_path / "new", "validation")


@pytest.mark.usefixtures("without_ray")
def test_what_a_killed_run_made_with_another_tokenizer_is_made_anew(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(jobs.shards, "write_manifest", interrupt)
        run(inputs, tmp_path / "killed")
    other = {**inputs, "tokenizer": vocabulary_artifact(tmp_path / "other", text="number eleven, a text of words " * 2)}
    summary = run(other, tmp_path / "killed")
    assert summary.vocab_size == 285 and summary == run(other, tmp_path / "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("without_ray")
def test_the_old_shards_are_copied_once(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(inputs, tmp_path / "old")
    more = corpus_artifact(tmp_path / "more", range(90, 130))
    old, new = Storage("memory://shards-once/old"), Storage("memory://shards-once/new")
    old.put_folder(tmp_path / "old")
    given = {**inputs, "corpus": more, "grow": Artifact(old, as_artifact(tmp_path / "old").record)}
    copied: list[str] = []
    really_copy = Storage.copy

    def watched(self: Storage, name: str, target: Storage, target_name: str | None = None) -> None:
        # What readers fetch into the node's cache is no copy of the artifact.
        if target.url.startswith(new.url) and name.endswith(".bin"):
            copied.append(f"{target.url.rpartition('/')[2]}/{name}")
        really_copy(self, name, target, target_name)

    monkeypatch.setattr(Storage, "copy", watched)
    monkeypatch.setattr(data.tokens.shard_cache, "shard_cache", lambda: tmp_path / "cache")
    config = build(ShardsConfig, {"validation_fraction": 0.2, "grow": "x"}, [])
    tracker = Tracker(storage=Storage(str(tmp_path / "log")), run_id="test", name="shards", group="test")
    context = Context(output=new, inputs=given, tracker=tracker)
    STAGE.run(config, context)
    before = {name: new.read_bytes(name) for name in new.files()}
    assert sorted(copied) == sorted(name for name in contents(tmp_path / "old") if name.endswith(".bin"))
    copied.clear()
    rebuild_stale(config, context)
    assert copied == []
    torn = "train/shard-00001.tokens.bin"
    new.write_bytes(torn, bytes(len(new.read_bytes(torn))))
    rebuild_stale(config, context)
    assert copied == [torn]
    assert {name: new.read_bytes(name) for name in new.files()} == before
    fsspec.filesystem("memory").rm("/shards-once", recursive=True)


@pytest.mark.usefixtures("without_ray")
def test_another_tokenizer_cannot_grow_shards(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    run(inputs, tmp_path / "old")
    other = vocabulary_artifact(tmp_path / "other", size=280)
    with pytest.raises(ValueError, match="these shards were made with tokenizer"):
        run({**inputs, "tokenizer": other, "grow": as_artifact(tmp_path / "old")}, tmp_path / "refused")


@pytest.mark.usefixtures("without_ray")
def test_shards_grow_in_and_across_stores(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    run(inputs, tmp_path / "old")
    more = corpus_artifact(tmp_path / "more", range(90, 130))
    run({**inputs, "corpus": more, "grow": as_artifact(tmp_path / "old")}, tmp_path / "new")
    expected = contents(tmp_path / "new")
    for old, new in (("file", "memory"), ("memory", "memory"), ("memory", "file")):
        source, target = (
            Storage(str(tmp_path / f"{old}-{new}/{side}") if kind == "file" else f"memory://shards-{old}-{new}/{side}")
            for kind, side in ((old, "old"), (new, "new"))
        )
        source.put_folder(tmp_path / "old")
        record = as_artifact(tmp_path / "old").record
        config = build(ShardsConfig, {"validation_fraction": 0.2, "grow": "x"}, [])
        tracker = Tracker(storage=target, run_id="test", name="shards", group="test")
        given = {**inputs, "corpus": more, "grow": Artifact(source, record)}
        STAGE.run(config, Context(output=target, inputs=given, tracker=tracker))
        found = {name: target.read_bytes(name) for name in target.files() if name != "metrics.jsonl"}
        assert found == expected
    for kind in ("file-memory", "memory-memory", "memory-file"):
        if memory.exists(f"/shards-{kind}"):
            memory.rm(f"/shards-{kind}", recursive=True)


@pytest.mark.usefixtures("without_ray")
def test_forgetting_makes_only_the_shards_anew_that_held_the_document(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    corpus = corpus_artifact(tmp_path / "corpus", range(100))
    run({**inputs, "corpus": corpus}, tmp_path / "out")
    made = times(tmp_path / "out")
    corpus = corpus_artifact(tmp_path / "corpus", set(range(100)) - {7})  # 7 is in the second part
    summary = run({**inputs, "corpus": corpus}, tmp_path / "out", rebuild=True)
    scratch = run({**inputs, "corpus": corpus}, tmp_path / "scratch")
    assert summary == scratch and contents(tmp_path / "out") == contents(tmp_path / "scratch")
    anew = {name for name, time in times(tmp_path / "out").items() if time != made[name]}
    assert anew == {f"{split}/shard-00001.{kind}.bin" for split in ("train", "validation") for kind in KINDS}
    for split in ("train", "validation"):
        storage = Storage(str(tmp_path / "out" / split))
        assert find_document(storage, read_manifest(storage), document_id(7)) is None
    again = times(tmp_path / "out")
    assert run({**inputs, "corpus": corpus}, tmp_path / "out", rebuild=True) == scratch
    assert times(tmp_path / "out") == again


KINDS = ("tokens", "documents")


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("*/*.bin")}


@pytest.mark.usefixtures("without_ray")
def test_a_rebuild_that_was_killed_is_done_by_the_next(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpus_artifact(tmp_path / "corpus", range(100))
    run({**inputs, "corpus": corpus}, tmp_path / "out")
    corpus = corpus_artifact(tmp_path / "corpus", set(range(100)) - {7, 8})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(jobs.shards, "write_manifest", interrupt)
        run({**inputs, "corpus": corpus}, tmp_path / "out", rebuild=True)
    run({**inputs, "corpus": corpus}, tmp_path / "out", rebuild=True)
    run({**inputs, "corpus": corpus}, tmp_path / "scratch")
    assert contents(tmp_path / "out") == contents(tmp_path / "scratch")


@pytest.mark.usefixtures("without_ray")
def test_grown_shards_are_made_anew_when_the_documents_they_left_out_changed(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    run(inputs, tmp_path / "old")
    more = corpus_artifact(tmp_path / "more", range(90, 130))
    given = {**inputs, "corpus": more, "grow": as_artifact(tmp_path / "old")}
    run(given, tmp_path / "new")
    made = times(tmp_path / "new")
    run(given, tmp_path / "new", rebuild=True)
    assert times(tmp_path / "new") == made
    assert not list((tmp_path / "new").rglob("*.partial"))
    fewer = corpus_artifact(tmp_path / "fewer", range(95))
    run({**inputs, "corpus": fewer}, tmp_path / "old", rebuild=True)  # 95 to 99 now come in with the new corpus
    summary = run(given, tmp_path / "new", rebuild=True)
    assert summary.train.documents + summary.validation.documents == 130
    run(given, tmp_path / "scratch")
    assert contents(tmp_path / "new") == contents(tmp_path / "scratch")


@pytest.mark.usefixtures("without_ray")
def test_shards_of_an_emptied_part_can_be_read_and_mixed(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    corpus = corpus_artifact(tmp_path / "corpus", [n for n in range(100) if n % 3 != 1])
    run({**inputs, "corpus": corpus}, tmp_path / "out")
    train = Storage(str(tmp_path / "out/train"))
    assert [shard.num_documents > 0 for shard in read_manifest(train).shards] == [True, False, True]
    reader = ShardReader(train, sequence_length=500, mixture={"web": 0, "books": 3})
    rows = reader.rows(range(reader.num_rows))
    odd = [n for n in range(1, 100, 2) if n % 3 != 1 and unit_hash(document_id(n), "split") >= 0.2]
    decoded = load_encoder(tmp_path / "out/tokenizer").decode(rows.input_ids[rows.loss_mask].tolist())
    assert sorted(int(number) for number in decoded.split("text number ")[1:]) == odd


@pytest.mark.usefixtures("without_ray")
def test_pretraining_takes_a_mixture_of_the_sources_that_are_there(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    run(inputs, tmp_path / "out")
    given = {"shards": as_artifact(tmp_path / "out")}

    def check(**mixture: float) -> None:
        config = build(PretrainConfig, {"mixture": mixture, "sequence_length": 16, "global_batch_size": 4})
        PRETRAIN.check(config)
        PRETRAIN.check_inputs(config, given)

    check(web=3, books=1)
    with pytest.raises(ValueError, match="has no text of source 'book'; did you mean 'books'"):
        check(web=3, book=1)
    with pytest.raises(ValueError, match="mixture.web: -1.0 must be a finite number of at least 0"):
        check(web=-1, books=1)


def test_a_corpus_without_digests_of_its_parts_has_to_be_made_again(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    corpus = corpus_artifact(tmp_path / "corpus", range(10))
    (tmp_path / "corpus/parts.json").unlink()
    with pytest.raises(ValueError, match=r"corpus: .* has no parts\.json, which every complete corpus has"):
        run({**inputs, "corpus": corpus}, tmp_path / "out")


def foreign_artifact(folder: Path) -> Artifact:
    """A Hugging Face folder in SmolLM2's manner: more tokenizer files than ours, and files of a model."""
    save_tokenizer(train_tokenizer(["text number one two three and four"] * 5, size=285), folder)
    load_tokenizer(folder).save_pretrained(folder)  # as transformers writes it, the template in a file of its own
    for name in ("special_tokens_map.json", "vocab.json", "config.json"):
        (folder / name).write_text("{}")
    (folder / "merges.txt").write_text("")
    return Artifact(Storage(str(folder)), Record(id="huggingface-1", stage="huggingface", kind="model"))


def test_the_tokenizer_of_a_foreign_folder_is_copied_whole(tmp_path: Path) -> None:
    foreign = foreign_artifact(tmp_path / "foreign")
    jobs.shards._write_tokenizer(foreign.storage, Storage(str(tmp_path / "copy")))
    assert {path.name for path in (tmp_path / "copy/tokenizer").iterdir()} == {
        "chat_template.jinja",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    (tmp_path / "foreign/tokenizer_config.json").unlink()
    jobs.shards._write_tokenizer(foreign.storage, Storage(str(tmp_path / "bare")))
    assert fingerprint(tmp_path / "bare/tokenizer") == fingerprint(tmp_path / "copy/tokenizer")
    (tmp_path / "foreign/tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer: .*foreign has no tokenizer\.json; name a folder"):
        jobs.shards._write_tokenizer(foreign.storage, Storage(str(tmp_path / "none")))


def llama2_artifact(folder: Path, bos: str = "<s>") -> Artifact:
    """A tokenizer in the style of Llama 2, which does not add its bos token in tokenizer.json."""
    tokenizer = train_tokenizer(["text number"], size=262)
    tokenizer.add_special_tokens(["<s>", "</s>", "<x>"])
    content = json.loads(tokenizer.to_str().replace("<|endoftext|>", "<|other|>"))
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": "</s>", "unk_token": "<x>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Artifact(Storage(str(folder)), Record(id=f"tokenizer-{bos}", stage="tokenizer", kind="tokenizer"))


@pytest.mark.usefixtures("without_ray")
def test_documents_of_a_llama_2_tokenizer_begin_with_its_bos_token_also_in_the_exported_tokenizer(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    run({**inputs, "tokenizer": llama2_artifact(tmp_path / "llama")}, tmp_path / "out")
    encoder = load_encoder(tmp_path / "llama")
    assert (encoder.token_to_id("<s>"), encoder.token_to_id("</s>")) == (262, 263)
    for document in ShardReader(Storage(str(tmp_path / "out/train")), sequence_length=8).documents():
        text = encoder.decode(document.tokens[1:-1].tolist())
        assert document.tokens.tolist() == [262, *encoder.encode(text).ids, 263]
        assert load_tokenizer(tmp_path / "out/tokenizer")(text).input_ids == document.tokens[:-1].tolist()
    old = Artifact(Storage(str(tmp_path / "out")), Record(id="shards-1", stage="shards", kind="shards"))
    other = llama2_artifact(tmp_path / "other", bos="<x>")
    with pytest.raises(ValueError, match="grow: its documents begin with token 262 .* begin with 264"):
        run({**inputs, "tokenizer": other, "grow": old}, tmp_path / "grown")


@pytest.mark.usefixtures("without_ray")
def test_a_fraction_that_holds_out_nothing_is_an_error(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"validation_fraction: 1e-06 leaves no document for validation"):
        run(inputs, tmp_path / "out", "validation_fraction=0.000001")
    with pytest.raises(ValueError, match="validation_fraction: 1.0 must be above 0 and below 1"):
        run(inputs, tmp_path / "out", "validation_fraction=1.0")


def test_a_vocabulary_that_may_be_trained_on_held_out_documents_is_refused(inputs: dict[str, Artifact]) -> None:
    config = build(ShardsConfig, {"validation_fraction": 0.3})
    with pytest.raises(ValueError, match=r"validation_fraction: 0.3 is more than the vocabulary.s held_out_fraction"):
        STAGE.check_planned_inputs(config, inputs)
    of_another_corpus = Artifact(inputs["corpus"].storage, replace(inputs["corpus"].record, id="corpus-2"))
    STAGE.check_planned_inputs(config, {**inputs, "corpus": of_another_corpus})
