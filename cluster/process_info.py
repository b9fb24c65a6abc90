"""Which process of a run one is: stage, role, index, node, process id and log."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ProcessInfo:
    """The identity of a process; as text `rlhf: generator 0 on node n1 (pid 17)`."""

    stage: str
    role: str
    """What it does in the stage: `rank`, `generator`, `task`, …"""
    index: int
    """Its number among the processes of its role."""
    node: str = ""
    """Host name."""
    pid: int = 0
    ip: str = ""
    """Address of its node, as Ray's reports give it. Process ids alone repeat across containers."""
    log: str = ""
    """Path of its log on its node."""

    def __str__(self) -> str:
        node = f" on node {self.node}" if self.node else ""
        pid = f" (pid {self.pid})" if self.pid else ""
        return f"{self.stage}: {self.role} {self.index}{node}{pid}"

    def matches(
        self, *, role: str | None = None, index: int | None = None, pid: int | None = None, ip: str = ""
    ) -> bool:
        """Whether every value that is given equals this process's; None and an empty `ip` match anything.

        A process whose own address is unknown matches any `ip`.
        """
        has_role = role in (None, self.role) and index in (None, self.index)
        return has_role and pid in (None, self.pid) and (ip in ("", self.ip) or not self.ip)

    def sentence(self, cause: str) -> str:
        """The message `<process> <cause>; log: PATH`."""
        return f"{self} {cause}" + (f"; log: {self.log}" if self.log else "")
