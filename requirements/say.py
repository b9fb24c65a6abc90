"""Runs a command of the Makefile and says every few seconds that it is still at work; needs nothing but a bare Python.

    python requirements/say.py "checking types" .venv/bin/pyright
    python requirements/say.py --pip "installing" --else "--extra-index-url URL" .venv/bin/python -m pip install -r LOCK

What the command writes is passed on. Of pip (--pip) only errors and warnings about its work are, and how far it is is
said instead; with --else it is tried again with these options more when it fails, and only then do its errors count.
"""

import argparse
import re
import shlex
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

INTERVAL_S = 8.0 if sys.stderr and sys.stderr.isatty() else 25.0
"""Below the 10 s and 30 s in which something is promised to be said."""
NOISE = re.compile(r"WARNING: (Location .* is ignored|Running pip as the 'root' user)|\[notice\]")
TOLD = re.compile(r"^(ERROR|WARNING)|error:")


class Pip:
    """What pip has said so far, as one phrase."""

    def __init__(self, command: list[str]) -> None:
        self.python = Path(command[0])
        self.total = sum(number_of_pins(Path(name)) for name in command if name.endswith(".lock"))
        self.collected = 0
        self.installed_before = self.num_installed()
        self.phase = "starting pip"

    def heard(self, line: str) -> None:
        if match := re.match(r"(Collecting|Processing|Requirement already satisfied:) (\S+)", line):
            self.collected += 1
            self.phase = f"fetching {Path(match[2]).name}, {self.collected} of {self.total or '?'} packages"
        elif line.startswith("Installing collected packages"):
            self.phase = "unpacking"

    def __str__(self) -> str:
        if self.phase == "unpacking":
            unpacked = self.num_installed() - self.installed_before
            return f"{unpacked} of {self.total or '?'} packages unpacked"
        return self.phase

    def num_installed(self) -> int:
        return len(list(self.python.parent.parent.glob("lib/python*/site-packages/*.dist-info")))


def number_of_pins(lock: Path) -> int:
    return sum("==" in line and not line.startswith("#") for line in lock.read_text().splitlines())


def run(what: str, command: list[str]) -> int:
    """The exit code of a command whose output is passed on as it is."""
    with Heartbeat(what, lambda: ""):
        return subprocess.run(command).returncode


def run_pip(what: str, command: list[str]) -> tuple[int, list[str]]:
    """The exit code of a pip command, and the errors and warnings that it gave, each once."""
    pip, told, last = Pip(command), dict[str, None](), deque[str](maxlen=15)
    with Heartbeat(what, lambda: f": {pip}"):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            line = line.strip()
            if line and not NOISE.search(line):
                last.append(line)
                pip.heard(line)
                if TOLD.search(line):
                    told[line] = None
        code = process.wait()
    return code, list(told) if told or not code else list(last)


class Heartbeat:
    """Says `what`, how long it has lasted and how far it is, until the block ends."""

    def __init__(self, what, state) -> None:
        self.what, self.state, self.started_s = what, state, time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.beat, daemon=True)

    def __enter__(self) -> None:
        say(self.what)
        self.thread.start()

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.thread.join()
        say(f"{self.what}: {time.monotonic() - self.started_s:.0f} s")

    def beat(self) -> None:
        while not self.ended.wait(INTERVAL_S):
            say(f"{self.what} ({time.monotonic() - self.started_s:.0f} s){self.state()}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pip", action="store_true")
    parser.add_argument("--else", dest="otherwise", metavar="OPTIONS")
    parser.add_argument("what")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.pip:
        return run(options.what, options.command)
    code, told = run_pip(options.what, options.command)
    if code and options.otherwise:
        more = shlex.split(options.otherwise)
        code, told = run_pip(f"{options.what}, once more with {options.otherwise}", options.command + more)
    for line in told:
        say(line)
    return code


if __name__ == "__main__":
    sys.exit(main())
