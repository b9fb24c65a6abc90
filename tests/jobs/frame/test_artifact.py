"""An artifact is identified by its content, and a Hugging Face folder can be opened as an artifact."""

from pathlib import Path

from cluster.storage import Storage
from jobs.frame.artifact import RECORD, content_digest, open_artifact


def test_the_content_digest_ignores_logs_and_checkpoints(tmp_path: Path):
    storage = Storage(str(tmp_path))
    storage.write_bytes("words.txt", b"la")
    before = content_digest(storage)
    for name in (RECORD, "lease.json", "metrics.jsonl", "checkpoints/step-1/a", "logs/worker.log"):
        storage.write_bytes(name, b"noise")
    assert content_digest(storage) == before
    storage.write_bytes("more.txt", b"la")
    assert content_digest(storage) != before


def test_the_id_of_an_external_model_folder_depends_on_its_content_only(tmp_path: Path):
    for name in ("one", "two"):
        storage = Storage(str(tmp_path / name))
        storage.write_json("config.json", {"model_type": "llama"})
        storage.write_bytes("model.safetensors", b"weights")
    one, two = (open_artifact(str(tmp_path / name)) for name in ("one", "two"))
    assert one and two and one.id == two.id and one.model.url == str(tmp_path / "one")
    Storage(str(tmp_path / "two")).write_bytes("model.safetensors", b"others!")
    changed = open_artifact(str(tmp_path / "two"))
    assert changed and changed.id != one.id


def test_a_model_folder_without_weights_is_not_an_artifact(tmp_path: Path):
    Storage(str(tmp_path)).write_json("config.json", {"model_type": "llama"})
    assert open_artifact(str(tmp_path)) is None
