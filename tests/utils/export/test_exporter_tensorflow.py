"""TensorFlow's formats: what is asked of their toolchains, what their files say, and that they give PyTorch's boxes.

Tests that write such files need the environments of utils/runtimes/environments.py, which `make test-export` makes.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import lively

import export
from models.backend import Backend
from utils.export import edge_tpu
from utils.export.formats import BY_ARGUMENT, ExportError, ExportOptions
from utils.export.graph import ChannelsLast, Decoded
from utils.export.onnx_file import write as write_onnx
from utils.export.saved_model import _to_fractions
from utils.nms import non_max_suppression
from utils.runtimes import litert_model
from utils.runtimes.base import Metadata
from utils.runtimes.environments import ENVIRONMENTS, PythonEnvironment
from utils.runtimes.litert_model import EdgeTPURuntime, append_metadata, appended_metadata, dequantised, quantised
from utils.runtimes.table import runtime_for
from utils.runtimes.tensorflow_model import TensorFlowRuntime

H, W = 64, 96
META = Metadata(names=("red", "weiß"), stride=32, imgsz=(H, W), int8=True)


@pytest.fixture
def needs() -> Callable:
    """`needs("litert")` skips a test where that environment is not there."""

    def check(*names: str) -> None:
        for name in names:
            if reason := ENVIRONMENTS[name].obstacle():
                pytest.skip(reason)

    return check


# --- the graph, and integers ------------------------------------------------------------------------------------------


def test_channels_last_and_shares_of_the_frame():
    decoded = Decoded(lively().fuse())
    images = torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(0))
    expected, found = decoded(images), ChannelsLast(decoded)(images.permute(0, 2, 3, 1))
    assert torch.allclose(found[..., :4] * torch.tensor([W, H, W, H]), expected[..., :4], rtol=1e-5, atol=1e-4)
    assert torch.equal(found[..., 4:], expected[..., 4:])


def test_shares_in_an_onnx_graph(tmp_path):
    import onnx
    import onnxruntime

    decoded = Decoded(lively().fuse())
    images = torch.rand(1, 3, H, W, generator=torch.Generator().manual_seed(0))
    model = onnx.load(write_onnx(decoded, images, tmp_path / "a.onnx", ExportOptions(metadata=META)))
    _to_fractions(model, (H, W))
    onnx.checker.check_model(model, full_check=True)
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"images": images.numpy()})
    expected = decoded(images).numpy()
    assert np.allclose(found[..., :4] * [W, H, W, H], expected[..., :4], rtol=1e-4, atol=1e-3)
    assert np.allclose(found[..., 4:], expected[..., 4:], atol=1e-4)


@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, -128), (np.uint8, 0)])
def test_integers_and_the_numbers_they_stand_for(dtype, zero):
    entry = {"dtype": dtype, "quantization": (1 / 255, zero)}
    values = np.array([0, 1, 0.501, 100 / 255, -3, 7], np.float32)
    integers = quantised(values, entry)
    assert integers.dtype == dtype
    assert (integers.astype(int) - zero).tolist() == [0, 255, 128, 100, 0, 255]
    assert np.allclose(dequantised(integers, entry), [0, 1, 128 / 255, 100 / 255, 0, 1])
    real = {"dtype": np.float32, "quantization": (0.0, 0)}
    assert quantised(values, real) is values and dequantised(values, real) is values


def test_metadata_at_the_end_of_a_file(tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(b"a flatbuffer")
    assert appended_metadata(path) is None
    append_metadata(path, META)
    assert appended_metadata(path) == META and path.read_bytes().startswith(b"a flatbuffer")


# --- refused before work starts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("include", "packages", "says"),
    [
        ("tflite", (), "TensorFlow Lite needs ai_edge_litert, ai_edge_quantizer: pip install '.[tflite]'"),
        ("tflite", "all", "needs litert-torch==0.10.0 in the separate environment"),
        ("saved_model", "all", "needs onnx2tf==1.29.24 in the separate environment"),
        ("edgetpu", "all", "is in 8-bit integers, which are calibrated on your images: give --data"),
    ],
)
def test_what_is_missing_is_named(weights, here, command, monkeypatch, include, packages, says):
    monkeypatch.setenv("YOLOV5_ENVIRONMENTS", str(here / "none"))
    monkeypatch.setattr("utils.export.formats.installed", lambda package: packages == "all")
    before = sorted(os.listdir(here))
    code, err = command("export", "--weights", "best.pt", "--include", include, "--imgsz", H, W)
    assert code == 1 and says in err.splitlines()[-1] and sorted(os.listdir(here)) == before


def test_without_its_compiler(weights, data, command, monkeypatch):
    monkeypatch.setattr("utils.export.formats.installed", lambda package: True)
    monkeypatch.setenv("PATH", "")
    code, err = command("export", "--weights", "best.pt", "--include", "edgetpu", "--data", data)
    assert code == 1 and "needs the program edgetpu_compiler, which is not installed here" in err.splitlines()[-1]


def test_an_environment_that_cannot_be_made(weights, here, command, monkeypatch):
    def fails(self):
        raise RuntimeError("pip ended with status 1: no space left")

    monkeypatch.setenv("YOLOV5_ENVIRONMENTS", str(here / "none"))
    monkeypatch.setattr(PythonEnvironment, "make", fails)
    code, err = command("export", "--weights", "best.pt", "--include", "tflite", "--make-env")
    assert code == 1
    place = here / "none/litert"
    assert f"--make-env: litert in {place}: pip ended with status 1: no space left" in err.splitlines()[-1]


# --- Edge TPU, as far as it goes without the compiler and the device --------------------------------------------------


def compiler(folder: Path, script: str) -> None:
    program = folder / "edgetpu_compiler"
    program.write_text(f"#!{sys.executable}\nimport pathlib, sys\n{script}\n")
    program.chmod(0o755)


COMPILES = """
*options, source = sys.argv[1:]
assert options[:3] == ["-s", "-d", "-a"] and options[3] == "-o", options
source = pathlib.Path(source)
pathlib.Path(options[4], source.stem + "_edgetpu.tflite").write_bytes(b"compiled " + source.read_bytes())
"""


def test_the_compiler_is_asked_and_its_file_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler(tmp_path, COMPILES)
    (tmp_path / "best-int8.tflite").write_bytes(b"model edgetpu-custom-op")
    target = edge_tpu.write(
        tmp_path / "best-int8.tflite", None, tmp_path / "a_edgetpu.tflite", ExportOptions(metadata=META)
    )
    assert target.read_bytes().startswith(b"compiled model") and appended_metadata(target) == META
    edge_tpu.inspect(target, ExportOptions(metadata=META))
    assert BY_ARGUMENT["edgetpu"].target(Path("best.pt"), True).name == "best-int8_edgetpu.tflite"
    assert runtime_for(target) is EdgeTPURuntime


def test_a_compiler_that_fails_or_takes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    source = tmp_path / "best-int8.tflite"
    source.write_bytes(b"model")
    compiler(tmp_path, "sys.exit('Model not quantized')")
    with pytest.raises(ExportError, match="edgetpu_compiler ended with status 1: Model not quantized"):
        edge_tpu.write(source, None, tmp_path / "a_edgetpu.tflite", ExportOptions(metadata=META))
    compiler(tmp_path, COMPILES)
    target = edge_tpu.write(source, None, tmp_path / "a_edgetpu.tflite", ExportOptions(metadata=META))
    with pytest.raises(ExportError, match="left all operations on the CPU"):
        edge_tpu.inspect(target, ExportOptions(metadata=META))


# --- a model in another process ---------------------------------------------------------------------------------------

TENSORFLOW = '''
"""As much of TensorFlow as the server calls; the model in the folder says in a file what it does."""
import os, sys
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
    runtime = runtime_for(served)(served)
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
    runtime = runtime_for(served)(served)
    assert not runtime.declared and runtime.metadata.imgsz == (H, W) and len(runtime.metadata.names) == 2
    child = runtime.child
    del runtime
    assert child.poll() is not None and child.stdin.closed


def test_a_model_that_cannot_be_read(served):
    (served / "saved_model.pb").unlink()
    with pytest.raises(ValueError, match="cannot be read by tensorflow==0: OSError: SavedModel file does not exist"):
        runtime_for(served)(served)


# --- written, read, compared ------------------------------------------------------------------------------------------


def boxes_of(weights, images: torch.Tensor) -> list[torch.Tensor]:
    return non_max_suppression(Backend(weights)(images)[0].detach().float(), 0.25, 0.45, max_det=100)


@pytest.mark.parametrize("options", [{}, {"half": True}], ids=["float32", "float16"])
def test_litert(needs, weights, here, options):
    pytest.importorskip("ai_edge_litert")
    needs("litert")
    [path] = export.run(weights=weights, imgsz=(H, W), include="tflite", batch_size=2, **options)
    assert path == str(here / f"best-fp{16 if options else 32}.tflite")
    runtime = runtime_for(path)(path)
    assert runtime.metadata == Metadata(names=("red", "weiß"), stride=32, imgsz=(H, W), batch=2, half=bool(options))
    images = torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(2))
    expected, found = Decoded(Backend(weights).model)(images), runtime.run(images)[0]
    assert torch.allclose(found, expected, rtol=1e-2, atol=0.5) if options else torch.allclose(
        found, expected, rtol=1e-4, atol=2e-3
    )  # fmt: skip
    assert [len(b) for b in boxes_of(path, images)] == [len(b) for b in boxes_of(weights, images)]
    assert len(boxes_of(weights, images)[0]) > 3


def test_litert_in_integers_but_for_soca(needs, weights, data, here):
    """The small detector may lose boxes in 8 bits; what is asked here is which numbers are integers."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    needs("litert")
    try:
        [path] = export.run(weights=weights, imgsz=(H, W), include="tflite", int8=True, data=str(data))
    except ExportError as error:
        assert "differs from PyTorch" in str(error)
        path = str(here / "best-int8.tflite.rejected")
    model = interpreter.Interpreter(path)
    types = {"SOCA": set(), "Conv2d": set()}
    for tensor in model.get_tensor_details():
        name = tensor["name"]
        for module, found in types.items():
            if f".{module}_" in name.split(";;")[-1] and not name.endswith("_quantized"):  # on its way out
                found.add(tensor["dtype"])
    assert types["SOCA"] == {np.float32, np.int32}  # and sizes, for reshaping
    assert np.int8 in types["Conv2d"]
    assert model.get_output_details()[0]["dtype"] == np.float32
    assert appended_metadata(Path(path)).int8


def test_tensorflow(needs, weights, here):
    """SavedModel, then the frozen graph and the web model made of it, which share one conversion."""
    needs("tensorflow", "tfjs")
    made = export.run(weights=weights, imgsz=(H, W), include=["saved_model", "pb", "tfjs"])
    assert made == [str(here / name) for name in ("best_saved_model", "best.pb", "best_web_model")]
    images = torch.rand(1, 3, H, W, generator=torch.Generator().manual_seed(2))
    expected = Decoded(Backend(weights).model)(images)
    for path in made:
        runtime = runtime_for(path)(path)
        assert runtime.metadata == Metadata(names=("red", "weiß"), stride=32, imgsz=(H, W)) and runtime.declared
        assert torch.allclose(runtime.run(images)[0], expected, rtol=1e-4, atol=2e-3)


def test_tensorflow_with_suppression(needs, weights, here):
    needs("tensorflow")
    [path] = export.run(weights=weights, imgsz=(H, W), include="pb", nms=True, topk_all=20, conf_thres=0.5)
    images = torch.rand(1, 3, H, W, generator=torch.Generator().manual_seed(2))
    boxes, scores, classes = runtime_for(path)(path).run(images)
    assert boxes.shape == (1, 20, 4)
    (expected,) = non_max_suppression(Backend(weights)(images)[0].detach(), 0.5, 0.45, max_det=20)
    n = len(expected)
    assert n > 3 and not scores[0, n:].any()
    found = torch.cat((boxes[0, :n], scores[0, :n, None], classes[0, :n, None]), 1)
    assert torch.allclose(found, expected, atol=5e-3)


def test_no_edge_tpu_here(monkeypatch):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.setattr(litert_model, "_edge_tpu", lambda: None)
    assert EdgeTPURuntime.obstacle() == "runs on a Coral Edge TPU, and none is found here"
