"""The checkpoints of the learner and the critic, which always have a usable step in common.

Learner and critic save their own checkpoints, in the background and each at its own speed. Only a step of which both
have a checkpoint is of use, because a critic of another step does not belong to the policy. So the driver decides what
is kept: an older checkpoint is removed only after a newer one is complete in both groups.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from actors.rank_group import RankGroup
from cluster.storage import Storage
from model.checkpoint_steps import NoUsableCheckpointError, complete_steps, prune, set_aside

_NUM_KEPT_STEPS = 2
"""Number of newest common steps whose checkpoints are kept. If those of the newest are damaged, the other is used."""

log = logging.getLogger(__name__)


class GroupCheckpoints:
    """Saves, removes and restores the checkpoints of all groups together. The driver has one such object.

    Every method takes the groups, or knows their folders, by the same names: `learner`, and `critic` if there is one.
    """

    def __init__(self, folders: Mapping[str, Storage]) -> None:
        """`folders` has each group's folder of checkpoints."""
        self._folders = folders

    def save(self, groups: Mapping[str, RankGroup]) -> None:
        """Start saving a checkpoint of each group, after the previous ones are complete. The files are written in the
        background."""
        self.finish_save(groups)
        for group in groups.values():
            group.save()

    def finish_save(self, groups: Mapping[str, RankGroup]) -> None:
        """Wait until the checkpoints that `save` started last are complete, and remove the oldest ones."""
        for group in groups.values():
            group.finish_save()
        kept_steps = self.common_steps()[-_NUM_KEPT_STEPS:]
        for folder in self._folders.values():
            prune(folder.fs, folder.root, kept_steps=kept_steps)

    def common_steps(self) -> list[int]:
        """Return the optimizer steps of which every group has a complete checkpoint, in ascending order."""
        return sorted(set.intersection(*map(set, self._steps_by_group().values())))

    def restore(self, groups: Mapping[str, RankGroup]) -> int | None:
        """Load the newest common step whose checkpoints are not damaged into all groups. Returns this optimizer step.

        Returns None, and leaves the models as they are, if no common step was ever complete. Warns of damaged
        checkpoints and interrupted saves. All newer checkpoints are set aside. Raises NoUsableCheckpointError if there
        are checkpoints, but none can be used.
        """
        faults: list[str] = []
        for step in reversed(self.common_steps()):
            step_faults = [fault for group in groups.values() if (fault := group.restore(step)) is not None]
            if not step_faults:
                for fault in faults:
                    log.warning("%s; training resumes from optimizer step %d instead", fault, step)
                self._set_aside(after_step=step)
                return step
            faults += step_faults
        if faults:
            raise NoUsableCheckpointError(f"{'; '.join(faults)}. No other checkpoint is left. {self._remedy}")
        self._check_interrupted_start()
        self._set_aside(after_step=None)
        return None

    def _check_interrupted_start(self) -> None:
        """Warn if the first save was interrupted. Raises NoUsableCheckpointError if there are other checkpoints.

        At most one group has then completed its checkpoint, because the first ones are removed after the next ones are
        complete.
        """
        steps_by_group = self._steps_by_group()
        described = ", ".join(
            f"{name} {', '.join(map(str, steps)) or 'none'}" for name, steps in steps_by_group.items()
        )
        num_steps = sum(map(len, steps_by_group.values()))
        if num_steps > 1:
            raise NoUsableCheckpointError(
                f"there is no optimizer step of which all groups have a checkpoint: {described}. {self._remedy}"
            )
        if num_steps == 1:
            log.warning("the first save was interrupted (complete checkpoints: %s); rlhf starts at step 0", described)

    def _set_aside(self, *, after_step: int | None) -> None:
        for folder in self._folders.values():
            set_aside(folder.fs, folder.root, after_step=after_step)

    def _steps_by_group(self) -> dict[str, list[int]]:
        return {name: complete_steps(folder.fs, folder.root) for name, folder in self._folders.items()}

    @property
    def _remedy(self) -> str:
        folders = ", ".join(folder.root for folder in self._folders.values())
        return f"Restore the files, or remove the folders to train from the beginning: {folders}"
