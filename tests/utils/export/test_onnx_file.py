"""ONNX files: their operators, their opset, and SOCA in float32."""

import numpy as np
import pytest
import torch
from export_job import HOW, assert_same, job_for
from small_world import TINY, lively

from models.attention import RLNL
from models.registry import keeps_channels, registered
from models.second_order import second_order_statistic
from models.yolo import Model
from utils.export import onnx_file
from utils.runtimes.onnx_file import ONNXRuntime


@pytest.fixture(scope="module")
def model() -> Model:
    return lively().fuse()


@pytest.mark.parametrize("opset", [11, 20])
def test_the_opset_is_the_one_asked_for(model, tmp_path, opset):
    import onnx

    job = job_for(model, tmp_path, dynamic=True, nms=HOW, opset=opset, simplify=True)
    path = onnx_file.write(job.graph(job.options), job.images[0], tmp_path / "a.onnx", job.options)
    assert [entry.version for entry in onnx.load(path).opset_import] == [opset]
    assert_same(job, ONNXRuntime(path), job.images[2])


def test_every_attention_block_is_plain_operations(tmp_path):
    blocks = [block.__name__ for block in registered(planned_by=keeps_channels)]
    rows = [TINY["head"][0], *([-1, 1, block, []] for block in blocks)]
    rows.append([[4, 6 + len(blocks)], 1, "Detect", ["nc", "anchors"]])
    model = lively({**TINY, "head": rows}).fuse()
    job = job_for(model, tmp_path, dynamic=True, opset=14)  # RLNL's attention is no operator before
    path = onnx_file.write(job.graph(job.options), job.images[0], tmp_path / "a.onnx", job.options)
    assert_same(job, ONNXRuntime(path), job.images[2])


def test_a_half_graph_keeps_the_statistic_in_float32(tmp_path):
    """Features whose squares overflow float16: only a float32 statistic gives the gate that PyTorch gives."""
    import onnxruntime

    class Alone(torch.nn.Module):
        def forward(self, x):
            return second_order_statistic(x)

    x = 300 * torch.randn(2, 8, 6, 5, generator=torch.Generator().manual_seed(0))
    file = str(tmp_path / "a.onnx")
    torch.onnx.export(Alone(), (x.half(),), file, input_names=["x"], opset_version=12, dynamo=False)
    ours = onnxruntime.InferenceSession(file).run(None, {"x": x.half().numpy()})[0]
    assert ours.dtype == np.float16
    expected = second_order_statistic(x.half().double()).numpy()
    assert np.abs(ours / expected - 1).max() < 2e-3  # float16 has 11 bits


def test_of_a_half_graph_soca_is_in_float32_and_convolutions_are_not(model, tmp_path):
    import onnx

    job = job_for(model, tmp_path, half=True)
    path = onnx_file.write(job.graph(job.options, half=True), job.images[0].half(), tmp_path / "a.onnx", job.options)
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    found = {operator: set() for operator in ("MatMul", "Conv")}
    for node in graph.node:
        if node.op_type in found:
            found[node.op_type].add(types[node.output[0]])
    assert sum(node.op_type == "MatMul" for node in graph.node) > 50  # all of them SOCA's
    assert found == {"MatMul": {onnx.TensorProto.FLOAT}, "Conv": {onnx.TensorProto.FLOAT16}}


def test_a_graph_of_one_shape_is_one_that_old_opencv_reads(tmp_path):
    """OpenCV 4.5 and 4.6 compute no shapes, expand no constant in a sum or product, and know four dimensions."""
    import onnx

    pytest.importorskip("onnxslim")
    model = lively({**TINY}).fuse()
    job = job_for(model, tmp_path, batch=1, simplify=True)
    path = onnx_file.write(job.graph(job.options), job.images[0], tmp_path / "a.onnx", job.options)
    assert_same(job, ONNXRuntime(path), job.images[0])
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True).graph
    assert [entry.name for entry in graph.input] == ["images"] and [entry.name for entry in graph.output] == ["output"]
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    shapes |= {n.output[0]: list(n.attribute[0].t.dims) for n in graph.node if n.op_type == "Constant"}
    assert not {node.op_type for node in graph.node} & {"Shape", "Gather", "Expand", "Range", "Identity", "Split"}
    assert max(map(len, shapes.values())) <= 4
    for node in graph.node:
        if node.op_type in ("Add", "Mul", "Sub", "Div"):
            first, second = (shapes[name] for name in node.input)
            assert first == second or not np.prod(second) > 1, node


def test_attention_is_written_so_that_opencv_4_and_5_read_it(tmp_path):
    """OpenCV 4.8 to 4.13 read no Unsqueeze of several dimensions, and 5.0 no weights that two convolutions share."""
    import onnx

    pytest.importorskip("onnxslim")
    cv2 = pytest.importorskip("cv2", minversion="4.8")
    blocks = [block.__name__ for block in registered(planned_by=keeps_channels) if block is not RLNL]
    rows = [TINY["head"][0], *([-1, 1, block, []] for block in blocks)]
    rows.append([[4, 6 + len(blocks)], 1, "Detect", ["nc", "anchors"]])
    job = job_for(lively({**TINY, "head": rows}).fuse(), tmp_path, batch=1, simplify=True)
    path = onnx_file.write(job.graph(job.options), job.images[0], tmp_path / "a.onnx", job.options)
    graph = onnx.load(path).graph
    constants = {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant"}
    constants |= {tensor.name: tensor for tensor in graph.initializer}
    read = onnx.numpy_helper.to_array
    added = [
        list(node.attribute[0].ints) if node.attribute else read(constants[node.input[1]]).tolist()
        for node in graph.node
        if node.op_type == "Unsqueeze"
    ]
    assert added and all(len(axes) == 1 for axes in added)
    weights = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    assert len(weights) == len(set(weights))
    net = cv2.dnn.readNetFromONNX(str(path))
    net.setInput(job.images[0].numpy())
    expected = ONNXRuntime(path)(job.images[0])[0]
    assert np.abs(net.forward() - np.asarray(expected)).max() < 1e-2  # pixels


def test_an_absent_simplifier_is_a_warning(model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(onnx_file, "installed", lambda package: False)
    monkeypatch.setattr(onnx_file.LOGGER, "propagate", True)
    job = job_for(model, tmp_path, simplify=True)
    path = onnx_file.write(job.graph(job.options), job.images[0], tmp_path / "a.onnx", job.options)
    assert "not simplified, since onnxslim is not installed" in caplog.text
    assert_same(job, ONNXRuntime(path), job.images[0])
