"""What holds for every test, and what several of them need.

Nothing is sent anywhere, and no test speaks to a W&B or a Ray cluster that a developer is logged in to.
"""

import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

os.environ["WANDB_MODE"] = "disabled"
os.environ.pop("WANDB_API_KEY", None)
os.environ.pop("RAY_ADDRESS", None)

DEFINITIONS = Path(__file__).parents[2] / "shared" / "data" / "kuberay-crds-v1.7.0"


@pytest.fixture(scope="session")
def rayjob_definition() -> jsonschema.Draft202012Validator:
    """KubeRay's schema of a RayJob, closed: a field that it does not name is an error."""
    path = DEFINITIONS / "ray.io_rayjobs.yaml"
    if not path.exists():
        pytest.skip("KubeRay's definitions are not beside the project (../shared/data/kuberay-crds-v1.7.0)")
    loaded = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    (served,) = [one for one in loaded["spec"]["versions"] if one["name"] == "v1"]
    return jsonschema.Draft202012Validator(_closed(served["schema"]["openAPIV3Schema"]))


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(value) for key, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema and "additionalProperties" not in schema:
        made["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made
