"""A server that other machines can reach needs an API key, and requests to a local server ignore proxies."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import server
from actors.server import API_KEY_VARIABLE, MODEL_NAME, ServerSettings, ask, is_loopback


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.5", False),
        ("localhost.example.org", False),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_public_host_without_a_key_is_rejected_before_the_server_starts(
    policies: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    monkeypatch.setattr(server, "start_module", lambda *a, **k: pytest.fail("a server was started"))
    with pytest.raises(ValueError, match=f"environment variable {API_KEY_VARIABLE}"):
        server.serve(policies["tied-1"], host="0.0.0.0")


def test_the_key_is_passed_in_the_environment_and_not_on_the_command_line(
    policies: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, Any] = {}

    def start_module(module: str, arguments: list[str], *, environment: dict[str, str], output: Any) -> Any:
        started.update(arguments=arguments, environment=environment)
        raise KeyboardInterrupt

    monkeypatch.setenv(API_KEY_VARIABLE, "a-secret")
    monkeypatch.setattr(server, "start_module", start_module)
    with pytest.raises(KeyboardInterrupt):
        server.serve(policies["tied-1"], host="0.0.0.0", port=1234)
    assert started["environment"]["VLLM_API_KEY"] == "a-secret"
    assert "a-secret" not in " ".join(started["arguments"])
    assert started["arguments"][:2] == ["--model", str(policies["tied-1"])] and "0.0.0.0" in started["arguments"]


def test_a_port_in_use_is_an_error_that_names_the_port(policies: dict[str, Path]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=f"port: {port} on 127.0.0.1 is in use"):
            server.serve(policies["tied-1"], port=port)


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_port_that_does_not_exist_is_an_error(policies: dict[str, Path], port: int) -> None:
    with pytest.raises(ValueError, match=f"port: {port} must be between 1 and 65535"):
        server.serve(policies["tied-1"], port=port)


def test_after_a_failure_the_log_of_a_server_that_is_still_running_is_kept_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start_server(settings: ServerSettings, *, output: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)

    monkeypatch.setattr(server, "_start_server", start_server)
    monkeypatch.setattr(server, "_wait_until_healthy", lambda *arguments: None)
    monkeypatch.setattr(server, "_monitor_engines", lambda process: None)
    monkeypatch.setattr(server, "_DEATH_NOTICE_S", 0.0)
    settings = ServerSettings(folder=Path("/"), port=1, precision="float32")
    with pytest.raises(RuntimeError, match="no answer"), server.running_server(settings):
        raise RuntimeError("no answer")
    (message,) = caplog.messages
    assert "was still running" in message
    log_file = Path(message.partition("; log: ")[2])
    assert log_file.is_file()
    log_file.unlink()


def test_requests_to_the_local_server_ignore_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"completion_tokens": 1, "prompt_tokens": 1, "total_tokens": 2}},
    ]

    class FakeHandler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            common = {"id": "a", "object": "chat.completion.chunk", "created": 0, "model": MODEL_NAME}
            lines = [f"data: {json.dumps(common | chunk)}\n\n" for chunk in chunks]
            self.wfile.write("".join([*lines, "data: [DONE]\n\n"]).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running_process = SimpleNamespace(poll=lambda: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHandler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        settings = ServerSettings(folder=Path("/"), port=http_server.server_address[1], precision="float32")
        server._wait_until_healthy(running_process, settings, lambda: "")  # pyright: ignore[reportArgumentType]
        timed_answer = ask(settings.url, "Hello?", max_new_tokens=1, temperature=0.0, seed=0, timeout_s=5.0)
        assert timed_answer.answer.answer == "Hello"
        http_server.shutdown()
