"""Checks that every node of a cluster can access the local paths that a run needs, by a task on each node."""

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cluster.paths import absolute_url, local_path
from cluster.progress import show_activity
from cluster.session import alive_nodes, is_connected, is_local_cluster, options_on_node
from cluster.storage import Storage


@dataclass
class _SharedPaths:
    """The paths that every node must be able to access while a run lasts."""

    store: Storage | None = None
    """The store of the run; None while no run is active."""
    sources: Sequence[str] = ()
    """URLs of the source files."""
    checked_nodes: set[str] = field(default_factory=set)
    """Ids of the nodes that were checked and can access all paths."""


_shared_paths = _SharedPaths()
"""The paths of the run in this process."""


@contextmanager
def require_shared_paths(store: Storage, sources: Sequence[str]) -> Iterator[None]:
    """Require within the block that every node of the cluster can access the store and the sources.

    The nodes that are in the cluster now are checked at once. `check_new_nodes` checks the nodes that join later.
    Raises ValueError when a node cannot access a local path.
    """
    global _shared_paths
    previous, _shared_paths = _shared_paths, _SharedPaths(store, sources)
    try:
        check_new_nodes()
        yield
    finally:
        _shared_paths = previous


def check_new_nodes() -> None:
    """Check the nodes that have joined the cluster since the last check.

    Raises ValueError when such a node cannot access a path of `require_shared_paths`. Call this function whenever nodes
    may have joined; without new nodes it only lists the nodes. Does nothing outside of `require_shared_paths`, if this
    process is not connected to Ray, and in a local cluster, which has one node.
    """
    if _shared_paths.store is None or not is_connected() or is_local_cluster():
        return
    nodes = {id: address for id, address in alive_nodes().items() if id not in _shared_paths.checked_nodes}
    paths = sorted({path for url in _shared_paths.sources if (path := local_path(absolute_url(url)))})
    if nodes and (paths or _shared_paths.store.is_local):
        with show_activity(
            f"checking that {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} can access the store and the sources"
        ):
            _shared_paths.checked_nodes |= _check_nodes(_shared_paths.store, paths, nodes)


def _check_nodes(store: Storage, paths: Sequence[str], nodes: Mapping[str, str]) -> set[str]:
    """Check that nodes can access the store and the paths. Returns the ids of the nodes that were checked.

    `nodes` is {node id: address}. If the store is local, this process writes a temporary file into it, which every node
    must see. A node that leaves the cluster before it answers is not among the returned ids. Raises ValueError when a
    node cannot access a path.
    """
    probe = f".probe-{uuid.uuid4().hex[:12]}"
    if store.is_local:
        store.write_bytes(probe, b"")
        paths = [store.path(probe), *paths]
    try:
        missing_by_node = _find_missing(paths, list(nodes))
    finally:
        if store.is_local:
            store.remove(probe)
    for id, missing in missing_by_node.items():
        if not missing:
            continue
        remedy = "use a URL such as s3://bucket/path, or a path that all machines mount"
        if missing[0].endswith(probe):  # The node may have another directory of this path.
            raise ValueError(
                f"store: {store.url} on node {nodes[id]} is not the directory of this path on the driver's node; "
                f"{remedy}"
            )
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ValueError(
            f"source: {missing[0]}{others} does not exist on node {nodes[id]}: it is a local path of another machine; "
            f"{remedy}"
        )
    return set(missing_by_node)


def _find_missing(paths: Sequence[str], node_ids: Sequence[str]) -> dict[str, list[str]]:
    """Return {node id: paths that do not exist on the node}, without the nodes that have left the cluster."""
    import ray
    from ray.exceptions import RayError

    futures = {id: ray.remote(_missing_here).options(**options_on_node(id)).remote(paths) for id in node_ids}
    missing_by_node: dict[str, list[str]] = {}
    for id, future in futures.items():
        try:
            missing_by_node[id] = ray.get(future)
        except RayError:  # the node has left the cluster; if it joins again, it is checked again
            if id in alive_nodes():
                raise
    return missing_by_node


def _missing_here(paths: Sequence[str]) -> list[str]:
    """Return the paths that do not exist on the node of this process."""
    return [path for path in paths if not os.path.exists(path)]
