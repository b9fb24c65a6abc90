"""Prompts as tokens."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from data.chats.counts import QuarantinedLine, RecordCounter, RecordCounts
from data.chats.layouts import PromptRecord, parse_prompt
from data.chats.records import LocatedRecord, parse_or_bad, read_located
from data.chats.template import ChatTokenizer
from data.document import BadRecord


class TokenizedPrompt(NamedTuple):
    prompt: PromptRecord
    ids: list[int]


class TokenizedPrompts(NamedTuple):
    """The prompts of files."""

    prompts: list[TokenizedPrompt]
    counts: RecordCounts
    quarantined: list[QuarantinedLine]
    """The records that cannot be used."""


def prompt_ids(tokenizer: ChatTokenizer, prompt: PromptRecord) -> list[int]:
    """Return the tokens of a prompt. Without a chat template, they are those of the text after the BOS token.

    Raises BadRecord if the prompt cannot be rendered.
    """
    if not tokenizer.has_template and prompt.raw is not None:
        return tokenizer.raw_prompt_ids(prompt.raw)
    return tokenizer.prompt_ids(prompt.messages, prompt.tools)


def require_prompt_ids(tokenizer: ChatTokenizer, prompt: PromptRecord) -> list[int]:
    """Return the tokens of a prompt. Raises ValueError with the prompt's location if it cannot be rendered."""
    try:
        return prompt_ids(tokenizer, prompt)
    except BadRecord as bad:
        raise ValueError(f"{prompt.location}: {bad}") from bad


def tokenize_prompts(urls: Sequence[str], tokenizer: ChatTokenizer) -> TokenizedPrompts:
    """Read and tokenize the prompts of files. Raises ValueError for a damaged file or files without a record."""
    counter, prompts, quarantined = RecordCounter(), list[TokenizedPrompt](), list[QuarantinedLine]()
    for located in read_located(urls):
        result = parse_or_bad(partial(_tokenize, located.location, tokenizer), located.record)
        if isinstance(result, BadRecord):
            counter.add_bad(located.location, result)
            url, _, line = located.location.rpartition(":")
            quarantined.append(QuarantinedLine(url, int(line), str(result)))
        else:
            prompts.append(result)
            counter.add_used("prompt", tokenizer.unread_fields(result.prompt.messages, result.prompt.tools))
    return TokenizedPrompts(prompts, counter.counts, quarantined)


def _tokenize(location: str, tokenizer: ChatTokenizer, record: dict[str, Any]) -> TokenizedPrompt:
    prompt = parse_prompt(location, record)
    return TokenizedPrompt(prompt, prompt_ids(tokenizer, prompt))


def probe_prompts(urls: Sequence[str], num_records: int) -> RecordCounts:
    """Return the counts of the first records of the files. Raises the errors of `tokenize_prompts`."""
    counter = RecordCounter()
    for location, record in islice(read_located(urls), num_records):
        prompt = parse_or_bad(partial(parse_prompt, location), record)
        if isinstance(prompt, BadRecord):
            counter.add_bad(location, prompt)
        else:
            counter.add_used("prompt", ())
    return counter.counts


def parse_prompts(records: Iterable[LocatedRecord]) -> Iterator[PromptRecord]:
    """Yield the prompts of records. Records that cannot be used are left out."""
    for location, record in records:
        prompt = parse_or_bad(partial(parse_prompt, location), record)
        if not isinstance(prompt, BadRecord):
            yield prompt
