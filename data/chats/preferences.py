"""Preferences as tokens, for an evaluation. Training renders them in tasks (`rendering_tasks.py`)."""

from collections.abc import Sequence
from typing import NamedTuple

from data.chats.counts import RecordCounter, RecordCounts
from data.chats.layouts import parse_preference
from data.chats.records import read_located
from data.chats.rendering import PreferenceTokens, render_preference, unread_in_preference
from data.chats.template import ChatTokenizer
from data.document import BadRecord


class RenderedPreferences(NamedTuple):
    pairs: list[PreferenceTokens]
    counts: RecordCounts


def render_preferences(urls: Sequence[str], tokenizer: ChatTokenizer) -> RenderedPreferences:
    """Read and render the preferences of files. Records that cannot be used are left out and counted.

    Raises ValueError for a damaged file or files without a record.
    """
    counter, pairs = RecordCounter(), list[PreferenceTokens]()
    for location, record in read_located(urls):
        try:
            if isinstance(record, BadRecord):
                raise record
            preference = parse_preference(record)
            pairs.append(render_preference(tokenizer, preference))
            counter.add_used(preference.layout, unread_in_preference(tokenizer, preference))
        except BadRecord as bad:
            counter.add_bad(location, bad)
    return RenderedPreferences(pairs, counter.counts)
