"""Whether every node of a cluster sees the files of this machine that a run needs: asked of the nodes themselves."""

import os
import uuid
from collections.abc import Sequence

from cluster.storage import Storage


def local_path(url: str) -> str | None:
    """The path on this machine that a URL ends in, also behind a chain (`zip://…::file:///x.zip`); None for none."""
    container = url.rpartition("::")[2]
    if container.startswith(("file://", "local://")):
        return container.partition("://")[2]
    return None if "://" in container else container


def require_visible(store: Storage, sources: Sequence[str]) -> None:
    """Raises ValueError for a plain path, as store or source, that a node which takes work does not see.

    The store is probed with a file that is written for it, sources by their paths.
    """
    paths = sorted({path for url in sources if (path := local_path(url))})
    probe = f".probe-{uuid.uuid4().hex[:12]}"
    if store.is_local:
        store.write_bytes(probe, b"")
        paths.insert(0, store.path(probe))
    try:
        missing = _missing_by_node(paths) if paths else {}
    finally:
        if store.is_local:
            store.remove(probe)
    for node, unseen in missing.items():
        what = f"store: {store.url}" if unseen[0].endswith(probe) else f"source: {unseen[0]}"
        more = f" (and {len(unseen) - 1} more)" if len(unseen) > 1 else ""
        raise ValueError(
            f"{what}{more} is not seen on node {node}: it is a path of another machine; take a URL such as "
            "s3://bucket/path, or a path that all machines mount"
        )


def _missing_by_node(paths: list[str]) -> dict[str, list[str]]:
    """By the node's address, which of the paths are not there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    look = ray.remote(num_cpus=0)(_missing)
    futures = {
        address: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(id, soft=False)).remote(paths)
        for id, address in nodes.items()
    }
    answers = {address: ray.get(future) for address, future in futures.items()}
    return {address: unseen for address, unseen in answers.items() if unseen}


def _missing(paths: list[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]
