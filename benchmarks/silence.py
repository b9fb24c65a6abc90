"""Measures how long a command is silent, through a pipe and through a pseudo-terminal.

    python benchmarks/silence.py make demo
    python benchmarks/silence.py --through pipe raymill run pretrain configs/tiny/pretrain.yaml

Runs the command once each way and prints its longest silences with the lines around them; its start and its end count
as lines. Exit code 1 when one is longer than 30 s in the pipe or 10 s in the terminal, or when the command fails.
"""

import argparse
import os
import pty
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

LIMITS_S = {"pipe": 30.0, "terminal": 10.0}
SHOWN = 5
EXAMPLE = ("raymill", "plan", "pipeline", "configs/tiny/pipeline.yaml")


class Silence(NamedTuple):
    """A time without output."""

    seconds: float
    at_s: float
    """Where it began, in seconds after the command's start."""
    before: str
    after: str


def start(command: Sequence[str], through: str) -> tuple[subprocess.Popen[bytes], int]:
    """The started command and the descriptor on which its stdout and stderr are read."""
    near, far = pty.openpty() if through == "terminal" else os.pipe()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=far, stderr=far)
    os.close(far)
    return process, near


def outputs(process: subprocess.Popen[bytes], descriptor: int) -> Iterator[bytes]:
    """Every output as it comes, until the command ends, even if a remaining child process holds the other end."""
    while True:
        ready = select.select([descriptor], [], [], 0.2)[0]
        if not ready and process.poll() is not None:
            return
        if ready:
            try:
                output = os.read(descriptor, 1 << 16)
            except OSError:  # a pseudo-terminal whose other end is closed
                output = b""
            if not output:
                process.wait()
                return
            yield output


def watch(command: Sequence[str], through: str) -> tuple[int, float, list[Silence]]:
    """Run the command: its exit code, its seconds and its longest silences. Its output goes to our stdout too."""
    process, descriptor = start(command, through)
    started = last = time.monotonic()
    silences: list[Silence] = []
    recent: deque[str] = deque(["(start)"], maxlen=1)

    def heard(text: str) -> None:
        nonlocal last
        now = time.monotonic()
        silences.append(Silence(now - last, last - started, recent[-1], text))
        last = now
        recent.append(text)

    for output in outputs(process, descriptor):
        sys.stdout.buffer.write(output)
        sys.stdout.flush()
        text = output.decode(errors="replace").replace("\x1b[K", "").replace("\r", "\n")
        if lines := [line for line in text.split("\n") if line.strip()]:
            heard(lines[-1].strip())
    heard("(end)")
    os.close(descriptor)
    return process.wait(), time.monotonic() - started, sorted(silences, reverse=True)[:SHOWN]


def main() -> int:
    """Run the command each way; 0 when it was never silent for too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--through", choices=[*LIMITS_S, "both"], default="both")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=f"default: {' '.join(EXAMPLE)}")
    options = parser.parse_args()
    failed = False
    report: list[str] = []
    for through, limit_s in LIMITS_S.items():
        if options.through not in (through, "both"):
            continue
        code, seconds, silences = watch(options.command or EXAMPLE, through)
        report.append(f"\n{through}: exit code {code} after {seconds:.1f} s, longest silences (limit {limit_s:.0f} s)")
        for silence in silences:
            report.append(f"  {silence.seconds:6.1f} s at {silence.at_s:.1f} s")
            report.append(f"           before: {silence.before[:150]}\n           after:  {silence.after[:150]}")
        failed |= code != 0 or silences[0].seconds > limit_s
    print("\n".join(report))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
