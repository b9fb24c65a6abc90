"""Whether every node of a cluster sees the files of this machine that a run needs: asked of the nodes themselves."""

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
class _Run:
    """What every node must see for as long as a run lasts, and the ids of the nodes that do."""

    store: Storage | None = None
    sources: Sequence[str] = ()
    seen_by: set[str] = field(default_factory=set)


_run = _Run()
"""Of this process; without a store outside of one."""


@contextmanager
def require_shared_paths(store: Storage, sources: Sequence[str]) -> Iterator[None]:
    """For as long as the block lasts, every node that takes work must see the store and the sources.

    The nodes that there are now are asked at once, those that join later by `check_new_nodes`. Raises ValueError for a
    plain path that one of them does not see.
    """
    global _run
    before, _run = _run, _Run(store, sources)
    try:
        check_new_nodes()
        yield
    finally:
        _run = before


def check_new_nodes() -> None:
    """Raises ValueError when a node that was not asked before lacks the store or a source of `require_shared_paths`.

    To be called whenever nodes may have joined: without new ones it is one question to the head. It asks nothing
    outside of such a block, nor in a session that was started here, which has the one node.
    """
    if _run.store is None or not is_connected() or is_local_cluster():
        return
    nodes = {id: address for id, address in alive_nodes().items() if id not in _run.seen_by}
    paths = sorted({path for url in _run.sources if (path := local_path(absolute_url(url)))})
    if nodes and (paths or _run.store.is_local):
        with working(f"asking {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} for the store and the sources"):
            _run.seen_by |= _require(_run.store, paths, nodes)


def _require(store: Storage, paths: Sequence[str], nodes: Mapping[str, str]) -> set[str]:
    """The ids of the nodes (id: address) that see the store, probed with a file written for it, and the paths.

    A node that is lost before it answers is in neither. Raises ValueError for the first that does not see something.
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
        what = f"store: {store.url}" if unseen[0].endswith(probe) else f"source: {unseen[0]}"
        more = f" (and {len(unseen) - 1} more)" if len(unseen) > 1 else ""
        raise ValueError(
            f"{what}{more} is not seen on node {nodes[node]}: it is a path of another machine; take a URL such as "
            "s3://bucket/path, or a path that all machines mount"
        )
    return set(answers)


def _missing_by_node(paths: Sequence[str], nodes: Sequence[str]) -> dict[str, list[str]]:
    """By the node's id, which of the paths are not there."""
    import ray
    from ray.exceptions import RayError

    futures = {id: ray.remote(_missing).options(**options_on_node(id)).remote(paths) for id in nodes}
    answers: dict[str, list[str]] = {}
    for id, future in futures.items():
        try:
            answers[id] = ray.get(future)
        except RayError:  # the node is lost again; should it come back, it is asked again
            if id in alive_nodes():
                raise
    return answers


def _missing(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path)]
