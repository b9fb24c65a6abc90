"""Counts of the records that were read from files, and the quarantine of the records that cannot be used."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.storage import Storage
from data.chats.layouts import Tie
from data.document import BadRecord

log = logging.getLogger(__name__)

_SHOWN_REASONS = 5
_INDEX = re.compile(r"\[\d+\]")
_JSON_POSITION = re.compile(r"\b(line|column|char) \d+")
_QUOTED = re.compile(r"'[^']{1,60}'")


class QuarantinedLine(NamedTuple):
    """A line of a quarantine file."""

    file: str
    line: int
    """Number of the line, or of the record in a JSON array, from 1."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class RecordCounts:
    """Counts of records. Two counts can be added."""

    records: int = 0
    """Number of records that were read."""
    layouts: dict[str, int] = field(default_factory=dict)
    """Number of records by layout. Records that cannot be used are left out."""
    quarantined: dict[str, int] = field(default_factory=dict)
    """Number of records that cannot be used, by reason."""
    examples: dict[str, str] = field(default_factory=dict)
    """For each reason, its first record as `file:line: reason`, with the details that `reason_kind` leaves out."""
    ties: int = 0
    """Number of preferences in which neither completion is preferred. They are in quarantine too."""
    unread: dict[str, int] = field(default_factory=dict)
    """Number of records with each field that nothing reads."""

    def __add__(self, other: "RecordCounts") -> "RecordCounts":
        return RecordCounts(
            records=self.records + other.records,
            layouts=_add(self.layouts, other.layouts),
            quarantined=_add(self.quarantined, other.quarantined),
            examples={**other.examples, **self.examples},
            ties=self.ties + other.ties,
            unread=_add(self.unread, other.unread),
        )

    @property
    def num_quarantined(self) -> int:
        """Number of records that cannot be used, ties included."""
        return sum(self.quarantined.values())


class RecordCounter:
    """Counts records one by one."""

    def __init__(self) -> None:
        self._records = self._ties = 0
        self._layouts: Counter[str] = Counter()
        self._quarantined: Counter[str] = Counter()
        self._unread: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add_used(self, layout: str, unread: Iterable[str]) -> None:
        """Count a record that is used. `unread` are the names of its fields that nothing reads."""
        self._records += 1
        self._layouts[layout] += 1
        self._unread.update(set(unread))

    def add_bad(self, location: str, bad: BadRecord) -> None:
        """Count a record that cannot be used."""
        self._records += 1
        self._ties += isinstance(bad, Tie)
        reason = reason_kind(str(bad))
        self._quarantined[reason] += 1
        self._examples.setdefault(reason, f"{location}: {bad}")

    @property
    def counts(self) -> RecordCounts:
        return RecordCounts(
            records=self._records,
            layouts=dict(self._layouts),
            quarantined=dict(self._quarantined),
            examples=self._examples,
            ties=self._ties,
            unread=dict(self._unread),
        )


def first_examples(lines: Iterable[QuarantinedLine]) -> dict[str, str]:
    """Return the first line of each reason, in the form of `RecordCounts.examples`."""
    examples: dict[str, str] = {}
    for line in lines:
        examples.setdefault(reason_kind(line.reason), f"{line.file}:{line.line}: {line.reason}")
    return examples


def reason_kind(reason: str) -> str:
    """Return a reason without the indices, positions and quoted values that differ from record to record."""
    return _QUOTED.sub("'…'", _JSON_POSITION.sub(r"\1 …", _INDEX.sub("[…]", reason)))


def check_quarantined(counts: RecordCounts, limit: float, *, field: str, where: str) -> None:
    """Raises ValueError if more than the share `limit` of the records cannot be used. Names the commonest reasons.

    A single record never exceeds the limit, and ties do not count. `field` is the config field with the files, and
    `where` says where the records are listed.
    """
    num_bad = counts.num_quarantined - counts.ties
    if num_bad <= 1 or num_bad <= limit * counts.records:
        return
    raise ValueError(
        f"{field}: {num_bad:,} of {counts.records:,} records cannot be used, more than max_quarantined={limit:g}; "
        f"{describe_reasons(counts)}; {where}correct the records, or increase max_quarantined"
    )


def describe_reasons(counts: RecordCounts) -> str:
    """Return the commonest reasons, each with its first record and the number of its records."""
    commonest = sorted(counts.quarantined.items(), key=lambda item: (-item[1], item[0]))
    shown = [
        f"{counts.examples[reason]} ({_records(number)} like this)" for reason, number in commonest[:_SHOWN_REASONS]
    ]
    num_more = len(commonest) - len(shown)
    return "; ".join(shown) + (f"; and {num_more} more reasons" if num_more else "")


def log_counts(counts: RecordCounts, *, field: str) -> None:
    """Log the layouts of the records, and warn of quarantined records and of fields that nothing reads."""
    layouts = ", ".join(f"{number:,} × {name}" for name, number in sorted(counts.layouts.items()))
    log.info("%s: %s records; layouts: %s", field, f"{counts.records:,}", layouts or "none")
    if counts.quarantined:
        log.warning(
            "%s: %s of %s records are in quarantine: %s",
            field,
            f"{counts.num_quarantined:,}",
            f"{counts.records:,}",
            describe_reasons(counts),
        )
    if counts.unread:
        unread = ", ".join(f"{name} ({_records(number)})" for name, number in sorted(counts.unread.items()))
        log.warning("%s: nothing reads these fields: %s", field, unread)


def _records(number: int) -> str:
    return f"{number:,} record{'' if number == 1 else 's'}"


def quarantine_file(field: str) -> str:
    """Return the name of the quarantine file in an artifact. `field` is the config field with the source files."""
    return f"quarantine/{field}.jsonl"


def write_quarantine(output: Storage, field: str, lines: Sequence[QuarantinedLine]) -> None:
    """Write the quarantine file, unless there is nothing to write."""
    if lines:
        output.write_jsonl(quarantine_file(field), (line._asdict() for line in lines))


def _add(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    return dict(Counter(first) + Counter(second))
