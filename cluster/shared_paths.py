"""Checks that every node of a cluster sees the local paths that a run needs, by asking the nodes themselves."""

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cluster.paths import absolute_url, local_path
from cluster.progress import working
from cluster.session import alive_nodes, is_connected, is_local_cluster, options_on_node
from cluster.storage import Storage


@dataclass
class _Requirement:
    """What every node must see for as long as a run lasts."""

    store: Storage | None = None
    sources: Sequence[str] = ()
    checked_nodes: set[str] = field(default_factory=set)
    """Ids of the nodes that see all of it."""


_requirement = _Requirement()
"""That of the run of this process; without a store when there is none."""


@contextmanager
def require_shared_paths(store: Storage, sources: Sequence[str]) -> Iterator[None]:
    """Within the block, every node that takes work must see the store and the sources.

    The present nodes are checked at once, those that join later by `check_new_nodes`. Raises ValueError for a plain
    path that a node does not see.
    """
    global _requirement
    before, _requirement = _requirement, _Requirement(store, sources)
    try:
        check_new_nodes()
        yield
    finally:
        _requirement = before


def check_new_nodes() -> None:
    """Raises ValueError when a node that was not checked before does not see what `require_shared_paths` requires.

    Call it whenever nodes may have joined: without new ones it costs one question to the head. It does nothing outside
    of such a block, nor in a session that was started here, which has one node.
    """
    if _requirement.store is None or not is_connected() or is_local_cluster():
        return
    nodes = {id: address for id, address in alive_nodes().items() if id not in _requirement.checked_nodes}
    paths = sorted({path for url in _requirement.sources if (path := local_path(absolute_url(url)))})
    if nodes and (paths or _requirement.store.is_local):
        with working(f"asking {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} for the store and the sources"):
            _requirement.checked_nodes |= _require_seen(_requirement.store, paths, nodes)


def _require_seen(store: Storage, paths: Sequence[str], nodes: Mapping[str, str]) -> set[str]:
    """The ids of the nodes (given as id: address) that see the store, probed with a temporary file, and the paths.

    A node that is lost before it answers is left out. Raises ValueError for the first that does not see something.
    """
    probe = f".probe-{uuid.uuid4().hex[:12]}"
    if store.is_local:
        store.write_bytes(probe, b"")
        paths = [store.path(probe), *paths]
    try:
        answers = _missing_by_node(paths, list(nodes))
    finally:
        if store.is_local:
            store.remove(probe)
    for node, unseen in answers.items():
        if not unseen:
            continue
        subject = f"store: {store.url}" if unseen[0].endswith(probe) else f"source: {unseen[0]}"
        others = f" (and {len(unseen) - 1} more)" if len(unseen) > 1 else ""
        raise ValueError(
            f"{subject}{others} is not seen on node {nodes[node]}: it is a path of another machine; take a URL such as "
            "s3://bucket/path, or a path that all machines mount"
        )
    return set(answers)


def _missing_by_node(paths: Sequence[str], nodes: Sequence[str]) -> dict[str, list[str]]:
    """The paths that a node does not see, by the node's id."""
    import ray
    from ray.exceptions import RayError

    futures = {id: ray.remote(_missing).options(**options_on_node(id)).remote(paths) for id in nodes}
    answers: dict[str, list[str]] = {}
    for id, future in futures.items():
        try:
            answers[id] = ray.get(future)
        except RayError:  # the node is lost again; if it comes back, it is checked again
            if id in alive_nodes():
                raise
    return answers


def _missing(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]
