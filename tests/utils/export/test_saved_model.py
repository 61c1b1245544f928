"""TensorFlow's formats compute what PyTorch computes. `make test-export` makes their environments."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_world import lively

import export
from models.backend import Backend
from utils.export.formats import ExportOptions
from utils.export.graph import ChannelsLast, Decoded
from utils.export.onnx_file import write as write_onnx
from utils.export.saved_model import _to_fractions
from utils.nms import non_max_suppression
from utils.runtimes.base import Metadata
from utils.runtimes.environments import ENVIRONMENTS
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
