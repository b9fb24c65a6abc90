"""The bundles of a placement group: which workers share one, and how much each bundle reserves."""

from __future__ import annotations

from actors.spawn import plan_bundles, restart_options
from cluster.placement import Placement

GROUPS = {
    "generators": Placement(workers=2, cpus_per_worker=0.3),
    "learners": Placement(workers=2, cpus_per_worker=0.5),
    "scorer": Placement(cpus_per_worker=0.1),
}


def test_colocated_workers_with_equal_indices_share_a_bundle() -> None:
    bundles, bundle_indices = plan_bundles(GROUPS, colocate=True)
    assert bundles == [{"CPU": 0.9}, {"CPU": 0.8}]
    assert bundle_indices["generators", 1] == bundle_indices["learners", 1] == 1
    assert bundle_indices["scorer", 0] == 0


def test_every_worker_has_its_own_bundle_without_colocation() -> None:
    bundles, bundle_indices = plan_bundles(GROUPS, colocate=False)
    assert bundles == [{"CPU": 0.3}, {"CPU": 0.3}, {"CPU": 0.5}, {"CPU": 0.5}, {"CPU": 0.1}]
    assert sorted(bundle_indices.values()) == [0, 1, 2, 3, 4]


def test_bundles_contain_gpus() -> None:
    groups = {"learners": Placement(cpus_per_worker=1.0, gpus_per_worker=0.5, backend="nccl")}
    assert plan_bundles(groups, colocate=True)[0] == [{"CPU": 1.0, "GPU": 0.5}]


def test_max_failures_limits_the_restarts_of_an_actor() -> None:
    assert restart_options(Placement(max_failures=2)) == {"max_restarts": 2, "max_task_retries": 2}
    assert restart_options(Placement(max_failures=0)) == {"max_restarts": 0, "max_task_retries": 0}
