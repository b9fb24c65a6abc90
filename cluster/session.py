"""One Ray session for a command: the cluster that is named, or one started inside this process."""

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.progress import working

_OWN_PACKAGES = ("actors", "cluster", "data", "jobs", "model")

WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Processes share cores and take turns, so a thread that waits must sleep: with the default, which spins, an update
    # with two threads took 2.2 s on two busy cores, without 0.6 s.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Empty is unset: where the user's shell or image has it set, every one of the many workers would compile torch, Ray
    # and vLLM anew, 15 s of work on a slow core for what `plan` imports alone.
    "PYTHONDONTWRITEBYTECODE": "",
}
"""What every worker runs with. Secrets never go here: a runtime environment is printed in job records."""


def worker_env(threads: int) -> dict[str, str]:
    """The environment of a worker with so many OpenMP threads; Ray would set them from num_cpus, a fraction to 1."""
    return {**WORKER_ENV, "OMP_NUM_THREADS": str(threads)}


@contextmanager
def connect(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[bool]:
    """Join the cluster at `address` or `RAY_ADDRESS`; start one inside this process where neither is given.

    Yields whether the cluster is whole as it stands: one that was started here gets no further nodes.

    A session that this call started ends with it; one that stood before is left as it was.
    """
    import ray  # late, as below: it takes a second, which `raymill --help` and `plan` need not wait for

    assert_own_packages()
    if ray.is_initialized():
        yield False
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    with working("starting Ray" if address == "local" else f"joining the Ray cluster at {address}"):
        ray.init(
            address=address,
            num_cpus=num_cpus if address == "local" else None,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": WORKER_ENV},
        )
    try:
        yield address == "local"
    finally:
        with working("ending Ray"):
            ray.shutdown()


def assert_own_packages() -> None:
    """Raise ValueError when a folder or file of the user shadows one of Raymill's packages.

    Ray puts the driver's working directory on its workers' path, so a `model.py` or `data/` there would be imported
    in our place, in the workers only.
    """
    home = Path(__file__).resolve().parent.parent
    for name in _OWN_PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parent.parent != home:
            found = origin or (list(spec.submodule_search_locations or []) if spec else None)
            raise ValueError(
                f"the package {name!r} is imported from {found}, not from Raymill ({home}); "
                f"rename {name}.py or {name}/ in the working directory, or start elsewhere"
            )


def available_resources() -> dict[str, float]:
    """What the whole cluster has, busy or not: {"CPU": 2.0, "GPU": 8.0, …}."""
    import ray

    return {name: float(amount) for name, amount in ray.cluster_resources().items()}
