"""`raymill forget`: the changed artifacts equal those of a run that never read the document."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import jobs.commands.forget
import jobs.corpus
from cluster.plain import to_plain
from cluster.storage import Storage
from data.cleaning.changes import SAMPLES, read_samples
from data.document import unit_hash
from jobs.commands.forget import forget
from jobs.commands.trace import trace
from jobs.frame.artifact import RECORD, UNFINISHED, Artifact, input_records, open_artifact
from jobs.frame.forgetting import FORGOTTEN
from jobs.frame.job_run import run_job
from jobs.frame.pipeline import load_pipeline
from jobs.frame.record import Unfinished

WORDS = [f"word{number}" for number in range(400)]


def sentence(start: int, length: int = 40, *, changed: int | None = None) -> str:
    words = [WORDS[(start * 37 + n * n + n) % len(WORDS)] for n in range(length)]
    if changed is not None:
        words[changed] = "another"
    return " ".join(words)


@pytest.fixture(autouse=True)
def small_parts_without_ray(monkeypatch: pytest.MonkeyPatch, without_ray: None) -> None:
    monkeypatch.setattr(jobs.corpus, "num_parts", lambda ranges, part_mib: 4)
    monkeypatch.setattr(jobs.commands.forget, "connect", lambda address: nullcontext())


def write_project(folder: Path) -> Path:
    """Write source files and configs. There are 40 different documents, near-duplicates, and equal texts."""
    records = [{"id": f"d{n:02d}", "text": f"{sentence(n)} Mail me{n}@mail.org."} for n in range(40)]
    records += [
        {"id": f"n{n}", "text": sentence(100, 120, changed=n)} for n in range(4)
    ]  # near-duplicates of each other
    records += [{"id": f"e{n}", "text": sentence(200)} for n in range(3)]  # equal texts
    records += [{"id": "m0", "text": sentence(300, 120)}, {"id": "m1", "text": sentence(300, 120, changed=60)}]
    records += [
        {"id": "m2", "text": sentence(300, 120, changed=60).upper()}
    ]  # equal to m1 after normalization, near-duplicate of m0
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records[::2]) + "broken\n")
    (folder / "b.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records[1::2]))
    (folder / "corpus.yaml").write_text(
        f"sources: [{{name: s, path: '{folder}/*.jsonl', format: jsonl, id: id}}]\n"
        "steps: [{redact_pii: {}}, {length: {min_bytes: 20}}, {exact_duplicates: {}}, {near_duplicates: {}}]\n"
    )
    (folder / "vocabulary.yaml").write_text("corpus: corpus\nsize: 270\nheld_out_fraction: 0.2\n")
    (folder / "shards.yaml").write_text("corpus: corpus\ntokenizer: vocabulary\nvalidation_fraction: 0.2\n")
    (folder / "pipeline.yaml").write_text("store: unused\nstages: [corpus, vocabulary, shards]\n")
    return folder / "pipeline.yaml"


def run_stages(path: Path, store: Storage, *stages: str) -> dict[str, Artifact]:
    """Run the stages, or all stages if none is given. Returns the artifacts by stage."""
    jobs = load_pipeline(path, store=store.url).jobs
    return {name: run_job(job, store, wandb_group="test") for name, job in jobs.items() if not stages or name in stages}


def kept_ids(corpus: Artifact) -> set[str]:
    folder = Path(corpus.storage.root) / "documents"
    return {row["id"] for path in folder.glob("*.parquet") for row in pq.read_table(path).to_pylist()}


def bytes_of(artifact: Artifact) -> dict[str, bytes]:
    """Return the content of the files that `forget` leaves as a run without the document would have written them.

    No other sample takes the place of a forgotten one in logs/samples.json.
    """
    skipped = (RECORD, "metrics.jsonl", SAMPLES)
    return {name: artifact.storage.read_bytes(name) for name in artifact.storage.files() if name not in skipped}


def summary_of(artifact: Artifact) -> dict[str, Any]:
    """Return the summary without the number of texts that cleaning changed, which `forget` does not update."""
    summary = json.loads(json.dumps(artifact.summary))
    for source in summary.get("sources", {}).values():
        del source["changed"]
    return summary


@pytest.mark.parametrize(
    ("id", "restored_ids"),
    [("s/d05", set()), ("s/n0", {"s/n1"}), ("s/n2", set()), ("s/e0", {"s/e1"}), ("s/m0", {"s/m1"}), ("s/m1", set())],
)
def test_the_changed_corpus_equals_that_of_a_run_that_never_read_the_document(
    tmp_path: Path, id: str, restored_ids: set[str]
) -> None:
    path = write_project(tmp_path)
    store, other = Storage(str(tmp_path / "store")), Storage(str(tmp_path / "other"))
    made = run_stages(path, store, "corpus")
    before = kept_ids(made["corpus"])
    forget(store, [id])
    other.write_jsonl(FORGOTTEN, [id])
    fresh_run = run_stages(path, other, "corpus")
    after = open_artifact(store / made["corpus"].id)
    assert after is not None and kept_ids(after) == (before | restored_ids) - {id}
    assert bytes_of(after) == bytes_of(fresh_run["corpus"])
    assert summary_of(after) == summary_of(fresh_run["corpus"])
    assert after.digest == fresh_run["corpus"].digest
    assert id.encode() not in b"".join(bytes_of(after).values()) + after.storage.read_bytes(SAMPLES)


def test_the_samples_of_a_forgotten_document_are_removed_and_the_others_stay(tmp_path: Path) -> None:
    store = Storage(str(tmp_path / "store"))
    corpus = run_stages(write_project(tmp_path), store, "corpus")["corpus"]
    samples = read_samples(corpus.storage)["s"]["redact_pii"]
    assert len(samples) == 3
    forget(store, [samples[1].id])
    assert read_samples(corpus.storage)["s"]["redact_pii"] == [samples[0], samples[2]]


def test_documents_of_several_paths_and_of_folders_with_columns_are_forgotten(tmp_path: Path) -> None:
    path = write_project(tmp_path)
    for name, year in (("a", "2025"), ("b", "[2024]")):
        (tmp_path / f"year={year}").mkdir()
        (tmp_path / f"{name}.jsonl").rename(tmp_path / f"year={year}" / "x.jsonl")
    paths = f"['{tmp_path}/year=2025/*.jsonl', '{tmp_path}/year=[2024]/x.jsonl']"
    corpus_yaml = (tmp_path / "corpus.yaml").read_text()
    changed = corpus_yaml.replace(f"'{tmp_path}/*.jsonl'", paths).replace("id: id}", "id: id, metadata: [year]}")
    (tmp_path / "corpus.yaml").write_text(changed)
    store, other = Storage(str(tmp_path / "store")), Storage(str(tmp_path / "other"))
    made = run_stages(path, store, "corpus")["corpus"]
    folder = Path(made.storage.root) / "documents"
    rows = [row for file in folder.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    years = {row["id"]: json.loads(row["metadata"])["year"] for row in rows}
    assert years["s/d00"] == "2025" and years["s/d01"] == "[2024]"
    assert [line.strip() for line in trace(store, "s/d01")][1].startswith("read from     s: x.jsonl (file 2 of 2)")
    forget(store, ["s/n0"])
    other.write_jsonl(FORGOTTEN, ["s/n0"])
    fresh_run = run_stages(path, other, "corpus")["corpus"]
    after = open_artifact(store / made.id)
    assert after is not None and bytes_of(after) == bytes_of(fresh_run) and "s/n1" in kept_ids(after)


def test_duplicates_stay_dropped_if_the_kept_document_cannot_be_read_again(tmp_path: Path) -> None:
    store = Storage(str(tmp_path / "store"))
    made = run_stages(write_project(tmp_path), store, "corpus")
    before = kept_ids(made["corpus"])
    (tmp_path / "a.jsonl").unlink()  # contains e0 and e2, and b.jsonl contains e1, which has the same text
    forget(store, ["s/e2"])
    after = open_artifact(store / made["corpus"].id)
    assert after is not None and "s/e0" in before and kept_ids(after) == before
    assert after.summary["dropped"]["forgotten"] == 1


def run_corpus_of_sources(folder: Path, records: dict[str, list[tuple[str, str]]], mixture: str = "") -> Artifact:
    """Make a corpus in `folder/store`. `records` has the (id, text) of the documents of each source."""
    for source, documents in records.items():
        lines = [json.dumps({"id": id, "text": text}) + "\n" for id, text in documents]
        (folder / f"{source}.jsonl").write_text("".join(lines))
    sources = ", ".join(f"{{name: {name}, path: '{folder}/{name}.jsonl', format: jsonl, id: id}}" for name in records)
    (folder / "corpus.yaml").write_text(
        f"sources: [{sources}]\n"
        f"steps: [{{length: {{min_bytes: 20}}}}, {{exact_duplicates: {{}}}}, {{near_duplicates: {{}}}}]\n{mixture}"
    )
    (folder / "pipeline.yaml").write_text("store: unused\nstages: [corpus]\n")
    return run_stages(folder / "pipeline.yaml", Storage(str(folder / "store")))["corpus"]


K, F = sentence(100, 120), sentence(100, 120, changed=60)  # near-duplicates
KFG = {"a": [("K", K)], "b": [("F", F), ("G", F.upper()), *((f"d{n}", sentence(n)) for n in range(9))]}
OTHER_IDS = {f"b/d{n}" for n in range(9)}


def dropped_rows(corpus: Artifact) -> set[tuple[str, str, str | None]]:
    """Return id, reason and kept_id of the dropped documents."""
    folder = Path(corpus.storage.root) / "drops"
    rows = [row for path in folder.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return {(row["id"], row["reason"], row["kept_id"]) for row in rows}


def is_in_a_file(corpus: Artifact, id: str) -> bool:
    """Whether a file of the corpus contains the id. In the tables, the ids are compressed."""
    tables = [pq.read_table(path) for path in Path(corpus.storage.root).rglob("*.parquet")]
    values = {value for table in tables for name in table.schema.names for value in table[name].to_pylist()}
    return id in values or id.encode() in b"".join(bytes_of(corpus).values())


def test_a_duplicate_of_a_forgotten_document_becomes_a_duplicate_of_the_kept_document_that_cannot_be_read(
    tmp_path: Path,
) -> None:
    corpus = run_corpus_of_sources(tmp_path, KFG)
    store = Storage(str(tmp_path / "store"))
    assert dropped_rows(corpus) == {("b/F", "near_duplicates", "a/K"), ("b/G", "exact_duplicates", "b/F")}
    (tmp_path / "a.jsonl").unlink()
    forget(store, ["b/F"])
    assert kept_ids(corpus) == {"a/K"} | OTHER_IDS
    assert dropped_rows(corpus) == {("b/G", "exact_duplicates", "a/K")}
    assert not is_in_a_file(corpus, "b/F")
    forget(store, ["a/K"])  # finds G, which can be read again
    assert kept_ids(corpus) == {"b/G"} | OTHER_IDS
    assert dropped_rows(corpus) == set()
    assert not is_in_a_file(corpus, "a/K") and not is_in_a_file(corpus, "b/F")


def test_a_duplicate_that_cannot_be_read_has_no_kept_id_after_all_kept_documents_are_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = run_corpus_of_sources(tmp_path, KFG)
    (tmp_path / "b.jsonl").unlink()
    forget(Storage(str(tmp_path / "store")), ["a/K", "b/F"])
    assert kept_ids(corpus) == OTHER_IDS
    assert dropped_rows(corpus) == {("b/G", "exact_duplicates", None)}
    assert not is_in_a_file(corpus, "a/K") and not is_in_a_file(corpus, "b/F")
    assert "1 duplicates of forgotten documents could not take their place" in caplog.text


def test_duplicates_of_a_document_that_the_mixture_dropped_stay_dropped_if_it_cannot_be_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = run_corpus_of_sources(tmp_path, KFG, "mixture: {a: 0, b: 1}\n")
    assert ("a/K", "mixture", None) in dropped_rows(corpus)
    (tmp_path / "a.jsonl").unlink()
    forget(Storage(str(tmp_path / "store")), ["b/F"])
    assert kept_ids(corpus) == OTHER_IDS
    assert dropped_rows(corpus) == {("a/K", "mixture", None), ("b/G", "exact_duplicates", "a/K")}
    assert "could not take their place" not in caplog.text


def test_an_unreadable_duplicate_with_the_id_of_a_document_that_a_step_dropped_is_no_kept_document(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = [(f"d{n}", sentence(n)) for n in range(9)]
    records = {"a": [("J", K)], "b": [("x", "short"), ("x", F)], "c": [("G", sentence(100, 120, changed=50)), *others]}
    corpus = run_corpus_of_sources(tmp_path, records)
    assert {("b/x", "length/min_bytes", None), ("b/x", "near_duplicates", "a/J")} < dropped_rows(corpus)
    (tmp_path / "b.jsonl").unlink()
    forget(Storage(str(tmp_path / "store")), ["a/J"])
    assert "c/G" in kept_ids(corpus) and not is_in_a_file(corpus, "a/J")
    assert "could not take their place" in caplog.text


@pytest.mark.parametrize("forgotten", ["b/F", "a/K"])
def test_a_document_that_is_a_duplicate_of_another_one_with_its_id_can_be_in_a_cluster(
    tmp_path: Path, forgotten: str
) -> None:
    corpus = run_corpus_of_sources(tmp_path, {**KFG, "a": [("K", K), ("K", K)]})
    assert ("a/K", "exact_duplicates", "a/K") in dropped_rows(corpus)
    (tmp_path / "a.jsonl").unlink()
    forget(Storage(str(tmp_path / "store")), [forgotten])
    kept, dropped = {
        "b/F": ("a/K", {("a/K", "exact_duplicates", "a/K"), ("b/G", "exact_duplicates", "a/K")}),
        "a/K": ("b/F", {("b/G", "exact_duplicates", "b/F")}),
    }[forgotten]
    assert kept_ids(corpus) == {kept} | OTHER_IDS
    assert dropped_rows(corpus) == dropped
    assert not is_in_a_file(corpus, forgotten)


def test_only_files_that_contained_the_document_are_rewritten(tmp_path: Path) -> None:
    store = Storage(str(tmp_path / "store"))
    made = run_stages(write_project(tmp_path), store)
    folder = Path(made["corpus"].storage.root)
    times = {path.name: path.stat().st_mtime_ns for path in (folder / "documents").glob("*.parquet")}
    shard_times = {p: p.stat().st_mtime_ns for p in Path(made["shards"].storage.root).rglob("*.tokens.bin")}
    forget(store, ["s/d05"])
    parts = (folder / "documents").glob("*.parquet")
    changed = [path.name for path in parts if path.stat().st_mtime_ns != times[path.name]]
    assert len(changed) == 1
    rewritten = {path.stem.partition(".")[0] for path, time in shard_times.items() if path.stat().st_mtime_ns != time}
    assert len(rewritten) == 1 and f"part-{min(rewritten)[-5:]}.parquet" == changed[0]


def test_shards_are_changed_too_and_derived_artifacts_are_returned_every_time(tmp_path: Path) -> None:
    path = write_project(tmp_path)
    store = Storage(str(tmp_path / "store"))
    made = run_stages(path, store)
    id = next(f"s/d{n:02d}" for n in range(40) if unit_hash(f"s/d{n:02d}", "split") > 0.2)
    assert any("tokens in" in line for line in trace(store, id))
    result = forget(store, [id])
    assert result.changed == [made["corpus"].id, made["shards"].id]
    assert result.derived == [made["vocabulary"].id] and result.failed == {}
    assert list(trace(store, id)) == [
        f"{id} was forgotten with `raymill forget`: artifacts in {store.url} must not contain it"
    ]
    shards = open_artifact(store / made["shards"].id)
    corpus = open_artifact(store / made["corpus"].id)
    assert shards is not None and corpus is not None
    assert shards.record.inputs["corpus"].digest == corpus.digest
    assert shards.summary["train"]["documents"] == made["shards"].summary["train"]["documents"] - 1
    second = forget(store, [id])
    assert second.changed == [] and second.derived == result.derived  # there is nothing left to change


def test_an_unknown_id_is_rejected_before_anything_is_written(tmp_path: Path) -> None:
    store = Storage(str(tmp_path / "store"))
    run_stages(write_project(tmp_path), store)
    with pytest.raises(ValueError, match="no corpus in .* has read a document with the id 's/missing'"):
        forget(store, ["s/d01", "s/missing"])
    assert not store.exists(FORGOTTEN)


def test_a_document_is_removed_without_its_source_file_and_its_duplicates_are_not_restored(tmp_path: Path) -> None:
    store = Storage(str(tmp_path / "store"))
    made = run_stages(write_project(tmp_path), store)
    before = kept_ids(made["corpus"])
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").unlink()
    forget(store, ["s/n0", "s/d05"])
    after = open_artifact(store / made["corpus"].id)
    assert after is not None and kept_ids(after) == before - {"s/n0", "s/d05"}


def test_all_documents_of_a_split_can_be_forgotten(tmp_path: Path) -> None:
    store = Storage(str(tmp_path / "store"))
    made = run_stages(write_project(tmp_path), store)
    held_out = [id for id in sorted(kept_ids(made["corpus"])) if unit_hash(id, "split") < 0.2]
    result = forget(store, held_out)
    assert result.failed == {} and made["shards"].id in result.changed
    shards = open_artifact(store / made["shards"].id)
    assert shards is not None and shards.summary["validation"]["documents"] == 0


def test_the_folder_of_an_unfinished_artifact_with_a_changed_input_is_emptied(tmp_path: Path) -> None:
    store = Storage(str(tmp_path / "store"))
    made = run_stages(write_project(tmp_path), store)
    of_corpus, of_shards = (store / f"unfinished-from-{name}" for name in ("corpus", "shards"))
    for output, used in ((of_corpus, made["corpus"]), (of_shards, made["vocabulary"])):
        output.write_json(UNFINISHED, to_plain(Unfinished(inputs=input_records({"from": used}))))
        output.write_bytes("partial.txt", b"partial")
    forget(store, ["s/n0"])
    assert not of_corpus.exists("partial.txt") and of_shards.exists("partial.txt")


def raise_at_call(patch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Make the method `name` of Storage raise KeyboardInterrupt in its call with this number, counted from 1."""
    call, count = getattr(Storage, name), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            raise KeyboardInterrupt
        return call(*arguments, **options)

    patch.setattr(Storage, name, counted)


@pytest.mark.parametrize("next_command", ["forget", "forget another", "run"])
def test_after_a_kill_at_any_write_the_next_command_completes_the_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, next_command: str
) -> None:
    path = write_project(tmp_path)
    whole = Storage(str(tmp_path / "whole"))
    ids = ["s/n0", "s/e0", "s/d05"] + (["s/d07"] if next_command == "forget another" else [])
    made = run_stages(path, whole)
    shutil.copytree(whole.root, tmp_path / "fresh")
    forget(whole, ids)
    for number in range(2, 40, 3):
        store = Storage(str(tmp_path / f"{number}"))
        shutil.copytree(tmp_path / "fresh", store.root)
        try:
            with monkeypatch.context() as patch:
                raise_at_call(patch, "write_bytes", number)
                forget(store, ids[:3])
        except KeyboardInterrupt:
            (store / ".").remove("lease.json")
        if next_command == "run":
            run_stages(path, store)
        forget(store, ids)
        for name in ("corpus", "shards"):
            done, expected = open_artifact(store / made[name].id), open_artifact(whole / made[name].id)
            assert done is not None and expected is not None
            assert bytes_of(done) == bytes_of(expected) and summary_of(done) == summary_of(expected), number


def test_a_run_that_was_running_during_forget_removes_the_document_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_project(tmp_path)
    store, other = Storage(str(tmp_path / "store")), Storage(str(tmp_path / "other"))
    summarize = jobs.corpus.summarize

    def summarize_after_forget(*arguments: Any) -> dict[str, Any]:
        store.write_jsonl(FORGOTTEN, ["s/d05"])
        return summarize(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(jobs.corpus, "summarize", summarize_after_forget)
        made = run_stages(path, store, "corpus")
    other.write_jsonl(FORGOTTEN, ["s/d05"])
    assert bytes_of(made["corpus"]) == bytes_of(run_stages(path, other, "corpus")["corpus"])


def test_forget_in_a_copy_of_a_store_does_not_change_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, copy = Storage(str(tmp_path / "store")), Storage(str(tmp_path / "copy"))
    made = run_stages(write_project(tmp_path), store)
    shutil.copytree(store.root, copy.root)
    monkeypatch.chdir("/")
    assert forget(copy, ["s/d05"]).changed == [made["corpus"].id, made["shards"].id]
    assert not any("tokens in" in line for line in trace(copy, "s/d05"))
    assert any("tokens in" in line for line in trace(store, "s/d05"))
