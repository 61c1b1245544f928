"""Prints the interpreters of the oldest and the newest Python that pyproject.toml promises, one path a line.

A version that is not installed is left out, and so is that of the interpreter that runs this script. Interpreters are
looked for in pyenv's folder and on PATH.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROBE = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"  # a virtual environment needs these


def promised() -> list[str]:
    """Returns the versions among the classifiers of pyproject.toml, in their order there: oldest first."""
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text("utf-8"))


def candidates(version: str) -> Iterator[str]:
    """Yields paths that may be an interpreter of a version such as 3.13, the newest patch release first."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = (root / "versions").glob(f"{version}.*/bin/python3")
    yield from map(str, sorted(found, key=lambda p: [int(n) for n in re.findall(r"\d+", p.parts[-3])], reverse=True))
    if path := shutil.which(f"python{version}"):
        yield path


def works(path: str, version: str) -> bool:
    """Returns whether a path is an interpreter of this version; a shim of pyenv may be none."""
    probe = subprocess.run([path, "-c", PROBE], capture_output=True, text=True)
    return probe.returncode == 0 and probe.stdout.strip() == version


def main() -> None:
    """Prints the paths."""
    versions = promised()
    for version in dict.fromkeys((versions[0], versions[-1])):
        path = next((path for path in candidates(version) if works(path, version)), None)
        if path and version != "{}.{}".format(*sys.version_info):
            print(path)


if __name__ == "__main__":
    main()
