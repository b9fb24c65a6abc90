"""Who a process of a run is: its stage, role, index, node, process id and log."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class ProcessInfo:
    """A process of a run, for a reader: `rlhf: generator 0 on node n1 (pid 17)`."""

    stage: str
    role: str
    index: int
    node: str = ""
    pid: int = 0
    ip: str = ""
    """Its node's, as Ray says it in its reports: process ids alone are the same in many containers."""
    log: str = ""
    """Path of its log on its node."""

    def __str__(self) -> str:
        node = f" on node {self.node}" if self.node else ""
        pid = f" (pid {self.pid})" if self.pid else ""
        return f"{self.stage}: {self.role} {self.index}{node}{pid}"

    def fits(self, *, role: str | None = None, index: int | None = None, pid: int | None = None, ip: str = "") -> bool:
        """Whether it is what is asked for; what is None or empty may be anything."""
        is_one = role in (None, self.role) and index in (None, self.index)
        return is_one and pid in (None, self.pid) and (ip in ("", self.ip) or not self.ip)


def sentence(place: ProcessInfo, cause: str) -> str:
    """`<place> <cause>; log: PATH`."""
    return f"{place} {cause}" + (f"; log: {place.log}" if place.log else "")
