"""The list of all stages, in the order in which a complete pipeline runs them. The stage X is the file `jobs/X.py`."""

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
"""The names of the stages. To add a stage, write its file, which defines `STAGE`, and add its name here."""


def stage_name_of(config_name: str) -> str:
    """Return the name of the stage that a config belongs to, which is the part of the config's name before the first
    `-`.

    For example, the config `rlhf-ppo` belongs to the stage `rlhf`.
    """
    return config_name.partition("-")[0]


def find_stage(config_name: str) -> "Stage":
    """Import the file of the stage that a config belongs to, and return its `STAGE`.

    Raises ValueError if the stage does not exist. The message suggests the most similar name.
    """
    name = stage_name_of(config_name)
    if name not in STAGES:
        nearest = difflib.get_close_matches(name, STAGES, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"the stages are {', '.join(STAGES)}"
        raise ValueError(f"{config_name!r} is not a stage; {hint}")
    return importlib.import_module(f"jobs.{name}").STAGE
