"""Non-maximum suppression against recorded numbers, a slow greedy loop, hand-made rows and properties."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from utils import nms as module
from utils.nms import MAX_CANDIDATES, non_max_suppression


def clusters(rng, images=2, rows=80, nc=4, scale=1.0):
    """Decoded predictions (images, rows, 5 + nc) crowded around a few places, so that many overlap."""
    decoded = rng.random((images, rows, 5 + nc))
    places = rng.uniform(50, 400, (6, 2))
    decoded[..., :2] = places[rng.integers(0, 6, (images, rows))] + rng.normal(0, 8, (images, rows, 2))
    decoded[..., 2:4] = rng.uniform(30, 70, (images, rows, 2))
    decoded[..., :4] *= scale
    return torch.tensor(decoded, dtype=torch.float32)


# --- recorded numbers -------------------------------------------------------------------------------------------------


def test_every_recorded_case(parity, parity_inputs):
    for case in parity("nms")["cases"]:
        decoded = parity_inputs.build(case["pred"])
        for image, row, column, value in case["edits"]:
            decoded[image, row, column] = value
        arguments = dict(case["args"])
        if "labels" in case:
            arguments["labels"] = [torch.tensor(rows).reshape(-1, 5) for rows in case["labels"]]
        found = non_max_suppression(torch.tensor(decoded), **arguments)

        assert len(found) == len(case["out"]), case["name"]
        for boxes, expected in zip(found, case["out"]):
            if isinstance(expected, dict):  # tens of thousands of rows, of which a few were recorded
                assert len(boxes) == expected["rows"], case["name"]
                same_rows(boxes[:5], expected["first"], case["name"])
                same_rows(boxes[-3:], expected["last"], case["name"])
                np.testing.assert_allclose(boxes.double().sum(0), expected["sum"], rtol=1e-6, err_msg=case["name"])
            else:
                same_rows(boxes, expected, case["name"])


def same_rows(boxes, expected, name):
    expected = np.array(expected).reshape(-1, 6)
    assert boxes.dtype == torch.float32 and boxes.shape == expected.shape, name
    # Rows of equal confidence may come in any order.
    boxes, expected = (x[np.lexsort((*x[:, :4].T, x[:, 5], -x[:, 4].round(5)))] for x in (boxes.numpy(), expected))
    np.testing.assert_allclose(boxes[:, :4], expected[:, :4], atol=1e-3, err_msg=name)
    np.testing.assert_allclose(boxes[:, 4], expected[:, 4], atol=1e-5, err_msg=name)
    assert (boxes[:, 5] == expected[:, 5]).all(), name


# --- by hand ----------------------------------------------------------------------------------------------------------

# x, y, w, h, objectness, three class scores
FIVE_ROWS = torch.tensor(
    [
        [
            [50, 50, 40, 40, 0.9, 0.9, 0.3, 0.1],  # best of its place: 0.81 for class 0, 0.27 for class 1
            [52, 51, 40, 40, 0.8, 0.8, 0.7, 0.1],  # the same object
            [50, 50, 40, 40, 0.7, 0.1, 0.9, 0.1],  # the same place, another class: 0.63
            [200, 200, 30, 30, 0.5, 0.6, 0.6, 0.6],  # elsewhere, its classes all alike: 0.30
            [300, 300, 1, 30, 0.9, 0.9, 0.9, 0.9],  # narrower than two pixels
        ]
    ]
)


@pytest.mark.parametrize(
    ("arguments", "kept"),  # kept: confidence, class
    [
        ({}, [(0.81, 0), (0.63, 1), (0.30, 0)]),
        ({"agnostic": True}, [(0.81, 0), (0.30, 0)]),
        ({"multi_label": True}, [(0.81, 0), (0.63, 1), (0.30, 0), (0.30, 1), (0.30, 2)]),
        ({"classes": [1]}, [(0.63, 1)]),
        ({"classes": []}, []),
        ({"max_det": 1}, [(0.81, 0)]),
        (
            {"conf_thres": 0.001, "iou_thres": 0.6, "multi_label": True},
            [(0.81, 0), (0.63, 1), (0.30, 0), (0.30, 1), (0.30, 2), (0.09, 2)],
        ),
    ],
)
def test_golden_rows(arguments, kept):
    (boxes,) = non_max_suppression(FIVE_ROWS, **arguments)
    np.testing.assert_allclose(boxes[:, 4:], np.reshape(kept, (-1, 2)), atol=1e-6)


def test_golden_corners():
    (boxes,) = non_max_suppression(FIVE_ROWS)
    np.testing.assert_allclose(boxes[[0, 2], :4], [[30, 30, 70, 70], [185, 185, 215, 215]])


# --- against a slow loop ----------------------------------------------------------------------------------------------


def slow_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


def slow_suppression(rows, conf_thres, iou_thres, classes, agnostic, multi_label, labels, max_det):
    """One image, one candidate at a time, in double precision and without shifting any box."""
    candidates = []
    for x, y, w, h, objectness, *scores in np.asarray(rows, np.float64):
        if objectness <= conf_thres or not (2 <= w <= 7680 and 2 <= h <= 7680):
            continue
        box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        scores = np.array(scores) * objectness
        for label in range(len(scores)) if multi_label else [scores.argmax()]:
            if scores[label] > conf_thres:
                candidates.append([*box, scores[label], label])
    for label, x, y, w, h in labels:
        candidates.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2, 1.0, label])
    kept = []
    for candidate in sorted(candidates, key=lambda c: -c[4]):
        if classes is not None and candidate[5] not in classes:
            continue
        rivals = [k for k in kept if agnostic or k[5] == candidate[5]]
        if all(slow_iou(candidate, k) <= iou_thres for k in rivals):
            kept.append(candidate)
    return np.reshape(kept[:max_det], (-1, 6))


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {"conf_thres": 0.25, "iou_thres": 0.45, "classes": None, "max_det": 300},  # detect
        {"conf_thres": 0.001, "iou_thres": 0.6, "classes": None, "max_det": 300},  # val
        {"conf_thres": 0.1, "iou_thres": 0.3, "classes": [0, 3], "max_det": 4},  # few classes, few boxes
    ],
)
def test_same_as_slow_loop(agnostic, multi_label, arguments):
    rng = np.random.default_rng(0)
    decoded = clusters(rng)
    decoded[0, :5, 2], decoded[0, 5:9, 3] = 1.0, 9000.0
    labels = [torch.tensor([[2, 130.0, 140.0, 33.0, 41.0]]), torch.zeros(0, 5)]
    options = {**arguments, "agnostic": agnostic, "multi_label": multi_label}
    found = non_max_suppression(decoded, labels=labels, **options)
    for rows, known, boxes in zip(decoded, labels, found):
        slow = slow_suppression(rows, labels=known.tolist(), **options)
        np.testing.assert_allclose(boxes, slow, rtol=1e-5, atol=1e-4)


def test_classes_stay_apart_however_many():
    # v6.1 shifts class 1200 by nine million pixels, where float32 knows whole pixels only
    decoded = clusters(np.random.default_rng(1), images=1, rows=60, nc=1203, scale=0.2)
    decoded[..., 5:] = 0
    decoded[0, torch.arange(60), 1205 - torch.arange(60) % 3] = 0.9
    options = {"conf_thres": 0.05, "iou_thres": 0.5, "classes": None, "agnostic": False, "multi_label": False}
    (boxes,) = non_max_suppression(decoded, **options)
    slow = slow_suppression(decoded[0], labels=[], max_det=300, **options)
    np.testing.assert_allclose(boxes, slow, rtol=1e-5, atol=1e-4)


def test_looks_beyond_the_head_of_the_list():
    decoded = torch.zeros(1, 3000, 6)
    decoded[..., :4] = torch.tensor([100.0, 100.0, 50.0, 50.0])  # one object, 2998 times, then two others
    decoded[0, 2998, 0], decoded[0, 2999, 0] = 300.0, 500.0
    decoded[..., 4] = torch.linspace(0.9, 0.3, 3000)
    decoded[..., 5] = 1.0
    (boxes,) = non_max_suppression(decoded, max_det=3)
    assert boxes[:, 0].tolist() == [75.0, 275.0, 475.0]


# --- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multi_label", [False, True])
def test_order_of_rows_and_company_do_not_matter(multi_label):
    rng = np.random.default_rng(2)
    decoded = clusters(rng, images=3)
    found = non_max_suppression(decoded, 0.1, multi_label=multi_label)
    shuffled = non_max_suppression(decoded[:, rng.permutation(80)], 0.1, multi_label=multi_label)
    alone = [non_max_suppression(image[None], 0.1, multi_label=multi_label)[0] for image in decoded]
    for boxes, again, single in zip(found, shuffled, alone):
        assert torch.equal(boxes, again) and torch.equal(boxes, single)
        assert (boxes[:, 4].diff() <= 0).all()


def test_result_is_stable():
    # what was kept, given again, is kept again
    (boxes,) = non_max_suppression(clusters(np.random.default_rng(3), images=1, nc=1), 0.1)
    centre, size = (boxes[:, :2] + boxes[:, 2:4]) / 2, boxes[:, 2:4] - boxes[:, :2]
    rows = torch.cat([centre, size, boxes[:, 4:5], torch.ones(len(boxes), 1)], 1)
    torch.testing.assert_close(non_max_suppression(rows[None], 0.1)[0], boxes)


def test_input_is_left_as_it_is():
    decoded = clusters(np.random.default_rng(4))
    decoded[0, :10, 2] = 1.0  # v6.1 would write zeros into these rows
    labels = [torch.tensor([[1.0, 50, 50, 20, 20]]), torch.zeros(0, 5)]
    kept = decoded.clone(), [rows.clone() for rows in labels]
    non_max_suppression(decoded, multi_label=True, labels=labels)
    assert torch.equal(decoded, kept[0]) and all(map(torch.equal, labels, kept[1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_computed_in_float32(dtype):
    decoded = clusters(np.random.default_rng(5)).to(dtype)
    for boxes, expected in zip(non_max_suppression(decoded), non_max_suppression(decoded.float())):
        assert boxes.dtype == torch.float32 and torch.equal(boxes, expected)


def test_equal_confidences_keep_their_order_and_the_cap_is_deterministic():
    n = MAX_CANDIDATES + 500
    decoded = torch.full((1, n, 6), 1.0)
    decoded[..., 0], decoded[..., 1] = torch.arange(n) % 200 * 16, torch.arange(n) // 200 * 16
    decoded[..., 2:4], decoded[..., 4] = 8.0, 0.5
    decoded[0, -1, 4] = 0.6  # more confident than the rest, and last
    (boxes,) = non_max_suppression(decoded, max_det=20)
    assert boxes[:, 0].tolist() == [decoded[0, -1, 0].item() - 4] + [16.0 * i - 4 for i in range(19)]


def test_rows_that_are_not_numbers_are_dropped():
    decoded = clusters(np.random.default_rng(6), images=1)
    expected = non_max_suppression(decoded[:, 7:])
    broken = [(0, torch.nan), (1, torch.inf), (2, torch.nan), (3, torch.inf), (4, torch.nan), (5, torch.nan)]
    for row, (column, value) in enumerate([*broken, (0, -torch.inf)]):
        decoded[0, row, column] = value
    assert torch.equal(non_max_suppression(decoded)[0], expected[0])


@pytest.mark.parametrize("shape", [(2, 0, 8), (3, 10, 6), (0, 10, 8)])  # no rows, nothing confident, no images
def test_nothing_found(shape):
    found = non_max_suppression(torch.zeros(shape))
    assert [tuple(boxes.shape) for boxes in found] == [(0, 6)] * shape[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conf_thres": 1.1}, "confidence threshold must be between 0 and 1, got 1.1"),
        ({"iou_thres": -0.1}, "IoU threshold must be between 0 and 1, got -0.1"),
        ({"decoded": torch.zeros(10, 8)}, r"got \(10, 8\)"),  # one image without its batch dimension
        ({"decoded": torch.zeros(1, 10, 5)}, r"got \(1, 10, 5\)"),  # no class
        ({"labels": [torch.zeros(0, 5)]}, "all of the 2 images or for none, got 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        non_max_suppression(**{"decoded": torch.zeros(2, 10, 8), **arguments})


def test_a_device_without_suppression_falls_back(monkeypatch):
    """Through a stand-in for torchvision's function that fails the first time, as on such a device."""
    decoded = clusters(np.random.default_rng(0))
    expected, real, asked = non_max_suppression(decoded), module._torchvision_nms(), []

    def lacking(*arguments):
        asked.append(1)
        if len(asked) % 2:
            raise NotImplementedError("not implemented for this device")
        return real(*arguments)

    monkeypatch.setattr(module, "_torchvision_nms", lambda: lacking)
    assert all(torch.equal(a, b) for a, b in zip(non_max_suppression(decoded), expected)) and len(asked) >= 2


@pytest.mark.parametrize("there", [None, "_C.so"])  # no library where it was known to be; one that is none
def test_the_whole_package_serves_where_its_library_cannot_be_loaded(there, monkeypatch, tmp_path):
    import torchvision  # before find_spec lies to it

    direct, boxes = module._torchvision_nms(), clusters(np.random.default_rng(1), images=1, rows=300)[0]
    if there:
        (tmp_path / there).write_bytes(b"no library")
    found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: found)
    packaged = module._torchvision_nms.__wrapped__()
    assert packaged is torchvision.ops.nms
    corners = boxes[:, :4] + torch.tensor([0, 0, 500, 500])
    assert torch.equal(packaged(corners, boxes[:, 4], 0.5), direct(corners, boxes[:, 4], 0.5))
