"""Environments of toolchains: made whole or not at all, found again, and run as other processes."""

import subprocess
import sys

import pytest

from utils.runtimes import environments
from utils.runtimes.environments import ENVIRONMENTS, NodeEnvironment, PythonEnvironment


@pytest.fixture
def pip(monkeypatch):
    """Instead of the network: pip "installs" a module that knows the versions it was asked for."""
    calls = []

    def stand_in(command, what, cwd=None, variables=None):
        calls.append(command)
        if what != "pip":
            return real(command, what, cwd, variables)
        code = "import sys, sysconfig; open(sysconfig.get_path('purelib') + '/toolchain.py', 'w').write(sys.argv[1])"
        return real([command[0], "-c", code, f"asked = {command[-1]!r}"], what)

    real = environments._checked
    monkeypatch.setattr(environments, "_checked", stand_in)
    return calls


def test_made_found_and_run(pip, tmp_path, monkeypatch):
    monkeypatch.setenv("YOLOV5_ENVIRONMENTS", str(tmp_path / "of mine"))
    alone = PythonEnvironment(name="alone", packages=("toolchain==7",), probe="toolchain", size="0 GB")
    assert alone.command() is None
    place = tmp_path / "of mine/alone"
    reason = f"needs toolchain==7 in the separate environment {place}: run export.py with --make-env to make it (0 GB)"
    assert alone.obstacle() == reason
    alone.make()
    assert alone.obstacle() is None and [p.name for p in (tmp_path / "of mine").iterdir()] == ["alone"]
    alone.call("-c", f"import toolchain; open({str(tmp_path / 'said')!r}, 'w').write(toolchain.asked)")
    assert (tmp_path / "said").read_text() == "toolchain==7"
    with pytest.raises(RuntimeError, match=r"^toolchain==7 ended with status 1: ModuleNotFoundError: .*'numpy'"):
        alone.call("-c", "import numpy")
    calls = len(pip)
    alone.make()
    assert len(pip) == calls  # it is there


def test_an_environment_that_inherits_finds_this_interpreters_packages(pip, tmp_path, monkeypatch):
    monkeypatch.setenv("YOLOV5_ENVIRONMENTS", str(tmp_path))
    inheriting = PythonEnvironment(
        name="inheriting", packages=("toolchain",), probe="toolchain", size="0 GB", inherits=True,
        without_dependencies=("other",),
    )  # fmt: skip
    inheriting.make()
    assert pip[-1][-2:] == ["--no-deps", "other"]
    inheriting.call("-c", "import toolchain, numpy, utils.runtimes.environments")
    assert not subprocess.run([sys.executable, "-c", "import numpy"]).returncode  # which has no toolchain
    assert subprocess.run([sys.executable, "-c", "import toolchain"], capture_output=True).returncode


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLOV5_ENVIRONMENTS", str(tmp_path))

    def fails(command, what, cwd=None, variables=None):
        (tmp_path / "seen").touch()
        raise RuntimeError("pip ended with status 1: no such package")

    monkeypatch.setattr(environments, "_checked", fails)
    with pytest.raises(RuntimeError, match="no such package"):
        PythonEnvironment(name="broken", packages=("x",), probe="no_such_package", size="0 GB").make()
    assert [p.name for p in tmp_path.iterdir()] == ["seen"]


def test_what_the_user_has_is_taken():
    assert PythonEnvironment(name="x", packages=("numpy",), probe="numpy", size="0 GB").command() == [sys.executable]


def test_node_without_npm(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLOV5_ENVIRONMENTS", str(tmp_path))
    monkeypatch.setattr(environments.shutil, "which", lambda program: None)
    node = NodeEnvironment(name="x", packages=("left-pad",), probe="node_modules/left-pad", size="0 GB")
    with pytest.raises(RuntimeError, match="npm is not installed; install Node"):
        node.make()
    assert node.command() is None and not list(tmp_path.iterdir())


def test_every_environment_pins_what_was_run():
    for name, environment in ENVIRONMENTS.items():
        assert environment.name == name
        assert all("==" in package or package.rindex("@") > 0 for package in environment.packages)
