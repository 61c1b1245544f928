"""Files that export.py writes give what PyTorch gives, say what they are, and are refused where they do not."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_world import TINY, lively, write_boxes, write_yaml

from models.backend import Backend
from models.second_order import second_order_statistic
from models.yolo import Model
from utils.export import exporter, onnx_file, torchscript
from utils.export.exporter import Job, check, export
from utils.export.formats import BY_ARGUMENT, ExportError, ExportOptions, Suppression
from utils.export.graph import Decoded, suppress
from utils.export.proof import prove
from utils.export.quantise import float32_names
from utils.nms import non_max_suppression
from utils.runtimes.base import Metadata, Runtime
from utils.runtimes.onnx_file import ONNXRuntime
from utils.runtimes.table import runtime_for
from utils.runtimes.tensorrt_engine import split_engine
from utils.runtimes.torchscript import TorchScriptRuntime

SIZE = 64
HOW = Suppression(conf_thres=0.25, iou_thres=0.45, agnostic=False, topk_per_class=100, topk_all=30)


@pytest.fixture(scope="module")
def model() -> Model:
    return lively().fuse()


def random_images(*shapes: tuple[int, int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(B, 3, H, W, generator=generator) for B, H, W in shapes]


def job_for(model: Model, folder: Path, batch: int = 1, **options) -> Job:
    nms = options.get("nms")
    stated = {name: options.pop(name, False) for name in ("dynamic", "train", "half", "int8")}
    thresholds = {"conf_thres": nms.conf_thres, "iou_thres": nms.iou_thres} if nms else {}
    metadata = Metadata(
        names=tuple(model.names), stride=32, imgsz=(SIZE, SIZE), batch=batch, nms=bool(nms), **stated, **thresholds
    )
    batches = random_images((batch, SIZE, SIZE), (batch + 1, SIZE, SIZE), (2, 96, 32))
    options = ExportOptions(metadata=metadata, **options)
    return Job(detector=model, weights=folder / "best.pt", options=options, images=batches)


@torch.no_grad()
def assert_same(job: Job, runtime: Runtime, images: torch.Tensor, rtol=1e-4, atol=2e-3) -> None:
    expected = job.reference(images)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for ours, true in zip(runtime.run(images.to(runtime.dtype)), expected, strict=True):
        assert ours.shape == true.shape
        assert torch.allclose(ours.float(), true.float(), rtol=rtol, atol=atol)


def test_the_lively_model_finds_boxes(model):
    found = non_max_suppression(model(random_images((1, SIZE, SIZE))[0])[0])[0]
    assert len(found) > 5 and len(found[:, 5].unique()) > 1


# --- written, read, compared ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["torchscript", "onnx", "openvino"])
@pytest.mark.parametrize("nms", [None, HOW], ids=["decoded", "nms"])
def test_any_frame_and_number_of_images(model, tmp_path, argument, nms):
    kind = BY_ARGUMENT[argument]
    job = job_for(model, tmp_path, dynamic=True, nms=nms)
    path = export(job, kind, tmp_path)
    assert path == kind.target(tmp_path / "best.pt") and not list(tmp_path.glob(".*"))
    runtime = runtime_for(path)(path)
    assert runtime.metadata == job.options.metadata and runtime.declared
    for images in job.images:
        assert_same(job, runtime, images)


def test_a_program_of_torch_export(model, tmp_path):
    job = job_for(model, tmp_path)
    path = export(job, BY_ARGUMENT["pt2"], tmp_path)
    runtime = runtime_for(path)(path)
    assert runtime.metadata == job.options.metadata
    assert_same(job, runtime, job.images[0])


@pytest.mark.parametrize("opset", [11, 20])
def test_the_opset_is_the_one_asked_for(model, tmp_path, opset):
    import onnx

    job = job_for(model, tmp_path, dynamic=True, nms=HOW, opset=opset, simplify=True)
    path = onnx_file.write(job.graph(job.options), job.images[0], tmp_path / "a.onnx", job.options)
    assert [entry.version for entry in onnx.load(path).opset_import] == [opset]
    assert_same(job, ONNXRuntime(path), job.images[2])


def test_a_training_graph_gives_the_raw_maps(model, tmp_path):
    job = job_for(lively(), tmp_path, train=True)
    for argument in ("torchscript", "onnx"):
        path = export(job, BY_ARGUMENT[argument], tmp_path)
        runtime = runtime_for(path)(path)
        assert [tuple(m.shape[2:]) for m in runtime.run(job.images[0])] == [(8, 8, 8), (4, 4, 8)]
        with pytest.raises(ValueError, match="was exported with --train"):
            Backend(path)


def test_frozen_weights(model, tmp_path):
    job = job_for(model, tmp_path, optimize=True)
    path = torchscript.write(job.graph(job.options), job.images[0], tmp_path / "a.torchscript", job.options)
    runtime = TorchScriptRuntime(path)
    assert not list(runtime.graph.parameters())
    assert_same(job, runtime, job.images[0])


def test_every_attention_block_is_plain_operations(tmp_path):
    blocks = ["SOCA", "SE", "ECA", "CBAM", "CoordAttention", "SimAM", "GCT", "RLNL", "LSRAG"]
    rows = [TINY["head"][0], *([-1, 1, block, []] for block in blocks)]
    rows.append([[4, 6 + len(blocks)], 1, "Detect", ["nc", "anchors"]])
    model = lively({**TINY, "head": rows}).fuse()
    job = job_for(model, tmp_path, dynamic=True, opset=14)  # RLNL's attention is no operator before
    path = onnx_file.write(job.graph(job.options), job.images[0], tmp_path / "a.onnx", job.options)
    assert_same(job, ONNXRuntime(path), job.images[2])


# --- SOCA in other precisions -----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("argument", ["torchscript", "onnx", "openvino"])
def test_half(model, tmp_path, argument):
    job = job_for(model, tmp_path, half=True)
    path = export(job, BY_ARGUMENT[argument], tmp_path)
    runtime = runtime_for(path)(path)
    assert runtime.metadata.half and runtime.dtype == (torch.float32 if argument == "openvino" else torch.float16)
    assert_same(job, runtime, job.images[0], rtol=0.05, atol=0.5)
    size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.glob("*.bin"))
    weights = sum(p.numel() for p in model.parameters())
    assert size > 2 * weights and (argument != "openvino" or size < 3 * weights)


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


def test_which_operations_stay_in_float32():
    names = [
        "/detector/model.24/MatMul_3", "/detector/model.24/conv_du/conv_du.0/Conv", "/detector/model.2/Conv",
        "/detector/model.25/m.0/Conv", "/detector/model.25/Mul_4", "/detector/model.4/m/m.0/Add",
        "/detector/model.4/m/m.1/Add", "/detector/model.241/Mul",
    ]  # fmt: skip
    assert float32_names(names, ["model.24", "model.25", "model.4.m.0"]) == [names[i] for i in (0, 1, 4, 5)]


# --- suppression ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        HOW,
        Suppression(conf_thres=0.05, iou_thres=0.3, topk_all=10),
        Suppression(agnostic=True, topk_per_class=2, topk_all=50),
        Suppression(conf_thres=0.9),
        Suppression(conf_thres=0.001, iou_thres=1.0, topk_per_class=1000, topk_all=1000),
    ],
    ids=["usual", "few", "agnostic", "none left", "all"],
)
def test_suppression_is_that_of_detect(model, how):
    rows = model(torch.cat(random_images((3, SIZE, SIZE))))[0].detach()
    boxes, scores, classes = suppress(rows, how)
    expected = non_max_suppression(rows, how.conf_thres, how.iou_thres, agnostic=how.agnostic, max_det=how.topk_all)
    for i, true in enumerate(expected):
        n = len(true)
        ours = torch.cat((boxes[i, :n], scores[i, :n, None], classes[i, :n, None]), 1)
        assert torch.allclose(ours, true, atol=1e-4)
        assert not scores[i, n:].any() and not boxes[i, n:].any() and not classes[i, n:].any()


def test_so_many_of_each_class_and_no_more(model, tmp_path):
    how = Suppression(conf_thres=0.1, topk_per_class=2, topk_all=20)
    job = job_for(model, tmp_path, dynamic=True, nms=how)
    images = random_images((2, 96, 96))[0]
    path = onnx_file.write(job.graph(job.options), job.images[0], tmp_path / "a.onnx", job.options)
    rows = model(images)[0].detach()
    assert_same(job, ONNXRuntime(path), images)
    for expected, scores, classes in zip(non_max_suppression(rows, 0.1, 0.45), *suppress(rows, how)[1:]):
        kept = torch.cat([expected[expected[:, 5] == c][:2] for c in range(3)])  # in descending confidence
        assert 3 < len(kept) < len(expected)
        assert torch.allclose(scores[scores > 0], kept[:, 4].sort(descending=True)[0])
        assert classes[scores > 0].bincount().max() == 2


def test_no_row_at_all_passes():
    rows = torch.zeros(2, 40, 8)
    boxes, scores, classes = suppress(rows, HOW)
    assert boxes.shape == (2, 30, 4) and not scores.any() and not classes.any()


# --- the proof --------------------------------------------------------------------------------------------------------


class Altered(Runtime):
    """Runs the detector itself, with something done to its rows."""

    def __init__(self, model, change, **metadata):
        self.model, self.change, self.device, self.dtype = model, change, torch.device("cpu"), torch.float32
        self.metadata = Metadata(names=tuple(model.names), stride=32, imgsz=(SIZE, SIZE), **metadata)

    def run(self, images):
        return (self.change(self.model(images)[0].clone()),)


def worse_box(rows):
    rows[:, :, 0] += 0.1
    return rows


def worse_score(rows):
    rows[..., 4] -= 0.01
    return rows


def other_class(rows):
    return torch.cat((rows[..., :5], rows[..., 5:].flip(-1)), -1)


@pytest.mark.parametrize(
    ("change", "metadata", "says"),
    [
        (lambda rows: rows, {}, None),
        (worse_box, {}, "coordinates differ by 0.1 px"),
        (worse_box, {"half": True}, None),
        (worse_score, {}, "scores differ by 0.01"),
        (other_class, {"int8": True}, "boxes, of which it detects"),
        (lambda rows: rows[:, 1:], {}, "its output has the shape"),
        (lambda rows: rows / 0, {}, "not finite"),
    ],
    ids=["same", "moved", "moved in half", "less sure", "classes swapped", "a row less", "infinite"],
)
def test_the_proof_sees_what_is_wrong(model, change, metadata, says):
    proof = prove(Altered(model, change, **metadata), Decoded(model), random_images((2, SIZE, SIZE)))
    assert [says] == [None] if not proof.faults and says is None else any(says in fault for fault in proof.faults)
    if says is None:
        assert proof.boxes == proof.matched > 3 and "times as fast" in proof.describe()


def test_a_wrong_file_is_kept_aside_and_an_old_one_stays(model, tmp_path, monkeypatch):
    (tmp_path / "best.torchscript").write_text("old")
    other = lively(seed=7).fuse()
    job = job_for(model, tmp_path)
    monkeypatch.setattr(job, "graph", lambda options, half: Decoded(other))
    with pytest.raises(
        ExportError, match=r"differs from PyTorch by more than .* kept as .*best\.torchscript\.rejected"
    ):
        export(job, BY_ARGUMENT["torchscript"], tmp_path)
    assert (tmp_path / "best.torchscript").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.torchscript", "best.torchscript.rejected"]
    assert TorchScriptRuntime(tmp_path / "best.torchscript.rejected").declared


def test_a_file_with_other_metadata_is_rejected(model, tmp_path):
    job = job_for(model, tmp_path)
    kind = BY_ARGUMENT["onnx"]
    path = onnx_file.write(job.graph(job.options), job.images[0], tmp_path / "a.onnx", job.options)
    assert check(job, kind, path, job.options) == ""
    other = replace(job.options, metadata=replace(job.options.metadata, stride=64))
    assert "it states" in check(job, kind, path, other)


def test_a_folder_takes_the_place_of_an_older_one(model, tmp_path):
    old = tmp_path / "best_openvino_model"
    old.mkdir()
    (old / "stale.xml").touch()
    path = export(job_for(model, tmp_path), BY_ARGUMENT["openvino"], tmp_path)
    assert path == old and sorted(p.name for p in old.iterdir()) == ["best.bin", "best.xml", "metadata.json"]


def test_a_toolchain_that_breaks_is_named_and_leaves_nothing(model, tmp_path, monkeypatch):
    def breaks(*_, **__):
        (tmp_path / "half written").touch()
        raise KeyError("no such operator")

    monkeypatch.setattr(torch.jit, "save", breaks)
    with pytest.raises(ExportError, match=rf"torch {torch.__version__.split('+')[0]}.* failed: KeyError: .*operator"):
        export(job_for(model, tmp_path), BY_ARGUMENT["torchscript"], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["half written"]  # which is the test's


def test_what_cannot_be_run_here_is_called_unrun(model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(TorchScriptRuntime, "packages", ("no_such_package",))
    monkeypatch.setattr(exporter.LOGGER, "propagate", True)
    export(job_for(model, tmp_path), BY_ARGUMENT["torchscript"], tmp_path)
    assert "TorchScript: not run here, since it runs with no_such_package, which is not installed here" in caplog.text


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "int8", "name"),
    [
        ("onnx", False, "a.pt.onnx"),
        ("openvino", True, "a.pt_openvino_model"),
        ("torchscript", False, "a.pt.torchscript"),
    ],
)
def test_names_of_files(argument, int8, name):
    assert BY_ARGUMENT[argument].target(Path("x.pt/a.pt.pt"), int8) == Path("x.pt") / name  # v6.1 replaced every .pt


def test_names_of_tflite_files():
    tflite, weights = BY_ARGUMENT["tflite"], Path("best.pt")
    assert tflite.target(weights).name == "best-fp32.tflite"
    assert tflite.target(weights, half=True).name == "best-fp16.tflite"
    assert tflite.target(weights, int8=True).name == "best-int8.tflite"
    assert BY_ARGUMENT["edgetpu"].target(weights, int8=True).name == "best-int8_edgetpu.tflite"


# --- TensorRT and NNCF ------------------------------------------------------------------------------------------------


def test_integers_leave_soca_alone(tmp_path):
    """Of a quantised network neither SOCA nor the decoding takes what a quantiser gives; the convolutions do."""
    pytest.importorskip("nncf")
    import openvino

    rows = [*TINY["head"][:1], [-1, 1, "SOCA", []], [[4, 7], 1, "Detect", ["nc", "anchors"]]]
    data = write_yaml(tmp_path / "boxes.yaml", {**write_boxes(tmp_path / "boxes"), "nc": 3, "names": list("abc")})
    job = job_for(lively({**TINY, "head": rows}).fuse(), tmp_path, int8=True, data=str(data))
    path = exporter.write(job, BY_ARGUMENT["openvino"], tmp_path / "q_openvino_model", job.options_for(
        BY_ARGUMENT["openvino"]), tmp_path)  # fmt: skip
    model = openvino.Core().read_model(next((tmp_path / "q_openvino_model").glob("*.xml")))
    fed = {
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        for source in op.input_values()
        if source.get_node().get_type_name() == "FakeQuantize"
    }
    assert path is None and len([name for name in fed if "Conv" in name]) > 10
    assert not [n for n in fed if "/model.7/" in n or ("/model.8/" in n and "/m." not in n)]


class Recorder:
    """Stands in for TensorRT: accepts what its documentation names, and notes it."""

    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    BuilderFlag = SimpleNamespace(TF32="tf32")
    __version__ = "11.4"
    documented = "create_network", "set_memory_pool_limit", "clear_flag", "add_optimization_profile", "set_shape"

    def __init__(self, parses=True, builds=True):
        self.calls, self.parses, self.builds = [], parses, builds
        self.num_errors = 1

    class Logger:
        WARNING, VERBOSE = 1, 2

        def __init__(self, level):
            self.level = level

    def Builder(self, logger):
        return self

    def OnnxParser(self, network, logger):
        return self

    def parse(self, content):
        self.onnx = content
        return self.parses

    def get_error(self, i):
        return "operator unknown"

    def get_input(self, i):
        return SimpleNamespace(name="images")

    def create_builder_config(self):
        return self

    def create_optimization_profile(self):
        return self

    def build_serialized_network(self, network, config):
        return b"engine" if self.builds else None

    def __getattr__(self, name):
        if name not in (
            "create_network",
            "set_memory_pool_limit",
            "clear_flag",
            "add_optimization_profile",
            "set_shape",
        ):
            raise AttributeError(name)
        return lambda *arguments: self.calls.append((name, *arguments)) or self


def test_how_an_engine_is_built(model, tmp_path, monkeypatch):
    """As far as it goes without a GPU: what TensorRT is asked for, and that the file says what it is."""
    trt = Recorder()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    job = job_for(model, tmp_path, dynamic=True, half=True, workspace=3)
    exporter.write(job, BY_ARGUMENT["engine"], tmp_path / "best.engine", job.options, tmp_path)
    metadata, engine = split_engine(tmp_path / "best.engine")
    assert metadata == job.options.metadata and metadata.half and engine == b"engine"
    calls = {name: arguments for name, *arguments in trt.calls}
    assert calls["create_network"] == [1 << 1] and calls["set_memory_pool_limit"] == ["workspace", 3 * 2**30]
    assert calls["set_shape"] == ["images", (1, 3, 32, 32), (1, 3, SIZE, SIZE), (1, 3, SIZE, SIZE)]
    import onnx

    graph = onnx.load_from_string(trt.onnx).graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16  # whose types the engine keeps


@pytest.mark.parametrize(
    ("fault", "says"),
    [({"parses": False}, "tensorrt 11.4 cannot read the ONNX graph: operator unknown"),
     ({"builds": False}, "tensorrt 11.4 built no engine")],
)  # fmt: skip
def test_an_engine_that_is_not_built(model, tmp_path, monkeypatch, fault, says):
    monkeypatch.setitem(sys.modules, "tensorrt", Recorder(**fault))
    job = job_for(model, tmp_path)
    with pytest.raises(ExportError, match=says):
        exporter.write(job, BY_ARGUMENT["engine"], tmp_path / "best.engine", job.options, tmp_path)
    assert not (tmp_path / "best.engine").exists()
