"""The Ray session of a command: joins the cluster at an address, or starts a local cluster for this command."""

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster.credentials import reject_credentials
from cluster.machine import num_cores
from cluster.progress import show_activity
from cluster.signals import restore_signal_handlers

RAYMILL_PACKAGES = ("actors", "cluster", "data", "jobs", "model")
"""Names of Raymill's top-level packages."""
_SESSION_END_S = 3.0
"""How long Ray's processes get to end by themselves before they are killed."""

# When a worker dies, Ray prints guesses about the cause to stdout, and no setting turns them off. This variable filters
# them out, because `cluster.stage_monitor` reports the actual cause. Ray reads the variable when it is imported.
os.environ.setdefault(
    "RAY_DEDUP_LOGS_SKIP_REGEX",
    r"A worker died or was killed while executing a task|There are \d+ retries remaining",
)

WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Several processes share the cores, so a waiting OpenMP thread must sleep. By default it spins. A training step
    # with two threads took 2.2 s on two busy cores with spinning threads, and 0.6 s with sleeping threads.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Python treats the empty value as unset. It replaces a value that the user's shell or the image may have set, with
    # which no bytecode would be cached, so that every worker would compile the source of torch, Ray and vLLM again. For
    # the imports of `raymill plan` alone this takes 15 s on a slow core.
    "PYTHONDONTWRITEBYTECODE": "",
}
"""Environment variables of every worker. Must not contain secrets, because Ray shows these variables in job records."""


HUB_VARIABLES = ("HF_ENDPOINT", "HF_HUB_DISABLE_XET", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
"""Environment variables that say how files of a Hugging Face hub are read. HF_TOKEN is not among them, because it is a
secret: like other credentials, it must be in the environment of the nodes."""


def hub_env(urls: Iterable[str]) -> dict[str, str]:
    """Return the environment variables with which workers read these URLs from a Hugging Face hub as this process does.

    Workers are offline otherwise (`WORKER_ENV`). Returns no variables if none of the URLs begins with `hf://`. Raises
    ValueError if HF_ENDPOINT contains credentials, because Ray shows the variables in job records.
    """
    if not any(part.startswith("hf://") for url in urls for part in url.split("::")):
        return {}
    reject_credentials(os.environ.get("HF_ENDPOINT", ""))
    return {"HF_HUB_OFFLINE": "0"} | {name: os.environ[name] for name in HUB_VARIABLES if name in os.environ}


def worker_env(threads: int) -> dict[str, str]:
    """Return the environment variables of a worker with this many OpenMP threads.

    Without `OMP_NUM_THREADS` Ray would derive the number of threads from the `num_cpus` of the worker.
    """
    return {**WORKER_ENV, "OMP_NUM_THREADS": str(threads)}


@dataclass
class _Session:
    has_local_cluster: bool = False
    """Whether `connect` started a local cluster in this process."""


_session = _Session()


def _is_not_token_advice(record: logging.LogRecord) -> bool:
    """Log filter: False for the message in which Ray advises to turn token authentication off."""
    return "Token authentication is enabled" not in record.getMessage()


def cluster_address(address: str | None) -> str:
    """Return `address` if it is given, else `RAY_ADDRESS`, else `local`, which starts a cluster for this command."""
    return address or os.environ.get("RAY_ADDRESS") or "local"


@contextmanager
def connect(
    address: str | None = None, *, num_cpus: int | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Connect to a Ray cluster for the duration of the block.

    Joins the cluster at `address`, or else at `RAY_ADDRESS`. Without either, starts a local cluster, which ends with
    the block. Does nothing when this process is already connected. `num_cpus` is the number of CPUs that a local
    cluster offers to tasks and actors; None means the cores that this process may use. `environment` contains
    environment variables that every worker gets in addition to `WORKER_ENV`.
    """
    # Ray is imported inside functions so that `raymill --help` and `raymill plan` do not wait a second for it.
    import ray

    check_no_shadowed_packages()
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("ray._private.authentication.authentication_token_setup").addFilter(_is_not_token_advice)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that progress bars are disabled
    address = cluster_address(address)
    if address == "local":  # a local machine is not preempted, so no process needs to watch for that
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Ray would start workers in advance without the `runtime_env` below, and could never use them for our work.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    activity = "starting Ray" if address == "local" else f"joining the Ray cluster at {address}"
    with show_activity(activity), restore_signal_handlers():
        ray.init(
            address=address,
            num_cpus=num_cpus or num_cores() if address == "local" else None,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": {**WORKER_ENV, **(environment or {})}},
        )
    _session.has_local_cluster = address == "local"
    try:
        yield
    finally:
        _session.has_local_cluster = False
        with show_activity("ending Ray"):
            children = psutil.Process().children(recursive=True) if address == "local" else []
            ray.shutdown()
            _end_ray_processes(children)


def _end_ray_processes(processes: list[psutil.Process]) -> None:
    """Wait until the Ray processes in the list have ended, and kill those that do not end within `_SESSION_END_S`."""
    ray_processes = [process for process in processes if _is_ray_process(process)]
    _, alive = psutil.wait_procs(ray_processes, timeout=_SESSION_END_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _is_ray_process(process: psutil.Process) -> bool:
    """Whether Ray started the process: its program or script is in Ray's package, or Ray has titled it `ray::…`.

    The word `ray` alone says nothing, because the path of the Python interpreter may contain it (`/home/ray`). False if
    the process has ended.
    """
    import ray

    try:
        words = process.cmdline()[:3]
    except psutil.Error:
        return False
    return any(word.startswith("ray::") or f"{Path(ray.__file__).parent}/" in word for word in words)


def check_no_shadowed_packages() -> None:
    """Raises ValueError when a user's file or folder would be imported in place of one of Raymill's packages.

    Ray puts the driver's working directory first on the `sys.path` of its workers. A file `model.py` or a package
    `data/` in that directory would be imported by the workers instead of Raymill's package. A folder `data/` without
    `__init__.py` is not a package and causes no problem.
    """
    raymill_folder, working_dir = Path(__file__).resolve().parent.parent, Path.cwd().resolve()
    for name in RAYMILL_PACKAGES:
        candidates = [working_dir / name / "__init__.py", working_dir / f"{name}.py"]
        shadows = [path for path in candidates if path.exists()] if working_dir != raymill_folder else []
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parent.parent != raymill_folder:
            shadows.insert(0, origin or working_dir / name)
        if shadows:
            raise ValueError(
                f"{shadows[0]} would be imported in place of Raymill's own package {name!r} ({raymill_folder / name}); "
                "rename your file, or start the command from another directory"
            )


def cluster_resources() -> dict[str, float]:
    """Return the total resources of the cluster, whether free or in use: {"CPU": 2.0, "GPU": 8.0, …}."""
    import ray

    return {name: float(amount) for name, amount in ray.cluster_resources().items()}


def is_connected() -> bool:
    """Whether this process is connected to a Ray cluster, through `connect` or in any other way."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def alive_nodes() -> dict[str, str]:
    """Return {node id: address} of all nodes of the cluster that are alive."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def other_alive_nodes() -> dict[str, str]:
    """Return `alive_nodes` without the node that this process runs on."""
    import ray

    own_id = ray.get_runtime_context().get_node_id()
    return {id: address for id, address in alive_nodes().items() if id != own_id}


def options_on_node(id: str, *, soft: bool = False) -> dict[str, Any]:
    """Return options for a Ray task or actor that runs on the node `id` and reserves no resources.

    With `soft` the task or actor may run on another node if the node `id` has left the cluster.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(id, soft=soft)}


def is_local_cluster() -> bool:
    """Whether `connect` started a local cluster in this process. No further nodes join a local cluster."""
    return _session.has_local_cluster


def max_cluster_resources() -> dict[str, float] | None:
    """Return upper bounds of the resources that the cluster can ever have, in the form of `cluster_resources`.

    A local cluster does not grow. Any other cluster may grow up to the limits that its autoscaler has reported to Ray.
    The autoscalers of KubeRay and of Ray itself report limits. Returns None if no limits were reported.
    """
    from ray._private.state import state as ray_state

    current = cluster_resources()
    if is_local_cluster():
        return current
    limits = ray_state.get_max_resources_from_cluster_config()
    if not limits:
        return None
    return current | {name: max(float(amount), current.get(name, 0.0)) for name, amount in limits.items()}
