"""A path of this machine is recognized behind any chain, and one that a node does not see is refused."""

from pathlib import Path

import pytest

from cluster import visibility
from cluster.storage import Storage
from cluster.visibility import local_path, require_visible


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/data/a.txt", "/data/a.txt"),
        ("file:///data/a.txt", "/data/a.txt"),
        ("zip://a/b.json::file:///data/x.whl", "/data/x.whl"),
        ("zip://a::gzip://b::/data/x.gz", "/data/x.gz"),
        ("s3://bucket/a", None),
        ("zip://a::s3://bucket/x.zip", None),
        ("hf://datasets/a/b", None),
    ],
)
def test_the_path_of_this_machine_is_found_behind_any_chain(url: str, expected: str | None) -> None:
    assert local_path(url) == expected


def test_what_a_node_does_not_see_is_named_with_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def missing_by_node(paths: list[str]) -> dict[str, list[str]]:
        asked.append(paths)
        return {"10.0.0.2": unseen(paths)} if unseen(paths) else {}

    def unseen(paths: list[str]) -> list[str]:
        return [path for path in paths if path in hidden or (hides_store and ".probe-" in path)]

    monkeypatch.setattr(visibility, "_missing_by_node", missing_by_node)
    store = Storage(str(tmp_path / "runs"))
    source = "zip://a.json::file:///data/x.whl"
    hidden, hides_store = {"/data/x.whl"}, False
    with pytest.raises(ValueError, match=r"source: /data/x.whl is not seen on node 10.0.0.2: it is a path of another"):
        require_visible(store, [source, "s3://bucket/a"])
    hides_store = True
    with pytest.raises(ValueError, match=r"store: .*runs.* is not seen on node 10.0.0.2"):
        require_visible(store, [source])
    hidden, hides_store = set(), False
    require_visible(store, [source])
    assert "/data/x.whl" in asked[-1] and len(asked[-1]) == 2
    assert not list((tmp_path / "runs").iterdir())  # the probe is taken away
    require_visible(Storage("memory://runs"), ["s3://bucket/a"])
    assert len(asked) == 3  # nothing to ask
