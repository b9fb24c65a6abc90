"""The vocabulary stage: what it learns from, and what it says about itself."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.storage import Storage
from cluster.tracking import Tracker
from data.document import unit_hash
from data.tokenizer import fingerprint, load_encoder
from jobs.config import build
from jobs.job import Artifact, Context
from jobs.vocabulary import STAGE, VocabularyConfig


def corpus_artifact(folder: Path, documents: list[tuple[str, str, str]]) -> Artifact:
    """A corpus of two parts with (id, text, source) rows."""
    (folder / "documents").mkdir(parents=True)
    for part in range(2):
        table = pa.table(dict(zip(("id", "text", "source"), zip(*documents[part::2], strict=True), strict=True)))
        pq.write_table(table, folder / f"documents/part-{part:05d}.parquet")
    summary = {
        "bytes": sum(len(text.encode()) for _, text, _ in documents),
        "sources": dict.fromkeys(sorted({source for _, _, source in documents})),
        "content_digest": "c",
    }
    return Artifact(Storage(str(folder)), {"id": "corpus-1", "stage": "corpus", "digest": "", "summary": summary})


def run(corpus: Artifact, folder: Path, **values: Any) -> dict[str, Any]:
    config = build(VocabularyConfig, {"corpus": "corpus", **values})
    STAGE.check(config)
    output = Storage(str(folder))
    tracker = Tracker(storage=output, run_id="test", name="vocabulary", group="test")
    return dict(STAGE.run(config, Context(output=output, inputs={"corpus": corpus}, tracker=tracker)))


def documents(number: int, words: int = 40) -> list[tuple[str, str, str]]:
    text = "the quick brown fox jumps over the lazy dog and naïve cats "
    return [(f"s/{n}", f"{text * (words // 10)} {n}", ("prose", "talk")[n % 2]) for n in range(number)]


def test_the_summary_measures_the_tokenizer(tmp_path: Path) -> None:
    corpus = corpus_artifact(tmp_path / "corpus", documents(40))
    summary = run(corpus, tmp_path / "out", size=300)
    encoder = load_encoder(tmp_path / "out/tokenizer")
    texts = [text for _, text, _ in documents(40)]
    tokens = sum(len(encoder.encode(text).ids) for text in texts)
    assert summary["bytes_per_token"] == pytest.approx(sum(len(text.encode()) for text in texts) / tokens)
    assert set(summary["bytes_per_token_by_source"]) == {"prose", "talk"}
    assert summary["round_trip_failures"] == 0 and summary["measured_documents"] == 40
    assert summary["sampled_documents"] == sum(unit_hash(name, "split") >= 0.1 for name, _, _ in documents(40)) < 40
    used = {token for text in texts for token in encoder.encode(text).ids}
    assert summary["unused_tokens"] == 300 - len(used)
    assert summary["fingerprint"] == fingerprint(tmp_path / "out/tokenizer")


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_a_sample_of_any_size_leaves_out_what_validation_takes(tmp_path: Path, share: float) -> None:
    rows = documents(2000, words=400)
    # The first tenth by the split's hash, which shards would hold out, is in letters that occur nowhere else.
    rows = [(name, "ζ ξ ψ " * 300 if unit_hash(name, "split") < 0.1 else text, source) for name, text, source in rows]
    corpus = corpus_artifact(tmp_path / "corpus", rows)
    total = corpus.summary["bytes"]
    assert total > 2**21
    summary = run(corpus, tmp_path / "out", size=300, sample_mib=int(share * total / 2**20))
    assert summary["sampled_bytes"] < min(0.8, share) * total if share < 1 else summary["sampled_bytes"] > 0.8 * total
    encoder = load_encoder(tmp_path / "out/tokenizer")
    assert len(encoder.encode("ζξψ").ids) == 6  # two bytes each: never merged


def test_a_size_that_the_text_cannot_fill_is_an_error(tmp_path: Path) -> None:
    corpus = corpus_artifact(tmp_path / "corpus", documents(4))
    with pytest.raises(ValueError, match=r"size: .* bytes of text give only \d+ tokens, not 2,000"):
        run(corpus, tmp_path / "out", size=2000)
    with pytest.raises(ValueError, match="size: 262 must be above 262"):
        STAGE.check(build(VocabularyConfig, {"corpus": "corpus", "size": 262}))
    with pytest.raises(ValueError, match=r"held_out_fraction: 1.0 must be at least 0 and below 1"):
        STAGE.check(build(VocabularyConfig, {"corpus": "corpus", "held_out_fraction": 1.0}))
