import logging

import numpy as np
import pytest

from models.yolo import Model
from utils.files import ROOT, read_yaml
from utils.training.autoanchor import (
    GOOD_RECALL,
    anchor_fit,
    boxes_in_pixels,
    check_anchors,
    fit_anchors,
    kmeans,
    order_anchors,
    save_anchors,
)

P5 = np.array([[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]], float)
P5 = P5.reshape(3, 3, 2)
STRIDES = (8, 16, 32)


class FixedScales:
    """A generator that draws the recorded zooms and leaves all else to a real one."""

    def __init__(self, scales):
        self.scales = np.array(scales, float).reshape(-1, 1)
        self.real = np.random.default_rng(0)

    def uniform(self, low, high, size):
        assert (low, high, size) == (0.9, 1.1, self.scales.shape)
        return self.scales

    def __getattr__(self, name):
        return getattr(self.real, name)


@pytest.fixture
def log(caplog):
    """Messages of the project's logger, which does not pass them on."""
    logger = logging.getLogger("yolov5")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, "yolov5")
    yield caplog
    logger.removeHandler(caplog.handler)


def labels_of(wh, size=640):
    """One square image holding boxes of these sizes (n, 2) in pixels."""
    wh = np.asarray(wh, np.float32)
    return np.array([[size, size]]), [np.column_stack([np.zeros(len(wh)), np.full((len(wh), 2), 0.5), wh / size])]


def random_sizes(n=500, seed=0):
    return np.exp(np.random.default_rng(seed).normal(3.5, 0.8, (n, 2))).clip(2, 600).astype(np.float32)


# --- the measure ------------------------------------------------------------------------------------------------------


def test_fit_as_recorded(parity):
    recorded = parity("anchors")
    for case in recorded["metric"]["cases"]:
        wh = np.array(recorded["wh"][case["wh"]])
        anchors = np.concatenate([np.array(level) for level in recorded["metric"]["anchors"][case["anchors"]]])
        found = anchor_fit(wh, anchors.reshape(-1, 2), case["thr"])
        assert found == pytest.approx((case["bpr"], case["aat"], case["fitness"]), abs=1e-6)


def test_fit_equals_the_slow_loop():
    wh, anchors, threshold = random_sizes(50).astype(float), P5.reshape(-1, 2), 2.9
    matches, best = [], []
    for w, h in wh:
        ratios = [min(w / aw, aw / w, h / ah, ah / h) for aw, ah in anchors]
        matches.append(sum(r > 1 / threshold for r in ratios))
        best.append(max(ratios))
    recall = np.mean([b > 1 / threshold for b in best])
    fitness = np.mean([b if b > 1 / threshold else 0 for b in best])
    assert anchor_fit(wh, anchors, threshold) == pytest.approx((recall, np.mean(matches), fitness), abs=1e-6)


def test_threshold_is_strict():
    assert anchor_fit(np.array([[40.0, 10.0]]), np.array([[10.0, 10.0]]), 4.0) == (0, 0, 0)
    assert anchor_fit(np.array([[39.9, 10.0]]), np.array([[10.0, 10.0]]), 4.0).recall == 1


def test_boxes_and_anchors_of_no_width():
    # the placeholder anchors 0, 1, 2, ... of models that give only a count, and a degenerate label
    found = anchor_fit(np.array([[0.0, 8.0], [3.0, 3.0]]), np.array([[0.0, 1.0], [2.0, 3.0]]), 4.0)
    assert found == pytest.approx((0.5, 0.5, 1 / 3), abs=1e-6)


def test_sizes_in_pixels_by_hand():
    shapes = np.array([[1280, 720], [300, 400]])
    labels = [np.array([[0, 0.5, 0.5, 0.5, 0.5]]), np.array([[1, 0.5, 0.5, 0.1, 0.2], [1, 0.5, 0.5, 1.0, 1.0]])]
    wh = boxes_in_pixels(shapes, labels, 640, np.array([[1.0], [1.1]]))
    np.testing.assert_allclose(wh, [[320, 180], [52.8, 140.8], [528, 704]], rtol=1e-6)
    assert boxes_in_pixels(shapes, [np.zeros((0, 5))] * 2, 640).shape == (0, 2)


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strides, order",
    [
        ((8, 16, 32), [0, 1, 2]),
        ((32, 16, 8), [2, 1, 0]),
    ],
)
def test_small_anchors_go_with_small_strides(strides, order):
    np.testing.assert_array_equal(order_anchors(P5, strides), P5[order])
    np.testing.assert_array_equal(order_anchors(P5[::-1], strides), P5[order])


def test_order_is_judged_in_pixels():
    # from 20 to 40 pixels over strides from 8 to 32: in cells they shrink from 2.5 to 1.25
    slow = np.array([[[20, 20]], [[30, 30]], [[40, 40]]], float)
    np.testing.assert_array_equal(order_anchors(slow, STRIDES), slow)
    wh = np.repeat(slow.reshape(-1, 2), 10, 0) * np.random.default_rng(0).uniform(0.9, 1.1, (30, 2))
    shapes, labels = labels_of(wh)
    far = np.full((3, 1, 2), 600.0)
    anchors, report = check_anchors(shapes, labels, far, STRIDES, 640, 1.5, np.random.default_rng(0), 50)
    assert report.replaced and (np.diff(anchors.prod(2).ravel()) > 0).all()
    np.testing.assert_allclose(anchors, slow, rtol=0.15)


def test_order_as_recorded(parity):
    for case in parity("anchors")["order"]["cases"]:
        strides = np.array(case["strides"])
        cells = np.array(case["anchors_px"], float).reshape(len(strides), -1, 2) / strides[:, None, None]
        found = order_anchors(cells, strides)
        np.testing.assert_allclose(found, case["buffer"], rtol=1e-6)
        assert (not np.array_equal(found, cells)) == case["reversed"]


# --- fitting ----------------------------------------------------------------------------------------------------------


def test_kmeans_as_recorded(parity):
    for case in parity("anchors")["kmeans"]["cases"]:
        found = fit_anchors(np.array(case["wh"]), case["n"], 4.0, np.random.default_rng(0), case["gen"])
        np.testing.assert_allclose(found, case["anchors"], atol=0.01)


def test_kmeans_finds_separate_clusters():
    rng = np.random.default_rng(3)
    middles = np.array([[0, 0], [50, 0], [0, 50], [50, 50], [100, 25]], float)
    points = (middles[:, None] + rng.normal(0, 1, (5, 40, 2))).reshape(-1, 2)
    centres = kmeans(points, 5, rng)
    expected = points.reshape(5, 40, 2).mean(1)
    for centre in expected:
        assert np.abs(centres - centre).sum(1).min() < 1e-9


def test_kmeans_ends_where_lloyd_cannot_improve():
    points = random_sizes(200).astype(float)
    centres = kmeans(points, 6, np.random.default_rng(0))
    owner = ((points[:, None] - centres) ** 2).sum(2).argmin(1)
    np.testing.assert_allclose(centres, [points[owner == k].mean(0) for k in range(6)], rtol=1e-9)


def test_refinement_improves_and_never_worsens():
    wh = random_sizes()
    fitness = [anchor_fit(wh, fit_anchors(wh, 9, 4.0, np.random.default_rng(0), n), 4.0).fitness for n in (0, 20, 200)]
    assert fitness[0] <= fitness[1] <= fitness[2] and fitness[2] > fitness[0] + 0.01


def test_fitted_anchors_are_sorted_and_repeatable():
    wh = random_sizes()
    before = wh.copy()
    first, second = (fit_anchors(wh, 9, 4.0, np.random.default_rng(1), 50) for _ in range(2))
    assert first.shape == (9, 2) and (np.diff(first.prod(1)) >= 0).all() and (first >= 2).all()
    assert np.array_equal(first, second) and np.array_equal(wh, before)


@pytest.mark.parametrize(
    "wh",
    [
        [[30, 40]],  # one box for nine anchors
        [[30, 40]] * 100,  # all boxes equal
        [[30, 40], [300, 200]] * 50,  # fewer sizes than anchors
        [[30, 10 + i] for i in range(100)],  # no spread in width
    ],
)
def test_few_sizes(wh):
    wh = np.array(wh, np.float32)
    anchors = fit_anchors(wh, 9, 4.0, np.random.default_rng(0), 300)
    assert anchors.shape == (9, 2) and np.isfinite(anchors).all()
    assert anchor_fit(wh, anchors, 4.0).recall == 1


@pytest.mark.parametrize("wh", [np.zeros((0, 2)), np.full((5, 2), 1.9)])
def test_no_usable_box(wh):
    with pytest.raises(ValueError, match="no box with a side of 2 pixels"):
        fit_anchors(wh, 9, 4.0, np.random.default_rng(0))


# --- the check --------------------------------------------------------------------------------------------------------


def test_checks_as_recorded(parity):
    recorded = parity("anchors")["check"]
    for case in recorded["cases"]:
        anchors = np.array(case["anchors"], float).reshape(len(case["strides"]), -1, 2)
        labels = [np.array(image, np.float32) for image in case["labels"]]
        new, report = check_anchors(
            np.array(recorded["shapes_wh"]),
            labels,
            anchors,
            case["strides"],
            case["imgsz"],
            4.0,
            FixedScales(case["scales"]),
            generations=20,
        )
        assert report.current.recall == pytest.approx(case["bpr"], abs=1e-6)
        assert report.current.matches == pytest.approx(case["aat"], abs=1e-6)
        assert (report.fitted is not None) == case["recomputes"] == (report.current.recall <= GOOD_RECALL)
        assert report.replaced == (not np.array_equal(new, anchors))


def test_good_anchors_are_kept(log):
    shapes, labels = labels_of(P5.reshape(-1, 2))
    anchors, report = check_anchors(shapes, labels, P5, STRIDES, 640, 4.0, np.random.default_rng(0))
    assert np.array_equal(anchors, P5) and anchors is not P5
    assert report.current.recall == 1 and not report.replaced
    assert "keeping" in log.text


@pytest.mark.parametrize("strides", [(8, 16, 32), (32, 16, 8)])
def test_bad_anchors_are_replaced(log, strides):
    shapes, labels = labels_of(random_sizes() / 8 + 4)
    given = 4 * (P5 if strides[0] == 8 else P5[::-1])
    before = given.copy()
    anchors, report = check_anchors(shapes, labels, given, strides, 640, 4.0, np.random.default_rng(0), 100)
    assert report.replaced and report.fitted.recall > report.current.recall
    assert anchors.shape == P5.shape and np.array_equal(given, before)
    areas = anchors.prod(2).reshape(3, 3)[:: 1 if strides[0] == 8 else -1]
    assert (np.diff(areas.ravel()) >= 0).all()  # the smallest belong to the finest level
    assert "using the new anchors" in log.text


def test_anchors_are_kept_when_new_ones_are_no_better(log):
    # half of the boxes no anchor can reach beside the others, whichever way they are fitted
    wh = np.concatenate([np.full((50, 2), 100.0), [[2 * 1.3**i, 640 / 1.3**i] for i in range(22)]])
    single = np.array([[[100.0, 100.0]]])
    shapes, labels = labels_of(wh)
    anchors, report = check_anchors(shapes, labels, single, [16], 640, 1.2, np.random.default_rng(0), 50)
    assert np.array_equal(anchors, single) and report.fitted is not None and not report.replaced
    assert "not using" in log.text


def test_a_failed_fit_keeps_the_anchors(log):
    shapes, labels = labels_of(np.full((10, 2), 1.0))
    anchors, report = check_anchors(shapes, labels, P5, STRIDES, 640, 4.0, np.random.default_rng(0))
    assert np.array_equal(anchors, P5) and report.current.recall == 0 and not report.replaced
    assert "no box with a side of 2 pixels" in log.text and "10 of 10 boxes have a side below 3 pixels" in log.text


@pytest.mark.parametrize(
    "wh",
    [
        [[400, 8]],  # fewer boxes than anchors
        [[400, 8]] * 50,  # all the same
        [[400, 8], [8, 400]] * 50,  # fewer sizes than anchors
        [[400, 8 + i / 10] for i in range(50)],  # no spread in width
    ],
)
def test_poor_data_get_anchors_too(wh):
    shapes, labels = labels_of(wh)
    anchors, report = check_anchors(shapes, labels, P5, STRIDES, 640, 4.0, np.random.default_rng(0), 300)
    assert anchors.shape == P5.shape and np.isfinite(anchors).all() and (anchors > 0).all()
    assert report.current.recall == 0 and report.replaced and report.fitted.recall == 1


def test_anchors_of_a_count_alone_are_replaced():
    # what a model has where only a number of anchors was given: 0, 1, 2, ... cells
    strides = np.array(STRIDES, float)[:, None, None]
    placeholders = np.tile(np.arange(10, dtype=float), (3, 1)).reshape(3, 5, 2) * strides
    shapes, labels = labels_of(random_sizes())
    anchors, report = check_anchors(shapes, labels, placeholders, STRIDES, 640, 1.6, np.random.default_rng(0), 50)
    assert report.replaced and anchors.shape == (3, 5, 2)


def test_a_data_set_without_boxes_keeps_the_anchors(log):
    anchors, report = check_anchors(
        np.array([[640, 480]]), [np.zeros((0, 5))], P5, STRIDES, 640, 4.0, np.random.default_rng(0)
    )
    assert np.array_equal(anchors, P5) and report.current is None
    assert "no boxes" in log.text


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_stored_anchors_build_a_model(tmp_path):
    shapes, labels = labels_of(random_sizes() / 8 + 4)
    anchors, report = check_anchors(shapes, labels, 4 * P5, STRIDES, 640, 4.0, np.random.default_rng(0), 20)
    save_anchors(tmp_path / "anchors.yaml", anchors, report)
    stored = read_yaml(tmp_path / "anchors.yaml")
    assert stored["origin"] == "fitted to the data set"
    assert stored["best_possible_recall"] == pytest.approx(report.fitted.recall, abs=1e-5)
    assert stored["anchors_per_box"] == pytest.approx(report.fitted.matches, abs=1e-3)

    head = Model({**read_yaml(ROOT / "models" / "yolov5n.yaml"), "anchors": stored["anchors"]}).model[-1]
    np.testing.assert_allclose(head.anchors * head.stride.view(-1, 1, 1), anchors, atol=0.005 + 1e-3)


def test_kept_anchors_are_stored_as_such(tmp_path):
    anchors, report = check_anchors(
        np.array([[640, 480]]), [np.zeros((0, 5))], P5, STRIDES, 640, 4.0, np.random.default_rng(0)
    )
    save_anchors(tmp_path / "anchors.yaml", anchors, report)
    text = (tmp_path / "anchors.yaml").read_text()
    assert "those of the model" in text and "recall" not in text and "373.0" in text
