"""The list of all stages, each in `jobs/<stage>.py`, in the order of a whole pipeline."""

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
"""A new stage is a file that defines `STAGE`, and a line here."""


def stage_name_of(name: str) -> str:
    """The name of the stage in a config's name: `rlhf` of `rlhf-ppo`."""
    return name.partition("-")[0]


def find_stage(name: str) -> "Stage":
    """The stage of the config with this name; its file is imported. Raises ValueError, with the nearest right name,
    when there is no such stage."""
    stage = stage_name_of(name)
    if stage not in STAGES:
        nearest = difflib.get_close_matches(stage, STAGES, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"stages: {', '.join(STAGES)}"
        raise ValueError(f"{name!r} is not a stage; {hint}")
    return importlib.import_module(f"jobs.{stage}").STAGE
