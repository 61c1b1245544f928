"""TensorFlow's formats: what is asked of their toolchains, what their files say, and that they give PyTorch's boxes.

Tests that write such files need the environments of utils/runtimes/environments.py, which `make test-export` makes.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import H, W, lively

import export
from models.backend import Backend
from utils.export.formats import ExportError, Options
from utils.export.graph import ChannelsLast, Decoded
from utils.export.onnx_file import write as write_onnx
from utils.export.saved_model import _to_fractions
from utils.nms import non_max_suppression
from utils.runtimes.base import Metadata
from utils.runtimes.environments import ENVIRONMENTS, PythonEnvironment
from utils.runtimes.litert_model import append_metadata, appended_metadata, dequantised, quantised
from utils.runtimes.table import runtime_for

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
    model = onnx.load(write_onnx(decoded, images, tmp_path / "a.onnx", Options(metadata=META)))
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


def test_an_environment_that_cannot_be_made(weights, here, command, monkeypatch):
    def fails(self):
        raise RuntimeError("pip ended with status 1: no space left")

    monkeypatch.setenv("YOLOV5_ENVIRONMENTS", str(here / "none"))
    monkeypatch.setattr(PythonEnvironment, "make", fails)
    code, err = command("export", "--weights", "best.pt", "--include", "tflite", "--make-env")
    assert code == 1
    place = here / "none/litert"
    assert f"--make-env: litert in {place}: pip ended with status 1: no space left" in err.splitlines()[-1]


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
