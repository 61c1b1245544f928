"""Which runtime opens a file."""

from pathlib import Path

import pytest

from utils.runtimes.onnx_file import ONNXRuntime
from utils.runtimes.openvino_model import OpenVINORuntime
from utils.runtimes.table import runtime_for
from utils.runtimes.tensorrt_engine import TensorRTRuntime


@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        ("a.onnx", ONNXRuntime),
        ("a.pt.onnx", ONNXRuntime),  # v6.1 took it for a checkpoint
        ("x.onnx/a.pt", None),
        ("a_openvino_model/", OpenVINORuntime),
        ("a_openvino_model/a.xml", OpenVINORuntime),
        ("a.engine", TensorRTRuntime),
        ("a.pt", None),
        ("a", None),
    ],
)
def test_by_the_end_of_the_name(name, runtime):
    assert runtime_for(name) is runtime and runtime_for(Path(name)) is runtime
