"""Fixtures. The official weights and photographs of COCO are not in the project; tests that need them skip."""

import importlib
import json
import os
import random
import signal
import socket
import sys
import zlib
from functools import lru_cache
from pathlib import Path

import pytest

# Before torch is loaded: the tensors here are small, and one thread does not mind what else the machine does.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before OpenCV is: damaged headers that promise a billion pixels would fill the memory.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**24))

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
# Holds weights/yolov5n.pt and datasets/coco-val128: see CONTRIBUTING.md
OUTSIDE = Path(os.environ.get("YOLOV5_TEST_FILES", ROOT.parent / "shared"))
sys.path.insert(0, str(ROOT))
pytest_plugins = ["world_fixtures"]  # imported here, hence after the environment is set


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What a test printed reaches the reporting process as UTF-8, which names of files need not be."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report


def seed(name: str) -> None:
    """Begins all global random numbers anew, as the name says."""
    import numpy as np
    import torch

    number = zlib.crc32(name.encode("utf-8", "backslashreplace"))
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    """A fixture draws the same random numbers whichever test asks for it first."""
    seed(f"{fixturedef.baseid}::{fixturedef.argname}[{request.param_index}]")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    """A test draws the same random numbers alone, among others, and in any order."""
    seed(item.nodeid)


@pytest.fixture(scope="session", autouse=True)
def interrupts_arrive():
    """A shell starts what it runs in the background with SIGINT ignored; the suite passes there too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_state_folder(tmp_path_factory):
    """No test finds or leaves anything in the user's state folder; files of one test are known in the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("user state")))
        yield


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    """No test finds or leaves anything in the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user cache"))


LOCAL = ("127.0.0.1", "::1", "localhost", "")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No test connects to another machine."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def connect_here(self, address):
        assert not isinstance(address, tuple) or address[0] in LOCAL, f"a test connects to {address}"
        return connect(self, address)

    def look_up_here(host, *arguments, **options):
        assert not isinstance(host, str) or host in LOCAL, f"a test asks for the address of {host}"
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(socket, "getaddrinfo", look_up_here)


@lru_cache
def _parity(topic: str) -> dict:
    return json.loads((TESTS / "parity" / f"{topic}.json").read_text())


def outside(name: str) -> Path:
    """Returns a file or folder below `OUTSIDE`; skips the test where there is none."""
    if not (OUTSIDE / name).exists():
        pytest.skip(f"needs {name}, see CONTRIBUTING.md")
    return OUTSIDE / name


@pytest.fixture(scope="session")
def official_weights() -> Path:
    """yolov5n.pt of release 6.1."""
    return outside("weights/yolov5n.pt")


@pytest.fixture(scope="session")
def coco_val128() -> Path:
    """The folder of the first 128 photographs of COCO val2017: images/val, labels/val."""
    return outside("datasets/coco-val128")


@pytest.fixture(scope="session")
def bccd() -> Path:
    """24 photographs of blood cells with their labels: images/ and labels/, each with train, val and test."""
    return TESTS / "data/bccd"


@pytest.fixture(scope="session")
def parity():
    """`parity(topic)`: the numbers recorded from release 6.1 for that topic (tests/parity/README.md)."""
    return _parity


@pytest.fixture(scope="session")
def parity_inputs():
    """The module that rebuilds recorded inputs: `build(recipe)`, `fill(model, key, gain)`, `indices(size, n)`."""
    from parity import inputs

    return inputs


@pytest.fixture
def one_thread():
    """Numbers that depend on the order of summation are compared on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The test works in an empty folder, and finds no official weights or earlier runs in the repository."""
    import engine.setup
    import models.backend

    folder = tmp_path / "ein Ordner"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for module in (engine.setup, models.backend):
        monkeypatch.setattr(module, "ROOT", tmp_path / "nowhere")
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """`command(verb, *arguments)`: exit status and standard error of a command line, run in this process."""
    from utils import cli

    def run(verb: str, *arguments) -> tuple[int, str]:
        module = importlib.import_module(verb)
        monkeypatch.setattr(sys, "argv", [f"{verb}.py", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.run(module.main, module.parse_opt, verb)
            code = 0
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def no_plots(monkeypatch):
    """Training draws nothing: of a small network that takes longer than all else."""
    from engine import setup, training

    monkeypatch.setattr(setup, "plot_labels", lambda *_, **__: None)
    for name in ("plot_batch", "plot_results", "write_figures", "write_page"):
        monkeypatch.setattr(training, name, lambda *_, **__: None)
    monkeypatch.setattr(training, "MosaicWriter", lambda *_: lambda *_, **__: None)
