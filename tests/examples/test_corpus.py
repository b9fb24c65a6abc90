"""The example corpus in docs/corpora.md: its records are kept, dropped or quarantined as the page describes."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.storage import Storage
from cluster.tracking import Tracker
from jobs.corpus import STAGE, CorpusConfig
from jobs.frame.config_loader import build, load_yaml
from jobs.frame.stage import Context

ROOT = Path(__file__).parents[2]


def test_every_record_is_kept_dropped_or_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    config = build(CorpusConfig, load_yaml("examples/corpus/corpus.yaml"), ["execution.workers=0"])
    STAGE.check(config)
    STAGE.check_sources(config)
    output = Storage(str(tmp_path))
    tracker = Tracker(storage=output, run_id="test", name="corpus", group="test")
    STAGE.run(config, Context(output=output, inputs={}, tracker=tracker))
    (documents,) = (tmp_path / "documents").glob("*.parquet")
    texts = pq.read_table(documents)["text"].to_pylist()
    assert len(texts) == 4
    assert any("[EMAIL]" in text for text in texts) and any("naïve" in text for text in texts)
    (drops,) = (tmp_path / "drops").glob("*.parquet")
    reasons = [reason.partition("/")[0] for reason in pq.read_table(drops)["reason"].to_pylist()]
    assert sorted(reasons) == ["exact_duplicates", "length", "repetition"]
    assert len(output.read_jsonl("quarantine/posts.jsonl")) == 1
