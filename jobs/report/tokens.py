"""The report on a tokenizer and on shards."""

from data.tokens.measures import VocabularySummary
from data.tokens.shards_summary import ShardsSummary
from jobs.frame.artifact import Artifact
from jobs.report.page import data_size, element, section, table
from jobs.report.part import ReportPart

_KINDS = {"bpe": "byte-level BPE", "wordpiece": "WordPiece", "unigram": "Unigram"}


def report_tokenizer(artifact: Artifact) -> ReportPart:
    """The size of the vocabulary, and how well it encodes the text of each source and language."""
    summary = artifact.read_summary(VocabularySummary)
    kind = _KINDS[summary.kind]
    lead = (
        f"{summary.size:,} tokens of {kind}, learned from {data_size(summary.sampled_bytes)}. "
        f"A token is {summary.bytes_per_token:.2f} bytes and a word is {summary.fertility:.2f} tokens on "
        f"average; {summary.unused_tokens:,} tokens never occurred, and {summary.round_trip_failures} of "
        f"{summary.measured_documents:,} texts failed to come back as they were."
    )
    rows = [
        [element("b", name), by, f"{bytes_per_token[name]:.2f}", f"{fertility[name]:.2f}"]
        for by, bytes_per_token, fertility in (
            ("source", summary.bytes_per_token_by_source, summary.fertility_by_source),
            ("language", summary.bytes_per_token_by_language, summary.fertility_by_language),
        )
        for name in fertility
    ]
    header = ["text of", "", "bytes per token", "tokens per word"]
    return ReportPart(section=section("vocabulary", "Vocabulary", lead, table(header, rows, numeric=[2, 3])))


def report_shards(artifact: Artifact) -> ReportPart:
    """Documents and tokens of both splits."""
    summary = artifact.read_summary(ShardsSummary)
    rows = [
        [element("b", split), f"{counts.documents:,}", f"{counts.tokens:,}", data_size(counts.bytes)]
        for split, counts in (("train", summary.train), ("validation", summary.validation))
    ]
    lead = "Whole documents as token ids; the validation documents are held out of everything that follows."
    header = ["split", "documents", "tokens", "text"]
    return ReportPart(section=section("shards", "Shards", lead, table(header, rows, numeric=[1, 2, 3])))
