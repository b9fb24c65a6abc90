"""The report on a tokenizer and on shards."""

from jobs.frame.artifact import Artifact
from jobs.report.page import data_size, element, section, table
from jobs.report.part import ReportPart

_KINDS = {"bpe": "byte-level BPE", "wordpiece": "WordPiece", "unigram": "Unigram"}


def report_tokenizer(artifact: Artifact) -> ReportPart:
    """The size of the vocabulary, and how well it encodes the text of each source and language."""
    found = artifact.summary
    kind = _KINDS[artifact.config.kind]
    lead = (
        f"{found['size']:,} tokens of {kind}, learned from {data_size(found['sampled_bytes'])}. "
        f"A token stands for {found['bytes_per_token']:.2f} bytes and a word takes {found['fertility']:.2f} tokens on "
        f"average; {found['unused_tokens']:,} tokens never occurred, and {found['round_trip_failures']} of "
        f"{found['measured_documents']:,} texts failed to come back as they were."
    )
    rows = [
        [
            element("b", name),
            by,
            f"{found[f'bytes_per_token_by_{by}'][name]:.2f}",
            f"{found[f'fertility_by_{by}'][name]:.2f}",
        ]
        for by in ("source", "language")
        for name in found[f"fertility_by_{by}"]
    ]
    header = ["text of", "", "bytes per token", "tokens per word"]
    return ReportPart(section=section("vocabulary", "Vocabulary", lead, table(header, rows, numeric=[2, 3])))


def report_shards(artifact: Artifact) -> ReportPart:
    """Documents and tokens of both splits."""
    found = artifact.summary
    rows = [
        [element("b", split), *(f"{own[key]:,}" for key in ("documents", "tokens")), data_size(own["bytes"])]
        for split, own in ((split, found[split]) for split in ("train", "validation"))
    ]
    lead = "Whole documents as token ids; the validation documents are held out of everything that follows."
    header = ["split", "documents", "tokens", "text"]
    return ReportPart(section=section("shards", "Shards", lead, table(header, rows, numeric=[1, 2, 3])))
