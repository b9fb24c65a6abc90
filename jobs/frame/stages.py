"""The pipeline as a list: every stage, each in `jobs/<stage>.py`, in the order of a whole run."""

import difflib
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.frame.stage import Stage

STAGES = (
    "corpus",
    "vocabulary",
    "shards",
    "pretrain",
    "sft",
    "reward",
    "rlhf",
    "evaluate",
    "compress",
    "serve",
)
"""A new stage is a file with a `STAGE` and a line here."""


def stage_of(name: str) -> str:
    """The stage that a config's name says: `rlhf-ppo` is the stage rlhf under another name."""
    return name.partition("-")[0]


def stage_named(name: str) -> "Stage":
    """The stage of a config's name, imported. Raises ValueError for another name, with the nearest right one."""
    stage = stage_of(name)
    if stage not in STAGES:
        close = difflib.get_close_matches(stage, STAGES, n=1)
        raise ValueError(
            f"{name!r} is not a stage; " + (f"did you mean {close[0]}?" if close else f"stages: {', '.join(STAGES)}")
        )
    return importlib.import_module(f"jobs.{stage}").STAGE
