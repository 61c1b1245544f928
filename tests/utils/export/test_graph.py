"""The suppression inside a file is that of detect.py."""

import pytest
import torch
from export_job import HOW, SIZE, assert_same, job_for, random_images
from small_world import TINY, lively

from models.yolo import Model
from utils.export import onnx_file
from utils.export.formats import Suppression
from utils.export.graph import delicate_modules, suppress
from utils.nms import non_max_suppression
from utils.runtimes.onnx_file import ONNXRuntime


@pytest.fixture(scope="module")
def model() -> Model:
    return lively().fuse()


def test_the_lively_model_finds_boxes(model):
    found = non_max_suppression(model(random_images((1, SIZE, SIZE))[0])[0])[0]
    assert len(found) > 5 and len(found[:, 5].unique()) > 1


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


def test_which_modules_stay_in_float32():
    """Those that square and sum a whole map, also inside another block, and the head that decodes boxes."""
    insert = [{"after": 4, "module": block} for block in ("SOCA", "SE", "GSoP", "LSRAG", "SRM")]
    model = Model({**TINY, "insert": insert})
    kinds = {name: type(model.get_submodule(name)).__name__ for name in delicate_modules(model)}
    assert list(kinds.values()) == ["SOCA", "GSoP", "SOCA", "SRM", "Detect"]
    assert sum(name.endswith(".soca") for name in kinds) == 1
