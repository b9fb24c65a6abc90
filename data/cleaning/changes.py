"""What cleaning steps changed in the texts: how many characters, and samples of texts before and after a step.

A hash of the document's id selects the samples, so they do not depend on the number and size of the tasks.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cluster.plain import from_plain
from cluster.storage import Storage
from data.document import Document, unit_hash

SAMPLES = "logs/samples.json"
"""Name of the file of a corpus artifact with the samples (`SamplesBySource`)."""
MAX_SAMPLES = 3
"""Maximum number of samples of a step and a source."""
_MAX_EXCERPT = 240
"""Maximum number of characters of an excerpt."""
_EXCERPT_CONTEXT = 60
"""Number of characters that an excerpt shows before the first and after the last changed character."""
_FEW_CHARACTERS = 2_000
"""If no text is longer than this, or only one is and it is ASCII, counting without numpy is faster."""


class ChangeSample(NamedTuple):
    """An excerpt of a document before and after a step that changed it."""

    id: str
    before: str | None
    """None for the step `redact_pii`, which would otherwise publish here what it removes from the corpus."""
    after: str


class ChangedText(NamedTuple):
    """A document, as it was before a step, and its text after the step."""

    document: Document
    after: str


SamplesByStep = Mapping[str, Sequence[ChangeSample]]
"""The samples of each step. The keys are the labels of the steps (`data.cleaning.recipe.step_label`)."""
SamplesBySource = Mapping[str, SamplesByStep]
"""The samples of each source. The keys are the names of the sources."""


def changed_characters(before: str, after: str) -> int:
    """Return how many characters must at least be removed from a text, or added to it, to make it the other text.

    The characters are counted without their order, and a character that is replaced by another one counts once. So the
    result is a lower bound of the number of edits, takes linear time, and is exact if a step removes, adds or replaces
    characters without moving any.
    """
    return max(len(before), len(after)) - _num_common_characters(before, after)


def _num_common_characters(first: str, second: str) -> int:
    """Return how many characters of a text can be found in the other one, each as often as it occurs."""
    shorter, longer = sorted((first, second), key=len)
    if len(longer) <= _FEW_CHARACTERS or len(shorter) <= _FEW_CHARACTERS and longer.isascii():
        return sum(min(number, longer.count(character)) for character, number in Counter(shorter).items())
    codes = [np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32) for text in (first, second)]
    num_codes = min(1 << 16, 1 + max(int(array.max()) for array in codes))
    # Characters beyond the Basic Multilingual Plane are rare, and an array of all of them would be long.
    beyond = [Counter(array[array >= num_codes].tolist()) for array in codes]
    counts = [np.bincount(array[array < num_codes], minlength=num_codes) for array in codes]
    return int(np.minimum(*counts).sum()) + (beyond[0] & beyond[1]).total()


def select_samples(
    changed: Sequence[ChangedText], redact: Callable[[str, str], str], *, show_before: bool
) -> list[ChangeSample]:
    """Return samples of texts that one step has changed.

    `redact(text, source)` returns a text of a source without what must not be published. A change that it hides is no
    sample. Without `show_before`, the samples do not have the text before the step.
    """
    samples: list[ChangeSample] = []
    for document, text_after in sorted(changed, key=_order):
        before = redact(document.text, document.source) if show_before else document.text
        after = redact(text_after, document.source)
        if before != after:
            before_excerpt, after_excerpt = _excerpts(before, after)
            samples.append(ChangeSample(document.id, before_excerpt if show_before else None, after_excerpt))
        if len(samples) == MAX_SAMPLES:
            break
    return sort_samples(samples)


def sort_samples(samples: Iterable[ChangeSample]) -> list[ChangeSample]:
    """Return the first `MAX_SAMPLES` samples of a step, in an order that depends only on the samples."""
    ranked = sorted(set(samples), key=lambda sample: (_rank(sample.id), sample.id, sample.before or "", sample.after))
    return ranked[:MAX_SAMPLES]


def merge_samples(samples: Iterable[SamplesBySource]) -> dict[str, dict[str, list[ChangeSample]]]:
    """Return the samples of several tasks as the samples of all their documents."""
    merged: dict[str, dict[str, list[ChangeSample]]] = {}
    for by_source in samples:
        for source, by_step in by_source.items():
            steps = merged.setdefault(source, {})
            for step, step_samples in by_step.items():
                steps[step] = sort_samples([*steps.get(step, []), *step_samples])
    return merged


def samples_without(samples: SamplesBySource, ids: Collection[str]) -> dict[str, dict[str, list[ChangeSample]]]:
    """Return the samples without those of the documents with these ids."""
    return {
        source: {
            step: [sample for sample in step_samples if sample.id not in ids] for step, step_samples in steps.items()
        }
        for source, steps in samples.items()
    }


def read_samples(corpus: Storage) -> SamplesBySource:
    """Return the samples of a finished corpus."""
    return from_plain(dict[str, dict[str, list[ChangeSample]]], corpus.read_json(SAMPLES))


def _order(text: ChangedText) -> tuple[float, str, str, str]:
    return _rank(text.document.id), text.document.id, text.document.text, text.after


def _rank(document_id: str) -> float:
    return unit_hash(document_id, "sample")


def _excerpts(before: str, after: str) -> tuple[str, str]:
    """Return the part of each text that differs, with some context, or its beginning if it is long."""
    prefix = _common_prefix(before, after)
    limit = min(len(before), len(after)) - prefix
    suffix = _common_prefix(before[len(before) - limit :][::-1], after[len(after) - limit :][::-1])
    start = max(0, prefix - _EXCERPT_CONTEXT)
    end_before, end_after = (len(text) - suffix + _EXCERPT_CONTEXT for text in (before, after))
    return _excerpt(before, start, end_before), _excerpt(after, start, end_after)


def _excerpt(text: str, start: int, end: int) -> str:
    end = min(end, start + _MAX_EXCERPT, len(text))
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"


def _common_prefix(first: str, second: str) -> int:
    """Return the number of characters with which both texts begin."""
    shorter = min(len(first), len(second))
    length, block = 0, 1 << 16
    while block:
        if length + block <= shorter and first[length : length + block] == second[length : length + block]:
            length += block
        else:
            block >>= 1
    return length
