"""Rendering of files in tasks: samples, counts and quarantine, whatever the ranges and the workers."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import data.chats.rendering_tasks as tasks_module
from cluster.storage import Storage
from data.chats.counts import check_quarantined, log_counts
from data.chats.packing import plan_rows
from data.chats.rendering_tasks import RecordKind, RenderedRecords, plan_tasks, probe_records, render_files
from data.chats.row_files import RowReader, store_rows
from data.chats.sample_files import SampleReader, learned_parts, open_array
from data.chats.template import load_chat_tokenizer
from data.tokens.tokenizer import save_tokenizer
from data.tokens.tokenizer_training import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(["Hi Hello you"] * 3, size=270), folder)
    return Storage(str(folder))


def chat(number: int) -> dict[str, Any]:
    return {"prompt": f"question {number}", "completion": f"answer {number}"}


def write(path: Path, records: Sequence[object]) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in records))
    return str(path)


def render(
    path: str, work: Path, tokenizer: Storage, kind: RecordKind = "chats", length: int = 64
) -> tuple[RenderedRecords, list[str]]:
    """Render a file in this process. Returns the result and the text of each sample."""
    storage = Storage(str(work))
    tasks = plan_tasks([path], kind=kind, sequence_length=length, tokenizer=tokenizer)
    records = render_files(tasks, work=storage, tokenizer=tokenizer)
    reader, decoder = SampleReader(storage, records.files), load_chat_tokenizer(tokenizer.local())
    return records, [decoder.decode(reader.read(number).ids.tolist()) for number in range(len(records.lengths))]


def test_bad_records_are_set_aside_with_file_and_line(tmp_path: Path, tokenizer: Storage) -> None:
    lines = [chat(1), "{broken", "", {"prompt": "no reply"}, chat(2), {"prompt": "<|end|>", "completion": "x"}]
    path = write(tmp_path / "a.jsonl", lines)
    records, texts = render(path, tmp_path / "work", tokenizer)
    assert texts == [f"<|user|>question {n}<|end|><|assistant|>answer {n}<|end|>" for n in (1, 2)]
    assert [(line.file, line.line) for line in records.quarantined] == [(path, 2), (path, 4), (path, 6)]
    assert "malformed JSON" in records.quarantined[0].reason and "special token" in records.quarantined[2].reason
    assert records.counts.records == 5 and records.counts.layouts == {"completion": 2}
    assert records.counts.num_quarantined == 3


def test_ranges_change_neither_samples_nor_lines(
    tmp_path: Path, tokenizer: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [chat(n) if n % 10 else {"prompt": n} for n in range(60)]
    lines[45] = {"prompt": "question", "completion": ""}  # the first record with this reason is in a later range
    path = write(tmp_path / "a.jsonl", lines)
    whole, texts = render(path, tmp_path / "whole", tokenizer)
    monkeypatch.setattr(tasks_module, "RANGE_BYTES", 500)
    monkeypatch.setattr(tasks_module, "run_tasks", lambda function, tasks, **_: [function(task) for task in tasks])
    parts, same_texts = render(path, tmp_path / "parts", tokenizer)
    assert len(parts.files.tokens) > 3 and same_texts == texts
    assert parts.quarantined == whole.quarantined and [line.line for line in whole.quarantined] == [
        1,
        11,
        21,
        31,
        41,
        46,
        51,
    ]
    assert parts.keys.tolist() == whole.keys.tolist()
    assert parts.counts.layouts == whole.counts.layouts and parts.counts.examples == whole.counts.examples


def test_a_second_run_reads_the_results_of_the_first(
    tmp_path: Path, tokenizer: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", [chat(n) for n in range(5)])
    first, texts = render(path, tmp_path / "work", tokenizer)
    monkeypatch.setattr(tasks_module, "render_range", lambda *_, **__: pytest.fail("rendered twice"))
    again, same_texts = render(path, tmp_path / "work", tokenizer)
    assert same_texts == texts and again.counts == first.counts


def test_a_json_array_is_one_task(tmp_path: Path, tokenizer: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_module, "RANGE_BYTES", 50)
    (tmp_path / "a.json").write_text(json.dumps([chat(n) for n in range(9)] + [{"prompt": 3}]))
    records, texts = render(str(tmp_path / "a.json"), tmp_path / "work", tokenizer)
    assert len(texts) == 9 and len(records.files.tokens) == 1 and records.quarantined[0].line == 10


def test_pairs_are_two_samples_and_ties_are_counted(tmp_path: Path, tokenizer: Storage) -> None:
    pairs = [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": "a", "chosen": "b" * 200, "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": " "},
    ]
    records, texts = render(write(tmp_path / "a.jsonl", pairs), tmp_path / "work", tokenizer, "preferences")
    assert texts == [f"<|user|>a<|end|><|assistant|>{text}<|end|>" for text in "bc"]
    assert (records.counts.ties, records.counts.num_quarantined, records.num_too_long) == (1, 2, 1)


def test_long_chats_are_truncated_or_left_out(tmp_path: Path, tokenizer: Storage) -> None:
    lines = [{"prompt": "a", "completion": "b" * 40}, {"prompt": "a" * 40, "completion": "b"}, chat(1)]
    records, _ = render(write(tmp_path / "a.jsonl", lines), tmp_path / "work", tokenizer, length=30)
    assert (records.num_truncated, records.num_too_long, records.lengths.tolist()[0]) == (1, 1, 31)


def test_rows_and_learned_parts_are_read_from_the_files(tmp_path: Path, tokenizer: Storage) -> None:
    path = write(tmp_path / "a.jsonl", [chat(n) for n in range(7)])
    records, texts = render(path, tmp_path / "work", tokenizer)
    folder = Storage(str(tmp_path / "work"))
    rows = store_rows(folder, "train", plan_rows(np.arange(7), records.lengths, length=64))
    reader = RowReader(folder, records.files, rows, length=64, pad_id=0)
    packed = reader.take(range(len(reader)))
    learned = packed.loss_mask.sum()
    decoder = load_chat_tokenizer(tokenizer.local())
    sample = SampleReader(folder, records.files).read(3)
    parts = [(decoder.decode(ids), is_learned) for ids, is_learned in learned_parts(sample)]
    assert parts == [("<|user|>question 3<|end|><|assistant|>", False), ("answer 3<|end|>", True)]
    assert "".join(text for text, _ in parts) == texts[3]
    assert learned == sum(len(decoder.encode(f"answer {n}<|end|>")) for n in range(7))
    (folder_file,) = records.files.tokens
    Path(folder.path(folder_file.name)).write_bytes(b"x" * folder_file.num_bytes)
    with pytest.raises(ValueError, match="is corrupt"):
        open_array(folder, folder_file)


@pytest.mark.parametrize(("num_bad", "num_good", "stops"), [(1, 3, False), (2, 100, True), (2, 400, False)])
def test_a_share_of_bad_records_above_the_limit_stops(
    tmp_path: Path, tokenizer: Storage, num_bad: int, num_good: int, stops: bool
) -> None:
    records = [chat(n) for n in range(num_good)] + [{"prompt": "x", "completion": ""}] * num_bad
    path = write(tmp_path / "a.jsonl", records)
    counts, _ = render(path, tmp_path / "work", tokenizer)
    for found in (counts.counts, probe_records([path], "chats")):
        if found.records < num_good + num_bad:
            continue  # only the first records are probed
        try:
            check_quarantined(found, 0.01, field="chats", where="see quarantine; ")
            assert not stops
        except ValueError as error:
            reason = (
                rf"a.jsonl:{num_good + 1}: completion is empty; add text or remove the record ({num_bad} records like"
            )
            assert stops and str(error).startswith(f"chats: {num_bad} of {num_good + num_bad} records cannot be used")
            assert reason in str(error) and "max_quarantined=0.01" in str(error)


def test_layouts_and_unread_fields_are_logged_with_their_counts(
    tmp_path: Path, tokenizer: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [{"role": "user", "content": "Hi", "name": "Ann"}, {"role": "assistant", "content": "Hello"}]
    lines = [chat(1), chat(2), {"messages": messages, "id": 7}, "broken"]
    records, _ = render(write(tmp_path / "a.jsonl", lines), tmp_path / "work", tokenizer)
    caplog.set_level(logging.INFO)
    log_counts(records.counts, field="chats")
    assert "chats: 4 records; layouts: 2 × completion, 1 × messages" in caplog.text
    assert "nothing reads these fields: id (1 record), messages[].name (1 record)" in caplog.text
    assert "1 of 4 records are in quarantine" in caplog.text


def test_lines_that_are_damaged_at_different_places_have_one_reason(tmp_path: Path, tokenizer: Storage) -> None:
    path = tmp_path / "a.jsonl"
    good = [json.dumps(chat(n)) for n in range(2)]
    path.write_text("\n".join([*good, *('{"prompt": "' + "a" * n + '", "completion": ' for n in range(5))]))
    counts = probe_records([str(path)], "chats")
    (reason,) = counts.quarantined
    assert reason.startswith("malformed JSON") and counts.quarantined[reason] == 5
    assert "(char 30)" in counts.examples[reason]  # the example keeps its position


def test_only_the_first_records_of_a_large_file_are_probed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat(n) for n in range(3000)])
    assert probe_records([path], "chats").records == 200
    assert probe_records([path] * 20, "chats").records == 2000


def test_probing_renders_no_more_of_a_long_chat_than_a_row_has(
    tmp_path: Path, tokenizer: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}] * 500
    path = write(tmp_path / "a.jsonl", [{"messages": messages}])
    chat_tokenizer, rendered = load_chat_tokenizer(tokenizer.local()), list[int]()
    turn = chat_tokenizer.turn
    monkeypatch.setattr(chat_tokenizer, "turn", lambda before, *rest: (rendered.append(1), turn(before, *rest))[1])
    assert probe_records([path], "chats", chat_tokenizer, max_tokens=32).layouts == {"messages": 1}
    assert 0 < len(rendered) < 50


@pytest.mark.slow
def test_workers_render_the_samples_of_one_process(
    tmp_path: Path, tokenizer: Storage, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    path = write(tmp_path / "a.jsonl", [chat(n) if n % 50 else {"prompt": n} for n in range(400)])
    whole, texts = render(path, tmp_path / "whole", tokenizer)
    monkeypatch.setattr(tasks_module, "RANGE_BYTES", 3000)
    parts, same_texts = render(path, tmp_path / "parts", tokenizer)
    assert len(parts.files.tokens) > 5 and same_texts == texts
    assert parts.quarantined == whole.quarantined and parts.counts == whole.counts
