"""Tests of the checks and the resources of placements."""

import pytest

from cluster.placement import Placement, check_fits, total_resources


def test_resources_are_the_sum_over_all_workers():
    assert Placement(workers=4, cpus_per_worker=0.5).resources == {"CPU": 2.0}
    assert Placement(workers=2, cpus_per_worker=3, gpus_per_worker=1, backend="nccl").resources == {
        "CPU": 6.0,
        "GPU": 2.0,
    }


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (Placement(workers=0), "execution.placement.workers: 0 must be at least 1"),
        (Placement(threads_per_worker=0), "execution.placement.threads_per_worker: 0 must be at least 1"),
        (
            Placement(max_failures=-1),
            "execution.placement.max_failures: -1 must not be negative; with 0 the group is never restarted",
        ),
        (
            Placement(cpus_per_worker=-1),
            "execution.placement: cpus_per_worker (-1) and gpus_per_worker (0) must not be negative",
        ),
        (
            Placement(backend="nccl"),
            "execution.placement.backend: nccl needs gpus_per_worker above 0; use gloo on CPUs",
        ),
        (
            Placement(gpus_per_worker=0.5),
            "execution.placement.backend: gloo cannot shard a model over GPUs (gpus_per_worker=0.5); use nccl",
        ),
    ],
)
def test_invalid_placements_are_rejected(placement: Placement, message: str):
    with pytest.raises(ValueError) as caught:
        placement.check("execution.placement")
    assert str(caught.value) == message


def test_valid_placements_are_accepted():
    Placement().check("execution")
    Placement(workers=8, gpus_per_worker=1, backend="nccl").check("execution")
    Placement(workers=8, gpus_per_worker=1).check("execution", forms_process_group=False)


def test_more_resources_than_the_cluster_has_are_rejected():
    with pytest.raises(ValueError) as caught:
        check_fits({"CPU": 3.0}, {"CPU": 2.0}, "execution.placement")
    assert str(caught.value) == (
        "execution.placement: does not fit: needs 3 CPUs, the cluster has at most 2; use fewer workers, give each "
        "worker less, or use a larger cluster"
    )
    with pytest.raises(ValueError, match="needs 1 GPU, the cluster has at most 0"):
        check_fits({"CPU": 1.0, "GPU": 1.0}, {"CPU": 2.0}, "execution")


def test_exactly_the_resources_of_the_cluster_fit_despite_rounding():
    check_fits({"CPU": 0.1 + 0.2}, {"CPU": 0.3}, "execution")


def test_total_resources_adds_up_each_resource() -> None:
    engines, learners = Placement(workers=2, gpus_per_worker=1.0), Placement(workers=3, cpus_per_worker=0.5)
    assert total_resources([engines, learners]) == {"CPU": 3.5, "GPU": 2.0}
