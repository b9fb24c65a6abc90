"""The command line: `raymill run|plan|submit …`. From here to the loss: `jobs/<stage>.py`, then `model/train.py`."""

import argparse
import logging
import os
import select
import shutil
import signal
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from cluster.failures import WorkFailed
from cluster.progress import LogHandler, working
from cluster.signals import StoppedBySignal, flush_output, orderly_shutdown, received_signal, write_stderr
from cluster.storage import Storage
from cluster.submission_status import SUBMISSION_VARIABLE, reporting_status, require_same_store
from cluster.worker_errors import traceback_text
from jobs.frame.artifact import RECORD, Artifact, open_artifact
from jobs.frame.forecast import forecasts, table
from jobs.frame.kinds import HUGGING_FACE_KINDS
from jobs.frame.pipeline import Pipeline, find_errors, find_shortages, load_pipeline, load_stage, plan, run_pipeline
from jobs.frame.same_code import require_same_code
from jobs.frame.stages import STAGES

log = logging.getLogger("raymill")

_GOES_ON = "the same command goes on from here"
_AFTER_A_SIGNAL = {
    "run": _GOES_ON,
    "forget": _GOES_ON,
    "submit": "what was sent goes on, and the same command finds it",
    "logs": "the job goes on; the same command follows it again, and `raymill stop` ends it",
    "serve": "the server has ended",
}
"""What became of a command's work, by its name; where nothing needs to be said the command is not in it."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when it succeeded, 2 for a mistake of the user, 1 when the work failed, 128 + the number of
    the signal that stopped it."""
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
            log.error("refused", exc_info=True)
        write_stderr(f"raymill: {error}")
        return 2
    except KeyboardInterrupt as stop:
        number = received_signal() or signal.SIGINT
        rest = f"; {_AFTER_A_SIGNAL[options.name]}" if options.name in _AFTER_A_SIGNAL else ""
        where = f": {stop}" if isinstance(stop, StoppedBySignal) else ""
        write_stderr(f"raymill: stopped by {number.name}{rest}{where}")
        return 128 + number
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_output_gone():  # `raymill ls | head` has seen enough
            return 128 + signal.SIGPIPE
        if not _is_failure_of_work(error):
            raise
        detail = error.detail if isinstance(error, WorkFailed) else traceback_text(error)
        if options.traceback:
            detail = "".join(traceback.format_exception(error))
        goes_on = (
            "The same command goes on from the last finished stage or checkpoint." if options.name == "run" else ""
        )
        write_stderr("\n".join(filter(None, [f"raymill: {error}", textwrap.indent(detail.strip(), "    "), goes_on])))
        return 1
    return code or 0


def _is_output_gone() -> bool:
    """Whether nobody reads stdout any more."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, 0)
    except (OSError, ValueError):  # it is no file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _is_failure_of_work(error: Exception) -> bool:
    """Whether it is of the kinds that work fails with, rather than a mistake in this program."""
    if isinstance(error, (RuntimeError, OSError)):
        return True
    if "ray" not in sys.modules:  # a command that has not used Ray need not wait a second for it
        return False
    from ray.exceptions import RayError

    return isinstance(error, RayError)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of one command; overrides may stand before and after `--store` and the like."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _load(options: argparse.Namespace) -> Pipeline:
    load = load_pipeline if options.stage == "pipeline" else lambda *a, **k: load_stage(options.stage, *a, **k)
    with working(f"reading {options.config} and what it names"):
        return load(Path(options.config), options.overrides, store=options.store)


def _run(options: argparse.Namespace) -> None:
    with _telling(options.store) as begin:
        require_same_code()
        pipeline = _load(options)
        with _own_working_directory():
            artifacts = run_pipeline(pipeline, address=options.address, on_begin=begin)
        _print_results(options, pipeline, artifacts)


@contextmanager
def _own_working_directory() -> Iterator[None]:
    """In a submitted job, work in a copy of the folder that came with it.

    When a node joins on the driver's machine, Ray unpacks the package anew and removes it below whoever stands in it.
    """
    if not os.environ.get(SUBMISSION_VARIABLE):
        yield
        return
    sent = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="raymill-job-", ignore_cleanup_errors=True) as own:
        shutil.copytree(sent, own, dirs_exist_ok=True)
        os.chdir(own)
        try:
            yield
        finally:
            os.chdir(sent)


def _print_results(options: argparse.Namespace, pipeline: Pipeline, artifacts: list[Artifact]) -> None:
    for artifact in artifacts:
        print(f"{artifact.stage:<12} {artifact.storage.url}")
    if options.stage == "pipeline":
        from jobs.report.report import build_report  # late: only the pipeline draws one

        with working("drawing the report"):
            build_report(artifacts, pipeline.store)
        print(f"report       {pipeline.store.url}/report.html")


def _telling(store: str | None) -> AbstractContextManager[Callable[[], None]]:
    """Keeps the ledger of a submitted run, whose command always names the store, from before anything is refused."""
    id = os.environ.get(SUBMISSION_VARIABLE)
    if id is None or store is None:
        return nullcontext(lambda: None)
    require_same_store(Storage(store), id)
    return reporting_status(Storage(store), id)


def _plan(options: argparse.Namespace) -> None:
    pipeline = _load(options)
    with working("estimating what would run"):
        rows, expected = plan(pipeline), forecasts(pipeline.jobs, pipeline.store, address=options.address)
    for row in rows:
        estimate = "  ".join(f"{name} {amount:,.4g}" for name, amount in row.estimate.items())
        print(f"{row.name:<12} {row.id:<28} {row.state:<10} {row.placement:<24} {row.precision:<9} {estimate}")
    if expected:
        print("", *table(expected), sep="\n")
    errors = find_errors(pipeline) + find_shortages(pipeline, expected, address=options.address)
    try:
        pipeline.store.check_writable()
    except ValueError as error:
        errors.append(str(error))
    for error in errors:
        print(f"error        {error}")
    if errors:
        raise ValueError(f"{len(errors)} mistakes to mend first; see above")


def _artifact(location: str) -> Artifact:
    artifact = open_artifact(location)
    if artifact is None:
        raise ValueError(f"{location!r} is no whole artifact: it has no {RECORD}; `raymill ls STORE` lists what stands")
    return artifact


def _ls(options: argparse.Namespace) -> None:
    store = Storage(options.store or "runs")
    records = sorted(
        (store.read_json(name) for name in store.glob(f"*/{RECORD}")), key=lambda record: record["started"]
    )
    if not records:
        print(f"nothing stands in {store.url}")
    for record in records:
        print(f"{record['id']:<28} {record['wall_s']:>8.1f} s  {store.url}/{record['id']}")


def _show(options: argparse.Namespace) -> None:
    artifact = _artifact(options.artifact)
    for name, value in artifact.summary.items():
        if isinstance(value, (int, float, str)):
            print(f"{name}: {value}")
    print()
    _show_lineage(artifact, indent="", shown=set())


def _show_lineage(artifact: Artifact, indent: str, shown: set[str]) -> None:
    """The artifact, its source files, and what it was made from, each told once."""
    if artifact.id in shown:
        print(f"{indent}{artifact.id}  (above)")
        return
    shown.add(artifact.id)
    print(f"{indent}{artifact.id}  {artifact.storage.url}")
    for path, files in artifact.record.sources.items():
        for url, content in files.items():
            print(f"{indent}    {path}: {url}  {content[:19]}")
    for path, need in artifact.record.inputs.items():
        print(f"{indent}    {path}:")
        upstream = open_artifact(need.url)
        if upstream is None:
            print(f"{indent}      {need.id}  (no longer at {need.url})")
        else:
            _show_lineage(upstream, indent + "      ", shown)


def _model_artifact(location: str) -> Artifact:
    artifact = _artifact(location)
    if artifact.kind not in HUGGING_FACE_KINDS:
        raise ValueError(f"{artifact.id} is a {artifact.kind}, not a model; take a {' or '.join(HUGGING_FACE_KINDS)}")
    return artifact


def _export(options: argparse.Namespace) -> None:
    artifact = _model_artifact(options.artifact)
    target = Storage(options.directory)
    if target.exists("config.json"):
        raise ValueError(f"{options.directory} already holds a model; give another directory")
    target.put_folder(artifact.model.local())
    print(options.directory)


def _serve(options: argparse.Namespace) -> None:
    from actors.server import serve  # late: `help` need not wait for it

    serve(_model_artifact(options.artifact).model.local(), host=options.host, port=options.port)


def _trace(options: argparse.Namespace) -> None:
    from jobs.commands.trace import trace

    with working(f"looking for {options.document} in {options.store}"):
        lines = list(trace(Storage(options.store), options.document))
    print("\n".join(lines))


def _forget(options: argparse.Namespace) -> None:
    from jobs.commands.forget import forget

    with working(f"forgetting in {options.store}"):
        found = forget(Storage(options.store), options.documents, address=options.address)
    for name in found.changed:
        print(f"forgot       {options.store}/{name}")
    if not found.changed and not found.failed:
        print(f"no artifact in {options.store} holds any of these documents")
    for name in found.learned:
        print(f"unchanged    {name} learned from what has changed")
    if found.failed:
        raise ValueError("\n".join(f"{name} may hold a document still: {why}" for name, why in found.failed.items()))


def _fields(options: argparse.Namespace) -> None:
    from jobs.commands.fields import describe
    from jobs.commands.json_schema import write_schemas

    if options.schema:
        names = write_schemas(Storage(options.schema), [options.stage] if options.stage else (*STAGES, "pipeline"))
        print("\n".join(f"{options.schema}/{name}" for name in names))
    elif options.stage:
        print(describe(options.stage))
    else:
        raise ValueError(f"fields: give a stage ({', '.join(STAGES)}), or pipeline")


def _submit(options: argparse.Namespace) -> int:
    from cluster.submission import dashboard_address  # late: the client of the Jobs API takes a second
    from cluster.wandb_mirror import wandb_link
    from jobs.commands.submit import find_submission, follow_start, submit

    sent = submit(
        options.stage,
        Path(options.config),
        options.overrides,
        store=options.store,
        address=options.address,
    )
    id = sent.submission.id
    write_stderr(f"job {id}: {sent.how}")
    if dashboard := dashboard_address(options.address):
        write_stderr(f"dashboard: {dashboard}/#/jobs/{id}")
    if link := wandb_link(Path(options.config).parent.name):
        write_stderr(f"W&B: {link}")
    print(id, flush=True)
    submission, store = find_submission(id, address=options.address, store=options.store)
    assert store is not None
    told = follow_start(submission, store)
    if told.has_failed:
        write_stderr(f"raymill: {told.ending()}")
        return told.code
    write_stderr("\n".join(filter(None, [f"{told.status}: {told.why}", told.of_run()])))
    return 0


def _manifest(options: argparse.Namespace) -> None:
    from jobs.commands.manifest import render_manifest

    print(
        render_manifest(
            options.stage,
            Path(options.config),
            options.overrides,
            store=options.store,
            cluster=Path(options.cluster),
        ),
        end="",
    )


def _status(options: argparse.Namespace) -> None:
    from cluster.submission import query_job
    from jobs.commands.submit import find_submission

    told = query_job(*find_submission(options.id, address=options.address, store=options.store))
    print("\n".join(filter(None, [told.status, "" if told.is_known else told.why, told.of_run()])))


def _logs(options: argparse.Namespace) -> int:
    from cluster.submission import HeadUnreachable, query_job
    from jobs.commands.submit import find_submission

    submission, store = find_submission(options.id, address=options.address, store=options.store)
    broken = ""
    try:
        for lines in submission.logs():
            print(lines, end="", flush=True)
    except (HeadUnreachable, ValueError) as error:
        broken = str(error)
    told = query_job(submission, store)
    if broken and told.is_known:
        write_stderr(f"raymill: {broken}")
    elif broken:
        told = replace(told, why=broken)
    write_stderr(f"raymill: {told.ending(is_log_shown=not broken)}")
    return told.code


def _stop(options: argparse.Namespace) -> None:
    from jobs.commands.submit import find_submission

    print(find_submission(options.id, address=options.address, store=None)[0].stop())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raymill",
        description="From raw text to an aligned, measured, compressed language model, on Ray.",
    )
    parser.add_argument("--traceback", action="store_true", help="show where in the code a refusal came from")
    parser.add_argument("--version", action="version", version=version("raymill"))
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, function: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=function, name=name)
        return added

    def of_stage(name: str, function: object, text: str) -> argparse.ArgumentParser:
        added = command(name, function, text)
        added.add_argument("stage", help="a stage (corpus … serve), or pipeline")
        added.add_argument("config", help="its YAML file, such as configs/tiny/pipeline.yaml")
        added.add_argument("overrides", nargs="*", help="field=value; in a pipeline stage.field=value", metavar="a.b=c")
        added.add_argument("--store", help="where artifacts go (default: that of pipeline.yaml)")
        return added

    for name, function, text in (
        ("run", _run, "do a stage, or the whole pipeline, unless it already stands"),
        ("plan", _plan, "say what would run, what stands, and every mistake that can be found before work"),
        ("submit", _submit, "run the same command on a Ray cluster through its Jobs API"),
    ):
        added = of_stage(name, function, text)
        where = "the cluster's dashboard" if name == "submit" else "the Ray cluster"
        default = "" if name == "submit" else ", else one is started inside"
        added.add_argument("--address", help=f"{where} (default: RAY_ADDRESS{default})")
    added = of_stage("manifest", _manifest, "print the Kubernetes objects that run the same command")
    added.add_argument(
        "--cluster", default="k8s/cluster.yaml", help="the pods' sizes and image (default: k8s/cluster.yaml)"
    )
    added = command("fields", _fields, "every field of a stage's config: its type, its default and what it means")
    added.add_argument("stage", nargs="?", help="a stage (corpus … serve), or pipeline")
    added.add_argument("--schema", help="write JSON Schemas for editors into this folder instead", metavar="FOLDER")
    command("ls", _ls, "list the artifacts that stand in a store").add_argument("store", nargs="?")
    command("show", _show, "an artifact's measures, and its lineage down to the sources").add_argument("artifact")
    added = command("trace", _trace, "where a document came from, what became of it, and where its tokens are")
    added.add_argument("store")
    added.add_argument("document", help="its id", metavar="ID")
    added = command("forget", _forget, "take documents out of every corpus and shard of a store, for good")
    added.add_argument("store")
    added.add_argument("documents", nargs="+", help="their ids", metavar="ID")
    added.add_argument("--address", help="the Ray cluster (default: RAY_ADDRESS, else one is started inside)")
    added = command("export", _export, "copy a model artifact out as a Hugging Face folder")
    added.add_argument("artifact")
    added.add_argument("directory")
    added = command("serve", _serve, "serve a model artifact over the OpenAI protocol")
    added.add_argument("artifact")
    added.add_argument("--host", default="127.0.0.1")
    added.add_argument("--port", type=int, default=8000)
    for name, function, text in (
        ("status", _status, "how a submitted job stands: also from its store, when the cluster's head is gone"),
        ("logs", _logs, "follow a submitted job's log to its end, and exit as the job did"),
        ("stop", _stop, "stop a submitted job"),
    ):
        added = command(name, function, text)
        added.add_argument("id", help="what submit printed")
        if name != "stop":
            added.add_argument("--store", help="where its artifacts go (default: as it was submitted from here)")
        added.add_argument("--address", help="the cluster's dashboard (default: RAY_ADDRESS)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
