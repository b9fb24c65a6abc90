"""The identity of a process of a run: stage, role, index, node, process id and log file."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ProcessInfo:
    """The identity of a process. Its string form is `rlhf: generator 0 on node n1 (pid 17)`."""

    stage: str
    role: str
    """What the process does in the stage: `rank`, `generator`, `task`, …"""
    index: int
    """Index of the process among the processes of the same role."""
    node: str = ""
    """Host name of the node. Empty if unknown."""
    pid: int = 0
    """Process id; 0 if unknown. Processes in different containers may have the same id, so `ip` is compared too."""
    ip: str = ""
    """IP address of the node, as Ray reports it. Empty if unknown."""
    log: str = ""
    """Path of the process's log file on its node. Empty if unknown."""

    def __str__(self) -> str:
        node = f" on node {self.node}" if self.node else ""
        pid = f" (pid {self.pid})" if self.pid else ""
        return f"{self.stage}: {self.role} {self.index}{node}{pid}"

    def matches(
        self, *, role: str | None = None, index: int | None = None, pid: int | None = None, ip: str = ""
    ) -> bool:
        """Whether the process has all the given values. None, or an empty `ip`, matches every process.

        A process whose own IP address is unknown matches any `ip`.
        """
        has_role_and_index = role in (None, self.role) and index in (None, self.index)
        return has_role_and_index and pid in (None, self.pid) and (ip in ("", self.ip) or not self.ip)

    def sentence(self, cause: str) -> str:
        """Return the sentence `<process> <cause>; log: <path>`. `cause` is a verb phrase such as "died"."""
        return f"{self} {cause}" + (f"; log: {self.log}" if self.log else "")
