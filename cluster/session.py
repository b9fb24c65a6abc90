"""The Ray session of a command: it joins the named cluster, or starts one inside this process."""

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster.machine import num_cores
from cluster.progress import working
from cluster.signals import restore_signal_handlers

RAYMILL_PACKAGES = ("actors", "cluster", "data", "jobs", "model")
"""Raymill's own."""
_SESSION_END_S = 3.0
"""How long Ray's processes may take to end by themselves."""

# Ray prints guesses at why a worker died on stdout, whatever the settings; `cluster.stage_monitor` reports the cause.
# Ray reads this variable when it is imported.
os.environ.setdefault(
    "RAY_DEDUP_LOGS_SKIP_REGEX",
    r"A worker died or was killed while executing a task|There are \d+ retries remaining",
)

WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Processes share cores, so a thread that waits must sleep instead of spinning, which is the default: an update with
    # two threads took 2.2 s on two busy cores when spinning, and 0.6 s when sleeping.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Empty means unset: where the user's shell or image sets it, every worker would compile torch, Ray and vLLM anew,
    # 15 s on a slow core for the imports of `plan` alone.
    "PYTHONDONTWRITEBYTECODE": "",
}
"""Environment variables of every worker. Never secrets: a runtime environment is printed in job records."""


def worker_env(threads: int) -> dict[str, str]:
    """The environment of a worker with this many OpenMP threads, which Ray would otherwise derive from num_cpus."""
    return {**WORKER_ENV, "OMP_NUM_THREADS": str(threads)}


@dataclass
class _Session:
    started_here: bool = False


_session = _Session()


def _is_not_token_advice(record: logging.LogRecord) -> bool:
    """False for Ray's advice, in every run that uses tokens, to switch them off."""
    return "Token authentication is enabled" not in record.getMessage()


def cluster_address(address: str | None) -> str:
    """The address that a command uses: the given one, else `RAY_ADDRESS`, else `local` for a cluster of its own."""
    return address or os.environ.get("RAY_ADDRESS") or "local"


@contextmanager
def connect(
    address: str | None = None, *, num_cpus: int | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Join the cluster at `address` or `RAY_ADDRESS`; start one inside this process where neither is given.

    `environment` adds variables for every worker to `WORKER_ENV`. A session that this call started ends with the
    block; one that existed before is left as it was.
    """
    import ray  # late, as below: a second that `raymill --help` and `plan` need not wait for

    check_no_shadowed_packages()
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("ray._private.authentication.authentication_token_setup").addFilter(_is_not_token_advice)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it would warn of the setting above
    address = cluster_address(address)
    if address == "local":  # nobody announces the end of this machine, so a process that waits for it is useless
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Workers started in advance have none of the variables below, so that none of ours could ever use them.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    activity = "starting Ray" if address == "local" else f"joining the Ray cluster at {address}"
    with working(activity), restore_signal_handlers():
        ray.init(
            address=address,
            num_cpus=num_cpus or num_cores() if address == "local" else None,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": {**WORKER_ENV, **(environment or {})}},
        )
    _session.started_here = address == "local"
    try:
        yield
    finally:
        _session.started_here = False
        with working("ending Ray"):
            children = psutil.Process().children(recursive=True) if address == "local" else []
            ray.shutdown()
            _end(children)


def _end(processes: list[psutil.Process]) -> None:
    """Wait for Ray's processes among those given to end, and kill the ones that do not end by themselves."""
    of_ray = [process for process in processes if "ray" in _command(process)]
    _, alive = psutil.wait_procs(of_ray, timeout=_SESSION_END_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _command(process: psutil.Process) -> str:
    """The first words of a process's command line, which name Ray where Ray started it."""
    try:
        return " ".join(process.cmdline()[:3])
    except psutil.Error:
        return ""  # it has ended


def check_no_shadowed_packages() -> None:
    """Raises ValueError when a folder or file of the user shadows one of Raymill's packages.

    Ray puts the driver's working directory first on its workers' path, so a `model.py` or a package `data/` there would
    be imported instead of ours, in the workers only. A folder `data/` that is no package does no harm.
    """
    home, here = Path(__file__).resolve().parent.parent, Path.cwd().resolve()
    for name in RAYMILL_PACKAGES:
        shadows = [here / name / "__init__.py", here / f"{name}.py"] if here != home else []
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parent.parent != home:
            shadows.insert(0, origin or here / name)
        else:
            shadows = [path for path in shadows if path.exists()]
        if shadows:
            raise ValueError(
                f"{shadows[0]} would be imported in place of Raymill's own package {name!r} ({home / name}); "
                "rename it, or start the command from another directory"
            )


def cluster_resources() -> dict[str, float]:
    """The resources of the whole cluster, busy or not: {"CPU": 2.0, "GPU": 8.0, …}."""
    import ray

    return {name: float(amount) for name, amount in ray.cluster_resources().items()}


def is_connected() -> bool:
    """Whether this process is in a Ray session, by `connect` or otherwise."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def alive_nodes() -> dict[str, str]:
    """The address of every living node of the cluster, by the node's id."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def other_alive_nodes() -> dict[str, str]:
    """`alive_nodes` without the node that this process is on."""
    import ray

    own_id = ray.get_runtime_context().get_node_id()
    return {id: address for id, address in alive_nodes().items() if id != own_id}


def options_on_node(id: str, *, soft: bool = False) -> dict[str, Any]:
    """Options of a Ray task or actor that runs on one node and reserves no resources; a soft one may run elsewhere."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(id, soft=soft)}


def is_local_cluster() -> bool:
    """Whether `connect` has started the cluster inside this process, so that no further nodes come."""
    return _session.started_here


def max_cluster_resources() -> dict[str, float] | None:
    """The most resources that the cluster can ever have; None when that is unknown.

    A local cluster does not grow; any other may grow up to the limits that its autoscaler has told Ray (KubeRay's and
    Ray's own do).
    """
    from ray._private.state import state as ray_state

    present = cluster_resources()
    if is_local_cluster():
        return present
    limits = ray_state.get_max_resources_from_cluster_config()
    if not limits:
        return None
    return present | {name: max(float(amount), present.get(name, 0.0)) for name, amount in limits.items()}
