"""What holds for every test, and what several of them need.

Nothing is sent anywhere, and no test speaks to a W&B or a Ray cluster that a developer is logged in to.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import jsonschema
import pytest

import cluster.tasks
from cluster.session import connect

os.environ["WANDB_MODE"] = "disabled"
os.environ.pop("WANDB_API_KEY", None)
os.environ.pop("RAY_ADDRESS", None)
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="raymill-tests-cache-")  # not the developer's

STILL_RUNNING_S = 8.0 if sys.stderr.isatty() else 25.0
"""How often the tests that run are named, and for how long one must have run."""

SERVER = Path(__file__).parent / "s3_server.py"


class RunningTests:
    """Names the tests that have run for long, in all workers of xdist, so that nobody takes them for hanging."""

    def __init__(self, reporter: Any) -> None:
        self._reporter = reporter
        self._started_s: dict[str, float] = {}
        self._ended = threading.Event()
        threading.Thread(target=self._report, daemon=True).start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._started_s[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._started_s.pop(nodeid, None)

    def pytest_sessionfinish(self) -> None:
        self._ended.set()

    def _report(self) -> None:
        while not self._ended.wait(STILL_RUNNING_S):
            running_s = {nodeid: time.monotonic() - started_s for nodeid, started_s in list(self._started_s.items())}
            for nodeid, seconds in running_s.items():
                if seconds > STILL_RUNNING_S:
                    self._reporter.ensure_newline()
                    self._reporter.write_line(f"{nodeid} runs, {seconds:.0f} s")


def pytest_sessionstart(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:  # none in a worker of xdist
        session.config.pluginmanager.register(RunningTests(reporter))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files that use the shared Ray session last, because tests of other files start sessions of their own."""
    files = {item.path for item in items if "ray_session" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path in files)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of two CPUs inside this process, for all tests that need one."""
    with connect("local", num_cpus=2):
        yield


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage's tasks as with `execution.workers: 0`: one after another in this process."""
    run_in_process = cluster.tasks._run_in_process
    monkeypatch.setattr(
        cluster.tasks, "_run_on_ray", lambda run_task, tasks, workers, label: run_in_process(run_task, tasks)
    )


@dataclass(frozen=True)
class ObjectStore:
    """An S3 server of the test's own."""

    store: str
    """URL of its API."""
    faulty: str
    """URL of the proxy that fails now and then."""

    def faults(self) -> dict[str, int]:
        """How often the proxy did what, and `requests` of all."""
        with urllib.request.urlopen(f"{self.faulty}/-/faults") as answer:
            return json.load(answer)


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    command = [sys.executable, str(SERVER), str(tmp_path_factory.mktemp("s3"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # an instance keeps the endpoint it was made with
    yield ObjectStore(**json.loads(process.stdout.readline()))
    process.stdin.close()
    process.wait(30)


@pytest.fixture
def s3(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://bucket/prefix` of the test's own, through the proxy that fails; also in processes started from now on."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "raymill-test",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_ENDPOINT_URL": object_store.faulty,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return f"s3://raymill-test/{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def rayjob_definition() -> jsonschema.Draft202012Validator:
    """KubeRay's schema of a RayJob, closed: a field that it does not name is an error."""
    schema = json.loads((Path(__file__).parent / "kuberay" / "rayjob.json").read_text())
    return jsonschema.Draft202012Validator(_closed(schema))


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    return closed
