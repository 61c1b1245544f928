"""An ONNX file reads no file outside its folder, and its metadata may be that of later releases of YOLOv5."""

import json

import numpy as np
import pytest
import torch

from utils.runtimes.onnx_file import ONNXRuntime, OpenCVRuntime

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
H = W = 64
ROWS = np.arange(850, dtype=np.float32).reshape(1, 10, 85)


def write(path, location=None, texts=(), inside_node=False):
    """Writes a file whose output is ROWS; `location` names the file of these numbers, else they are in the file."""
    from onnx import TensorProto, helper, numpy_helper

    rows = numpy_helper.from_array(ROWS, "rows")
    if location:
        rows.ClearField("raw_data")
        rows.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "length": str(ROWS.nbytes)}.items():
            rows.external_data.add(key=key, value=value)
    zero = numpy_helper.from_array(np.zeros((), np.float32), "zero")
    nodes = [
        helper.make_node("ReduceSum", ["images"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["rows", "nothing"], ["output"]),
    ]
    if inside_node:
        nodes.insert(0, helper.make_node("Constant", [], ["rows"], value=rows))
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, H, W))],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ROWS.shape)],
        [zero] if inside_node else [rows, zero],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    for key, value in dict(texts).items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("runtime", [ONNXRuntime, OpenCVRuntime])
@pytest.mark.parametrize("inside_node", [False, True])
@pytest.mark.parametrize("location", ["../secret", "ABSOLUTE", "link", "a/../../secret"])
def test_numbers_of_a_file_outside_the_folder_are_refused(tmp_path, runtime, inside_node, location):
    (tmp_path / "secret").write_bytes(ROWS.tobytes())
    (tmp_path / "m").mkdir()
    (tmp_path / "m/link").symlink_to(tmp_path / "secret")
    location = location.replace("ABSOLUTE", str(tmp_path / "secret"))
    with pytest.raises(ValueError, match=r"e\.onnx: a file named by another must be below .*/m, found "):
        runtime(write(tmp_path / "m/e.onnx", location, inside_node=inside_node))


@pytest.mark.parametrize("runtime", [ONNXRuntime, OpenCVRuntime])
@pytest.mark.parametrize("location", [None, "numbers"])
def test_numbers_beside_the_file_are_read(tmp_path, runtime, location):
    (tmp_path / "numbers").write_bytes(ROWS.tobytes())
    opened = runtime(write(tmp_path / "e.onnx", location, {"names": json.dumps(["a"] * 80)}))
    assert np.array_equal(opened.run(torch.zeros(1, 3, H, W))[0].numpy(), ROWS)


@pytest.mark.parametrize("runtime", [ONNXRuntime, OpenCVRuntime])
def test_a_file_of_later_releases(tmp_path, runtime):
    names = {i: f"name {i}" for i in range(80)}
    opened = runtime(write(tmp_path / "e.onnx", texts={"stride": "32", "names": str(names)}))
    metadata = opened.metadata
    assert metadata.names == tuple(names.values()) and (metadata.stride, metadata.imgsz) == (32, (H, W))


@pytest.mark.parametrize(
    ("images", "rows", "operator"),
    [
        ([1, 3, H], [1, 3, H], "Identity"),  # no images
        ([1, 3, H, W], [1, 3, H, W], "Identity"),  # no rows
        ([1, 3, H, W], [], "Size"),
    ],
)
def test_a_graph_of_another_kind_is_refused(tmp_path, images, rows, operator):
    from onnx import TensorProto, helper

    kind = TensorProto.INT64 if operator == "Size" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, images)],
        [helper.make_tensor_value_info("y", kind, rows)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    (tmp_path / "e.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"e\.onnx: (it must take one input|its output must be rows)"):
        ONNXRuntime(tmp_path / "e.onnx")(torch.zeros(1, 3, H, W))
