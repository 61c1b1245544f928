"""v6.1's names for loss, metrics, anchors and hooks give the project's numbers under its arguments."""

import numpy as np
import pytest
import torch
from small_world import lively, write_boxes, write_yaml

from utils.autoanchor import check_anchor_order, check_anchors, kmean_anchors
from utils.autobatch import autobatch, check_train_batch_size
from utils.callbacks import Callbacks
from utils.data.dataset import open_dataset
from utils.data.options import LoaderOptions
from utils.files import ROOT
from utils.loss import ComputeLoss, smooth_BCE
from utils.metrics import ConfusionMatrix, ap_per_class, bbox_iou, box_iou, compute_ap, fitness
from utils.training.hyperparameters import load_hyp
from utils.training.loss import ComputeLoss as OwnLoss


def test_overlaps_by_v61s_switches():
    box, boxes = torch.tensor([0.0, 0, 2, 2]), torch.tensor([[1.0, 1, 3, 3], [0, 0, 2, 2]])
    np.testing.assert_allclose(bbox_iou(box, boxes), [1 / 7, 1], rtol=1e-5)
    np.testing.assert_allclose(bbox_iou(box, boxes, GIoU=True), [1 / 7 - 2 / 9, 1], rtol=1e-5)
    # squared distance of the centres 2, of the corners of both 18
    np.testing.assert_allclose(bbox_iou(box, boxes, DIoU=True), [1 / 7 - 2 / 18, 1], rtol=1e-5)
    np.testing.assert_allclose(bbox_iou(box, boxes, CIoU=True), [1 / 7 - 2 / 18, 1], rtol=1e-5)
    centred = torch.tensor([[1.0, 1, 2, 2], [1, 1, 2, 2]])
    pairs = bbox_iou(centred.T, torch.tensor([[2.0, 2, 2, 2], [1, 1, 2, 2]]), x1y1x2y2=False)
    np.testing.assert_allclose(pairs, [1 / 7, 1], rtol=1e-5)
    np.testing.assert_allclose(box_iou(box[None], boxes), [[1 / 7, 1]], rtol=1e-5)


def test_average_precision_in_v61s_order(tmp_path):
    tp = np.array([[True], [False], [True]])
    right, wrong, p, r, f1, ap, classes = ap_per_class(
        tp, np.array([0.9, 0.8, 0.7]), np.zeros(3), np.zeros(2), plot=True, save_dir=tmp_path, names=["x"]
    )
    assert (right, wrong, classes) == ([2], [1], [0]) and (r, ap.shape) == ([1], (1, 1))
    np.testing.assert_allclose([p[0], f1[0]], [2 / 3, 0.8], rtol=1e-6)
    # precision 1 up to recall 1/2, then 2/3
    area, envelope, recall = compute_ap([0.5, 0.5, 1], [1, 0.5, 2 / 3])
    assert area == pytest.approx(ap[0, 0]) == pytest.approx(0.5 + 0.5 * 2 / 3, abs=0.01)
    np.testing.assert_allclose(envelope, [1, 1, 2 / 3, 2 / 3, 0])
    np.testing.assert_allclose(recall, [0, 0.5, 0.5, 1, 1])
    assert (tmp_path / "PR_curve.png").is_file()
    np.testing.assert_allclose(fitness(np.array([[1, 1, 0.5, 0.25]])), [0.275])


def test_the_confusion_matrix_counts_by_image(tmp_path, capsys):
    confusion = ConfusionMatrix(nc=2, conf=0.25, iou_thres=0.45)
    detections = torch.tensor([[0.0, 0, 10, 10, 0.9, 0], [20, 20, 30, 30, 0.8, 1], [50, 50, 60, 60, 0.7, 1]])
    labels = torch.tensor([[0.0, 0, 0, 10, 10], [0, 20, 20, 30, 30]])
    confusion.process_batch(detections, labels)
    np.testing.assert_array_equal(confusion.matrix, [[1, 0, 0], [1, 0, 1], [0, 0, 0]])
    right, wrong = confusion.tp_fp()
    assert right.tolist() == [1, 0] and wrong.tolist() == [0, 2]
    confusion.plot(normalize=True, save_dir=tmp_path, names=["x", "y"])
    confusion.print()
    assert (tmp_path / "confusion_matrix.png").is_file() and capsys.readouterr().out.startswith("1.0 0.0 0.0\n")


def test_the_loss_is_made_from_a_model():
    model = lively().train()
    with pytest.raises(ValueError, match=r"model\.hyp"):
        ComputeLoss(model)
    model.hyp = load_hyp(ROOT / "data/hyps/hyp.scratch-low.yaml")
    images, targets = torch.rand(2, 3, 64, 64), torch.tensor([[0, 1, 0.5, 0.5, 0.2, 0.3], [1, 2, 0.3, 0.6, 0.4, 0.2]])
    raw = model(images)
    total, items = ComputeLoss(model)(raw, targets)
    expected, parts = OwnLoss(model.model[-1], model.hyp)(raw, targets)
    assert torch.equal(total, expected) and torch.equal(items, parts) and total.shape == (1,)
    total.backward()
    assert smooth_BCE(0.1) == (0.95, 0.05)


@pytest.fixture
def boxes(tmp_path):
    return write_yaml(tmp_path / "set.yaml", write_boxes(tmp_path / "set"))


def test_anchors_are_fitted_to_a_data_set(boxes):
    anchors = kmean_anchors(str(boxes), n=2, img_size=96, thr=4.0, gen=20, verbose=False)
    dataset = open_dataset(str(boxes.parent / "set/images/train"), LoaderOptions())
    np.testing.assert_array_equal(kmean_anchors(dataset, 2, 96, 4.0, 20), anchors)
    # red boxes are 26 x 32, white ones 8 to 42 wide and 30 high, in images of 96 x 64
    assert anchors.shape == (2, 2) and (anchors > 7).all() and (anchors < 45).all()


def test_anchors_of_a_model_are_checked_in_place(boxes):
    dataset = open_dataset(str(boxes.parent / "set/images/train"), LoaderOptions())
    model = lively()
    head = model.model[-1]
    good = head.anchors.clone()
    check_anchors(dataset, model, thr=4.0, imgsz=96)
    assert torch.equal(head.anchors, good)
    head.anchors *= 100
    check_anchors(dataset, model, thr=4.0, imgsz=96)
    assert (head.anchors * head.stride.view(-1, 1, 1)).max() < 60
    ordered = head.anchors.clone()
    head.anchors[:] = head.anchors.flip(0) * head.stride.flip(0).view(-1, 1, 1) / head.stride.view(-1, 1, 1)
    check_anchor_order(head)
    torch.testing.assert_close(head.anchors, ordered)


def test_the_batch_size_on_a_cpu():
    assert check_train_batch_size(lively(), 64) == autobatch(lively(), 64, fraction=0.8, batch_size=16) == 16


def test_hooks_are_called_in_order():
    seen, callbacks = [], Callbacks()
    callbacks.register_action("on_val_end", name="a", callback=lambda *x, **y: seen.append((x, y)))
    callbacks.register_action("on_val_end", callback=lambda *x, **y: seen.append("b"))
    callbacks.run("on_val_end", 1, k=2)
    callbacks.run("on_train_end")
    assert seen == [((1,), {"k": 2}), "b"] and not callbacks.stop_training
    assert [a["name"] for a in callbacks.get_registered_actions("on_val_end")] == ["a", ""]
    assert len(callbacks.get_registered_actions()) == 19
    for hook, function in (("on_no_hook", print), ("on_val_end", None)):
        with pytest.raises(ValueError, match="register_action takes a function for one of"):
            callbacks.register_action(hook, callback=function)
