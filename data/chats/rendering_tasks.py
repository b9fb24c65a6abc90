"""Tasks that render the records of files into files of tokens, one task for each range of a file.

The ranges depend only on the files. So the samples and their order are the same for any number of workers, and a run
that was killed resumes with the tasks that have no result yet.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from cluster.storage import Storage
from cluster.tasks import run_tasks, task_key
from data.chats.counts import QuarantinedLine, RecordCounter, RecordCounts, first_examples
from data.chats.held_out import prompt_key
from data.chats.layouts import parse_chat, parse_preference
from data.chats.packing import truncate_chat
from data.chats.records import NumberedRecord, RangeEnd, is_array, parse_or_bad, read_located, read_numbered
from data.chats.rendering import render_chat, render_preference, unread_in_preference
from data.chats.sample_files import SampleFiles, StoredArray, open_array, store_array, store_index, store_samples
from data.chats.template import ChatTokenizer, RenderedChat, load_chat_tokenizer
from data.document import BadRecord, Source
from data.sources.readers import plan_ranges

RecordKind = Literal["chats", "preferences"]

RANGE_BYTES = 8 << 20
"""Size of a task's range. The samples and their order do not depend on it."""
_KEY_TYPE = np.int64


@dataclass(frozen=True, kw_only=True)
class RenderTask:
    """A range of a file with records to render, and everything that the bytes of the result depend on."""

    kind: RecordKind
    url: str
    start: int
    stop: int
    sequence_length: int
    tokenizer: str
    """Hash of the tokenizer's files."""


@dataclass(frozen=True, kw_only=True)
class RenderedRange:
    """What a task wrote. A chat becomes one or more samples, and a preference two: chosen and rejected."""

    tokens: StoredArray
    """The tokens of the samples."""
    lengths: StoredArray
    """The number of tokens of each sample, int32."""
    keys: StoredArray
    """The prompt key of each sample (`prompt_key`), int64."""
    quarantine: str | None
    """Name of the file with the lines that cannot be used. Their numbers count from the start of the range."""
    num_lines: int
    num_split: int
    """Number of chats that became several samples."""
    num_truncated: int
    """Number of samples that were truncated, and of chats whose last replies were left out."""
    num_too_long: int
    """Number of samples, or of preferences, that were left out because they are too long."""
    counts: RecordCounts
    """Counts of the records. The line numbers of its examples count from the start of the range."""


class RenderedRecords(NamedTuple):
    """The samples of all files."""

    files: SampleFiles
    lengths: np.ndarray
    """Number of tokens of each sample."""
    keys: np.ndarray
    """Prompt key of each sample."""
    counts: RecordCounts
    quarantined: list[QuarantinedLine]
    num_split: int
    num_truncated: int
    num_too_long: int


def plan_tasks(
    patterns: Sequence[str], *, kind: RecordKind, sequence_length: int, tokenizer: Storage
) -> list[RenderTask]:
    """Return a task for each range of the files. A JSON array is one range."""
    digest = _digest(tokenizer)
    ranges = plan_ranges([Source(name=kind, path=pattern, format="jsonl") for pattern in patterns], RANGE_BYTES)
    arrays = {url for url in {read_range.url for read_range in ranges} if is_array(url)}
    return [
        RenderTask(
            kind=kind,
            url=read_range.url,
            start=read_range.start,
            stop=-1 if read_range.url in arrays else read_range.stop,
            sequence_length=sequence_length,
            tokenizer=digest,
        )
        for read_range in ranges
        if read_range.start == 0 or read_range.url not in arrays
    ]


def render_files(tasks: Sequence[RenderTask], *, work: Storage, tokenizer: Storage) -> RenderedRecords:
    """Run the tasks that have no result in `work` yet, on all workers. Returns the samples of all tasks.

    `tokenizer` is the folder of the tokenizer. A single task runs in this process, because a worker takes longer to
    start.
    """
    results = run_tasks(
        partial(render_range, work=work, tokenizer=tokenizer),
        tasks,
        result_type=RenderedRange,
        workers=0 if len(tasks) == 1 else None,
        label=f"{tasks[0].kind}: render" if tasks else "render",
        result_folder=work,
    )
    lengths = [open_array(work, result.lengths) for result in results]
    counts = sum((result.counts for result in results), RecordCounts())
    quarantined = list(_quarantined_lines(tasks, results, work))
    return RenderedRecords(
        files=store_index(work, "index.npy", [result.tokens for result in results], lengths),
        lengths=np.concatenate([np.empty(0, np.int32), *lengths]),
        keys=np.concatenate([np.empty(0, _KEY_TYPE), *(open_array(work, result.keys) for result in results)]),
        counts=replace(counts, examples=first_examples(quarantined)),
        quarantined=quarantined,
        num_split=sum(result.num_split for result in results),
        num_truncated=sum(result.num_truncated for result in results),
        num_too_long=sum(result.num_too_long for result in results),
    )


def _quarantined_lines(
    tasks: Sequence[RenderTask], results: Sequence[RenderedRange], work: Storage
) -> Iterator[QuarantinedLine]:
    """Yield the lines in quarantine, numbered from the start of their files."""
    first_lines: dict[str, int] = {}
    for task, result in zip(tasks, results, strict=True):
        first = first_lines.get(task.url, 0) if task.start else 0
        if result.quarantine is not None:
            for line in work.read_jsonl(result.quarantine):
                quarantined = QuarantinedLine(**line)
                yield quarantined._replace(line=quarantined.line + first)
        first_lines[task.url] = first + result.num_lines


def render_range(task: RenderTask, *, work: Storage, tokenizer: Storage) -> RenderedRange:
    """Render the records of a range, and write the tokens and the lines that cannot be used."""
    name = task_key(task)
    renderer = _Renderer(_load_tokenizer(tokenizer), task)
    num_lines = 0
    for item in read_numbered(task.url, task.start, task.stop):
        if isinstance(item, RangeEnd):
            num_lines = item.num_lines
        else:
            renderer.add(item)
    quarantine = None
    if renderer.quarantined:
        quarantine = f"{name}.quarantine.jsonl"
        work.write_jsonl(quarantine, [line._asdict() for line in renderer.quarantined])
    lengths = np.array([len(sample.ids) for sample in renderer.samples], dtype=np.int32)
    return RenderedRange(
        tokens=store_samples(work, f"{name}.tokens.npy", renderer.samples),
        lengths=store_array(work, f"{name}.lengths.npy", lengths),
        keys=store_array(work, f"{name}.keys.npy", np.array(renderer.keys, dtype=_KEY_TYPE)),
        quarantine=quarantine,
        num_lines=num_lines,
        num_split=renderer.num_split,
        num_truncated=renderer.num_truncated,
        num_too_long=renderer.num_too_long,
        counts=renderer.counter.counts,
    )


class _Renderer:
    """Renders records one by one, and keeps their samples and counts."""

    def __init__(self, tokenizer: ChatTokenizer, task: RenderTask) -> None:
        self._tokenizer, self._task = tokenizer, task
        self.counter = RecordCounter()
        self.samples: list[RenderedChat] = []
        self.keys: list[int] = []
        self.quarantined: list[QuarantinedLine] = []
        self.num_split = self.num_truncated = self.num_too_long = 0

    def add(self, item: NumberedRecord) -> None:
        """Render a record, or put it into quarantine if that is not possible."""
        try:
            if isinstance(item.record, BadRecord):
                raise item.record
            if self._task.kind == "chats":
                self._add_chat(item.record)
            else:
                self._add_preference(item.record)
        except BadRecord as bad:
            self.counter.add_bad(f"{self._task.url}:{item.number}", bad)
            self.quarantined.append(QuarantinedLine(self._task.url, item.number, str(bad)))

    def _add_chat(self, record: dict[str, Any]) -> None:
        chat = parse_chat(record)
        length = self._task.sequence_length
        rendered = render_chat(self._tokenizer, chat, max_tokens=length)
        self.counter.add_used(chat.layout, rendered.unread)
        self.num_split += len(rendered.samples) > 1
        self.num_too_long += rendered.is_cut and not rendered.samples
        self.num_truncated += rendered.is_cut and len(rendered.samples) > 0
        key = prompt_key(chat.messages)
        for sample in rendered.samples:
            fitting = truncate_chat(sample, length=length)
            if fitting is None:
                self.num_too_long += 1
                continue
            self.num_truncated += len(fitting.ids) < len(sample.ids) and not rendered.is_cut
            self.samples.append(fitting)
            self.keys.append(key)

    def _add_preference(self, record: dict[str, Any]) -> None:
        preference = parse_preference(record)
        pair = render_preference(self._tokenizer, preference)
        self.counter.add_used(preference.layout, unread_in_preference(self._tokenizer, preference))
        if max(map(len, pair)) > self._task.sequence_length:
            self.num_too_long += 1
            return
        key = prompt_key(preference.prompt)
        for ids in pair:
            self.samples.append(RenderedChat(np.array(ids, dtype=np.int32), np.zeros(len(ids), dtype=np.bool_)))
            self.keys.append(key)


@lru_cache(maxsize=1)
def _load_tokenizer(folder: Storage) -> ChatTokenizer:
    return load_chat_tokenizer(folder.local())


def _digest(folder: Storage) -> str:
    """Return a hash of the names and contents of the files in a folder."""
    digest = hashlib.sha256()
    for name in folder.files():
        digest.update(f"{name}\0{hashlib.sha256(folder.read_bytes(name)).hexdigest()}\n".encode())
    return digest.hexdigest()[:32]


# The check before a run.

_PROBED_PER_FILE = 200
_PROBED = 2000


def probe_records(
    urls: Sequence[str],
    kind: RecordKind,
    tokenizer: ChatTokenizer | None = None,
    *,
    max_tokens: int | None = None,
) -> RecordCounts:
    """Return the counts of the first records of the files: at most 200 of each file, and 2,000 together.

    The records are also rendered if there is a tokenizer, chats as with `max_tokens` in `render_chat`. Raises
    ValueError for a damaged file, and if the files have no record.
    """
    counter = RecordCounter()
    for location, record in islice(read_located(urls, max_per_file=_PROBED_PER_FILE), _PROBED):
        result = parse_or_bad(partial(_probe, kind, tokenizer, max_tokens), record)
        if isinstance(result, BadRecord):
            counter.add_bad(location, result)
        else:
            counter.add_used(*result)
    return counter.counts


def _probe(
    kind: RecordKind, tokenizer: ChatTokenizer | None, max_tokens: int | None, record: dict[str, Any]
) -> tuple[str, set[str]]:
    """Parse a record, and render it if there is a tokenizer. Returns its layout and the fields that nothing reads."""
    if kind == "chats":
        chat = parse_chat(record)
        unread = render_chat(tokenizer, chat, max_tokens=max_tokens).unread if tokenizer else set(chat.unread)
        return chat.layout, unread
    preference = parse_preference(record)
    if tokenizer is None:
        return preference.layout, set(preference.unread)
    render_preference(tokenizer, preference)
    return preference.layout, unread_in_preference(tokenizer, preference)
