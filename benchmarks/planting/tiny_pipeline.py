"""A pipeline that takes minutes, over generated text, for benchmarks that run each of its stages many times."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("corpus", "vocabulary", "shards", "pretrain", "sft", "reward", "rlhf", "evaluate", "compress", "serve")


def prepare(world: Path) -> None:
    """Run the whole pipeline without faults, unless that was done before."""
    if (world / "done").exists():
        return
    world.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "jobs.cli", "run", "pipeline", str(write_world(world))]
    environment = {**os.environ, "WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, cwd=world)
    (world / "done").touch()


def copy_store(source: Path, target: Path, *, without: str) -> None:
    """Copy a store without the artifacts of one stage."""
    target.mkdir(exist_ok=True)
    for folder in source.iterdir():
        if folder.is_dir() and not folder.name.startswith(f"{without}-"):
            shutil.copytree(folder, target / folder.name)


def write_world(folder: Path) -> Path:
    """Write the texts, chats, preferences and configs of the pipeline; the path of its pipeline.yaml."""
    draw = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "big", "red", "hat", "near", "old", "sea"]

    def text(length: int) -> str:
        return " ".join(draw.choices(words, k=length)) + "."

    def lines(name: str, records: list[dict]) -> str:
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(folder / name)

    source = {"name": "made", "format": "jsonl", "path": lines("texts.jsonl", [{"text": text(60)} for _ in range(800)])}
    chats = lines("chats.jsonl", [{"prompt": text(4), "response": text(5)} for _ in range(200)])
    pairs = lines("pairs.jsonl", [{"prompt": text(4), "chosen": text(5), "rejected": text(2)} for _ in range(200)])
    prompts = lines("prompts.jsonl", [{"prompt": text(4)} for _ in range(64)])
    shutil.copy(ROOT / "configs" / "tiny" / "gold.py", folder)
    files = {"source": source, "chats": chats, "pairs": pairs, "prompts": prompts, "question": text(3)}
    for name, values in _configs(folder / "store", files).items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return folder / "pipeline.yaml"


def _configs(store: Path, files: Mapping[str, Any]) -> dict[str, Any]:
    placement = {"workers": 2, "cpus_per_worker": 0.5}
    intervals = {"log_interval": 1, "validation_interval": 1000, "checkpoint_interval": 3}
    training = {"sequence_length": 64, "global_batch_size": 8, "precision": "float32"}
    training["execution"] = {"placement": placement, **intervals}
    training["optimizer"] = {"lr": 1.0e-3, "warmup_steps": 2}
    model = {"width": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_width": 96}
    share = {"cpus_per_worker": 0.25}
    task = {
        "name": "chat",
        "prompts": files["prompts"],
        "measures": ["gold.py:asks_question"],
        "models": ["sft"],
    }
    return {
        "pipeline": {"store": str(store), "stages": list(STAGES)},
        "corpus": {
            "sources": [files["source"]],
            "steps": [{"length": {"min_bytes": 20}}],
            "execution": {"task_mib": 1},
        },
        "vocabulary": {"corpus": "corpus", "size": 290},
        "shards": {"corpus": "corpus", "tokenizer": "vocabulary", "validation_fraction": 0.1},
        "pretrain": {"model": model, "max_length": 128, "steps": 12, **training},
        "sft": {"chats": [files["chats"]], "init": "pretrain", "steps": 12, **training},
        "reward": {"preferences": [files["pairs"]], "init": "sft", "steps": 12, **training},
        "rlhf": {
            "policy": "sft",
            "reward": "reward",
            "prompts": [files["prompts"]],
            "steps": 4,
            "rollouts": {"prompts_per_step": 4, "group_size": 2, "generation_batch_prompts": 4, "max_new_tokens": 8},
            "learning": {"algorithm": "grpo", "kl_coefficient": 0.1, "precision": "float32"},
            "execution": {
                **dict.fromkeys(("generators", "learners", "scorer", "reference"), share),
                "kv_cache_gib": 0.05,
                "checkpoint_interval": 1,
            },
        },
        "evaluate": {
            "models": {"sft": "sft"},
            "text": "shards",
            "text_models": ["sft"],
            "generation": [task],
            "sampling": {"max_new_tokens": 8},
            "precision": "float32",
            "num_resamples": 100,
        },
        "compress": {"model": "sft", "text": "shards"},
        "serve": {"model": "sft", "max_new_tokens": 8, "questions": [files["question"]] * 400},
    }
