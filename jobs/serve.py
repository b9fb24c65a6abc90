"""serve: serves a model with vLLM's OpenAI-compatible server and asks the model questions.

    raymill run serve serve.yaml

The stage starts the same server as `raymill serve ARTIFACT`, sends it a few questions as any client does, and records
the answers.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from actors.server import ServerSettings, ServeSummary, TimedAnswer, ask, free_port, running_server
from cluster.ignored_settings import reject_ignored
from cluster.placement import Execution
from cluster.progress import show_activity
from cluster.storage import Storage
from jobs.frame.artifact import Artifact
from jobs.frame.fields import input_artifact
from jobs.frame.sizes import weights_gib
from jobs.frame.stage import Context, PlannedInputs, Stage
from jobs.frame.workload import Processes, Workload
from jobs.report.serving import report_serving
from model.precision import Precision, precision_field, require_resolved


@dataclass(frozen=True, kw_only=True)
class ServeExecution(Execution):
    """How the server runs. These settings change no answer, except by rounding."""

    kv_cache_gib: int = 1
    """Size of the KV cache in GiB. Only engines on CPUs use this setting."""
    startup_timeout_s: float = 600.0
    """Seconds to wait for the server to start."""
    request_timeout_s: float = 120.0
    """Seconds to wait for an answer."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """`serve.yaml`."""

    model: str = input_artifact("model", "compressed_model")
    """Model to serve."""
    questions: list[str] = field(default_factory=lambda: ["Hello! How are you today?"])
    """Questions to ask, each in a new chat."""
    max_new_tokens: int = 64
    """Maximum length of an answer, in tokens. A longer answer is truncated."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy decoding."""
    seed: int = 0
    """Sampling seed of every answer."""
    precision: Precision = precision_field(placement="")
    """Precision of the engine. `auto` is bfloat16 if the hardware supports it natively, else float32."""
    execution: ServeExecution = field(default_factory=ServeExecution)


def check(config: ServeConfig) -> None:
    """Raises ValueError for a field out of its range."""
    if not config.questions:
        raise ValueError("questions: add at least one question")
    if config.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: {config.max_new_tokens} must be at least 1")
    if config.temperature < 0:
        raise ValueError(f"temperature: {config.temperature} must be 0 or above")
    if config.temperature == 0:
        reject_ignored(config, "seed", path="", reason="with temperature 0 nothing is sampled")


def check_inputs(config: ServeConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises ValueError when the model's tokenizer has no chat template."""
    require_chat_template(inputs["model"].model)


def require_chat_template(folder: Storage) -> None:
    """Raises ValueError when a model folder has no chat template, as a file or in its tokenizer_config.json."""
    if folder.exists("chat_template.jinja") or (
        folder.exists("tokenizer_config.json") and "chat_template" in folder.read_json("tokenizer_config.json")
    ):
        return
    raise ValueError(
        f"model: the tokenizer in {folder.url} has no chat template, so it cannot be asked questions; "
        "serve a model whose folder has chat_template.jinja, or chat_template in tokenizer_config.json"
    )


def run(config: ServeConfig, context: Context) -> ServeSummary:
    """Start the server on a free local port, ask every question, write answers.json, and stop the server.

    Returns the measured times (`summarize`).
    """
    execution = config.execution
    settings = ServerSettings(
        folder=context.inputs["model"].model.local(),
        port=free_port(),
        precision=require_resolved(config.precision),
        kv_cache_gib=execution.kv_cache_gib,
        startup_timeout_s=execution.startup_timeout_s,
    )
    started = time.monotonic()
    answers: list[TimedAnswer] = []
    with running_server(settings) as url:
        startup_s = time.monotonic() - started
        with show_activity(lambda: f"asking the server: {len(answers)} of {len(config.questions)} questions answered"):
            for question in config.questions:
                answers.append(_ask(config, url, question))
    # The times are not written to answers.json, because they differ from run to run. They are only in the summary.
    context.output.write_json("answers.json", [asdict(timed.answer) for timed in answers])
    summary = summarize(answers, startup_s)
    context.tracker.log(0, {f"serve/{name}": value for name, value in asdict(summary).items()})
    return summary


def _ask(config: ServeConfig, url: str, question: str) -> TimedAnswer:
    return ask(
        url,
        question,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
        timeout_s=config.execution.request_timeout_s,
    )


def summarize(answers: Sequence[TimedAnswer], startup_s: float) -> ServeSummary:
    """Return the summary: `startup_s`, the time in which the server started, and means over the answers.

    `answers` must not be empty.
    """
    seconds = sum(timed.seconds for timed in answers)
    return ServeSummary(
        questions=len(answers),
        startup_s=round(startup_s, 2),
        latency_s=round(seconds / len(answers), 3),
        first_token_s=round(sum(timed.first_token_s for timed in answers) / len(answers), 3),
        tokens_per_s=round(sum(timed.answer.tokens for timed in answers) / seconds, 1),
    )


def workload(config: ServeConfig, planned: PlannedInputs) -> Workload:
    """Return what the forecast of time and memory is computed from.

    The time is that of starting the server, and of generating the answers one after the other.
    """
    return Workload(
        processes=[Processes(kind="server", memory_gib=weights_gib(planned["model"]) + config.execution.kv_cache_gib)],
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
    workload=workload,
    report=report_serving,
)
