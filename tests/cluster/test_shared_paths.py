"""Paths that a node cannot access are an error, also on a node that joins during the run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster import shared_paths
from cluster.shared_paths import check_new_nodes, require_shared_paths
from cluster.storage import Storage


@dataclass
class FakeNodes:
    """Fake nodes. The paths in `hidden` are missing on all of them, and the store on those in `nodes_without_store`."""

    names: list[str] = field(default_factory=lambda: ["10.0.0.1"])
    hidden: set[str] = field(default_factory=set)
    nodes_without_store: set[str] = field(default_factory=set)
    asked: list[tuple[list[str], list[str]]] = field(default_factory=list)

    def alive(self) -> dict[str, str]:
        return {f"id-{name}": name for name in self.names}

    def missing(self, paths: Sequence[str], nodes: Sequence[str]) -> dict[str, list[str]]:
        self.asked.append((list(paths), list(nodes)))
        return {
            id: [
                path for path in paths if path in self.hidden or (id in self.nodes_without_store and ".probe-" in path)
            ]
            for id in nodes
        }


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> FakeNodes:
    fake = FakeNodes()
    monkeypatch.setattr(shared_paths, "is_connected", lambda: True)
    monkeypatch.setattr(shared_paths, "alive_nodes", fake.alive)
    monkeypatch.setattr(shared_paths, "_find_missing", fake.missing)
    return fake


SOURCE = "zip://a.json::file:///data/x.whl"


def test_the_error_names_the_missing_path_and_the_node(tmp_path: Path, nodes: FakeNodes) -> None:
    store = Storage(str(tmp_path / "runs"))
    nodes.hidden = {"/data/x.whl"}
    with (
        pytest.raises(
            ValueError, match=r"source: /data/x.whl does not exist on node 10.0.0.1: it is a local path of another"
        ),
        require_shared_paths(store, [SOURCE, "s3://bucket/a"]),
    ):
        raise AssertionError("the block must not be entered")
    nodes.hidden, nodes.nodes_without_store = set(), {"id-10.0.0.1"}
    with (
        pytest.raises(ValueError, match=r"store: .*runs on node 10.0.0.1 is not the directory of this path"),
        require_shared_paths(store, [SOURCE]),
    ):
        raise AssertionError("the block must not be entered")
    nodes.nodes_without_store = set()
    with require_shared_paths(store, [SOURCE]):
        pass
    assert "/data/x.whl" in nodes.asked[-1][0] and len(nodes.asked[-1][0]) == 2
    assert not list((tmp_path / "runs").iterdir())  # the temporary file is removed


def test_a_node_that_joins_later_is_checked_once(tmp_path: Path, nodes: FakeNodes) -> None:
    with require_shared_paths(Storage(str(tmp_path / "runs")), [SOURCE]):
        check_new_nodes()
        nodes.names.append("10.0.0.2")
        check_new_nodes()
        check_new_nodes()
        assert [asked for _, asked in nodes.asked] == [["id-10.0.0.1"], ["id-10.0.0.2"]]
        nodes.names.append("10.0.0.3")
        nodes.nodes_without_store = {"id-10.0.0.3"}
        with pytest.raises(ValueError, match=r"store: .* on node 10.0.0.3 is not the directory"):
            check_new_nodes()
    nodes.names.append("10.0.0.4")
    check_new_nodes()  # does nothing after the run
    assert len(nodes.asked) == 3


def test_nodes_are_not_checked_for_urls_or_in_a_local_cluster(
    tmp_path: Path, nodes: FakeNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with require_shared_paths(Storage("memory://runs"), ["s3://bucket/a"]):
        pass
    monkeypatch.setattr(shared_paths, "is_local_cluster", lambda: True)
    with require_shared_paths(Storage(str(tmp_path)), [SOURCE]):
        pass
    assert nodes.asked == []
