"""One sharded rank, two sharded ranks and an unsharded model train to the same parameters.

The processes run `ranks.py`. Its world 0 is an unsharded model without a process group.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model.parallel import full_state_dict, mesh_of
from model.transformer import Transformer
from model.transformer_config import TransformerConfig

pytestmark = pytest.mark.slow

Results = dict[tuple[int, int], dict[str, Any]]

SCRIPT = Path(__file__).with_name("ranks.py")
RUNS = ("language", "untied", "scalar")


def launch(world: int, folder: Path) -> list[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(world), str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Return the results of each (world, rank). If a process fails, its output is the error message."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [*launch(2, folder), *launch(1, folder)]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
    ranks = [(0, 0), (1, 0), (2, 0), (2, 1)]
    return {(world, rank): torch.load(folder / f"{world}-{rank}.pt") for world, rank in ranks}


def assert_states_equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, atol: float) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("run", RUNS)
def test_one_sharded_rank_is_bitwise_equal_to_the_unsharded_model(results: Results, run: str) -> None:
    assert results[1, 0][run] == results[0, 0][run]
    assert_states_equal(results[1, 0][f"{run}/state"], results[0, 0][f"{run}/state"], atol=0)


@pytest.mark.parametrize("run", RUNS)
def test_two_ranks_train_to_the_same_parameters_as_one(results: Results, run: str) -> None:
    one, two = results[0, 0], results[2, 0]
    assert len(two[run]) == 10
    for (loss, norm, num_loss_terms, num_tokens, metrics), expected in zip(two[run], one[run], strict=True):
        assert loss == pytest.approx(expected[0], abs=2e-5)
        assert norm == pytest.approx(expected[1], rel=1e-3)
        assert (num_loss_terms, num_tokens) == expected[2:4]
        assert metrics == pytest.approx(expected[4], abs=1e-4)
    assert_states_equal(two[f"{run}/state"], one[f"{run}/state"], atol=1e-4)
    assert two[run][-1][0] < 0.95 * two[run][0][0]


def test_all_ranks_have_equal_reports_and_only_rank_0_has_the_full_state_dict(results: Results) -> None:
    assert results[2, 0]["language"] == results[2, 1]["language"]
    assert results[2, 1]["language/state"] == {}


def test_hf_tensors_are_unsharded_on_every_rank_and_have_a_tied_head_once(results: Results) -> None:
    first, second = results[2, 0]["language/hf"], results[2, 1]["language/hf"]
    assert "lm_head.weight" not in first
    assert_states_equal(second, first, atol=0)
    assert torch.equal(first["model.embed_tokens.weight"], results[2, 0]["language/state"]["embedding.weight"])


def test_evaluation_between_steps_uses_the_same_parameters(results: Results) -> None:
    torch.testing.assert_close(results[2, 0]["nll"], results[0, 0]["nll"], atol=1e-4, rtol=1e-5)
    assert torch.equal(results[2, 0]["nll"], results[2, 1]["nll"])


@pytest.mark.parametrize("world", [0, 1, 2])
def test_a_resume_with_the_same_number_of_ranks_is_bitwise_equal(results: Results, world: int) -> None:
    found = results[world, 0]
    assert found["resumed"] == found["language"][5:]
    assert_states_equal(found["resumed/state"], found["language/state"], atol=0)


@pytest.mark.parametrize(("to_world", "from_world"), [(2, 0), (0, 2)])
def test_a_checkpoint_resumes_with_a_different_number_of_ranks(
    results: Results, to_world: int, from_world: int
) -> None:
    moved, uninterrupted = results[to_world, 0], results[from_world, 0]
    assert moved["moved/extra"] == {"world": from_world}
    assert [report[0] for report in moved["moved"]] == pytest.approx(
        [r[0] for r in uninterrupted["language"][5:]], abs=2e-5
    )
    assert_states_equal(moved["moved/state"], uninterrupted["language/state"], atol=1e-4)


def test_all_ranks_fall_back_to_the_same_checkpoint_if_a_file_of_one_rank_is_missing(results: Results) -> None:
    for rank in (0, 1):
        extra, step, warnings = results[2, rank]["damaged/resumed"]
        assert (extra, step, len(warnings)) == ({"saved": 1}, 1, 1 - rank)
        assert results[2, rank]["damaged/again"] == results[2, rank]["damaged"][1:]
    (warning,) = results[2, 0]["damaged/resumed"][2]
    assert (
        "step-00000002 is damaged: __1_0.distcp is missing; training resumes from the checkpoint of step 1" in warning
    )


def test_an_infinite_loss_on_one_rank_raises_on_all_ranks_and_changes_no_parameters(results: Results) -> None:
    for rank in (0, 1):
        assert "step 10" in results[2, rank]["error"]
        assert results[2, rank]["unchanged"]


def test_an_unsharded_model_has_no_mesh_and_its_full_state_dict_is_a_copy() -> None:
    config = TransformerConfig(
        vocab_size=8, width=8, num_layers=1, num_heads=2, num_kv_heads=2, ffn_width=8, max_length=8
    )
    model = Transformer(config)
    assert mesh_of(model) is None
    state = full_state_dict(model)
    with torch.no_grad():
        model.embedding.weight.zero_()
    assert state["embedding.weight"].any()
