"""The corpus stage on Ray Data: accounts that close, bytes that do not depend on how it ran."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import jobs.corpus
from cluster.session import connect
from cluster.storage import Storage
from cluster.tracking import Tracker
from data.document import plan_ranges
from data.parallel import run_tasks
from jobs.config import build
from jobs.corpus import STAGE, WORK, CorpusConfig, _pack
from jobs.job import Context


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with connect("local", num_cpus=2):
        yield


def on_ray(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.slow(pytest.mark.usefixtures("session")(test))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks of a run one after another, as plain calls."""
    monkeypatch.setattr(jobs.corpus, "run_tasks", lambda task, items, **_: [task(item) for item in items])


def context_for(folder: Path) -> Context:
    output = Storage(str(folder))
    return Context(
        output=output, inputs={}, tracker=Tracker(storage=output, run_id="test", name="corpus", group="test")
    )


def run(config: CorpusConfig, folder: Path) -> dict[str, Any]:
    STAGE.check(config)
    return dict(STAGE.run(config, context_for(folder)))


def write_sources(folder: Path) -> dict[str, Any]:
    """Two sources: 60 JSONL records in three files (some bad, some doubled), and a text file of five paragraphs."""
    for number in range(3):
        lines = [json.dumps({"text": f"Document number {n} of file {number} is fine.", "n": n}) for n in range(15)]
        lines += [json.dumps({"text": f"Said in every file, {n} times over."}) for n in range(3)]
        lines += ['{"text": 5}', "{broken"]
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    paragraphs = [
        "SAID in every file,  1 times over.",
        "short",
        "a a a a a a a a a a",
        "mail me@mail.org now ok",
        "naÃ¯ve people read.",
    ]
    (folder / "p.txt").write_text("\n\n".join(paragraphs))
    return {
        "sources": [
            {"name": "web", "path": f"{folder}/*.jsonl", "format": "jsonl"},
            {"name": "book", "path": f"{folder}/p.txt", "format": "text", "split": r"\n\n"},
        ],
        "steps": [
            {"repair_unicode": {}},
            {"length": {"min_bytes": 8}},
            {"repetition": {}},
            {"redact_pii": {}},
            {"exact_duplicates": {}},
        ],
        "parts": 4,
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the metrics log, which holds times."""
    storage = Storage(str(folder))
    return {name: storage.read_bytes(name) for name in storage.files() if name != "metrics.jsonl"}


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for path in sorted((folder / kind).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@on_ray
def test_every_record_is_accounted_for(tmp_path: Path) -> None:
    values = write_sources(tmp_path)
    summary = run(build(CorpusConfig, values), tmp_path / "out")
    web, book = summary["sources"]["web"], summary["sources"]["book"]
    assert (web["read"], web["quarantined"], web["kept"]) == (60, 6, 47)
    # 9 sayings, of which 3 texts remain, and one of these may be the book's.
    assert web["dropped"]["exact_duplicates"] + book["dropped"].get("exact_duplicates", 0) == 7
    assert book["dropped"]["length/min_bytes"] == 1
    assert sum(number for reason, number in book["dropped"].items() if reason.startswith("repetition/")) == 1
    assert book["changed"] == {"redact_pii/email": 1, "redact_pii/phone": 0, "repair_unicode/documents": 1}
    documents, drops = rows(tmp_path / "out", "documents"), rows(tmp_path / "out", "drops")
    assert len(documents) == summary["documents"] and len(drops) == sum(summary["dropped"].values())
    assert len(documents) + len(drops) + 6 == summary["read"] == 65
    assert {"mail [EMAIL] now ok", "naïve people read."} <= {row["text"] for row in documents}
    quarantine = Storage(str(tmp_path / "out")).read_jsonl("quarantine/web.jsonl")
    assert [record["file"] for record in quarantine] == [f"{number}.jsonl" for number in (0, 0, 1, 1, 2, 2)]
    assert not (tmp_path / "out/work").exists()


@on_ray
def test_bytes_do_not_depend_on_tasks_workers_or_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = write_sources(tmp_path)
    first = run(build(CorpusConfig, values), tmp_path / "a")
    num_tasks: list[int] = []

    def run_many(function: Callable[[Any], dict[str, Any]], tasks: Sequence[Any], **rest: Any) -> list[dict[str, Any]]:
        num_tasks.append(len(tasks))
        return run_tasks(function, tasks, **rest)

    with monkeypatch.context() as patch:  # pieces far smaller than a config allows
        patch.setattr(jobs.corpus, "plan_ranges", lambda sources, _: plan_ranges(sources, 300))
        patch.setattr(jobs.corpus, "_pack", lambda ranges, _: _pack(ranges, 300))
        patch.setattr(jobs.corpus, "run_tasks", run_many)
        second = run(build(CorpusConfig, values, ["execution.workers=1"]), tmp_path / "b")
    assert num_tasks[0] > 6  # files are cut, against one task for all of them in the first run
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and first == second
    # The same records in one file under another name, in another order.
    lines = [line for n in (2, 0, 1) for line in (tmp_path / f"{n}.jsonl").read_text().splitlines()]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/all.jsonl").write_text("\n".join(lines))
    values["sources"][0]["path"] = f"{tmp_path}/other/all.jsonl"
    run(build(CorpusConfig, values), tmp_path / "c")
    for name, content in contents(tmp_path / "a").items():
        if not name.startswith("quarantine/"):
            assert contents(tmp_path / "c")[name] == content, name


@on_ray
def test_small_pieces_give_the_same_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The halves called as plain functions, so that pieces and chunks can be far smaller than a config allows."""
    config = build(CorpusConfig, write_sources(tmp_path))
    run(config, tmp_path / "a")
    monkeypatch.setattr(jobs.corpus, "_CHUNK_BYTES", 100)
    monkeypatch.setattr(jobs.corpus, "_BATCH_DOCUMENTS", 2)
    output = Storage(str(tmp_path / "b"))
    pieces = [[list(piece)] for piece in jobs.corpus.plan_ranges(config.sources, 200)]
    cleaned = [jobs.corpus._clean_piece(piece, output=output, config=config) for piece in reversed(pieces)]
    chunks = [chunk for answer in cleaned for chunk in answer["chunks"]]
    assert len(chunks) > 20
    for bucket in range(config.parts):
        jobs.corpus._merge_bucket(bucket, output=output, config=config, chunks=chunks)
    whole = contents(tmp_path / "a")
    assert {name: data for name, data in contents(tmp_path / "b").items() if not name.startswith("work/")} == {
        name: data for name, data in whole.items() if not name.startswith("quarantine/")
    }


@on_ray
def test_a_run_goes_on_where_a_killed_one_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = build(CorpusConfig, write_sources(tmp_path))
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(jobs.corpus, "_summary", interrupt)
        run(config, tmp_path / "killed")
    work = tmp_path / "killed/work"
    # Half of the second half is lost, and a file of the first half is torn.
    for name in ("bucket-00001.json", "bucket-00002.json"):
        (work / name).unlink()
    (tmp_path / "killed/documents/part-00001.parquet").write_bytes(b"torn")
    untouched = tmp_path / "killed/documents/part-00003.parquet"
    made = untouched.stat().st_mtime_ns
    run(config, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert untouched.stat().st_mtime_ns == made


@pytest.mark.usefixtures("in_process")
def test_a_run_that_was_killed_while_it_cleaned_up_can_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build(CorpusConfig, write_sources(tmp_path))
    run(config, tmp_path / "whole")
    remove = Storage.remove

    def remove_some(storage: Storage, name: str = "") -> None:
        if name != jobs.corpus.WORK:
            return remove(storage, name)
        for lost in [*storage.glob("work/*.arrow"), "work/bucket-00001.json"]:
            remove(storage, lost)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Storage, "remove", remove_some)
        run(config, tmp_path / "killed")
    assert (tmp_path / "killed" / WORK / "bucket-00002.json").is_file()
    run(config, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("in_process")
def test_a_quarantine_names_files_alike_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for here in (tmp_path / "one", tmp_path / "two/deep"):
        for name in ("a/x.jsonl", "b/x.jsonl", "b/y.jsonl"):
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_text('{"text": "fine"}\n{"text": "broken\u2028\n')
        monkeypatch.chdir(here if here.name == "one" else tmp_path)
        source = {"name": "web", "path": "*/*.jsonl" if here.name == "one" else f"{here}/*/*.jsonl", "format": "jsonl"}
        run(build(CorpusConfig, {"sources": [source], "parts": 1}), here / "out")
        written.append((here / "out/quarantine/web.jsonl").read_bytes())
    assert written[0] == written[1]
    files = [record["file"] for record in Storage(str(tmp_path / "one/out")).read_jsonl("quarantine/web.jsonl")]
    assert files == ["x.jsonl (file 1 of 3)", "x.jsonl (file 2 of 3)", "y.jsonl"]


@pytest.mark.usefixtures("in_process")
def test_a_lone_surrogate_in_metadata_costs_its_record_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine", "by": "x"}\n{"text": "good", "by": "\\ud800"}\n')
    source = {"name": "s", "path": f"{tmp_path}/a.jsonl", "format": "jsonl", "metadata": ["by"]}
    summary = run(build(CorpusConfig, {"sources": [source], "parts": 1}), tmp_path / "out")
    assert (summary["documents"], summary["quarantined"]) == (1, 1)


@on_ray
def test_an_empty_corpus_names_the_filter_that_took_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two\n\nthree\n\n# # # #")
    values = {
        "sources": [{"name": "s", "path": f"{tmp_path}/a.txt", "format": "text", "split": r"\n\n"}],
        "steps": [{"symbol_ratio": {}}, {"length": {"min_bytes": 100}}],
    }
    with pytest.raises(
        ValueError, match=r"no document is left of 3 read; most went to length/min_bytes .*loosen length"
    ):
        run(build(CorpusConfig, values), tmp_path / "out")


@on_ray
def test_a_fraction_takes_its_part_and_counts_the_rest(tmp_path: Path) -> None:
    values = write_sources(tmp_path)
    values["sources"][0]["fraction"] = 0.5
    summary = run(build(CorpusConfig, values), tmp_path / "out")
    left_out = summary["sources"]["web"]["dropped"]["fraction"]
    assert 10 < left_out < 45 and {row["reason"] for row in rows(tmp_path / "out", "drops")} >= {"fraction"}
