"""The training stages run as a user runs them, with Ray Train groups over gloo and tiny models.

The driver and ranks are killed or stopped during some of the runs.
"""

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from cluster import node_monitor, stage_monitor
from cluster.heartbeat import node_folder
from cluster.metrics_log import read_metrics
from cluster.plain import to_plain
from cluster.storage import Storage
from data.tokens.encode import fast_encoder
from data.tokens.shard_format import Generation, ShardManifest, SplitManifests, write_manifest
from data.tokens.shard_writer import TextDocument, write_shard
from data.tokens.shards_summary import summarize_shards
from data.tokens.tokenizer import fingerprint, save_tokenizer
from data.tokens.tokenizer_training import train_tokenizer
from jobs.frame.artifact import Artifact, read_record, write_record
from jobs.frame.pipeline import load_stage
from jobs.frame.pipeline_run import run_pipeline
from jobs.frame.record import Record
from model.huggingface import load_hf_model, load_hf_scalar_model

pytestmark = pytest.mark.slow

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "big", "red", "hat", "near", "old", "blue", "sea"]
STEPS = 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with configs, shards, chats and preferences.

    In the texts, word n of WORDS is always followed by word n + 1. In the preferences, a question is always chosen.
    """
    folder = tmp_path_factory.mktemp("training")
    texts = [" ".join(WORDS[(start + n) % len(WORDS)] for n in range(5 + start % 7)) for start in range(400)]
    make_shards(folder / "shards", texts)
    model = {"width": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_width": 64}
    intervals = {"log_interval": 1, "checkpoint_interval": 5, "validation_interval": 10}
    execution = {"placement": {"workers": 2, "cpus_per_worker": 0.5}, **intervals}
    shared = {"sequence_length": 32, "global_batch_size": 8, "precision": "float32", "execution": execution}
    shared["optimizer"] = {"lr": 0.01, "warmup_steps": 3}
    pretrain = {"shards": str(folder / "shards"), "model": model, "max_length": 64, "steps": STEPS, **shared}
    write_config(folder, "pretrain", pretrain | {"sample_prompts": ["the cat"]})
    chats = [{"prompt": " ".join(WORDS[n % 9 : n % 9 + 3]), "response": WORDS[n % 9 + 3]} for n in range(80)]
    write_lines(folder / "chats.jsonl", chats)
    pairs = [{"prompt": WORDS[n % 7], "chosen": "who saw it?", "rejected": "we saw it"} for n in range(80)]
    write_lines(folder / "pairs.jsonl", pairs)
    write_config(folder, "sft", {"chats": [str(folder / "chats.jsonl")], "steps": 20, **shared})
    write_config(folder, "reward", {"preferences": [str(folder / "pairs.jsonl")], "steps": 20, **shared})
    return folder


def make_shards(folder: Path, texts: list[str]) -> None:
    """Write a finished `shards` artifact with its tokenizer into the folder."""
    save_tokenizer(train_tokenizer(texts, size=300), folder / "tokenizer")
    encoder = fast_encoder(folder / "tokenizer")
    empty = ShardManifest(
        tokenizer=fingerprint(folder / "tokenizer"),
        vocab_size=300,
        begin=0,
        separator=0,
        sources=("made",),
        generations=(),
    )
    manifests: list[ShardManifest] = []
    for split, part in (("train", texts[40:]), ("validation", texts[:40])):
        storage = Storage(str(folder / split))
        documents = [TextDocument(str(n), text, "made") for n, text in enumerate(part)]
        info = write_shard(storage, "shard-00000", documents, encoder, empty)
        whole = Generation(corpus="made", shards=(info,))
        manifests.append(replace(empty, generations=(whole,)))
        write_manifest(storage, manifests[-1])
    summary = to_plain(summarize_shards(SplitManifests(*manifests)))
    record = Record(id="shards-0", stage="shards", kind="shards", summary=summary, digest="0")
    write_record(Storage(str(folder)), record)


def write_config(folder: Path, name: str, config: dict[str, Any]) -> None:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))


def write_lines(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def run(folder: Path, stage: str, store: str, *overrides: str) -> Artifact:
    pipeline = load_stage(stage, folder / f"{stage}.yaml", overrides, store=str(folder / store))
    (artifact,) = run_pipeline(pipeline)
    return artifact


def steps_of(artifact: Artifact, key: str) -> dict[int, float]:
    return {int(line["step"]): line[key] for line in read_metrics(artifact.storage) if key in line}


@pytest.fixture(scope="module")
def trained_by_two_workers(folder: Path, ray_session: None) -> Artifact:
    return run(folder, "pretrain", "two")


@pytest.fixture(scope="module")
def sft(folder: Path, trained_by_two_workers: Artifact) -> Artifact:
    return run(folder, "sft", "two", f"init={trained_by_two_workers.storage.url}")


def test_one_and_two_workers_train_on_the_same_tokens_with_the_same_losses(
    folder: Path, trained_by_two_workers: Artifact
) -> None:
    one = run(folder, "pretrain", "one", "execution.placement.workers=1", "execution.micro_batch_size=3")
    assert one.id == trained_by_two_workers.id  # execution settings are not part of the id
    assert steps_of(one, "data/hash") == steps_of(trained_by_two_workers, "data/hash")
    losses, other = steps_of(one, "train/loss"), steps_of(trained_by_two_workers, "train/loss")
    assert max(abs(losses[step] - other[step]) for step in losses) < 1e-4
    assert losses[1] - losses[STEPS] > 1.0
    assert trained_by_two_workers.summary["validation_loss"] < 2.5


def test_a_killed_driver_leaves_no_process_and_the_run_that_resumes_from_an_older_checkpoint_is_bitwise_equal(
    folder: Path, trained_by_two_workers: Artifact
) -> None:
    """The newest checkpoint is damaged after the kill, so the run resumes from the one before."""
    command = [sys.executable, "-m", "jobs.cli", "run", "pretrain", str(folder / "pretrain.yaml")]
    command += ["--store", str(folder / "killed")]
    environment = {**os.environ, "RAYMILL_TEST_RUN": folder.name}
    output = folder / "killed" / trained_by_two_workers.id
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(output.glob("checkpoints/*/checkpoint.json"))) == 2, driver)
    driver.send_signal(signal.SIGKILL)
    step_at_kill = len(read_metrics(Storage(str(output))))  # the workers continue to train until Ray notices
    driver.wait()
    assert not (output / "artifact.json").exists()
    wait_for(lambda: not processes_with("RAYMILL_TEST_RUN", folder.name))
    older, newest = sorted(file.parent for file in output.glob("checkpoints/*/checkpoint.json"))[-2:]
    (newest / "__1_0.distcp").write_bytes((newest / "__1_0.distcp").read_bytes()[:1000])
    again = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = again.stdout.decode()
    older_step = int(older.name.removeprefix("step-"))
    assert re.search(
        rf"{newest} is damaged: __1_0\.distcp has 1000 of \d+ bytes; training resumes .* {older_step} ", said
    )
    assert f"pretrain: resumes from its checkpoint at step {older_step} of {STEPS}" in said
    resumed = Artifact(Storage(str(output)), read_record(Storage(str(output))))
    assert 0 < step_at_kill < STEPS
    assert steps_of(resumed, "train/loss") == steps_of(trained_by_two_workers, "train/loss")
    assert resumed.digest == trained_by_two_workers.digest


def wait_for(condition: Any, process: subprocess.Popen | None = None, *, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"the condition is not true after {timeout_s} s"
        assert process is None or process.poll() is None, "the driver ended before it could be killed"
        time.sleep(0.05)


def processes_with(variable: str, value: str) -> list[int]:
    """Return the ids of the processes whose environment contains variable=value."""
    processes = psutil.process_iter(["environ"])
    return [process.pid for process in processes if (process.info["environ"] or {}).get(variable) == value]


def test_sft_learns_the_replies_and_a_reward_model_the_preference(
    folder: Path, trained_by_two_workers: Artifact, sft: Artifact
) -> None:
    losses = steps_of(sft, "sft/loss")
    assert losses[20] < losses[1] - 1.0
    reward = run(folder, "reward", "two", f"init={sft.storage.url}")
    assert reward.summary["validation_accuracy"] == 1.0
    assert load_hf_model(sft.model.local()).config.max_length == 64
    assert load_hf_scalar_model(reward.model.local()).score.weight.abs().sum() > 0


def test_a_base_model_is_fine_tuned_on_texts(folder: Path, trained_by_two_workers: Artifact) -> None:
    base = folder / "base"
    shutil.copytree(trained_by_two_workers.model.local(), base)
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": ""}))
    sft = run(folder, "sft", "base", f"init={base}", "sample_prompts=[the cat]")
    losses = steps_of(sft, "sft/loss")
    assert losses[20] < losses[1] - 1.0 and sft.summary["chats"]["layouts"] == {"response": 80}
    (prompt, _), (reply, is_learned) = sft.storage.read_jsonl("learned.jsonl")[0]["parts"]
    assert prompt.startswith("<|endoftext|>") and reply.endswith("<|endoftext|>") and is_learned
    assert not sft.storage.exists("work"), "the rendered samples are not part of a finished artifact"
    reward = run(folder, "reward", "base", f"init={sft.storage.url}")
    assert reward.summary["validation_accuracy"] == 1.0


def test_rows_longer_than_the_model_supports_are_rejected_before_a_worker_starts(
    folder: Path, trained_by_two_workers: Artifact
) -> None:
    with pytest.raises(
        ValueError, match="sequence_length: 128 is more than the 64 tokens that the model of `init` supports"
    ):
        run(folder, "sft", "two", f"init={trained_by_two_workers.storage.url}", "sequence_length=128")


def test_the_error_for_a_preference_without_a_rejected_reply_names_file_and_line(folder: Path, sft: Artifact) -> None:
    bad = folder / "bad.jsonl"
    write_lines(bad, [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b"}])
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: rejected is missing"):
        run(folder, "reward", "two", f"init={sft.storage.url}", f"preferences=[{bad}]")


def test_a_number_of_workers_that_does_not_divide_the_batch_is_rejected(folder: Path) -> None:
    pipeline = load_stage("pretrain", folder / "pretrain.yaml", ["execution.placement.workers=3"])
    assert "global_batch_size: 8 samples cannot be divided equally among 3 workers" in pipeline.errors["pretrain"]


def test_more_workers_than_the_cluster_has_cpus_for_are_rejected(folder: Path, ray_session: None) -> None:
    with pytest.raises(ValueError, match="does not fit: needs 4 CPUs, the cluster has at most 2"):
        run(folder, "pretrain", "crowd", "execution.placement.workers=4", "execution.placement.cpus_per_worker=1")


def test_a_stopped_and_a_killed_rank_are_reported_with_the_cause_and_the_run_finishes(
    folder: Path, ray_session: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_monitor, "_MIN_STOP_S", 1.0)
    caplog.set_level(logging.INFO)
    planted: list[str] = []

    def plant() -> None:
        rank = wait_for_rank(0)
        os.kill(rank, signal.SIGSTOP)
        wait_for(lambda: "was stopped by a signal" in caplog.text)
        os.kill(rank, signal.SIGCONT)
        wait_for(lambda: "continues after it was stopped" in caplog.text)
        os.kill(wait_for_rank(1), signal.SIGKILL)
        planted.append("planted")

    planter = threading.Thread(target=plant)
    planter.start()
    artifact = run(folder, "pretrain", "faults", "steps=30", "seed=1")
    planter.join()
    assert planted == ["planted"] and artifact.summary["steps"] == 30
    node = re.escape(socket.gethostname())
    assert re.search(rf"pretrain: rank 0 on node {node} \(pid \d+\) was stopped by a signal", caplog.text)
    killed = re.search(
        rf"pretrain: rank 1 on node {node} \(pid (\d+)\) was killed by signal 9 \(SIGKILL\); log: (\S+);", caplog.text
    )
    assert killed and Path(killed[2]).is_file() and killed[1] in killed[2]
    assert "root cause" not in caplog.text and "common causes" not in caplog.text


def wait_for_rank(rank: int) -> int:
    """Wait until a rank has reached its first step. Returns the id of its process."""
    pids: list[int] = []

    def is_at_work() -> bool:
        monitor = stage_monitor.current_monitor()
        process = monitor.find_process(role="rank", index=rank) if monitor else None
        pids[:] = [process.pid] if process and (node_folder() / f"{process.pid}.beat").exists() else []
        return bool(pids)

    wait_for(is_at_work)
    return pids[0]


def test_a_driver_that_gets_sigterm_saves_a_checkpoint_and_leaves_no_process(folder: Path) -> None:
    command = [sys.executable, "-m", "jobs.cli", "run", "pretrain", str(folder / "pretrain.yaml"), "steps=5000"]
    command += ["execution.checkpoint_interval=5000", "--store", str(folder / "told")]
    environment = {**os.environ, "RAYMILL_TEST_RUN": f"{folder.name}-told"}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: list((folder / "told").glob("*/metrics.jsonl")), driver)
    began = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 143 and time.monotonic() - began < 15, output
    said = re.search(
        r"raymill: stopped by SIGTERM; the same command resumes from here: pretrain .* step (\d+) of", output
    )
    (store,) = (folder / "told").iterdir()
    assert said and (store / f"checkpoints/step-{int(said[1]):08d}/checkpoint.json").exists(), output
    assert not (store / "lease.json").exists()
    assert not processes_with("RAYMILL_TEST_RUN", f"{folder.name}-told")
