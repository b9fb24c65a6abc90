"""Raymill's own packages are used in driver and workers, whatever lies in the working directory."""

from pathlib import Path

import pytest
import ray

from cluster.session import connect


@pytest.mark.parametrize("name", ["data/__init__.py", "model.py", "cluster/__init__.py"])
def test_what_would_be_imported_in_place_of_ours_is_refused_before_ray_starts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=rf"{name} would be imported in place of Raymill's own package"), connect():
        pytest.fail("it went on")
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_folder_of_data_and_modules_of_other_names_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data/corpus.txt", "data/document.py", "models.py", "jobs/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('not ours')\n")

    def where() -> str:
        import data.document

        return str(data.document.__file__)

    with connect("local", num_cpus=1):
        assert ray.get(ray.remote(where).remote()) == where()
        assert not Path(where()).is_relative_to(tmp_path)
