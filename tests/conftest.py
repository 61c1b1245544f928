"""Fixtures. Recorded numbers and photographs live outside the project; tests that use them skip where they are not."""

import importlib.util
import json
import os
import sys
from functools import lru_cache
from pathlib import Path

import pytest

# Before torch is loaded: the tensors here are small, and one thread does not mind what else the machine does.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before OpenCV is: damaged headers that promise a billion pixels would fill the memory.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**24))

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))


@lru_cache
def _parity(topic: str) -> dict:
    return json.loads((SHARED / "parity" / f"{topic}.json").read_text())


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of photographs, official weights and recorded numbers."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the folder of recorded numbers and photographs {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def parity(shared):
    """`parity(topic)`: the numbers recorded from release 6.1 for that topic."""
    return _parity


@pytest.fixture(scope="session")
def parity_inputs(shared):
    """The module that rebuilds recorded inputs: `build(obj)`, `fill(model, key, gain)`, `indices(size, n)`."""
    spec = importlib.util.spec_from_file_location("parity_inputs", shared / "parity" / "inputs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_thread():
    """Numbers that depend on the order of summation are compared on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
