"""LiteRT files compute what PyTorch computes; SOCA stays in float32. `make test-export` makes their environment."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import TINY

import export
from models.backend import Backend
from models.yolo import Model
from utils.export.formats import ExportError
from utils.export.graph import Decoded
from utils.export.litert_model import float32_patterns
from utils.nms import non_max_suppression
from utils.runtimes.base import Metadata
from utils.runtimes.environments import ENVIRONMENTS
from utils.runtimes.litert_model import append_metadata, appended_metadata, dequantised, quantised
from utils.runtimes.table import runtime_for

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


INSIDE = "utils.export.graph.ChannelsLast/utils.export.graph.Decoded_decoded/models.yolo.Model_detector/"


def test_which_operations_stay_in_float32():
    """Names as litert-torch 0.10 gives them: the modules around an operation, by class and name."""
    insert = [{"after": 4, "module": block} for block in ("SOCA", "SE", "GSoP", "SRM", "MCA")]
    patterns = float32_patterns(Decoded(Model({**TINY, "insert": insert})))

    def stays(name: str) -> bool:
        return any(re.search(pattern, name) for pattern in patterns)

    assert all(stays(f"{INSIDE}models.channel_attention.{kind};") for kind in ("GSoP_5", "SRM_7", "MCA_8"))
    assert stays(f"{INSIDE}models.common.SOCA_4/torch.nn.modules.container.Sequential_conv_du/torch.nn.modules.ReLU_1;")
    assert stays(f"{INSIDE}models.yolo.Detect_12;") and stays("utils.export.graph.ChannelsLast;")
    assert not stays(f"{INSIDE}models.yolo.Detect_12/torch.nn.modules.ModuleList_m/torch.nn.modules.conv.Conv2d_0;")
    assert not stays(f"{INSIDE}models.common.SE_6/torch.nn.modules.container.Sequential_conv_du;")
    assert not stays(f"{INSIDE}models.channel_attention.FCA_6;")  # no block of this detector


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
