"""`precision: auto` is resolved once, recorded in the artifact, and kept when a run resumes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.placement import Placement
from cluster.storage import Storage
from jobs.frame import precision as jobs_precision
from jobs.frame.artifact import UNFINISHED, Artifact, recorded_precisions
from jobs.frame.job import Job
from jobs.frame.job_run import run_job
from jobs.frame.precision import resolve_precisions, warn_if_bfloat16_is_emulated, with_precisions
from jobs.frame.stage import Context, Stage
from model.precision import Precision, precision_field


@dataclass(frozen=True, kw_only=True)
class Sampling:
    precision: Precision = precision_field(placement="engines")


@dataclass(frozen=True, kw_only=True)
class Config:
    precision: Precision = precision_field(placement="ranks")
    sampling: Sampling = field(default_factory=Sampling)


def placements(engines: float = 0.0) -> list[Mapping[str, Placement]]:
    """Return the placements of two worker groups. Each engine has `engines` GPUs, and the ranks have none."""
    return [{"ranks": Placement()}, {"engines": Placement(gpus_per_worker=engines)}]


def set_processor(monkeypatch: pytest.MonkeyPatch, *, multiplies_bfloat16: bool) -> None:
    monkeypatch.setattr(jobs_precision, "bfloat16_emulation_slowdown", lambda: None if multiplies_bfloat16 else 70.0)


def test_auto_depends_on_the_devices_of_each_worker_group(monkeypatch: pytest.MonkeyPatch) -> None:
    set_processor(monkeypatch, multiplies_bfloat16=False)
    assert resolve_precisions(Config(), placements(), {}) == {"precision": "float32", "sampling.precision": "float32"}
    assert resolve_precisions(Config(), placements(engines=1), {}) == {
        "precision": "float32",
        "sampling.precision": "bfloat16",
    }
    set_processor(monkeypatch, multiplies_bfloat16=True)
    assert resolve_precisions(Config(), placements(), {}) == {"precision": "bfloat16", "sampling.precision": "bfloat16"}


def test_on_a_cluster_auto_depends_on_all_nodes_and_the_warning_names_the_slowest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_processor(monkeypatch, multiplies_bfloat16=True)  # the processor of the driver
    waited: list[object] = []
    monkeypatch.setattr(jobs_precision, "is_connected", lambda: True)
    monkeypatch.setattr(jobs_precision, "is_local_cluster", lambda: False)
    monkeypatch.setattr(jobs_precision, "wait_for_capacity", lambda bundles, where: waited.append(bundles))
    monkeypatch.setattr(jobs_precision, "_slowdowns_on_nodes", lambda: [None, 18.0, 70.0])
    four = [{"ranks": Placement(workers=4)}, {"engines": Placement()}]
    assert resolve_precisions(Config(), four, {})["precision"] == "float32"
    assert waited[0] == [{"CPU": 1.0}] * 4, "a node that joins later may have a different processor"
    warn_if_bfloat16_is_emulated(Config(precision="bfloat16"), four)
    assert "bfloat16 takes 70 times as long" in caplog.messages[-1]
    monkeypatch.setattr(jobs_precision, "_slowdowns_on_nodes", lambda: [None, None])
    assert resolve_precisions(Config(), four, {})["precision"] == "bfloat16"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_auto_depends_on_the_gpu_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert resolve_precisions(Config(), placements(engines=1), {})["sampling.precision"] == expected


def test_an_explicit_precision_and_the_recorded_precision_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    set_processor(monkeypatch, multiplies_bfloat16=True)
    config = Config(precision="float32")
    chosen = resolve_precisions(config, placements(), {"precision": "bfloat16", "sampling.precision": "float32"})
    assert chosen == {"precision": "float32", "sampling.precision": "float32"}
    assert with_precisions(config, chosen) == Config(precision="float32", sampling=Sampling(precision="float32"))


def test_an_explicit_bfloat16_that_is_emulated_logs_a_warning_with_the_slowdown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    config = Config(sampling=Sampling(precision="bfloat16"))
    set_processor(monkeypatch, multiplies_bfloat16=True)
    warn_if_bfloat16_is_emulated(config, placements())
    set_processor(monkeypatch, multiplies_bfloat16=False)
    warn_if_bfloat16_is_emulated(config, placements(engines=1))
    warn_if_bfloat16_is_emulated(Config(), placements())
    assert not caplog.messages
    warn_if_bfloat16_is_emulated(config, placements())
    (message,) = caplog.messages
    assert message.startswith("sampling.precision: bfloat16 takes 70 times as long as float32, because a processor of")


def test_a_resumed_run_keeps_its_precision_and_the_artifact_records_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    computed: list[Config] = []

    def run(config: Config, context: Context) -> dict[str, Any]:
        computed.append(config)
        if len(computed) == 1:
            raise RuntimeError("the first attempt dies")
        return {}

    stage = Stage(
        name="fake",
        version=1,
        kind="model",
        config=Config,
        run=run,
        placements=lambda config: placements(),
    )
    job, store = Job(stage, "fake", Config(), {}), Storage(str(tmp_path))
    set_processor(monkeypatch, multiplies_bfloat16=False)
    with pytest.raises(RuntimeError, match="the first attempt dies"):
        run_job(job, store, wandb_group="test")
    in_float32 = {"precision": "float32", "sampling.precision": "float32"}
    assert (store / job.id).read_json(UNFINISHED)["precision"] == recorded_precisions(store / job.id) == in_float32
    set_processor(monkeypatch, multiplies_bfloat16=True)  # the run resumes on a different machine
    artifact: Artifact = run_job(job, store, wandb_group="test")
    assert [config.precision for config in computed] == ["float32", "float32"]
    assert artifact.record.precision == recorded_precisions(store / job.id) == in_float32
    assert artifact.record.config["precision"] == "auto"
