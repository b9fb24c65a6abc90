"""As much of a W&B server as the client needs, for tests: it keeps each run's history, or misbehaves as it is told."""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal


@dataclass
class Server:
    """What was sent, by run."""

    url: str = ""
    behaviour: Literal["good", "unauthorized", "crashing"] = "good"
    """crashing gives an answer that ends wandb-core 0.31 (a nil pointer in its uploader)."""
    history: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    """By run and offset: a line that is sent again under its offset replaces the first."""
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """System metrics by run."""
    summaries: dict[str, str] = field(default_factory=dict)
    refused_s: float | None = None
    """When a key was first refused."""

    def steps(self, run: str) -> list[float]:
        """The steps that the run has, in the order of its lines."""
        return [line["step"] for _, line in sorted(self.history.get(run, {}).items()) if "step" in line]

    def labels(self, run: str) -> set[str]:
        """Of the clients that have sent system metrics of the run, which W&B tells apart by what follows `/l:`."""
        keys = [key for line in self.events.get(run, []) for key in line]
        return {key.partition("/l:")[2] for key in keys if "/l:" in key}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        name, variables = request.get("operationName"), request.get("variables") or {}
        if name == "RunResumeStatus":
            return {"model": {"id": "m", "name": "p", "bucket": self.bucket(variables["name"])}}
        if name == "UpsertBucket":
            run = variables["name"]
            if variables.get("state") != "finished" and not self.history.get(run):
                self.history.setdefault(run, {})
            project = {"id": "p", "name": "raymill", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": run, "displayName": run, "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}
        if name == "CreateRunFiles" and self.behaviour == "good":
            files = [{"name": file, "uploadUrl": f"{self.url}/put/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    def bucket(self, run: str) -> dict[str, Any] | None:
        if run not in self.history:
            return None
        lines = [json.dumps(line) for _, line in sorted(self.history[run].items())]
        return {
            "id": "b",
            "name": run,
            "displayName": run,
            "summaryMetrics": self.summaries.get(run, "{}"),
            "logLineCount": 0,
            "historyLineCount": len(lines),
            "eventsLineCount": 0,
            "historyTail": json.dumps(lines[-1:]),
            "eventsTail": "[]",
            "config": "{}",
            "tags": [],
            "notes": None,
            "wandbConfig": '{"t": 1}',
        }

    def stream(self, run: str, body: dict[str, Any]) -> None:
        for name, part in body.get("files", {}).items():
            if name == "wandb-history.jsonl":
                for number, line in enumerate(part["content"], start=part["offset"]):
                    self.history.setdefault(run, {})[number] = json.loads(line)
            elif name == "wandb-summary.json":
                self.summaries[run] = part["content"][-1]
            elif name == "wandb-events.jsonl":
                self.events.setdefault(run, []).extend(map(json.loads, part["content"]))


@contextmanager
def serving(behaviour: Literal["good", "unauthorized", "crashing"] = "good") -> Iterator[Server]:
    """A server on a free loopback port for as long as the block lasts."""
    server = Server(behaviour=behaviour)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if server.behaviour == "unauthorized":
                server.refused_s = server.refused_s or time.time()
                return self.reply(401, {"errors": [{"message": "user is not logged in"}]})
            if self.path == "/graphql":
                return self.reply(200, {"data": server.answer(json.loads(body))})
            if self.path.endswith("/file_stream"):
                server.stream(self.path.split("/")[4], json.loads(body))
            return self.reply(200, {})

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.reply(200, {})

        def do_GET(self) -> None:
            self.reply(404, {})

        def reply(self, code: int, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
