"""The JSON Schemas in configs/schema are up to date, and accept and reject the same configs as the loader."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cluster.storage import Storage
from jobs.commands.json_schema import json_schema, write_schemas
from jobs.frame.config_loader import load_yaml
from jobs.frame.stages import STAGES

CONFIGS = Path(__file__).parents[3] / "configs"
COMMITTED = CONFIGS / "schema"
YAMLS = sorted(CONFIGS.glob("*/*.yaml"))


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((COMMITTED / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def schema_errors(name: str, **values: Any) -> list[str]:
    """Return the schema's errors for a config with these values. Keys become strings, as in JSON."""
    return [error.message for error in validator(name).iter_errors(json.loads(json.dumps(values)))]


def schema_of(path: Path) -> str:
    """Return the name of the schema in the first line of a config file."""
    line = path.read_text().splitlines()[0]
    prefix = "# yaml-language-server: $schema="
    assert line.startswith(prefix), f"{path}: the first line must name a schema"
    schema = path.parent / line.removeprefix(prefix)
    assert schema.resolve().parent == COMMITTED.resolve() and schema.is_file(), f"{path}: no schema at {schema}"
    return schema.stem


def test_the_committed_schemas_are_up_to_date(tmp_path: Path):
    names = write_schemas(Storage(str(tmp_path)), [*STAGES, "pipeline"])
    assert sorted(names) == sorted(path.name for path in COMMITTED.iterdir())
    for name in names:
        assert (tmp_path / name).read_text() == (COMMITTED / name).read_text(), "run `make schemas`"


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_committed_config_is_valid_and_a_misspelt_field_is_not(path: Path):
    name, values = schema_of(path), load_yaml(path)
    assert name == ("corpus" if path.parent.name == "recipes" else path.stem.partition("-")[0])
    assert schema_errors(name, **values) == []
    assert schema_errors(name, **values, sead=1) == ["Additional properties are not allowed ('sead' was unexpected)"]


def test_an_item_of_steps_must_name_exactly_one_step():
    def step_errors(*items: object) -> list[str]:
        return schema_errors("corpus", sources=[], steps=items)

    assert (
        step_errors(
            {"length": {"min_bytes": 3}}, {"toxicity": {}, "keep": 0.5}, {"repetition": {"top_ngrams": {2: 0.2}}}
        )
        == []
    )
    assert step_errors({}) and step_errors({"keep": 0.5}) and step_errors({"length": {}, "toxicity": {}})
    assert step_errors({"length": None}) and step_errors({"lenght": {}}) and step_errors("length")
    assert step_errors({"repetition": {"top_ngrams": {"two": 0.2}}}) and step_errors({"length": {"min_bites": 3}})


def test_schemas_have_the_types_of_the_fields():
    assert (
        schema_errors("pretrain", init=None, mixture={"web": 1, "books": 0.5}, steps=10, optimizer={"lr": 1e-3}) == []
    )
    assert (
        schema_errors("pretrain", steps=1.5)
        and schema_errors("pretrain", steps=None)
        and schema_errors("pretrain", mixture={"a": "b"})
    )
    assert schema_errors("pretrain", precision="float16") == ["'float16' is not one of ['auto', 'float32', 'bfloat16']"]
    assert schema_errors("pipeline", environment={"A": None, "B": "b"}) == [] and schema_errors(
        "pipeline", environment={"A": 1}
    )
    assert schema_errors("evaluate", models={"one": "sft"}, compare=[["one", "two"]]) == []


def test_a_tuple_is_a_list():
    @dataclass(frozen=True)
    class Config:
        percentiles: tuple[float, ...] = (50.0,)

    (schema,) = json_schema(Config)["properties"].values()
    assert schema == {"type": "array", "items": {"type": "number"}, "default": (50.0,)}


def test_a_field_without_default_is_required_and_other_fields_have_their_default():
    assert schema_errors("corpus") == ["'sources' is a required property"]
    properties = json.loads((COMMITTED / "rlhf.json").read_text())["properties"]
    assert properties["rollouts"]["properties"]["temperature"]["default"] == 1.0
    assert properties["policy"]["default"] == "previous" and "another config" in properties["policy"]["description"]
    groups = properties["execution"]["properties"]
    shares = {name: groups[name]["properties"]["cpus_per_worker"]["default"] for name in ("learners", "scorer")}
    assert shares == {"learners": 0.5, "scorer": 0.1}
