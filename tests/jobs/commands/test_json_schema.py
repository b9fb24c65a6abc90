"""The JSON Schemas in configs/schema are those of the dataclasses, and accept and refuse what the loader does."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cluster.storage import Storage
from jobs.commands.json_schema import json_schema, write_schemas
from jobs.frame.config import load_yaml
from jobs.frame.stages import STAGES

CONFIGS = Path(__file__).parents[3] / "configs"
COMMITTED = CONFIGS / "schema"
YAMLS = sorted(CONFIGS.glob("*/*.yaml"))


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((COMMITTED / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def errors(name: str, **values: Any) -> list[str]:
    """The errors of these values by the schema of a config; keys become strings, as in JSON."""
    return [error.message for error in validator(name).iter_errors(json.loads(json.dumps(values)))]


def schema_of(path: Path) -> str:
    """The name of the schema that the first line of a config file gives."""
    line = path.read_text().splitlines()[0]
    prefix = "# yaml-language-server: $schema="
    assert line.startswith(prefix), f"{path}: the first line names no schema"
    schema = path.parent / line.removeprefix(prefix)
    assert schema.resolve().parent == COMMITTED.resolve() and schema.is_file(), f"{path}: no schema at {schema}"
    return schema.stem


def test_the_committed_schemas_are_those_of_the_dataclasses(tmp_path: Path):
    names = write_schemas(Storage(str(tmp_path)), [*STAGES, "pipeline"])
    assert sorted(names) == sorted(path.name for path in COMMITTED.iterdir())
    for name in names:
        assert (tmp_path / name).read_text() == (COMMITTED / name).read_text(), "run `make schemas`"


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_committed_config_is_valid_and_a_misspelt_field_is_not(path: Path):
    name, values = schema_of(path), load_yaml(path)
    assert name == ("corpus" if path.parent.name == "recipes" else path.stem.partition("-")[0])
    assert errors(name, **values) == []
    assert errors(name, **values, sead=1) == ["Additional properties are not allowed ('sead' was unexpected)"]


def test_an_item_of_steps_names_exactly_one_step():
    def steps(*items: object) -> list[str]:
        return errors("corpus", sources=[], steps=items)

    assert (
        steps({"length": {"min_bytes": 3}}, {"toxicity": {}, "keep": 0.5}, {"repetition": {"top_ngrams": {2: 0.2}}})
        == []
    )
    assert steps({}) and steps({"keep": 0.5}) and steps({"length": {}, "toxicity": {}})
    assert steps({"length": None}) and steps({"lenght": {}}) and steps("length")
    assert steps({"repetition": {"top_ngrams": {"two": 0.2}}}) and steps({"length": {"min_bites": 3}})


def test_types_unions_and_choices_are_those_of_the_fields():
    assert errors("pretrain", init=None, mixture={"web": 1, "books": 0.5}, steps=10, optimizer={"lr": 1e-3}) == []
    assert errors("pretrain", steps=1.5) and errors("pretrain", steps=None) and errors("pretrain", mixture={"a": "b"})
    assert errors("pretrain", precision="float16") == ["'float16' is not one of ['auto', 'float32', 'bfloat16']"]
    assert errors("pipeline", environment={"A": None, "B": "b"}) == [] and errors("pipeline", environment={"A": 1})
    assert errors("evaluate", models={"one": "sft"}, compare=[["one", "two"]]) == []


def test_a_tuple_is_a_list():
    @dataclass(frozen=True)
    class Config:
        percentiles: tuple[float, ...] = (50.0,)

    (schema,) = json_schema(Config)["properties"].values()
    assert schema == {"type": "array", "items": {"type": "number"}, "default": (50.0,)}


def test_a_field_without_default_is_required_and_the_others_have_theirs():
    assert errors("corpus") == ["'sources' is a required property"]
    properties = json.loads((COMMITTED / "rlhf.json").read_text())["properties"]
    assert properties["rollouts"]["properties"]["temperature"]["default"] == 1.0
    assert properties["policy"]["default"] == "previous" and "config beside" in properties["policy"]["description"]
    groups = properties["execution"]["properties"]
    shares = {name: groups[name]["properties"]["cpus_per_worker"]["default"] for name in ("learners", "scorer")}
    assert shares == {"learners": 0.5, "scorer": 0.1}
