"""The chats that fine-tuning takes, and the report of what is learned."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import Storage
from data.tokens.tokenizer import load_tokenizer, save_tokenizer
from data.tokens.tokenizer_training import train_tokenizer
from jobs.frame.artifact import Artifact
from jobs.frame.fine_tuning import RecordsSummary
from jobs.frame.record import Record
from jobs.frame.stage import Context
from jobs.frame.tokenizer_files import copy_tokenizer
from jobs.frame.training_run import TrainingSummary
from jobs.report.learned import LEARNED_EXAMPLES, LearnedExample, LearnedPart, describe_records, learned_examples
from jobs.sft import SftConfig, SftPayload, check_chats, check_inputs, run


def write_chats(path: Path, *records: object) -> list[str]:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return [str(path)]


def test_fewer_than_two_chats_are_refused_before_any_work(tmp_path: Path) -> None:
    chats = write_chats(tmp_path / "a.jsonl", {"prompt": "Hi", "response": "Hello"})
    with pytest.raises(ValueError, match="chats: found 1 that can be used, but at least 2 are needed, one to train on"):
        check_chats(SftConfig(chats=chats))


def test_malformed_chats_are_refused_before_any_work(tmp_path: Path) -> None:
    chats = write_chats(tmp_path / "a.jsonl", *[{"prompt": "Hi", "response": "Hello"}] * 5, *[{"prompt": "Hi"}] * 2)
    with pytest.raises(ValueError, match=r"chats: 2 of 7 records cannot be used, .*a\.jsonl:6: a chat needs the field"):
        check_chats(SftConfig(chats=chats))


def init_model(folder: Path, template: str | None = None) -> Artifact:
    """Return a model of which only the tokenizer exists."""
    save_tokenizer(train_tokenizer(["Hi Hello you"] * 3, size=270), folder)
    if template is not None:
        config = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Artifact(Storage(str(folder)), Record(id="m", stage="huggingface", kind="model", digest="0"))


def test_chats_that_the_template_refuses_are_found_before_any_work(tmp_path: Path) -> None:
    tool = [{"role": "user", "content": "Hi"}, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "3"}]
    config = SftConfig(chats=write_chats(tmp_path / "a.jsonl", *[{"messages": tool}] * 3))
    check_chats(config)
    with pytest.raises(ValueError, match="chats: 3 of 3 records cannot be used, .*role must be system, user or assist"):
        check_inputs(config, {"init": init_model(tmp_path / "model")})


def test_a_base_model_takes_texts_or_a_template_for_messages(tmp_path: Path) -> None:
    base = init_model(tmp_path / "model", "")
    texts = write_chats(tmp_path / "a.jsonl", *[{"prompt": "2+2=", "completion": "4"}] * 3)
    check_inputs(SftConfig(chats=texts), {"init": base})
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    config = SftConfig(chats=write_chats(tmp_path / "b.jsonl", *[{"messages": messages}] * 3))
    with pytest.raises(ValueError, match="the tokenizer has no chat template, so .* or use a chat model or a"):
        check_inputs(config, {"init": base})
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}")
    check_inputs(SftConfig(chats=config.chats, chat_template=str(tmp_path / "t.jinja")), {"init": base})


def test_a_chat_template_that_matches_several_files_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jinja").write_text("")
    config = SftConfig(chats=[], chat_template=f"{tmp_path}/*.jinja")
    with pytest.raises(ValueError, match=r"chat_template: .*/\*\.jinja' matches 2 files; name one of them"):
        check_inputs(config, {"init": init_model(tmp_path / "model")})


def test_a_copied_tokenizer_has_the_given_template(tmp_path: Path) -> None:
    model = init_model(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("old")
    copy_tokenizer(model.model, Storage(str(tmp_path / "copy")), chat_template="{{ messages }}")
    assert load_tokenizer(tmp_path / "copy").chat_template == "{{ messages }}"


def test_the_report_marks_what_is_learned(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    artifact = Artifact(storage, Record(id="sft", stage="sft", kind="model", digest="0"))
    assert learned_examples(artifact) is None
    example = LearnedExample(parts=[LearnedPart("<user>Hi", False), LearnedPart("Hello<end>", True)])
    storage.write_jsonl(LEARNED_EXAMPLES, [{"parts": [list(part) for part in example.parts]}])
    shown = learned_examples(artifact)
    assert shown is not None and "&lt;user&gt;Hi<mark>Hello&lt;end&gt;</mark>" in shown
    summary = RecordsSummary(
        records=5, layouts={"ShareGPT": 4}, quarantined={"output is empty": 1}, ties=0, unread={"source": 4}
    )
    described = "5 records (4 × ShareGPT). In quarantine: output is empty (1). Nothing reads these fields: source (4)."
    assert described in describe_records(summary)
    assert example.marked == "<user>Hi⟦Hello<end>⟧"


def test_a_base_model_is_trained_on_the_texts_and_the_quarantine_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(9)] + [{"prompt": "no reply"}]
    chats = write_chats(tmp_path / "a.jsonl", *lines)
    output, rows = Storage(str(tmp_path / "out")), []
    training = TrainingSummary(
        parameters=1, steps=1, tokens=1, loss=1.0, validation_loss=1.0, tokens_per_s=1.0, mfu=None
    )

    def read_rows(_: object, payload: SftPayload, *arguments: object, **__: object) -> None:
        rows.extend(payload.open_rows(kind).take(range(1)) for kind in (payload.train, payload.held_out))

    monkeypatch.setattr("jobs.sft.run_training", read_rows)
    monkeypatch.setattr("jobs.sft.summarize", lambda *_, **__: training)
    caplog.set_level(logging.INFO)
    config = SftConfig(chats=chats, sequence_length=32, validation_fraction=0.2)
    tracker: Any = None
    summary = run(config, Context(output=output, inputs={"init": init_model(tmp_path / "base", "")}, tracker=tracker))
    assert (summary.samples, summary.samples_held_out, summary.chats.layouts) == (9, 2, {"completion": 9})
    (line,) = output.read_jsonl("quarantine/chats.jsonl")
    assert line["file"] == chats[0] and line["line"] == 10 and "a chat needs the field" in line["reason"]
    assert not output.exists("work") and len(output.read_jsonl(LEARNED_EXAMPLES)) == 5
    train, held_out = rows
    # Each of the first row's texts begins a document and ends with the separator, which is learned.
    ends = train.targets[0][train.loss_mask[0]]
    assert (train.input_ids[0][train.positions[0] == 0][: train.document_ids[0].max() + 1] == 0).all()
    assert (ends == 0).sum() == train.document_ids[0].max() + 1 and held_out.loss_mask.any()
    assert re.search(r"<\|endoftext\|>\d \+ 1 =⟦ \d<\|endoftext\|>⟧", caplog.text)
