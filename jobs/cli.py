"""The command line: `raymill run|plan|submit …`.

Each command has a function of its name, such as `_run`. To follow the code from here to the loss, read
`jobs/<stage>.py` next, then `model/train.py`.
"""

import argparse
import logging
import select
import signal
import sys
import textwrap
import traceback
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cluster.failures import JobFailed
from cluster.progress import LogHandler, show_activity
from cluster.signals import StoppedBySignal, flush_output, orderly_shutdown, received_signal, write_stderr
from cluster.storage import Storage
from cluster.worker_errors import traceback_text
from jobs.commands.show import describe_artifact, list_artifacts
from jobs.commands.submitted_run import private_working_directory, reporting_run_status
from jobs.frame.artifact import RECORD, Artifact, open_artifact
from jobs.frame.forecast import forecast_jobs
from jobs.frame.forecast_table import forecast_table
from jobs.frame.kinds import HUGGING_FACE_KINDS
from jobs.frame.pipeline import Pipeline, find_errors, load
from jobs.frame.pipeline_config import find_pipeline_config
from jobs.frame.pipeline_run import run_pipeline
from jobs.frame.plan import plan, plan_table
from jobs.frame.same_code import require_same_code
from jobs.frame.shortages import find_shortages
from jobs.frame.stages import STAGES
from jobs.frame.token_table import check_token_table

log = logging.getLogger("raymill")

_CLUSTER_HELP = "the Ray cluster to join (default: RAY_ADDRESS; without either a local one is started)"
_DASHBOARD_DEFAULT = "RAY_API_SERVER_ADDRESS, or else RAY_ADDRESS"

_RESUMES = "the same command resumes from here"
_AFTER_SIGNAL = {
    "run": _RESUMES,
    "forget": _RESUMES,
    "submit": "a job that was already submitted keeps running; the same command finds it again",
    "logs": "the job continues; the same command follows it again, and `raymill stop` ends it",
    "serve": "the server has ended",
}
"""Name of a command -> what is printed when a signal stops the command. For other commands, only the signal is
printed."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code of this process.

    The code is 0 after success, 1 after a failure, and 128 + N when signal N stopped the command. It is 2 for a
    ValueError: invalid input, a cluster that cannot be reached or is too small, or documents that could not be
    forgotten. The commands `logs` and `submit` may also return the exit code of a submitted job.

    `arguments` are the words after `raymill`; None means those of this process (`sys.argv`).
    """
    options = parse(arguments)
    logging.basicConfig(
        format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, handlers=[LogHandler()]
    )
    for noisy in ("httpx", "httpx2", "botocore", "aiobotocore", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with orderly_shutdown():
        code = _run_command(options)
    flush_output()
    return code


def _run_command(options: argparse.Namespace) -> int:
    try:
        code = options.command(options)
    except ValueError as error:
        if options.traceback:
            log.error("traceback of the error:", exc_info=True)
        write_stderr(f"raymill: {error}")
        return 2
    except KeyboardInterrupt as stop:
        number = received_signal() or signal.SIGINT
        consequence = f"; {_AFTER_SIGNAL[options.name]}" if options.name in _AFTER_SIGNAL else ""
        detail = f": {stop}" if isinstance(stop, StoppedBySignal) else ""
        write_stderr(f"raymill: stopped by {number.name}{consequence}{detail}")
        return 128 + number
    except Exception as error:
        # The reader of stdout has ended before this process, as in `raymill ls | head`.
        if isinstance(error, BrokenPipeError) and _is_stdout_closed():
            return 128 + signal.SIGPIPE
        if not _is_runtime_failure(error):
            raise
        write_stderr(_failure_message(error, options))
        return 1
    return code or 0


def _failure_message(error: Exception, options: argparse.Namespace) -> str:
    detail = error.detail if isinstance(error, JobFailed) else traceback_text(error)
    if options.traceback:
        detail = "".join(traceback.format_exception(error))
    remedy = "The same command resumes from the last finished stage or checkpoint." if options.name == "run" else ""
    return "\n".join(filter(None, [f"raymill: {error}", textwrap.indent(detail.strip(), "    "), remedy]))


def _is_stdout_closed() -> bool:
    """Return whether the program that reads the stdout of this process has closed it."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, 0)
    except (OSError, ValueError):  # stdout is no file of the operating system, as in a test that captures it
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _is_runtime_failure(error: Exception) -> bool:
    """Return whether the error came from a worker, the system or the cluster.

    The user then gets a message. Any other error is a bug in Raymill and is raised with a traceback.
    """
    if isinstance(error, (RuntimeError, OSError)):
        return True
    if "ray" not in sys.modules:  # Ray was never imported, so the error is not one of Ray's
        return False
    from ray.exceptions import RayError

    return isinstance(error, RayError)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse a command line.

    `arguments` are the words after `raymill`; None means those of this process (`sys.argv`).

    Overrides may come before and after options such as `--store`. argparse returns those after an option as unparsed
    words.
    """
    parser = _parser()
    options, unparsed = parser.parse_known_args(arguments)
    if unparsed and (not hasattr(options, "overrides") or any(word.startswith("-") for word in unparsed)):
        parser.error(f"unrecognized arguments: {' '.join(unparsed)}")
    if unparsed:
        options.overrides += unparsed
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raymill",
        description="Makes an aligned, evaluated, compressed and served language model from raw text, on Ray.\n"
        f"Stages: {', '.join(STAGES)}.",
        epilog="example:\n  raymill plan pipeline configs/tiny/pipeline.yaml\n"
        "  raymill run pipeline configs/tiny/pipeline.yaml pretrain.steps=200\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error was raised")
    parser.add_argument("--version", action="version", version=version("raymill"))
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_stage_commands(commands)
    _add_artifact_commands(commands)
    _add_job_commands(commands)
    return parser


def _add_command(commands: Any, name: str, function: object, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=function, name=name)
    return parser


def _add_stage_commands(commands: Any) -> None:
    """Add the commands that take a stage and its config, and the command `fields`, which takes only a stage."""
    for name, function, text in (
        ("plan", _plan, "show what is finished, what would run, what it would cost, and every error in the configs"),
        ("run", _run, "run a stage, or all stages of a pipeline that are not finished"),
        ("submit", _submit, "submit the run as a job to a Ray cluster"),
        ("manifest", _manifest, "print the Kubernetes objects that run the pipeline on KubeRay"),
    ):
        parser = _add_command(commands, name, function, text)
        parser.add_argument("stage", help=f"{', '.join(STAGES)}, or pipeline")
        parser.add_argument("config", help="its YAML file, such as configs/tiny/pipeline.yaml")
        parser.add_argument(
            "overrides",
            nargs="*",
            help="field=value, or stage.field=value when the stage is `pipeline`",
            metavar="a.b=c",
        )
        parser.add_argument("--store", help="where artifacts are written (default: `store` in pipeline.yaml)")
        if name == "manifest":
            parser.add_argument(
                "--cluster", default="k8s/cluster.yaml", help="image and sizes of the pods (default: k8s/cluster.yaml)"
            )
        elif name == "submit":
            parser.add_argument("--address", help=f"dashboard of the Ray cluster (default: {_DASHBOARD_DEFAULT})")
        else:
            parser.add_argument("--address", help=_CLUSTER_HELP)
    parser = _add_command(commands, "fields", _fields, "print every field of a stage's config, with type and default")
    parser.add_argument("stage", nargs="?", help=f"{', '.join(STAGES)}, or pipeline")
    parser.add_argument("--schema", help="write JSON Schemas for editors into this folder instead", metavar="FOLDER")


def _add_artifact_commands(commands: Any) -> None:
    """Add the commands that take a store or an artifact."""
    parser = _add_command(commands, "ls", _ls, "list the artifacts of a store")
    parser.add_argument("store", nargs="?", help="default: runs")
    parser = _add_command(commands, "show", _show, "print an artifact's results, its inputs and its source files")
    parser.add_argument("artifact", help="its folder, such as runs/tiny/pretrain-0123456789ab")
    parser = _add_command(
        commands, "trace", _trace, "show where a document came from, whether it was kept, and its tokens"
    )
    parser.add_argument("store")
    parser.add_argument("document", help="its id, SOURCE/…", metavar="ID")
    parser = _add_command(commands, "forget", _forget, "remove documents from every corpus and all shards of a store")
    parser.add_argument("store")
    parser.add_argument("documents", nargs="+", help="their ids, SOURCE/…", metavar="ID")
    parser.add_argument("--address", help=_CLUSTER_HELP)
    parser = _add_command(commands, "export", _export, "copy a model out of the store as a Hugging Face folder")
    parser.add_argument("artifact", help="its folder")
    parser.add_argument("directory")
    parser = _add_command(commands, "serve", _serve, "serve a model with vLLM through an OpenAI-compatible API")
    parser.add_argument("artifact", help="its folder, or a Hugging Face folder")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")


def _add_job_commands(commands: Any) -> None:
    """Add the commands that take the id of a submitted job."""
    for name, function, text in (
        ("status", _status, "print the status of a job, even when its cluster is gone"),
        ("logs", _logs, "follow the log of a job, and exit with its exit code"),
        ("stop", _stop, "stop a job"),
    ):
        parser = _add_command(commands, name, function, text)
        parser.add_argument("id", help="the id that submit printed")
        if name != "stop":
            parser.add_argument(
                "--store", help="where its artifacts are written (default: the store given to `raymill submit`)"
            )
        parser.add_argument(
            "--address",
            help="dashboard of the Ray cluster (default: the address given to `raymill submit`, or else "
            f"{_DASHBOARD_DEFAULT})",
        )


def _plan(options: argparse.Namespace) -> None:
    pipeline = _load(options)
    with show_activity("estimating what would run"):
        rows = plan(pipeline)
        forecasts = forecast_jobs(pipeline.jobs, pipeline.store, address=options.address)
    for line in plan_table(rows):
        print(line)
    if forecasts:
        print("", *forecast_table(forecasts), sep="\n")
    errors = find_errors(pipeline) + find_shortages(pipeline, forecasts, address=options.address)
    try:
        pipeline.store.check_writable()
    except ValueError as error:
        errors.append(str(error))
    for error in errors:
        print(f"error        {error}")
    if errors:
        raise ValueError(f"{len(errors)} error{'' if len(errors) == 1 else 's'} to correct first; see above")


def _run(options: argparse.Namespace) -> None:
    with reporting_run_status(options.store) as on_begin:
        require_same_code()  # in a submitted job, this code must equal that of the machine that submitted the job
        pipeline = _load(options)
        with private_working_directory():
            artifacts = run_pipeline(pipeline, address=options.address, on_begin=on_begin)
        _print_results(options, pipeline, artifacts)


def _load(options: argparse.Namespace) -> Pipeline:
    with show_activity(f"reading {options.config} and the files that it names"):
        return load(options.stage, Path(options.config), options.overrides, store=options.store)


def _print_results(options: argparse.Namespace, pipeline: Pipeline, artifacts: Sequence[Artifact]) -> None:
    width = max([12, *map(len, pipeline.jobs)])
    for name, artifact in zip(pipeline.jobs, artifacts, strict=True):
        print(f"{name:<{width}} {artifact.storage.url}")
    if options.stage == "pipeline":
        from jobs.report.report import REPORT, build_report  # imported here because only a pipeline has a report

        # If the command left out stages of the file, its report does not replace the report of all stages.
        is_partial = not set(find_pipeline_config(options.stage, Path(options.config)).stages) <= set(pipeline.jobs)
        file = f"report-{'-'.join(pipeline.jobs)}.html" if is_partial else REPORT
        with show_activity("drawing the report"):
            build_report(artifacts, pipeline.store, file)
        print(f"{'report':<{width}} {pipeline.store.url}/{file}")


def _submit(options: argparse.Namespace) -> int:
    from cluster.submission import dashboard_address  # imported here because it takes a second
    from cluster.wandb_mirror import wandb_link
    from jobs.commands.submit import find_submission, follow_start, submit

    result = submit(
        options.stage, Path(options.config), options.overrides, store=options.store, address=options.address
    )
    id = result.submission.id
    write_stderr(f"job {id}: {result.outcome}")
    if dashboard := dashboard_address(options.address):
        write_stderr(f"dashboard: {dashboard}/#/jobs/{id}")
    if link := wandb_link(Path(options.config).parent.name):
        write_stderr(f"W&B: {link}")
    print(id, flush=True)
    submission, store = find_submission(id, address=options.address, store=options.store)
    assert store is not None
    report = follow_start(submission, store)
    if report.has_failed:
        write_stderr(f"raymill: {report.describe_outcome()}")
        return report.exit_code
    write_stderr("\n".join(filter(None, [f"{report.status}: {report.message}", report.format_run_status()])))
    return 0


def _manifest(options: argparse.Namespace) -> None:
    from jobs.commands.manifest import render_manifest

    manifest = render_manifest(
        options.stage,
        Path(options.config),
        options.overrides,
        store=options.store,
        cluster=Path(options.cluster),
    )
    print(manifest, end="")


def _fields(options: argparse.Namespace) -> None:
    from jobs.commands.fields import describe
    from jobs.commands.json_schema import write_schemas

    if options.schema:
        names = write_schemas(Storage(options.schema), [options.stage] if options.stage else (*STAGES, "pipeline"))
        print("\n".join(f"{options.schema}/{name}" for name in names))
    elif options.stage:
        print(describe(options.stage))
    else:
        raise ValueError(f"fields: name a stage ({', '.join(STAGES)}), or pipeline")


def _ls(options: argparse.Namespace) -> None:
    print("\n".join(list_artifacts(Storage(options.store or "runs"))))


def _show(options: argparse.Namespace) -> None:
    print("\n".join(describe_artifact(_open_artifact(options.artifact))))


def _trace(options: argparse.Namespace) -> None:
    from jobs.commands.trace import trace

    with show_activity(f"looking for {options.document} in {options.store}"):
        lines = list(trace(Storage(options.store), options.document))
    print("\n".join(lines))


def _forget(options: argparse.Namespace) -> None:
    from jobs.commands.forget import forget

    with show_activity(f"forgetting in {options.store}"):
        result = forget(Storage(options.store), options.documents, address=options.address)
    for name in result.changed:
        print(f"forgot       {options.store}/{name}")
    if not result.changed and not result.failed:
        print(f"no artifact in {options.store} contains any of these documents")
    for name in result.derived:
        print(f"not changed  {name}: it was built from an artifact that contained these documents")
    if result.failed:
        raise ValueError(
            "\n".join(f"{name} may still contain a document: {reason}" for name, reason in result.failed.items())
        )


def _export(options: argparse.Namespace) -> None:
    artifact = _open_model(options.artifact)
    target = Storage(options.directory)
    if target.exists("config.json"):
        raise ValueError(f"{options.directory} already contains a model; choose another directory")
    target.put_folder(artifact.model.local())
    print(options.directory)


def _serve(options: argparse.Namespace) -> None:
    from actors.server import serve  # imported here because other commands do not need it

    serve(_open_model(options.artifact).model.local(), host=options.host, port=options.port)


def _open_model(location: str) -> Artifact:
    artifact = _open_artifact(location)
    if artifact.kind not in HUGGING_FACE_KINDS:
        raise ValueError(
            f"{artifact.id} is a {artifact.kind}, not a model; pass the folder of a {' or '.join(HUGGING_FACE_KINDS)}"
        )
    check_token_table(artifact)
    return artifact


def _open_artifact(location: str) -> Artifact:
    artifact = open_artifact(location)
    if artifact is None:
        raise ValueError(
            f"{location!r} is not a finished artifact: it has no {RECORD}; `raymill ls STORE` lists the finished ones"
        )
    return artifact


def _status(options: argparse.Namespace) -> None:
    from cluster.submission import query_job
    from jobs.commands.submit import find_submission

    report = query_job(*find_submission(options.id, address=options.address, store=options.store))
    print(
        "\n".join(
            filter(None, [report.status, "" if report.is_known_to_head else report.message, report.format_run_status()])
        )
    )


def _logs(options: argparse.Namespace) -> int:
    from cluster.submission import HeadFailed, query_job
    from jobs.commands.submit import find_submission

    submission, store = find_submission(options.id, address=options.address, store=options.store)
    log_error = ""
    try:
        for lines in submission.logs():
            print(lines, end="", flush=True)
    except (HeadFailed, ValueError) as error:
        log_error = str(error)
    report = query_job(submission, store)
    if log_error and report.is_known_to_head:
        write_stderr(f"raymill: {log_error}")
    elif log_error:
        report = replace(report, message=log_error)
    write_stderr(f"raymill: {report.describe_outcome(is_log_shown=not log_error)}")
    return report.exit_code


def _stop(options: argparse.Namespace) -> None:
    from jobs.commands.submit import find_submission

    print(find_submission(options.id, address=options.address, store=None).submission.stop())


if __name__ == "__main__":
    sys.exit(main())
