"""Files that export.py writes give what PyTorch gives, say what they are, and are refused where they do not."""

from pathlib import Path

import pytest
import torch
from small_world import SMALLEST

from models.yolo import Model
from utils.export.exporter import Job, export
from utils.export.formats import BY_ARGUMENT, Options, Suppression
from utils.inference.nms import non_max_suppression
from utils.inference.runtimes import Metadata, runtime_for

HOW = Suppression(conf_thres=0.25, iou_thres=0.45, agnostic=False, topk_per_class=100, topk_all=30)
SIZE = 64


def lively(cfg: dict = SMALLEST, nc: int = 3, seed: int = 0) -> Model:
    """A small detector with SOCA whose random weights find boxes of all classes, here and there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Model({**cfg, "nc": nc}).eval()
        for conv in model.model[-1].m:
            conv.weight.data *= 40
            conv.bias.data.view(3, -1)[:, 4] = 0.0
            conv.bias.data.view(3, -1)[:, 5:] = 0.5
    model.names = ["red", "weiß", "blue"][:nc]
    return model.fuse()


@pytest.fixture(scope="module")
def model() -> Model:
    return lively()


def job_for(model: Model, folder: Path, **options) -> Job:
    nms = options.get("nms")
    metadata = Metadata(
        tuple(model.names), 32, (SIZE, SIZE), options.pop("batch", 1), 3, options.get("dynamic", False), bool(nms),
        options.get("train", False), options.get("half", False), False,
        *((nms.conf_thres, nms.iou_thres) if nms else ()),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    shapes = [(metadata.batch, SIZE, SIZE), (metadata.batch + 1, SIZE, SIZE), (2, 96, 32)]
    pictures = [torch.rand(B, 3, H, W, generator=generator) for B, H, W in shapes]
    return Job(model, folder / "best.pt", Options(metadata, **options), pictures)


def test_the_lively_model_finds_boxes(model):
    found = non_max_suppression(model(torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))[0])
    assert len(found[0]) > 5 and len(found[0][:, 5].unique()) > 1


@pytest.mark.parametrize("argument", ["torchscript", "onnx", "openvino"])
@pytest.mark.parametrize("nms", [None, HOW], ids=["decoded", "nms"])
def test_any_frame_and_number_of_images(model, tmp_path, argument, nms):
    kind = BY_ARGUMENT[argument]
    job = job_for(model, tmp_path, dynamic=True, nms=nms)
    path = export(job, kind, tmp_path)
    assert path == kind.target(tmp_path / "best.pt") and sorted(p.name for p in tmp_path.glob(".*")) == []
    runtime = runtime_for(path)(path)
    assert runtime.metadata == job.options.metadata and runtime.declared
    with torch.no_grad():
        for images in job.pictures:
            expected = job.reference(images)
            for ours, true in zip(runtime.run(images), expected if nms else [expected], strict=True):
                assert ours.shape == true.shape
                assert torch.allclose(ours.float(), true.float(), rtol=1e-4, atol=2e-3)
