"""The corpus stage on Ray Data: accounts that close, bytes that do not depend on how it ran."""

import json
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import data.corpus.chunks
import data.corpus.cleaning_tasks
import jobs.corpus
from cluster.storage import Storage
from cluster.tracking import Tracker
from data.corpus.accounting import CorpusSummary
from data.corpus.cleaning_tasks import (
    CleanedRanges,
    CleaningTask,
    estimate_text_bytes,
    plan_cleaning_tasks,
    run_cleaning_tasks,
)
from data.corpus.work import CorpusWork
from data.document import ReadRange
from data.sources.readers import plan_ranges
from jobs.corpus import STAGE, WORK, CorpusConfig, num_parts
from jobs.frame.config_loader import build
from jobs.frame.stage import Context


def on_ray(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.slow(pytest.mark.usefixtures("ray_session")(test))


@pytest.fixture(autouse=True)
def four_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are a mebibyte at least; here each corpus has four, so that something has to meet in each of them."""
    monkeypatch.setattr(jobs.corpus, "num_parts", lambda ranges, part_mib: 4)


def context_for(folder: Path) -> Context:
    output = Storage(str(folder))
    return Context(
        output=output, inputs={}, tracker=Tracker(storage=output, run_id="test", name="corpus", group="test")
    )


def run(config: CorpusConfig, folder: Path) -> CorpusSummary:
    STAGE.check(config)
    summary = STAGE.run(config, context_for(folder))
    assert isinstance(summary, CorpusSummary)
    return summary


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
    web, book = summary.sources["web"], summary.sources["book"]
    assert (web.read, web.quarantined, web.kept) == (60, 6, 47)
    # 9 sayings, of which 3 texts remain, and one of these may be the book's.
    assert web.dropped["exact_duplicates"] + book.dropped.get("exact_duplicates", 0) == 7
    assert book.dropped["length/min_bytes"] == 1
    assert sum(number for reason, number in book.dropped.items() if reason.startswith("repetition/")) == 1
    assert book.changed == {
        "redact_pii/characters": 11,
        "redact_pii/documents": 1,
        "redact_pii/email": 1,
        "repair_unicode/characters": 2,
        "repair_unicode/documents": 1,
        "repair_unicode/mojibake": 1,
    }
    documents, drops = rows(tmp_path / "out", "documents"), rows(tmp_path / "out", "drops")
    assert len(documents) == summary.documents and len(drops) == sum(summary.dropped.values())
    assert len(documents) + len(drops) + 6 == summary.read == 65
    assert {"mail [EMAIL] now ok", "naïve people read."} <= {row["text"] for row in documents}
    quarantine = Storage(str(tmp_path / "out")).read_jsonl("quarantine/web.jsonl")
    assert [record["file"] for record in quarantine] == [f"{number}.jsonl" for number in (0, 0, 1, 1, 2, 2)]
    assert not (tmp_path / "out/work").exists()


@on_ray
def test_bytes_do_not_depend_on_tasks_workers_or_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = write_sources(tmp_path)
    first = run(build(CorpusConfig, values), tmp_path / "a")
    num_tasks: list[int] = []

    def counted(work: CorpusWork, tasks: Sequence[CleaningTask], **rest: Any) -> list[CleanedRanges]:
        num_tasks.append(len(tasks))
        return run_cleaning_tasks(work, tasks, **rest)

    with monkeypatch.context() as patch:  # pieces far smaller than a config allows
        patch.setattr(jobs.corpus, "plan_ranges", lambda sources, _: plan_ranges(sources, 300))
        patch.setattr(
            jobs.corpus, "plan_cleaning_tasks", lambda files, ranges, _: plan_cleaning_tasks(files, ranges, 300)
        )
        patch.setattr(jobs.corpus, "run_cleaning_tasks", counted)
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
        if not name.startswith(("quarantine/", "origins/")):
            assert contents(tmp_path / "c")[name] == content, name


@pytest.mark.usefixtures("without_ray")
def test_small_ranges_and_chunks_and_other_numbers_of_tasks_give_the_same_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = write_sources(tmp_path)
    run(build(CorpusConfig, values), tmp_path / "a")
    monkeypatch.setattr(data.corpus.chunks, "_CHUNK_BYTES", 100)
    monkeypatch.setattr(data.corpus.cleaning_tasks, "_BATCH_RECORDS", 2)
    monkeypatch.setattr(jobs.corpus, "plan_ranges", lambda sources, _: plan_ranges(sources, 200))
    monkeypatch.setattr(
        jobs.corpus, "plan_cleaning_tasks", lambda files, ranges, _: plan_cleaning_tasks(files, ranges, 1024)
    )
    for part_tasks in (1, 2, 3, 7):
        run(build(CorpusConfig, values, [f"execution.part_tasks={part_tasks}"]), tmp_path / f"{part_tasks}")
        assert contents(tmp_path / f"{part_tasks}") == contents(tmp_path / "a")


@on_ray
def test_a_run_goes_on_where_a_killed_one_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = build(CorpusConfig, write_sources(tmp_path))
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(jobs.corpus, "summarize", interrupt)
        run(config, tmp_path / "killed")
    work = tmp_path / "killed/work"
    # Half of the second half is lost, and a file that it wrote is torn.
    for number in (1, 2):
        answer_of(work / "results/deduplicate-and-write", number).unlink()
    (tmp_path / "killed/documents/part-00001.parquet").write_bytes(b"torn")
    untouched = tmp_path / "killed/documents/part-00003.parquet"
    made = untouched.stat().st_mtime_ns
    run(config, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert untouched.stat().st_mtime_ns == made


@pytest.mark.usefixtures("without_ray")
def test_a_run_that_was_killed_while_it_cleaned_up_can_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build(CorpusConfig, write_sources(tmp_path))
    run(config, tmp_path / "whole")
    remove = Storage.remove

    def remove_some(storage: Storage, name: str = "") -> None:
        chunks = [] if name else storage.glob("chunks/*.arrow")
        if not chunks:
            return remove(storage, name)
        for lost in chunks:
            remove(storage, lost)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Storage, "remove", remove_some)
        run(config, tmp_path / "killed")
    assert not list((tmp_path / "killed" / WORK).rglob("*.json"))  # no answer is left that the next run could trust
    run(config, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def answer_of(folder: Path, part: int) -> Path:
    """The answer of the task that wrote this part."""
    (found,) = [path for path in folder.glob("*.json") if json.loads(path.read_text())[0]["part_number"] == part]
    return found


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("without_ray")
def test_a_quarantine_names_files_alike_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for here in (tmp_path / "one", tmp_path / "two/deep"):
        for name in ("a/x.jsonl", "b/x.jsonl", "b/y.jsonl"):
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_text('{"text": "fine"}\n{"text": "broken\u2028\n')
        monkeypatch.chdir(here if here.name == "one" else tmp_path)
        source = {"name": "web", "path": "*/*.jsonl" if here.name == "one" else f"{here}/*/*.jsonl", "format": "jsonl"}
        run(build(CorpusConfig, {"sources": [source]}), here / "out")
        written.append((here / "out/quarantine/web.jsonl").read_bytes())
    assert written[0] == written[1]
    files = [record["file"] for record in Storage(str(tmp_path / "one/out")).read_jsonl("quarantine/web.jsonl")]
    assert files == ["x.jsonl (file 1 of 3)", "x.jsonl (file 2 of 3)", "y.jsonl"]


@pytest.mark.usefixtures("without_ray")
def test_a_lone_surrogate_in_metadata_costs_its_record_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine", "by": "x"}\n{"text": "good", "by": "\\ud800"}\n')
    source = {"name": "s", "path": f"{tmp_path}/a.jsonl", "format": "jsonl", "metadata": ["by"]}
    summary = run(build(CorpusConfig, {"sources": [source]}), tmp_path / "out")
    assert (summary.documents, summary.quarantined) == (1, 1)


@on_ray
def test_an_empty_corpus_names_the_filter_that_took_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two\n\nthree\n\n# # # #")
    values = {
        "sources": [{"name": "s", "path": f"{tmp_path}/a.txt", "format": "text", "split": r"\n\n"}],
        "steps": [{"symbol_ratio": {}}, {"length": {"min_bytes": 100}}],
    }
    with pytest.raises(
        ValueError,
        match=r"none of 3 documents read is kept; most were lost to length/min_bytes .*loosen the settings of length",
    ):
        run(build(CorpusConfig, values), tmp_path / "out")


@pytest.mark.usefixtures("without_ray")
def test_the_quarantine_of_an_empty_corpus_is_written_before_the_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{broken\n")
    source = {"name": "s", "path": f"{tmp_path}/a.jsonl", "format": "jsonl"}
    with pytest.raises(ValueError, match="lost to quarantine .*see the corpus's folder quarantine"):
        run(build(CorpusConfig, {"sources": [source]}), tmp_path / "out")
    assert len(Storage(str(tmp_path / "out")).read_jsonl("quarantine/s.jsonl")) == 1


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(
    ("format", "content"),
    [("text", "caf\xe9".encode("latin-1")), ("csv", b"text\n\xff\n"), ("json", b"[1, 2]"), ("parquet", b"PAR1" * 9)],
)
def test_the_error_for_a_corpus_that_was_all_quarantined_names_a_folder_with_the_reasons(
    tmp_path: Path, format: str, content: bytes
) -> None:
    (tmp_path / "a").write_bytes(content)
    sources = [{"name": name, "path": f"{tmp_path}/a", "format": format} for name in ("s", "t")]
    values = {
        "sources": sources,
        "steps": [{"exact_duplicates": {}}, {"near_duplicates": {}}],
        "mixture": {"s": 1, "t": 2},
    }
    with pytest.raises(ValueError, match="lost to quarantine") as caught:
        run(build(CorpusConfig, values), tmp_path / "out")
    folder = re.search(r"quarantine (\S+) for the reasons", str(caught.value))
    assert folder is not None
    for name in ("s", "t"):
        records = Storage(folder[1]).read_jsonl(f"{name}.jsonl")
        assert records and all(record["file"] == "a" and record["reason"] for record in records)


@pytest.mark.usefixtures("without_ray")
def test_the_text_of_a_wet_file_beside_a_crawl_is_not_taken_for_markup(tmp_path: Path) -> None:
    text = "if a<b and b>c: use <b>bold</b>\n#include <stdio.h>\nFrom: <name@host>\nशब्द &amp; ไทย 漢字\n" * 3
    page = b"HTTP/1.1 200 OK\r\n\r\n<html><body><main><p>Gr\xf6\xdfe is said by <b>nobody</b>.</p></main></body></html>"
    blocks = {"a.wet": ("conversion", "text/plain", text.encode()), "b.warc": ("response", "application/http", page)}
    for name, (kind, content_type, block) in blocks.items():
        head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nContent-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n"
        (tmp_path / name).write_bytes(head.encode() + block + b"\r\n\r\n")
    source = {"name": "s", "path": [f"{tmp_path}/*.wet", f"{tmp_path}/*.warc"], "format": "warc"}
    run(build(CorpusConfig, {"sources": [source], "steps": [{"extract_html": {}}]}), tmp_path / "out")
    assert {row["text"] for row in rows(tmp_path / "out", "documents")} == {text, "Größe is said by nobody."}


@pytest.mark.usefixtures("without_ray")
def test_the_kinds_of_records_that_are_no_documents_are_counted_by_source(tmp_path: Path) -> None:
    page = b"HTTP/1.1 %s\r\nContent-Type: %b\r\n\r\n<p>A page with some text."
    pages = [
        page % (b"200 OK", b"text/html"),
        page % (b"404 Not Found", b"text/html"),
        page % (b"200 OK", b"image/png"),
    ]
    records = [("response", block) for block in [*pages, pages[1]]] + [("request", b"GET / HTTP/1.1\r\n\r\n")]
    head = "WARC/1.1\r\nWARC-Type: {}\r\nContent-Length: {}\r\n\r\n"
    (tmp_path / "a.warc").write_bytes(
        b"".join(head.format(kind, len(block)).encode() + block + b"\r\n\r\n" for kind, block in records)
    )
    source = {"name": "s", "path": f"{tmp_path}/a.warc", "format": "warc"}
    summary = run(build(CorpusConfig, {"sources": [source]}), tmp_path / "out")
    kinds = {"request": 1, "response image/png": 1, "response with status 404": 2}
    assert summary.sources["s"].other_kinds == summary.other_kinds == kinds
    assert (summary.read, summary.documents, summary.others) == (1, 1, 4)


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("steps", [[], [{"exact_duplicates": {}}, {"near_duplicates": {}}]])
def test_different_texts_with_one_id_are_an_error(tmp_path: Path, steps: list[dict[str, Any]]) -> None:
    texts = ["The first of three texts.", "Второй текст из трёх, совсем другой.", "第三篇文章，和前两篇都不一样。"]
    for number, text in enumerate(texts):
        records = [{"id": "same", "text": text}, {"id": number, "text": f"Another text, number {number}."}]
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    values = {"name": "s", "path": f"{tmp_path}/*.jsonl", "format": "jsonl", "id": "id"}
    config = build(CorpusConfig, {"sources": [values], "steps": steps})
    message = r"sources\.s\.id: the column 'id' does not identify a document: "
    with pytest.raises(ValueError, match=message + "3 different documents share 1 id, such as 's/same'"):
        run(config, tmp_path / "out")
    with pytest.raises(ValueError, match=message + "the first records have 3 different texts with the id 'same'"):
        STAGE.check_sources(config)
    run(build(CorpusConfig, {"sources": [values | {"id": None}], "steps": steps}), tmp_path / "other")


@pytest.mark.usefixtures("without_ray")
def test_copies_of_a_record_and_an_id_of_which_one_document_is_kept_are_no_error(tmp_path: Path) -> None:
    records = [{"id": "x", "text": "A text that is long enough."}, {"id": "y", "text": "Another text of some length."}]
    lines = [json.dumps(record) + "\n" for record in [*records, *records]]
    (tmp_path / "a.jsonl").write_text("".join(lines) + '{"id": "x", "text": "short"}\n')
    source = {"name": "s", "path": f"{tmp_path}/a.jsonl", "format": "jsonl", "id": "id"}
    summary = run(build(CorpusConfig, {"sources": [source], "steps": [{"length": {"min_bytes": 9}}]}), tmp_path / "out")
    assert (summary.documents, summary.dropped) == (4, {"length/min_bytes": 1})


@on_ray
def test_a_fraction_takes_its_part_and_counts_the_rest(tmp_path: Path) -> None:
    values = write_sources(tmp_path)
    values["sources"][0]["fraction"] = 0.5
    summary = run(build(CorpusConfig, values), tmp_path / "out")
    left_out = summary.sources["web"].dropped["fraction"]
    assert 10 < left_out < 45 and {row["reason"] for row in rows(tmp_path / "out", "drops")} >= {"fraction"}


def test_without_workers_the_fairness_of_the_steps_is_computed_after_the_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, threading.Thread]] = []

    def record(name: str) -> None:
        function = getattr(jobs.corpus, name)

        def call(*arguments: Any, **settings: Any) -> Any:
            calls.append((name, threading.current_thread()))
            return function(*arguments, **settings)

        monkeypatch.setattr(jobs.corpus, name, call)

    names = ["run_cleaning_tasks", "write_parts", "fairness_ledger"]
    for name in names:
        record(name)
    run(build(CorpusConfig, write_sources(tmp_path), ["execution.workers=0"]), tmp_path / "out")
    assert calls == [(name, threading.current_thread()) for name in names]


def prose(seed: int, length: int = 60) -> str:
    return " ".join(f"w{(seed * 7919 + n * n * 31 + n) % 997}" for n in range(length))


@pytest.mark.usefixtures("without_ray")
def test_a_source_that_the_steps_empty_is_named_when_there_is_a_mixture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": prose(n)}) for n in range(20)))
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "short"}))
    values = {
        "sources": [{"name": name, "path": f"{tmp_path}/{name}.jsonl", "format": "jsonl"} for name in "ab"],
        "steps": [{"length": {"min_bytes": 20}}],
        "mixture": {"a": 1, "b": 1},
    }
    summary = run(build(CorpusConfig, values), tmp_path / "out")
    assert summary.sources["a"].kept == 20 and summary.sources["b"].kept == 0
    assert "the steps kept no document of b; the mixture consists of the other sources" in caplog.text


@pytest.mark.usefixtures("without_ray")
def test_near_duplicates_and_a_mixture_work_on_the_whole_corpus(tmp_path: Path) -> None:
    lines = [json.dumps({"id": f"{n:03d}", "text": prose(n)}) for n in range(200)]
    lines += [json.dumps({"id": f"{n:03d}x", "text": prose(n) + " and more"}) for n in range(0, 200, 10)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": prose(n)}) for n in range(500, 600)))
    values = {
        "sources": [
            {"name": "a", "path": f"{tmp_path}/a.jsonl", "format": "jsonl", "id": "id"},
            {"name": "b", "path": f"{tmp_path}/b.jsonl", "format": "jsonl"},
        ],
        "steps": [{"exact_duplicates": {}}, {"near_duplicates": {}}],
        "mixture": {"a": 1, "b": 1},
    }
    summary = run(build(CorpusConfig, values), tmp_path / "out")
    a, b = summary.sources["a"], summary.sources["b"]
    assert a.dropped["near_duplicates"] == 20 and "near_duplicates" not in b.dropped
    assert (b.kept, a.kept + a.dropped["mixture"]) == (100, 200)
    assert 0.8 < a.bytes / b.bytes < 1.25 and 0.4 < summary.mixture["a"] < 0.6
    taken = {row["id"]: row["kept_id"] for row in rows(tmp_path / "out", "drops") if row["reason"] == "near_duplicates"}
    assert taken == {f"a/{n:03d}x": f"a/{n:03d}" for n in range(0, 200, 10)}
    for part_tasks in (1, 2, 7):
        again = run(build(CorpusConfig, values, [f"execution.part_tasks={part_tasks}"]), tmp_path / f"{part_tasks}")
        assert again == summary and contents(tmp_path / f"{part_tasks}") == contents(tmp_path / "out")


def test_mistakes_of_a_corpus_are_named_before_anything_is_read(tmp_path: Path) -> None:
    source = {"name": "web", "path": "x", "format": "text"}
    for values, message in (
        ({"mixture": {"wep": 1}}, "mixture: 'wep' is not one of the sources; did you mean web"),
        ({"mixture": {"web": -1}}, "mixture.web: -1.0 must be at least 0"),
        ({"mixture": {"web": 0}}, "every weight is 0"),
        ({"part_mib": 0}, "part_mib: 0 must be at least 1"),
        ({"part_mib": 1025}, "part_mib: 1025 must be at least 1 and at most 1024"),
        ({"fairness_budget": 2}, "fairness_budget: 2.0 must be at least 0 and below 1"),
        ({"execution": {"part_tasks": 0}}, "execution.part_tasks: 0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            STAGE.check(build(CorpusConfig, {"sources": [source], **values}))


def test_a_filter_that_removes_people_breaks_the_budget_and_keep_mends_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some text.")
    values = {
        "sources": [{"name": "web", "path": f"{tmp_path}/a.txt", "format": "text"}],
        "steps": [{"toxicity": {"max_score": 0.8}}],
        "fairness_budget": 0.05,
    }
    with pytest.raises(ValueError, match=r"steps\[0\].toxicity: removes .* \(sexuality; .*`keep: 0\.\d+`") as refused:
        STAGE.check_sources(build(CorpusConfig, values))
    keep = float(re.findall(r"`keep: ([\d.]+)`", str(refused.value))[-1])
    STAGE.check_sources(build(CorpusConfig, {**values, "steps": [{**values["steps"][0], "keep": keep}]}))


@pytest.mark.parametrize(
    ("num_bytes", "part_mib", "expected"),
    [(0, 64, 1), (1, 1, 1), (1 << 20, 1, 1), ((1 << 20) + 1, 1, 2), (10 << 30, 64, 160), (4096 << 20, 1, 4096)],
)
def test_parts_are_as_many_as_the_text_fills(num_bytes: int, part_mib: int, expected: int) -> None:
    assert num_parts(num_bytes, part_mib) == expected


def test_more_than_the_most_parts_are_not_made_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert num_parts(1 << 40, 64) == 4096
    assert "about 1024 GiB of text are split into 4096 parts, the maximum, of 256 MiB" in caplog.text


def test_compressed_files_and_parquet_count_four_times_their_size() -> None:
    config = build(
        CorpusConfig,
        {
            "sources": [
                {"name": "plain", "path": "x", "format": "jsonl"},
                {"name": "columns", "path": "y", "format": "parquet"},
            ]
        },
    )
    for source, url, expected in ((0, "x.jsonl", 100), (0, "x.jsonl.gz", 400), (1, "y.data", 400)):
        assert estimate_text_bytes(config.sources, [ReadRange(source, url, 0, -1, 100)]) == expected


@pytest.mark.usefixtures("without_ray")
def test_many_equal_texts_give_the_same_parts_for_any_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"id": f"{n * 7 % 90:02d}", "text": f"Said {n % 6} times.".swapcase()}) for n in range(400)]
    lines += [json.dumps({"id": f"{n * 7 % 90:02d}", "text": f"Said {n % 6}  times."}) for n in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{broken", "[]"]))
    (tmp_path / "b.jsonl").write_text("\n".join(["{torn", *lines[::-1], "5"]))
    source = {"name": "s", "path": f"{tmp_path}/*.jsonl", "format": "jsonl", "id": "id"}
    values = {"sources": [source], "steps": [{"exact_duplicates": {}}]}
    summary = run(build(CorpusConfig, values), tmp_path / "out")
    assert (summary.documents, summary.dropped, summary.quarantined) == (6, {"exact_duplicates": 994}, 4)
    quarantine = Storage(str(tmp_path / "out")).read_jsonl("quarantine/s.jsonl")
    places = [(record["file"], record["offset"]) for record in quarantine]
    assert places == sorted(places) and [file for file, _ in places] == ["a.jsonl"] * 2 + ["b.jsonl"] * 2
    monkeypatch.setattr(data.corpus.chunks, "_CHUNK_BYTES", 3000)
    monkeypatch.setattr(data.corpus.cleaning_tasks, "_BATCH_RECORDS", 5)
    monkeypatch.setattr(jobs.corpus, "plan_ranges", lambda sources, _: plan_ranges(sources, 5000))
    monkeypatch.setattr(
        jobs.corpus, "plan_cleaning_tasks", lambda files, ranges, _: plan_cleaning_tasks(files, ranges, 5000)
    )
    again = run(build(CorpusConfig, values), tmp_path / "again")
    assert again == summary and contents(tmp_path / "again") == contents(tmp_path / "out")


def chats_with_one_system_prompt(folder: Path) -> dict[str, Any]:
    """Thirty chats that begin with one long system prompt, beside prose and files that are no HTML."""
    prompt = " ".join(f"You are a helpful assistant and follow rule number {n}." for n in range(100))
    chats = [f"{prompt}\nuser: question {n}\nassistant: answer {n}" for n in range(30)]
    (folder / "chats.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in chats))
    subjects = ("mat", "roof", "lake", "moon", "hill", "road")
    prose = [f"Story {n} of {subject}: if a<b then naÃ¯ve {n}." for n in range(40) for subject in subjects]
    (folder / "prose.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in prose))
    sources = [{"name": name, "path": f"{folder}/{name}.jsonl", "format": "jsonl"} for name in ("chats", "prose")]
    steps = [
        {"extract_html": {}},
        {"repair_unicode": {}, "for": ["prose"]},
        {"exact_duplicates": {}},
        {"near_duplicates": {}},
    ]
    return {"sources": sources, "steps": steps, "execution": {"workers": 0}}


def test_a_source_that_a_step_takes_nearly_whole_is_named_in_the_log_and_the_summary(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary = run(build(CorpusConfig, chats_with_one_system_prompt(tmp_path)), tmp_path / "out")
    (collapse,) = [collapse for collapse in summary.collapses if collapse.source == "chats"]
    assert (collapse.step, collapse.reached, collapse.dropped) == ("near_duplicates", 30, 29)
    (message,) = [record.message for record in caplog.records if "of chats that reach it" in record.message]
    assert "near_duplicates drops 29 of the 30 documents of chats" in message and "system prompt" in message


def test_samples_do_not_depend_on_batches_and_a_step_for_a_source_changes_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build(CorpusConfig, chats_with_one_system_prompt(tmp_path))
    summary = run(config, tmp_path / "one")
    prose = summary.sources["prose"]
    assert prose.changed["repair_unicode/documents"] == prose.read == 240
    assert prose.changed["repair_unicode/characters"] == 480 and prose.changed["extract_html/plain_text"] == 240
    assert "repair_unicode/documents" not in summary.sources["chats"].changed
    monkeypatch.setattr(data.corpus.cleaning_tasks, "_BATCH_RECORDS", 7)
    run(config, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    samples = Storage(str(tmp_path / "one")).read_json("logs/samples.json")
    assert list(samples["prose"]) == ["repair_unicode"] and not samples.get("chats")
    for document_id, before, after in samples["prose"]["repair_unicode"]:
        assert document_id.startswith("prose/") and before.replace("Ã¯", "ï") == after


def test_a_recipe_for_another_language_says_that_the_ledger_judged_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。"
    (tmp_path / "a.txt").write_text(text)
    values = {
        "sources": [{"name": "a", "path": f"{tmp_path}/a.txt", "format": "text"}],
        "steps": [{"language": {"keep": ["zh"], "min_score": 0.3}}, {"repair_unicode": {}}],
        "execution": {"workers": 0},
    }
    run(build(CorpusConfig, values), tmp_path / "out")
    messages = [record.message for record in caplog.records]
    assert any("nothing is judged in zh, because the sentences are in en" in message for message in messages)
    ledger = Storage(str(tmp_path / "out")).read_json("fairness.json")
    assert ledger["judges_nothing"] and "removes texts in en and keeps zh" in ledger["not_judged"][0]
    assert STAGE.check_sources is not None
    with pytest.raises(
        ValueError, match=r"fairness_budget: 5.0% cannot be checked.*keeps zh.*Set fairness_budget to null"
    ):
        STAGE.check_sources(build(CorpusConfig, values | {"fairness_budget": 0.05}))
