"""Records of chats and prompts, and the errors that name the file and line of a malformed record."""

import gzip
import json
import zipfile
from pathlib import Path

import pytest

from data.chats.records import read_chats, read_prompts

USER = {"role": "user", "content": "Hi"}


REPLY = {"role": "assistant", "content": "Hello you"}


def write(path: Path, *lines: object) -> list[str]:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return [str(path)]


def test_both_forms_of_chats_are_read(tmp_path: Path) -> None:
    urls = write(tmp_path / "a.jsonl", {"messages": [USER, REPLY]}, "", {"prompt": "Hi", "response": "Hello you"})
    chats = list(read_chats(urls))
    assert [chat.messages for chat in chats] == [[USER, REPLY]] * 2
    assert [chat.location.rsplit(":")[-1] for chat in chats] == ["1", "3"]


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ("{broken", "the line is not valid JSON"),
        ([1], "expected a JSON object, found list"),
        ({"prompt": "x"}, "a chat needs the field messages, or the fields prompt and response; this record has prompt"),
        ({"messages": []}, "messages must be a list of at least one message"),
        ({"messages": [USER]}, "no message has the role assistant"),
        (
            {"messages": [{"role": "bot", "content": "x"}]},
            r"messages\[0\].role is 'bot'; it must be one of system, user",
        ),
        ({"messages": [USER, {"role": "assistant"}]}, r"messages\[1\].content is missing"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, r"messages\[1\].content must be a string, not int"),
        ({"prompt": "x", "response": "  "}, "response is empty"),
    ],
)
def test_the_error_of_a_malformed_chat_names_file_and_line(tmp_path: Path, record: object, error: str) -> None:
    urls = write(tmp_path / "a.jsonl", {"messages": [USER, REPLY]}, record)
    with pytest.raises(ValueError, match=rf"a\.jsonl:2: .*{error}"):
        list(read_chats(urls))


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl: no record found"):
        list(read_chats(write(tmp_path / "a.jsonl")))


def test_the_error_of_a_damaged_file_names_the_last_readable_line(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"prompt": f"{n} {hash((n, 'noise'))}", "response": "x"}) + "\n" for n in range(2000))
    whole = gzip.compress(lines.encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: the file cannot be read after line [1-9]\d\d+ "):
        list(read_chats([str(tmp_path / "a.jsonl.gz")]))


def test_a_zip_file_with_two_members_is_not_called_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jsonl", "{}")
        archive.writestr("b.jsonl", "{}")
    with pytest.raises(ValueError, match=r"a\.zip: the file cannot be read after line 0 \(2 files in one \.zip"):
        list(read_chats([str(tmp_path / "a.zip")]))


def test_prompts_keep_all_fields_and_must_end_with_the_user(tmp_path: Path) -> None:
    record = {"messages": [USER, REPLY, {"role": "user", "content": "2+2?"}], "answer": "4"}
    first, second = read_prompts(write(tmp_path / "a.jsonl", record, {"prompt": "1+1?", "answer": "2"}))
    assert (first.text, first.record["answer"], len(first.messages)) == ("2+2?", "4", 3)
    assert second.messages == [{"role": "user", "content": "1+1?"}]
    with pytest.raises(ValueError, match="the last message of a prompt must have the role user"):
        list(read_prompts(write(tmp_path / "a.jsonl", {"messages": [USER, REPLY]})))
