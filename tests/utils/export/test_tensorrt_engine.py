"""TensorRT without a GPU: what it is asked for, and the metadata in an engine's file."""

import sys
from types import SimpleNamespace

import pytest
from export_job import SIZE, job_for
from small_world import lively

from models.yolo import Model
from utils.export import exporter
from utils.export.formats import BY_ARGUMENT, ExportError
from utils.runtimes.base import Metadata
from utils.runtimes.tensorrt_engine import join_engine, split_engine


@pytest.fixture(scope="module")
def model() -> Model:
    return lively().fuse()


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


def test_an_engine_carries_its_metadata(tmp_path):
    metadata = Metadata(names=("red", "weiß"), stride=32, imgsz=(64, 96), batch=2, nms=True, conf_thres=0.25)
    file = tmp_path / "a.engine"
    file.write_bytes(join_engine(metadata, b"engine"))
    assert split_engine(file) == (metadata, b"engine")
    file.write_bytes(b"ftrt" + bytes(100))  # as v6.1 wrote it
    assert split_engine(file) == (None, file.read_bytes())
