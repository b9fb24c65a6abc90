"""Finds sources that one step takes nearly as a whole, which is more often a wrong setting than the user's intention.

An example are chats that begin with one long system prompt: they are near-duplicates of each other, so
`near_duplicates` keeps one of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from data.cleaning.recipe import CORPUS_WIDE_STEPS, Step, applies_to, name_and_settings
from data.corpus.accounting import Collapse, SourceCounts

_MIN_DOCUMENTS = 20
"""With fewer documents, a step may drop most of them by chance."""
_NEARLY_ALL = 0.9
"""Share of the documents that reach a step. If the step drops at least this share, the source collapses."""

_EMPTY = "empty"  # the reason for a document without text, which `clean` drops after the steps for one document
_REMEDIES = {
    "near_duplicates": "documents that share most of their words count as one; leave what they share (such as the "
    "system prompt of chats) out of their text, or raise its threshold",
    "exact_duplicates": "the texts are equal to each other or to those of other sources; check the source's `text` and "
    "`path`",
    _EMPTY: "the steps left no text; logs/samples.json shows what they changed",
}


def find_collapses(sources: Mapping[str, SourceCounts], steps: Sequence[Step]) -> list[Collapse]:
    """Return the collapses of all sources. The keys of `sources` are their names.

    The steps of a recipe that have the same name count as one step.
    """
    return [collapse for source, counts in sources.items() for collapse in _collapses(source, counts, steps)]


def _collapses(source: str, counts: SourceCounts, steps: Sequence[Step]) -> list[Collapse]:
    names = [name_and_settings(step)[0] for step in steps if applies_to(step, source)]
    corpus_wide = [name for name in names if name in CORPUS_WIDE_STEPS]
    in_order = dict.fromkeys([*(name for name in names if name not in CORPUS_WIDE_STEPS), _EMPTY, *corpus_wide])
    dropped = Counter[str]()
    for reason, number in counts.dropped.items():
        dropped[reason.partition("/")[0]] += number
    reached = counts.kept + dropped["mixture"] + sum(dropped[name] for name in in_order)
    collapses: list[Collapse] = []
    for name in in_order:
        if reached >= _MIN_DOCUMENTS and dropped[name] >= _NEARLY_ALL * reached:
            collapses.append(Collapse(source=source, step=name, reached=reached, dropped=dropped[name]))
        reached -= dropped[name]
    return collapses


def describe(collapse: Collapse) -> str:
    """Return a sentence that names the source, the step, their numbers and a remedy."""
    remedy = _REMEDIES.get(
        collapse.step,
        "loosen its settings or, if it is not meant for this source, name the other sources in its `for`; drops/ has "
        "the reasons",
    )
    what = "the steps leave no text in" if collapse.step == _EMPTY else f"{collapse.step} drops"
    return (
        f"{what} {collapse.dropped:,} of the {collapse.reached:,} documents of {collapse.source} that reach it "
        f"({collapse.dropped / collapse.reached:.0%}): {remedy}"
    )
