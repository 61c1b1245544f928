"""Environments for toolchains whose packages contradict torch's: each toolchain runs there, as another process.

The user's packages are never changed. An environment is in the folder that YOLOV5_ENVIRONMENTS names, else in this
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
from utils.text import PACKAGE


def environments_folder() -> Path:
    """Returns the folder in which environments are looked for, and made."""
    return Path(os.environ.get("YOLOV5_ENVIRONMENTS") or cache_folder() / "environments")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A folder of packages, and the program that runs with them.

    name:     of the folder.
    packages: as the installer takes them, with the versions that were tried.
    probe:    what shows that it is complete: a package to import, or a path in the folder.
    size:     on disk, as text.
    """

    name: str
    packages: tuple[str, ...]
    probe: str
    size: str

    @property
    def folder(self) -> Path:
        return environments_folder() / self.name

    def command(self) -> list[str] | None:
        """Returns the program that runs a script, as the start of a command; None where the environment is missing."""
        raise NotImplementedError

    def install(self, folder: Path) -> None:
        """Installs the packages into a new folder; RuntimeError where an installer fails."""
        raise NotImplementedError

    def variables(self) -> dict[str, str]:
        """Returns the environment variables of a process in it."""
        # these toolchains compute on the CPU: on a GPU they would take memory that PyTorch needs
        return {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}

    def obstacle(self) -> str | None:
        """Returns what the user has to do to get it, as the end of a sentence; None where it is there."""
        if self.command():
            return None
        return (
            f"needs {' and '.join(self.packages)} in the separate environment {self.folder}: "
            f"run export.py with --make-env to make it ({self.size})"
        )

    def make(self) -> None:
        """Makes it where it is missing; RuntimeError where that fails, and then no files are left."""
        if self.command():
            return
        LOGGER.info(f"making the environment {self.folder} of {', '.join(self.packages)} ({self.size})")
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{self.name}-", dir=self.folder.parent))
        try:
            self.install(part)
            if self.folder.exists():  # its interpreter was removed, or it is incomplete
                shutil.rmtree(self.folder)
            os.replace(part, self.folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        if not self.command():
            raise RuntimeError(f"{self.folder} was made, but {self.probe} is missing in it")

    def call(self, *arguments: str | Path, cwd: Path | None = None) -> None:
        """Runs a script in it to its end; RuntimeError, with its last error, where it fails."""
        command = self.command()
        assert command
        _checked([*command, *map(str, arguments)], ", ".join(self.packages), cwd, self.variables())


@dataclass(frozen=True, kw_only=True)
class PythonEnvironment(Environment):
    """A virtual environment.

    without_dependencies: further packages, installed without the packages that they depend on.
    inherits: whether it also finds this interpreter's packages, after its own, and this project.
    """

    without_dependencies: tuple[str, ...] = ()
    inherits: bool = False

    def command(self) -> list[str] | None:
        if importlib.util.find_spec(self.probe):  # the user has installed it beside torch
            return [sys.executable]
        python = _python_of(self.folder)
        if not python.exists():
            return None
        probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({self.probe!r}) is None)"
        complete = subprocess.run([str(python), "-c", probe], capture_output=True).returncode == 0
        return [str(python)] if complete else None

    def install(self, folder: Path) -> None:
        _checked([sys.executable, "-m", "venv", str(folder)], "venv")
        python = _python_of(folder)
        if self.inherits:
            paths = {sysconfig.get_paths()[key] for key in ("purelib", "platlib")}
            own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
            (own / "inherited.pth").write_text("\n".join(sorted(paths)) + "\n", encoding="utf-8")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _checked([*pip, *self.packages], "pip")
        if self.without_dependencies:
            _checked([*pip, "--no-deps", *self.without_dependencies], "pip")

    def variables(self) -> dict[str, str]:
        variables = super().variables()
        variables.pop("PYTHONPATH", None)
        if self.inherits and not PACKAGE:  # an installed one is among the packages that it inherits
            variables["PYTHONPATH"] = str(ROOT)
        return variables


@dataclass(frozen=True, kw_only=True)
class NodeEnvironment(Environment):
    """Packages of Node.js, installed by npm."""

    def command(self) -> list[str] | None:
        return ["node"] if shutil.which("node") and (self.folder / self.probe).is_dir() else None

    def install(self, folder: Path) -> None:
        if not shutil.which("npm"):
            raise RuntimeError("npm is not installed; install Node.js")
        _checked(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *self.packages], "npm"
        )


def _python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _checked(command: Sequence[str], what: str, cwd: Path | None = None, variables: dict | None = None) -> None:
    """Runs a command to its end; RuntimeError, with its last error, where it fails."""
    done = subprocess.run(
        command, cwd=cwd, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        raise RuntimeError(f"{what} ended with status {done.returncode}: {last_error(done.stdout + done.stderr)}")


def last_error(output: str) -> str:
    """Returns the line of a program's output that most likely says why it failed: the last error, else the last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it printed nothing"]
    errors = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception|ERROR)\b.*:", line)]
    return (errors or lines)[-1]


LITERT = PythonEnvironment(
    name="litert", packages=("litert-torch==0.10.0",), probe="litert_torch", size="1 GB", inherits=True
)
# tensorflowjs without its dependencies: those are for models of JAX, and contradict what onnx2tf pins
TENSORFLOW = PythonEnvironment(
    name="tensorflow",
    packages=("onnx2tf==1.29.24",),
    probe="onnx2tf",
    size="2.7 GB",
    without_dependencies=("tensorflowjs==4.22.0", "tensorflow-hub==0.16.1"),
)
TFJS = NodeEnvironment(
    name="tfjs", packages=("@tensorflow/tfjs@4.22.0",), probe="node_modules/@tensorflow/tfjs", size="0.2 GB"
)
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
