"""Toolchains that pin packages of their own: each has an environment of its own, in which it runs as another process.

The user's packages are never touched. An environment lies in the folder that YOLOV5_ENVIRONMENTS names, else below this
user's cache folder, and is made only when asked for: by `export.py --make-env`, or all of them by

    python -m utils.runtimes.environments
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.files import ROOT, cache_folder
from utils.log import LOGGER


def environments_folder() -> Path:
    """Where environments are looked for, and made."""
    return Path(os.environ.get("YOLOV5_ENVIRONMENTS") or cache_folder() / "environments")


@dataclass(frozen=True)
class Environment:
    """A folder of packages and the program that runs with them.

    name:     of the folder.
    packages: with the versions that were run, as the installer takes them.
    probe:    what has to be there: a package to import, or a path below the folder.
    size:     on disk, in words.
    """

    name: str
    packages: tuple[str, ...]
    probe: str
    size: str

    @property
    def folder(self) -> Path:
        return environments_folder() / self.name

    def command(self) -> list[str] | None:
        """The program, to be followed by a script and its arguments; None where the environment is not there."""
        raise NotImplementedError

    def install(self, folder: Path) -> None:
        """Fills a new folder; RuntimeError where an installer fails."""
        raise NotImplementedError

    def variables(self) -> dict[str, str]:
        """What a process in it finds in its environment variables."""
        # these toolchains compute on the CPU; on a GPU they would take memory that PyTorch needs
        return {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}

    def obstacle(self) -> str | None:
        """What to do to get it; None where it is there."""
        if self.command():
            return None
        return (
            f"needs {' and '.join(self.packages)} in an environment of its own, in {self.folder}: "
            f"--make-env makes it ({self.size})"
        )

    def make(self) -> None:
        """Makes it where it is not there; RuntimeError where that fails, and then nothing is left."""
        if self.command():
            return
        LOGGER.info(f"making the environment {self.folder} of {', '.join(self.packages)} ({self.size})")
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{self.name}-", dir=self.folder.parent))
        try:
            self.install(part)
            if self.folder.exists():  # of an interpreter that is gone, or half deleted
                shutil.rmtree(self.folder)
            os.replace(part, self.folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        if not self.command():
            raise RuntimeError(f"{self.folder} was made, but has no {self.probe}")

    def call(self, *arguments: str | Path, cwd: Path | None = None) -> None:
        """Runs a script in it to its end; RuntimeError with the last line of what it said where it fails."""
        command = self.command()
        assert command
        _checked([*command, *map(str, arguments)], ", ".join(self.packages), cwd, self.variables())


@dataclass(frozen=True)
class PythonEnvironment(Environment):
    """A virtual environment.

    bare:   packages to be installed without what they depend on.
    behind: whether it finds this interpreter's packages, and this project, behind its own.
    """

    bare: tuple[str, ...] = ()
    behind: bool = False

    def command(self) -> list[str] | None:
        if importlib.util.find_spec(self.probe):  # the user has it beside torch
            return [sys.executable]
        python = _python_of(self.folder)
        if not python.exists():
            return None
        probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({self.probe!r}) is None)"
        found = subprocess.run([str(python), "-c", probe], capture_output=True).returncode == 0
        return [str(python)] if found else None

    def install(self, folder: Path) -> None:
        _checked([sys.executable, "-m", "venv", str(folder)], "venv")
        python = _python_of(folder)
        if self.behind:
            paths = {sysconfig.get_paths()[key] for key in ("purelib", "platlib")}
            own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
            (own / "behind.pth").write_text("\n".join(sorted(paths)) + "\n", encoding="utf-8")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _checked([*pip, *self.packages], "pip")
        if self.bare:
            _checked([*pip, "--no-deps", *self.bare], "pip")

    def variables(self) -> dict[str, str]:
        found = super().variables()
        found.pop("PYTHONPATH", None)
        if self.behind:
            found["PYTHONPATH"] = str(ROOT)
        return found


@dataclass(frozen=True)
class NodeEnvironment(Environment):
    """Packages for Node.js, by npm."""

    def command(self) -> list[str] | None:
        return ["node"] if shutil.which("node") and (self.folder / self.probe).is_dir() else None

    def install(self, folder: Path) -> None:
        if not shutil.which("npm"):
            raise RuntimeError("npm is not here; install Node.js")
        _checked(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *self.packages], "npm"
        )


def _python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _checked(command: Sequence[str], what: str, cwd: Path | None = None, variables: dict | None = None) -> None:
    """Runs a command to its end; RuntimeError with its last line where it fails."""
    done = subprocess.run(
        command, cwd=cwd, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        raise RuntimeError(f"{what} ended with status {done.returncode}: {last_words(done.stdout + done.stderr)}")


def last_words(said: str) -> str:
    """Of a program's output the line that most likely says why it ended: the last that names an error, or the last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it said nothing"]
    named = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception|ERROR)\b.*:", line)]
    return (named or lines)[-1]


LITERT = PythonEnvironment("litert", ("litert-torch==0.10.0",), "litert_torch", "1 GB", behind=True)
# tensorflowjs without what it depends on: that is for models of JAX, and contradicts what onnx2tf pins
TENSORFLOW = PythonEnvironment(
    "tensorflow", ("onnx2tf==1.29.24",), "onnx2tf", "2.7 GB", bare=("tensorflowjs==4.22.0", "tensorflow-hub==0.16.1")
)
TFJS = NodeEnvironment("tfjs", ("@tensorflow/tfjs@4.22.0",), "node_modules/@tensorflow/tfjs", "0.2 GB")
ENVIRONMENTS = {environment.name: environment for environment in (LITERT, TENSORFLOW, TFJS)}


if __name__ == "__main__":
    failures = []
    for each in ENVIRONMENTS.values():
        try:
            each.make()
            print(each.folder)
        except (RuntimeError, OSError) as error:
            failures.append(f"{each.folder}: {error}")
    sys.exit("\n".join(failures) or None)
