"""The report sections on the tokenizer and on token shards."""

from cluster.plain import from_plain
from data.tokens.certificate import Certificate
from data.tokens.measures import VocabularySummary
from data.tokens.shards_summary import ShardsSummary
from jobs.frame.artifact import Artifact
from jobs.report.page import Html, element, format_bytes, section, table
from jobs.report.part import ReportPart

CERTIFICATE = "certificate.json"
"""File of a tokenizer artifact with its measures by language (`data.tokens.certificate.Certificate`)."""

_KINDS = {"bpe": "byte-level BPE", "wordpiece": "WordPiece", "unigram": "Unigram"}


def report_tokenizer(artifact: Artifact) -> ReportPart:
    """Return a section with the size of the vocabulary and how well it encodes each source and language."""
    summary = artifact.read_summary(VocabularySummary)
    kind = _KINDS[summary.kind]
    introduction = (
        f"The tokenizer is {kind} with {summary.size:,} tokens, trained on {format_bytes(summary.sampled_bytes)} of "
        f"text. On average, a token has {summary.bytes_per_token:.2f} bytes and a word has {summary.fertility:.2f} "
        f"tokens. In {summary.measured_documents:,} measured documents, {summary.unused_tokens:,} tokens of the "
        f"vocabulary never occur, and {summary.round_trip_failures} documents change when they are encoded and decoded."
    )
    rows = [
        [element("b", name), kind_of_text, f"{bytes_per_token[name]:.2f}", f"{fertility[name]:.2f}"]
        for kind_of_text, bytes_per_token, fertility in (
            ("source", summary.bytes_per_token_by_source, summary.fertility_by_source),
            ("language", summary.bytes_per_token_by_language, summary.fertility_by_language),
        )
        for name in fertility
    ]
    header = ["text", "kind", "bytes per token", "tokens per word"]
    parts = [table(header, rows, numeric=[2, 3]), *_report_certificate(artifact)]
    return ReportPart(section=section("vocabulary", "Vocabulary", introduction, *parts))


def _report_certificate(artifact: Artifact) -> list[Html]:
    """Return a heading and a table with the measures of every language, or nothing if there is none."""
    certificate = from_plain(Certificate, artifact.storage.read_json(CERTIFICATE))
    rows = [
        [
            element("b", language),
            origin,
            f"{measures.bytes_per_token:.2f}",
            f"{measures.fertility:.2f}",
            f"{measures.fallback_share:.1%}",
            f"{measures.round_trip_failures} of {measures.texts}",
        ]
        for language, origin, measures in sorted(certificate.rows(), key=lambda row: -row[2].fertility)
    ]
    if not rows:
        return []
    header = ["language", "measured on", "bytes per token", "tokens per word", "byte fallback", "changed"]
    note = (
        "Byte fallback is the share of tokens without a whole character. Changed are the texts that differ after "
        "encoding and decoding. In scripts without spaces, a word is a character or a syllable."
    )
    return [
        element("h3", "Languages"),
        element("p", note, class_="note"),
        table(header, rows, numeric=[2, 3, 4, 5]),
    ]


def report_shards(artifact: Artifact) -> ReportPart:
    """Return a section with the numbers of documents and tokens in both splits."""
    summary = artifact.read_summary(ShardsSummary)
    rows = [
        [element("b", split), f"{counts.documents:,}", f"{counts.tokens:,}", format_bytes(counts.bytes)]
        for split, counts in (("train", summary.train), ("validation", summary.validation))
    ]
    introduction = (
        "The documents as token ids, ready for training. No model is trained on the validation documents. Pretraining "
        "and evaluation measure the models on them."
    )
    header = ["split", "documents", "tokens", "text"]
    return ReportPart(section=section("shards", "Shards", introduction, table(header, rows, numeric=[1, 2, 3])))
