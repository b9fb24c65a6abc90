"""The cleaning recipe: the list of steps in the field `steps` of `corpus.yaml`.

    steps:
      - repair_unicode: {}
      - gopher_quality: {}
      - toxicity: {max_score: 0.95}
        keep: 0.5

Each step gets the documents that the steps before it kept. For each document the step returns the new text and, if the
document is dropped, the reason. Every drop has a reason, and every kind of change is counted.

A filter with `keep: 0.5` keeps half of the documents that it would otherwise drop or change, and leaves their text
unchanged. So the filter makes a kind of text rarer in the corpus instead of removing it. A hash of the document's id
selects the documents to keep, so every run selects the same ones.
"""

import difflib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

from cluster.plain import from_plain, to_plain
from data.cleaning.c4_quality import C4Quality, c4_quality
from data.cleaning.changes import (
    ChangedText,
    ChangeSample,
    SamplesByStep,
    changed_characters,
    select_samples,
    sort_samples,
)
from data.cleaning.clean_lines import CleanLines, clean_lines
from data.cleaning.decontaminate import Decontaminate, decontaminate, with_pinned_files
from data.cleaning.duplicates import ExactDuplicates, NearDuplicates
from data.cleaning.extract_html import ExtractHTML, extract_html
from data.cleaning.fairness import Ledger, LedgerStep, build_ledger
from data.cleaning.fineweb_quality import FineWebQuality, fineweb_quality
from data.cleaning.gibberish import Gibberish, gibberish
from data.cleaning.gopher_quality import GopherQuality, gopher_quality
from data.cleaning.language import Language, language
from data.cleaning.length import Length, length
from data.cleaning.redact_pii import RedactPII, redact_pii
from data.cleaning.repair_unicode import RepairUnicode, repair_unicode
from data.cleaning.repetition import Repetition, repetition
from data.cleaning.step import Outcome, check_share
from data.cleaning.symbol_ratio import SymbolRatio, symbol_ratio
from data.cleaning.toxicity import Toxicity, toxicity
from data.cleaning.user_step import UserStep, function_name, user_step
from data.document import Document, Source, unit_hash


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the recipe. Exactly one field besides `keep` and `for` is set: its name is the name of the step, and
    its value holds the step's settings."""

    extract_html: ExtractHTML | None = None
    repair_unicode: RepairUnicode | None = None
    language: Language | None = None
    length: Length | None = None
    clean_lines: CleanLines | None = None
    gibberish: Gibberish | None = None
    gopher_quality: GopherQuality | None = None
    c4_quality: C4Quality | None = None
    fineweb_quality: FineWebQuality | None = None
    repetition: Repetition | None = None
    symbol_ratio: SymbolRatio | None = None
    toxicity: Toxicity | None = None
    redact_pii: RedactPII | None = None
    decontaminate: Decontaminate | None = None
    user_step: UserStep | None = None
    exact_duplicates: ExactDuplicates | None = None
    near_duplicates: NearDuplicates | None = None
    keep: float = 0.0
    """Of the documents that this step would drop or change, the share that is kept anyway, with the text unchanged."""
    for_sources: list[str] = field(default_factory=list, metadata={"key": "for"})
    """Names of the sources whose documents the step is applied to. By default, it is applied to all sources. The steps
    that compare documents cannot have it, because they compare the documents of all sources."""


CORPUS_WIDE_STEPS = ("exact_duplicates", "near_duplicates")
"""Names of the steps that compare documents with each other. `clean` skips them. `data/corpus` runs them afterwards,
when the cleaned documents of all tasks are available."""

STEPS_BY_LANGUAGE = ("gopher_quality", "c4_quality", "fineweb_quality", "repetition")
"""Names of the steps whose rules depend on the language. Their functions have a third argument: the language of each
text, as the step `language` has written it to the metadata, or None."""

FILTERS = (
    "language",
    "length",
    "clean_lines",
    "gibberish",
    "gopher_quality",
    "c4_quality",
    "fineweb_quality",
    "repetition",
    "symbol_ratio",
    "toxicity",
    "user_step",
)
"""Names of the filters: the steps that drop documents, or lines of documents, because of their quality. Only filters
can have a `keep`. The other steps must apply to every document. For example, no e-mail address may remain in the
corpus."""


def name_and_settings(step: Step, field_path: str = "steps") -> tuple[str, Any]:
    """Return the name and the settings of a step. Raises ValueError if the item names no step or several.

    `field_path` is the item's position in the config, for the error message.
    """
    names = [field.name for field in fields(Step) if field.name not in ("keep", "for_sources")]
    named_steps = [(name, value) for name in names if (value := step.__dict__[name]) is not None]
    if len(named_steps) != 1:
        listed = ", ".join(name for name, _ in named_steps) or "none"
        raise ValueError(
            f"{field_path}: each item must name exactly one step, such as `- length: {{min_bytes: 100}}`; this one "
            f"names {listed} (the steps are {', '.join(names)})"
        )
    return named_steps[0]


def check_steps(steps: Sequence[Step]) -> None:
    """Raises ValueError if a step has wrong settings or a `keep` that it cannot have, or is at the wrong position."""
    names: list[str] = []
    for position, step in enumerate(steps):
        name, settings = name_and_settings(step, f"steps[{position}]")
        names.append(name)
        settings.check(f"steps[{position}].{name}")
        check_share(f"steps[{position}].keep", step.keep)
        if step.keep and name not in FILTERS:
            raise ValueError(
                f"steps[{position}].keep: {name} is not a filter, so it cannot have `keep`; remove `keep` (the filters "
                f"are {', '.join(FILTERS)})"
            )
        if step.for_sources and name in CORPUS_WIDE_STEPS:
            raise ValueError(
                f"steps[{position}].for: {name} compares the documents of all sources with each other, so it cannot be "
                "limited to some of them; remove `for`"
            )
    corpus_wide = [name for name in names if name in CORPUS_WIDE_STEPS]
    are_last = names[len(names) - len(corpus_wide) :] == corpus_wide
    if corpus_wide not in ([], ["exact_duplicates"], list(CORPUS_WIDE_STEPS)) or not are_last:
        raise ValueError(
            "steps: the steps that compare documents must be at the end of the list, each at most once: first "
            "exact_duplicates, then near_duplicates, which needs exact_duplicates before it"
        )


def check_step_sources(sources: Sequence[Source], steps: Sequence[Step]) -> None:
    """Raises ValueError if a step is for a source that does not exist, or would overwrite a source's metadata."""
    names = [source.name for source in sources]
    for position, step in enumerate(steps):
        for name in step.for_sources:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"sources: {', '.join(names)}"
                raise ValueError(f"steps[{position}].for: {name!r} is not one of the sources; {hint}")
        if name_and_settings(step)[0] == "language":
            for source in sources:
                overwritten = {"language", "language_score"} & set(source.metadata)
                if overwritten and applies_to(step, source.name):
                    raise ValueError(
                        f"sources.{source.name}.metadata: the step `language` would overwrite the column "
                        f"{min(overwritten)}; remove the column or the step"
                    )


def applies_to(step: Step, source: str) -> bool:
    """Return whether the step is applied to the documents of this source."""
    return not step.for_sources or source in step.for_sources


def step_label(step: Step) -> str:
    """Return the name of the step in counts and samples: its name in the config, or that of the user's function."""
    name, settings = name_and_settings(step)
    return function_name(settings) if isinstance(settings, UserStep) else name


def near_duplicate_settings(steps: Sequence[Step]) -> NearDuplicates | None:
    """Return the settings of the step `near_duplicates`, or None if the recipe does not have this step."""
    return next((step.near_duplicates for step in steps if step.near_duplicates is not None), None)


def exact_duplicate_settings(steps: Sequence[Step]) -> ExactDuplicates:
    """Return the settings of the step `exact_duplicates`, or the defaults if the recipe does not have this step."""
    return next((step.exact_duplicates for step in steps if step.exact_duplicates is not None), ExactDuplicates())


def drops_equal_texts(steps: Sequence[Step]) -> bool:
    """Return whether the recipe has the step `exact_duplicates`."""
    return any(step.exact_duplicates is not None for step in steps)


def pin_files(steps: Sequence[Step]) -> list[Step]:
    """Return the steps, with the current names and fingerprints of the files of `decontaminate` in their settings.

    So all tasks of a run compare with the same content: a task raises ValueError if a file has another fingerprint.
    """
    return [
        replace(step, decontaminate=with_pinned_files(step.decontaminate)) if step.decontaminate else step
        for step in steps
    ]


def ledger_steps(steps: Sequence[Step]) -> list[LedgerStep]:
    """Return the steps that the fairness ledger measures: all that look at one document at a time."""
    return [
        LedgerStep(
            name=f"steps[{position}].{name}",
            run=partial(STEP_FUNCTIONS[name], settings=settings),
            keep=step.keep,
            can_keep=name in FILTERS,
            kept_languages=settings.keep if isinstance(settings, Language) and not step.keep else (),
            is_for_all=not step.for_sources,
        )
        for position, step in enumerate(steps)
        for name, settings in [name_and_settings(step)]
        if name not in CORPUS_WIDE_STEPS
    ]


def fairness_ledger(steps: Sequence[Step]) -> Ledger:
    """Return the fairness ledger of a recipe: how often each step removes mentions of each group of people.

    `data/cleaning/fairness.py` explains the ledger.
    """
    return _fairness_ledger(json.dumps(to_plain(steps)))


@lru_cache(maxsize=4)
def _fairness_ledger(steps_json: str) -> Ledger:
    """Return the ledger of the steps, which are given as JSON so that they can be a cache key.

    Building a ledger takes seconds, and both the check of the fairness budget and the run after it need the ledger.
    """
    return build_ledger(ledger_steps(from_plain(list[Step], json.loads(steps_json))))


class CleaningResult(NamedTuple):
    """The result of `clean`."""

    kept: list[Document]
    """The documents that were not dropped, as they are after the last step."""
    dropped: list[tuple[Document, str]]
    """The dropped documents, as they were before the step that dropped them, and the reason: `STEP/RULE`, or
    `empty` for an empty text."""
    counts: Mapping[str, int]
    """How often each kind of change was made. The keys are `STEP/CHANGE`, where STEP is the `step_label`. Every step
    that changes texts has `STEP/documents`, the number of changed documents, and `STEP/characters`, the number of
    changed characters (`changed_characters`). `STEP/kept_anyway` is the number of documents that were kept because of
    the step's `keep`."""
    samples: SamplesByStep
    """Samples of the texts that each step changed."""


class _StepResult(NamedTuple):
    """The result of one step."""

    documents: list[Document | None]
    """For each document the document after the step, or None if it was dropped."""
    dropped: list[tuple[Document, str]]
    counts: Mapping[str, int]
    changed: list[ChangedText]
    """The texts that the step changed, without those of dropped documents."""


def clean(documents: Sequence[Document], steps: Sequence[Step]) -> CleaningResult:
    """Apply the steps in order, except for those in `CORPUS_WIDE_STEPS`. Then drop the documents with an empty text."""
    kept = list(documents)
    dropped: list[tuple[Document, str]] = []
    counts: Counter[str] = Counter()
    samples: dict[str, list[ChangeSample]] = {}
    for position, step in enumerate(steps):
        name, label = name_and_settings(step)[0], step_label(step)
        concerned = [document for document in kept if applies_to(step, document.source)]
        if name in CORPUS_WIDE_STEPS or not concerned:
            continue
        result = _apply_step(step, position, concerned)
        dropped += result.dropped
        counts.update(result.counts)
        if result.changed:
            counts[f"{label}/documents"] += len(result.changed)
            counts[f"{label}/characters"] += sum(
                changed_characters(document.text, after) for document, after in result.changed
            )
            step_samples = select_samples(
                result.changed, partial(_redacted, steps=steps), show_before=name != "redact_pii"
            )
            samples[label] = sort_samples([*samples.get(label, []), *step_samples])
        results = iter(result.documents)
        after_step = (next(results) if applies_to(step, document.source) else document for document in kept)
        kept = [document for document in after_step if document is not None]
    empty = [document for document in kept if not document.text.strip()]
    dropped += [(document, "empty") for document in empty]
    return CleaningResult([document for document in kept if document.text.strip()], dropped, counts, samples)


def _apply_step(step: Step, position: int, documents: Sequence[Document]) -> _StepResult:
    """Apply the step to documents. `position` is its position in the recipe."""
    name, settings = name_and_settings(step)
    outcome = _run_step(name, settings, documents)
    counts = Counter(outcome.counts)
    after_step: list[Document | None] = []
    dropped: list[tuple[Document, str]] = []
    changed: list[ChangedText] = []
    restored: list[Document] = []
    metadata = outcome.metadata or [{}] * len(documents)
    for document, text, reason, added in zip(documents, outcome.texts, outcome.reasons, metadata, strict=True):
        if (reason or text != document.text) and unit_hash(f"{position}:{document.id}", "keep") < step.keep:
            restored.append(document)
            text, reason = document.text, None
        if reason is not None:
            dropped.append((document, reason))
        elif text != document.text:
            changed.append(ChangedText(document, text))
        after_step.append(_updated(document, text, added) if reason is None else None)
    if restored:
        # The step's counts include its changes to these texts, but `keep` has just undone those changes.
        counts.subtract(_run_step(name, settings, restored).counts)
        counts[f"{step_label(step)}/kept_anyway"] += len(restored)
    return _StepResult(after_step, dropped, counts, changed)


def _run_step(name: str, settings: Any, documents: Sequence[Document]) -> Outcome:
    """Return the outcome of a step that looks at one document at a time."""
    texts = [document.text for document in documents]
    if isinstance(settings, ExtractHTML):
        return extract_html(texts, settings, [document.content_type for document in documents])
    if name not in STEPS_BY_LANGUAGE:
        return STEP_FUNCTIONS[name](texts, settings)
    languages = [document.metadata.get("language") for document in documents]
    # A column of the source may have the same name and values of another type.
    return STEP_FUNCTIONS[name](texts, settings, [code if isinstance(code, str) else None for code in languages])


def _redacted(text: str, source: str, steps: Sequence[Step]) -> str:
    """Return the text as the recipe's steps `redact_pii` for this source leave it."""
    for step in steps:
        if step.redact_pii is not None and applies_to(step, source):
            (text,) = redact_pii([text], step.redact_pii).texts
    return text


def _updated(document: Document, text: str, metadata: Mapping[str, Any]) -> Document:
    if metadata:
        return replace(document, text=text, metadata={**document.metadata, **metadata})
    return document if text == document.text else replace(document, text=text)


STEP_FUNCTIONS: dict[str, Callable[..., Outcome]] = {
    "extract_html": extract_html,
    "repair_unicode": repair_unicode,
    "language": language,
    "length": length,
    "clean_lines": clean_lines,
    "gibberish": gibberish,
    "gopher_quality": gopher_quality,
    "c4_quality": c4_quality,
    "fineweb_quality": fineweb_quality,
    "repetition": repetition,
    "symbol_ratio": symbol_ratio,
    "toxicity": toxicity,
    "redact_pii": redact_pii,
    "decontaminate": decontaminate,
    "user_step": user_step,
}
"""The function of every step that looks at one document at a time, by the step's name in the config."""
