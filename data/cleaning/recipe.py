"""The cleaning recipe: small pure functions on a batch of texts, listed in the config like a paper's method.

    steps:
      - repair_unicode: {}
      - gopher_quality: {}
      - toxicity: {max_score: 0.95}
        keep: 0.5

Every step takes the texts that the steps before it kept and returns, for each, its new text and the reason why it is
dropped (if it is). Nothing is dropped without a reason, and every change is counted. `keep` reweights instead of
removing: this share of the documents that the step would drop or cut stays as it is, chosen by a hash of the id.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

from cluster.plain import from_plain, to_plain
from data.cleaning.c4_quality import C4Quality, c4_quality
from data.cleaning.clean_lines import CleanLines, clean_lines
from data.cleaning.decontaminate import Decontaminate, decontaminate, pinned
from data.cleaning.duplicates import ExactDuplicates, NearDuplicates
from data.cleaning.extract_html import ExtractHTML, extract_html
from data.cleaning.fairness import BoundStep, FairnessRow, ledger
from data.cleaning.fineweb_quality import FineWebQuality, fineweb_quality
from data.cleaning.gopher_quality import GopherQuality, gopher_quality
from data.cleaning.language import Language, language
from data.cleaning.length import Length, length
from data.cleaning.redact_pii import RedactPII, redact_pii
from data.cleaning.repair_unicode import RepairUnicode, repair_unicode
from data.cleaning.repetition import Repetition, repetition
from data.cleaning.step import Outcome, check_share, judged
from data.cleaning.symbol_ratio import SymbolRatio, symbol_ratio
from data.cleaning.toxicity import Toxicity, toxicity
from data.cleaning.user_step import UserStep, user_step
from data.document import Document, Source, unit_hash


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the recipe; exactly one field besides `keep` is set, and its name says which."""

    extract_html: ExtractHTML | None = None
    repair_unicode: RepairUnicode | None = None
    language: Language | None = None
    length: Length | None = None
    clean_lines: CleanLines | None = None
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
    """Part of the documents that this step would drop or cut which stay all the same, their text as it was."""


CORPUS_WIDE = ("exact_duplicates", "near_duplicates")
"""Steps that compare documents with each other: `data/corpus` does them where the documents meet."""

FILTERS = (
    "language",
    "length",
    "clean_lines",
    "gopher_quality",
    "c4_quality",
    "fineweb_quality",
    "repetition",
    "symbol_ratio",
    "toxicity",
    "user_step",
)
"""Steps that drop a document, or lines of it, for its quality, so that `keep` can reweight. Other steps must apply to
every document: addresses and text of evaluation sets have to go everywhere."""


def name_and_settings(step: Step) -> tuple[str, Any]:
    """The name and the parameters of the one step that is set. Raises ValueError for none or several."""
    names = [field.name for field in fields(Step) if field.name != "keep"]
    chosen_steps = [(name, value) for name in names if (value := step.__dict__[name]) is not None]
    if len(chosen_steps) != 1:
        listed = ", ".join(name for name, _ in chosen_steps) or "none"
        raise ValueError(
            f"steps: an item names exactly one step, as in `- length: {{}}`, but one names {listed} "
            f"(steps: {', '.join(names)})"
        )
    return chosen_steps[0]


def check_steps(steps: Sequence[Step]) -> None:
    """Raise ValueError for a step whose parameters contradict each other, or a step at the wrong position."""
    names = [name_and_settings(step)[0] for step in steps]
    for position, (name, step) in enumerate(zip(names, steps, strict=True)):
        where = f"steps[{position}].{name}"
        name_and_settings(step)[1].check(where)
        check_share(f"steps[{position}].keep", step.keep)
        if step.keep and name not in FILTERS:
            raise ValueError(
                f"steps[{position}].keep: {name} is no filter, so nothing can be reweighted; leave it out "
                f"(keep goes with {', '.join(FILTERS)})"
            )
    wide = [name for name in names if name in CORPUS_WIDE]
    if wide not in ([], ["exact_duplicates"], list(CORPUS_WIDE)) or names[len(names) - len(wide) :] != wide:
        raise ValueError(
            "steps: what compares documents with each other comes last and once: exact_duplicates, and after it "
            "near_duplicates, if any"
        )


def check_metadata(sources: Sequence[Source], steps: Sequence[Step]) -> None:
    """Raise ValueError when a source has a column that a step would overwrite."""
    if any(name_and_settings(step)[0] == "language" for step in steps):
        for source in sources:
            overwritten = {"language", "language_score"} & set(source.metadata)
            if overwritten:
                raise ValueError(
                    f"sources.{source.name}.metadata: {min(overwritten)} is what the step language writes; "
                    "leave either out"
                )


def near_duplicate_settings(steps: Sequence[Step]) -> NearDuplicates | None:
    """The rule of the step near_duplicates, where the recipe has one."""
    return next((step.near_duplicates for step in steps if step.near_duplicates is not None), None)


def drops_equal_texts(steps: Sequence[Step]) -> bool:
    """Whether the recipe has the step exact_duplicates."""
    return any(step.exact_duplicates is not None for step in steps)


def pin_files(steps: Sequence[Step]) -> list[Step]:
    """The steps with the evaluation sets' files pinned as they are now, for the tasks of one run."""
    return [replace(step, decontaminate=pinned(step.decontaminate)) if step.decontaminate else step for step in steps]


def judges(steps: Sequence[Step]) -> list[BoundStep]:
    """The steps that judge each document by itself, for the fairness ledger."""
    return [
        BoundStep(f"steps[{position}].{name}", partial(_apply, name, rule), step.keep, name in FILTERS)
        for position, step in enumerate(steps)
        for name, rule in [name_and_settings(step)]
        if name not in CORPUS_WIDE
    ]


def fairness_ledger(steps: Sequence[Step]) -> Sequence[FairnessRow]:
    """The fairness ledger of a recipe."""
    return _ledger(json.dumps(to_plain(steps)))


@lru_cache(maxsize=4)
def _ledger(recipe: str) -> Sequence[FairnessRow]:
    """The ledger of a recipe in JSON: seconds of work, which a budget's check and the run after it do once."""
    return ledger(judges(from_plain(list[Step], json.loads(recipe))))


def _apply(name: str, rule: Any, texts: list[str]) -> Outcome:
    return STEPS[name](texts, rule)


class Cleaned(NamedTuple):
    kept: list[Document]
    dropped: list[tuple[Document, str]]
    """Documents as they were at that step, and the reason (`step/rule`)."""
    counts: Mapping[str, int]
    """How often each change was made (`step/change`)."""


def clean(documents: Sequence[Document], steps: Sequence[Step]) -> Cleaned:
    """The documents after every step on one document, in order; those without text at the end are dropped."""
    kept = list(documents)
    dropped: list[tuple[Document, str]] = []
    counts: Counter[str] = Counter()
    recipe = [(*name_and_settings(step), step.keep) for step in steps]
    for position, (name, rule, keep) in enumerate([*recipe, ("not_empty", None, 0.0)]):
        if name in CORPUS_WIDE or not kept:
            continue
        outcome = STEPS[name]([document.text for document in kept], rule)
        counts.update(outcome.counts)
        passed: list[Document] = []
        spared: list[str] = []
        metadata = outcome.metadata or [{}] * len(kept)
        for document, text, reason, added in zip(kept, outcome.texts, outcome.reasons, metadata, strict=True):
            if (reason or text != document.text) and unit_hash(f"{position}:{document.id}", "keep") < keep:
                spared.append(document.text)
                text, reason = document.text, None
            if reason is None:
                passed.append(_changed(document, text, added))
            else:
                dropped.append((document, reason))
        if spared:
            counts[f"{name}/kept_all_the_same"] += len(spared)
            counts.subtract(STEPS[name](spared, rule).counts)  # changes that were not made after all
        kept = passed
    return Cleaned(kept, dropped, counts)


def _changed(document: Document, text: str, metadata: Mapping[str, Any]) -> Document:
    if metadata:
        return replace(document, text=text, metadata={**document.metadata, **metadata})
    return document if text == document.text else replace(document, text=text)


def not_empty(texts: list[str], rule: None) -> Outcome:
    return judged(texts, lambda text: None if text.strip() else "empty")


STEPS: dict[str, Callable[[list[str], Any], Outcome]] = {
    "extract_html": extract_html,
    "repair_unicode": repair_unicode,
    "language": language,
    "length": length,
    "clean_lines": clean_lines,
    "gopher_quality": gopher_quality,
    "c4_quality": c4_quality,
    "fineweb_quality": fineweb_quality,
    "repetition": repetition,
    "symbol_ratio": symbol_ratio,
    "toxicity": toxicity,
    "redact_pii": redact_pii,
    "decontaminate": decontaminate,
    "user_step": user_step,
    "not_empty": not_empty,
}
"""The steps on one document by the name that the configuration uses; not_empty always comes last."""
