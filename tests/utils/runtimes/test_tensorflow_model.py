"""A model that another process runs: what goes through the pipes, and how the process ends."""

import os
import sys
from pathlib import Path

import pytest
import torch

from utils.runtimes.base import Metadata
from utils.runtimes.environments import PythonEnvironment
from utils.runtimes.table import runtime_for
from utils.runtimes.tensorflow_model import TensorFlowRuntime

H, W = 64, 96

META = Metadata(names=("red", "weiß"), stride=32, imgsz=(H, W), int8=True)

TENSORFLOW = '''
"""As much of TensorFlow as the server calls; the model in the folder says in a file what it does."""
import gc, io, os, sys, time
import numpy as np

print("a greeting")


class Shape(list):
    rank = 4

    def as_list(self):
        return list(self)


class Spec:
    def __init__(self, *shape):
        self.shape = Shape(shape)


class Output(np.ndarray):
    def numpy(self):
        return np.asarray(self)


def constant(values):
    return values


class signatures:
    structured_input_signature = ((), {"images": Spec(1, 64, 96, 3)})
    structured_outputs = {"output_1": Spec(1), "output_0": Spec(1, 5, 7)}

    def __call__(self, images):
        if images.max() > 1:
            # what an interpreter may do first: the pipe ends before the error is written
            for f in [f for f in gc.get_objects() if isinstance(f, io.BufferedWriter) and not f.closed]:
                f.fileno() > 2 and f.close()
            time.sleep(0.3)
            sys.exit("images beyond 1")
        assert images.dtype == np.float32 and images.shape[-1] == 3
        rows = np.tile(images[:, 0, 0, :1], (5, 7)).reshape(-1, 5, 7)
        return {"output_0": rows.view(Output), "output_1": images.sum((1, 2, 3)).astype(np.int64).view(Output)}


class saved_model:
    @staticmethod
    def load(path):
        if not os.path.exists(path + "/saved_model.pb"):
            raise OSError("SavedModel file does not exist")
        model = type("Model", (), {})()
        model.signatures = {"serving_default": signatures()}
        return model
'''


@pytest.fixture
def served(here, monkeypatch) -> Path:
    """A folder that TensorFlowRuntime opens, with a stand-in for TensorFlow in another process."""

    class Stub(PythonEnvironment):
        def command(self):
            return [sys.executable]

        def variables(self):
            return {**os.environ, "PYTHONPATH": str(here / "packages")}

    (here / "packages").mkdir()
    (here / "packages/tensorflow.py").write_text(TENSORFLOW)
    stub = Stub(name="stub", packages=("tensorflow==0",), probe="tensorflow", size="0 GB")
    monkeypatch.setattr(TensorFlowRuntime, "environment", stub)
    folder = here / "best_saved_model"
    folder.mkdir()
    (folder / "saved_model.pb").touch()
    return folder


def test_what_goes_through_the_pipes(served):
    (served / "metadata.json").write_text(META.as_json(), encoding="utf-8")
    runtime = runtime_for(served)(served, trust=True)
    assert runtime.metadata == META and runtime.declared
    for value in (0.25, 0.5):
        images = torch.full((1, 3, H, W), value)
        rows, total = runtime.run(images)
        # places are shares of a frame 96 wide and 64 high
        assert rows.shape == (1, 5, 7) and rows[0, 0].tolist() == [value * s for s in (W, H, W, H, 1, 1, 1)]
        assert total.tolist() == [value * 3 * H * W]
    child = runtime.child
    with pytest.raises(ValueError, match=r"cannot be run on images \(1, 3, 64, 96\) by tensorflow==0: images beyond 1"):
        runtime.run(images * 9)
    assert child.poll() is not None


def test_a_child_ends_with_its_runtime(served):
    runtime = runtime_for(served)(served, trust=True)
    assert not runtime.declared and runtime.metadata.imgsz == (H, W) and len(runtime.metadata.names) == 2
    child = runtime.child
    del runtime
    assert child.poll() is not None and child.stdin.closed


def test_a_model_that_cannot_be_read(served):
    (served / "saved_model.pb").unlink()
    with pytest.raises(ValueError, match="cannot be read by tensorflow==0: OSError: SavedModel file does not exist"):
        runtime_for(served)(served, trust=True)
