"""Stages: the file of a stage defines `STAGE`, which contains what the rest of Raymill knows about the stage.

A stage bound to a config and to its inputs is a job (`jobs/frame/job.py`). Running a job writes an artifact
(`jobs/frame/artifact.py`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

from cluster.placement import Placement
from cluster.storage import Storage
from cluster.tracking import Tracker
from jobs.frame.artifact import Artifact
from jobs.frame.kinds import CorpusSizes, Kind, ShardsSizes, TokenizerSizes
from jobs.frame.workload import Workload

if TYPE_CHECKING:
    from jobs.frame.job import Job
    from jobs.report.part import ReportPart
    from model.transformer_config import TransformerConfig

PlannedInputs = Mapping[str, "Job | Artifact"]
"""The inputs of a config, whether they are finished or not. The keys are paths of config fields, such as `init`.

An input is a `Job` if the config names another config of the pipeline, even if the artifact of that job is finished
already. An input is an `Artifact` if the config names a location.
"""

OutputSizes = Union[CorpusSizes, TokenizerSizes, ShardsSizes, "TransformerConfig"]
"""The sizes of an artifact. A TransformerConfig describes a model, with a language-model head or a reward head."""


@dataclass(frozen=True)
class Context:
    """What a stage's `run` gets besides its config.

    Of these values, only the ids of the inputs are hashed into the artifact's id.
    """

    output: Storage
    """The folder of the artifact."""
    inputs: Mapping[str, Artifact]
    """The finished inputs. The keys are paths of config fields, such as `init`. An entry of a dict or list field has a
    path such as `models.sft` or `models.0`."""
    tracker: Tracker
    """Writes the metrics log of the artifact."""
    forgotten: frozenset[str] = frozenset()
    """Ids of the documents that the output must not contain, because `raymill forget` was called with these ids."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the pipeline.

    The four check functions are `check`, `check_sources`, `check_planned_inputs` and `check_inputs`. Raymill calls each
    of them as soon as its arguments exist, in this order. All checks run before the stage starts a worker.
    """

    name: str
    """The name of the stage. Its file is `jobs/<name>.py` and its config is usually `<name>.yaml`."""
    version: int
    """The version of the stage's results. It is part of the ids of the stage's artifacts. Increase it when a code
    change makes the stage write a different artifact for the same config."""
    kind: Kind
    """The kind of artifact that the stage makes. Each input of a stage accepts artifacts of certain kinds."""
    config: type
    """The class of the stage's config, a frozen dataclass."""
    run: Callable[[Any, Context], object]
    """Writes the artifact into `context.output` and returns its summary: a dataclass of plain values, or a mapping from
    metric keys to numbers. If the process is killed, the next attempt calls `run` again, and the output then still
    contains the files of the earlier attempt."""
    check: Callable[[Any], None] = lambda config: None
    """Checks the values of the config, without its source files and inputs. Raises ValueError for a wrong value."""
    check_sources: Callable[[Any], None] = lambda config: None
    """Checks the source files that the config names. Raises ValueError for a missing column or a malformed record.
    Called only on machines that can read the files."""
    values_from_paths: Callable[[Any, Mapping[str, Sequence[str]]], object] = lambda config, urls: None
    """Returns what the stage reads from the paths of its source files, which are otherwise not part of the artifact's
    id, or None. Gets the config and `Job.source_urls`."""
    check_planned_inputs: Callable[[Any, PlannedInputs], None] = lambda config, planned: None
    """Checks the config against the configs of its inputs, which may not be finished. Raises ValueError, for example
    when sequence_length exceeds the max_length of the model that an earlier stage will make."""
    check_inputs: Callable[[Any, Mapping[str, Artifact]], None] = lambda config, inputs: None
    """Checks the config against the content of its finished inputs. Raises ValueError, for example for a tokenizer that
    differs from the model's, or for too little text."""
    output_sizes: Callable[[Any, PlannedInputs], OutputSizes] | None = None
    """Computes the sizes of the artifact from the config and its inputs, before the artifact exists. Returns an object
    of that class in `OutputSizes` which belongs to the stage's kind. Required if another stage computes its estimate or
    its workload from the sizes of an input of this kind."""
    estimate: Callable[[Any, PlannedInputs], Mapping[str, float]] = lambda config, planned: {}
    """Computes the numbers that `raymill plan` prints beside the forecast, such as tokens, FLOP, and the MiB of weights
    and optimizer state of a worker. The keys have the units of the values in them. The inputs may not be finished."""
    workload: Callable[[Any, PlannedInputs], Workload] | None = None
    """Computes how much work the stage does. From this, the forecast computes time, disk, and the memory of all
    processes together. A stage without this function has no forecast. The inputs may not be finished."""
    placements: Callable[[Any], Sequence[Mapping[str, Placement]]] = lambda config: ()
    """Returns the placements of the stage's worker groups, as mappings from the name of a group to its placement. The
    groups of one mapping run at the same time, so each mapping must fit the cluster by itself."""
    separate_engine_groups: Callable[[Any], Collection[str]] = lambda config: ()
    """Returns the names of the groups in `placements` that run vLLM engines on nodes of their own. `raymill manifest`
    places these groups in pods of the shape `rollout` (`cluster/kuberay.py`)."""
    report: "Callable[[Artifact], ReportPart] | None" = None
    """Makes the section of the HTML report that shows an artifact of this stage."""
    forget: Callable[[Any, Context, Artifact], object | None] | None = None
    """Removes forgotten documents from a finished artifact, in place. The files must then equal those that `run` would
    write without these documents, except that the shares of a corpus' mixture stay as they were, and that source files
    may be gone or changed: a duplicate stays dropped if it, or the document that was kept instead of it, cannot be read
    again. No file of the artifact contains a forgotten id afterwards. Returns the new summary, or None if the artifact
    does not change.

    The function calls `start_change(artifact)` after everything that can raise ValueError. Until then it writes only to
    the folder `WORK`. If the process is killed after this call, the next `raymill forget` calls the function again with
    the half-changed files.

    If a stage has no such function, its artifacts keep the documents, and `raymill forget` lists these artifacts."""
