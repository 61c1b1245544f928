"""Matching, average precision and confusion matrix against recorded numbers, slow loops and properties."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from utils.evaluation.metrics import (
    CONFIDENCE_GRID,
    ConfusionMatrix,
    ap_per_class,
    average_precision,
    fitness,
    match_predictions,
    precision_envelope,
)

THRESHOLDS = torch.linspace(0.5, 0.95, 10)


def boxes_of(rows, columns):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, columns)


def close(actual, expected, atol=1e-6):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=atol)


def random_image(rng, labels=8, predictions=30, nc=3):
    """Labels (M, 5), and predictions (N, 6) of which most lie near a label, by falling confidence."""
    corner = rng.uniform(0, 100, (labels, 2))
    label_boxes = np.concatenate([corner, corner + rng.uniform(20, 80, (labels, 2))], 1)
    label_classes = rng.integers(0, nc, labels)
    near = rng.integers(0, labels, predictions)
    boxes = label_boxes[near] + rng.normal(0, 5, (predictions, 4))
    classes = np.where(rng.random(predictions) < 0.8, label_classes[near], rng.integers(0, nc, predictions))
    confidence = np.sort(rng.random(predictions))[::-1]
    found = np.concatenate([boxes, confidence[:, None], classes[:, None]], 1)
    return boxes_of(found, 6), boxes_of(np.concatenate([label_classes[:, None], label_boxes], 1), 5)


def slow_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


# --- matching ---------------------------------------------------------------------------------------------------------


def test_match_as_recorded(parity):
    recorded = parity("metrics")["match"]
    close(THRESHOLDS, recorded["iou_thresholds"], atol=1e-7)
    for case in recorded["cases"]:
        right = match_predictions(boxes_of(case["detections"], 6), boxes_of(case["labels"], 5), THRESHOLDS)
        assert (right.numpy() * (1 << np.arange(10))).sum(1).tolist() == case["correct"]["ok"]


# The worked example: two of the first label, two of the second, one far from everything.
DETECTIONS = boxes_of(
    [
        [10, 10, 50, 50, 0.9, 0],
        [12, 12, 52, 52, 0.8, 0],
        [60, 60, 90, 90, 0.7, 1],
        [60, 62, 92, 90, 0.6, 0],
        [100, 100, 120, 120, 0.3, 1],
    ],
    6,
)
LABELS = boxes_of([[0, 11, 11, 51, 51], [1, 60, 60, 90, 92], [1, 200, 200, 220, 220]], 5)


def test_golden_example():
    right = match_predictions(DETECTIONS, LABELS, THRESHOLDS)
    assert right.sum(1).tolist() == [9, 0, 9, 0, 0]

    metrics = ap_per_class(right.numpy(), *DETECTIONS[:, 4:].numpy().T, LABELS[:, 0].numpy())
    close(metrics.p, [0.41642, 0.99962], 1e-5)
    close(metrics.r, [1, 0.5], 1e-5)
    close(metrics.f1, [0.58799, 0.66658], 1e-5)
    close(metrics.ap50, [0.995, 0.6225])
    close(metrics.ap.mean(1), [0.8955, 0.56025])
    assert (metrics.tp.tolist(), metrics.fp.tolist()) == ([1, 1], [1, 0])
    close(metrics.means(), [0.70802, 0.75, 0.80875, 0.727875], 1e-5)
    close(metrics.map_per_class(4), [0.8955, 0.56025, 0.727875, 0.727875])

    confusion = ConfusionMatrix(nc=2)
    confusion.update(DETECTIONS, LABELS)
    assert confusion.matrix.tolist() == [[1, 0, 2], [0, 1, 1], [0, 1, 0]]


def slow_match(predictions, labels):
    """Walk down the list: each prediction asks for its best label, and has it if nobody asked before."""
    right, taken = np.zeros((len(predictions), 10), bool), set()
    for i, (*box, _, label) in enumerate(predictions.tolist()):
        overlaps = [slow_iou(box, row[1:]) if row[0] == label else 0 for row in labels.tolist()]
        best = int(np.argmax(overlaps))
        if overlaps[best] >= 0.5 and best not in taken:
            taken.add(best)
            right[i] = overlaps[best] >= THRESHOLDS.numpy()
    return right


@pytest.mark.parametrize("seed", range(20))
def test_match_against_slow_loop(seed):
    predictions, labels = random_image(np.random.default_rng(seed))
    assert (match_predictions(predictions, labels, THRESHOLDS).numpy() == slow_match(predictions, labels)).all()


def test_match_properties():
    rng = np.random.default_rng(0)
    predictions, labels = random_image(rng, 12, 60)
    kept = predictions.clone(), labels.clone()
    right = match_predictions(predictions, labels, THRESHOLDS)
    assert torch.equal(predictions, kept[0]) and torch.equal(labels, kept[1])
    assert torch.equal(right, match_predictions(predictions, labels[rng.permutation(12)], THRESHOLDS))
    assert (right[:, 1:] <= right[:, :-1]).all()  # whoever passes a threshold passes all lower ones
    assert right.sum(0).max() <= len(labels)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_match_without_predictions_or_labels(n, m):
    right = match_predictions(torch.rand(n, 6), torch.rand(m, 5), THRESHOLDS)
    assert right.shape == (n, 10) and right.dtype == torch.bool and not right.any()


def test_boxes_without_area_match_nothing():
    point = boxes_of([[5, 5, 5, 5, 0.9, 0]], 6)
    assert not match_predictions(point, boxes_of([[0, 5, 5, 5, 5]], 5), THRESHOLDS).any()


# --- average precision ------------------------------------------------------------------------------------------------


def test_average_precision_per_class_as_recorded(parity):
    for case in parity("metrics")["average_precision"]["cases"]:
        tp = np.array([[int(bit) for bit in row] for row in case["tp"]], bool).reshape(-1, 10)
        columns = (np.array(case[name], float) for name in ("conf", "pred_cls", "target_cls"))
        metrics = ap_per_class(tp, *columns)
        for name, expected in case["expect"]["ok"].items():
            expected = np.reshape(expected, (-1, 10) if name == "ap" else -1)
            np.testing.assert_allclose(getattr(metrics, name), expected, atol=1e-6, err_msg=f"{case['name']}, {name}")


def test_average_precision_and_envelope_as_recorded(parity):
    for case in parity("metrics")["ap_curve"]["cases"]:
        recall, precision = np.array(case["recall"], float), np.array(case["precision"], float)
        assert average_precision(recall, precision) == pytest.approx(case["ap"], abs=1e-8)
        close(precision_envelope(recall, precision), [case["envelope_recall"], case["envelope_precision"]], 1e-9)


def slow_average_precision(recall, precision):
    """101 recalls; at each the envelope's value, straight between its corners; mean height of the 100 strips."""
    recall, precision = [0.0, *recall, 1.0], [1.0, *precision, 0.0]
    corners = [(r, max(precision[i:])) for i, r in enumerate(recall)]

    def height(x):
        for (r0, p0), (r1, p1) in pairwise(corners):
            if r0 <= x < r1:
                return p0 + (p1 - p0) * (x - r0) / (r1 - r0)
        return corners[-1][1]

    heights = [height(k / 100) for k in range(101)]
    return sum((a + b) / 2 for a, b in pairwise(heights)) / 100


@pytest.mark.parametrize(
    ("recall", "precision", "expected"),
    [
        ([0.2, 0.2, 0.4, 0.6, 0.6, 0.8], [1, 0.5, 0.6667, 0.75, 0.6, 0.6667], 0.698344),  # golden
        ([1.0], [1.0], 0.995),  # perfect, but for the last strip, which falls to zero
        ([0.0], [0.0], 0.0),  # always wrong
        ([0.5], [1.0], 0.75),  # half of them, then straight down
    ],
)
def test_average_precision_by_hand(recall, precision, expected):
    assert average_precision(np.array(recall), np.array(precision)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_against_slow_loop(seed):
    rng = np.random.default_rng(seed)
    recall, precision = np.sort(rng.uniform(0.003, 0.99, 15)), rng.random(15)
    assert average_precision(recall, precision) == pytest.approx(slow_average_precision(recall, precision), abs=1e-12)


def random_results(rng, n=200, nc=4):
    """tp (n, 10), distinct confidences, predicted classes and label classes of a data set."""
    quality = rng.random(n)
    tp = quality[:, None] > np.linspace(0.3, 0.9, 10)
    confidence = rng.permutation(np.linspace(0.01, 0.99, n))
    return tp, confidence, rng.integers(0, nc, n).astype(float), rng.integers(0, nc, n).astype(float)


def test_each_class_is_measured_alone_and_order_does_not_matter():
    rng = np.random.default_rng(0)
    tp, conf, pred_cls, target_cls = random_results(rng)
    metrics = ap_per_class(tp, conf, pred_cls, target_cls)
    order, label_order = rng.permutation(200), rng.permutation(200)
    again = ap_per_class(tp[order], conf[order], pred_cls[order], target_cls[label_order])
    for name in ("p", "r", "f1", "ap", "tp", "fp", "p_curve", "r_curve", "pr_curve"):
        assert np.array_equal(getattr(metrics, name), getattr(again, name)), name

    for i, label in enumerate(metrics.classes):
        mine = pred_cls == label
        alone = ap_per_class(tp[mine], conf[mine], pred_cls[mine], target_cls[target_cls == label])
        assert np.array_equal(alone.ap[0], metrics.ap[i])
        assert np.array_equal(alone.r_curve[0], metrics.r_curve[i])


def test_curves_count_what_is_above_each_confidence():
    tp, conf, pred_cls, target_cls = random_results(np.random.default_rng(1), nc=1)
    metrics = ap_per_class(tp, conf, pred_cls, target_cls)
    # At a confidence that a prediction has, the curves are exact; between two they are straight.
    for confidence in np.sort(conf)[[5, 50, 120]]:
        above = conf >= confidence
        for curve, exact in ((metrics.p_curve, tp[above, 0].mean()), (metrics.r_curve, tp[above, 0].sum() / 200)):
            assert np.interp(confidence, CONFIDENCE_GRID, curve[0]) == pytest.approx(exact, abs=2e-3)
    best = np.argmax(metrics.f1_curve[0])
    assert metrics.best_confidence == CONFIDENCE_GRID[best] and metrics.f1[0] == metrics.f1_curve[0, best]


def test_equal_confidences_keep_their_order():
    tp, _, pred_cls, target_cls = random_results(np.random.default_rng(3), n=1000)
    tied = ap_per_class(tp, np.full(1000, 0.5), pred_cls, target_cls)
    falling = ap_per_class(tp, np.linspace(0.9, 0.1, 1000), pred_cls, target_cls)
    assert np.array_equal(tied.ap, falling.ap)


def test_arguments_are_left_as_they_are():
    arguments = random_results(np.random.default_rng(2))
    kept = [argument.copy() for argument in arguments]
    ap_per_class(*arguments)
    assert all(map(np.array_equal, arguments, kept))


def test_nothing_to_measure():
    metrics = ap_per_class(np.zeros((3, 10), bool), np.ones(3), np.zeros(3), np.zeros(0))
    assert metrics.ap.shape == (0, 10) and metrics.p_curve.shape == (0, 1000)
    assert metrics.means() == (0, 0, 0, 0) and metrics.map_per_class(2).tolist() == [0, 0]


# --- fitness ----------------------------------------------------------------------------------------------------------


def test_fitness_as_recorded(parity):
    recorded = parity("metrics")["fitness"]
    close(fitness(np.array(recorded["rows"])), recorded["value"], 1e-9)


def test_fitness_by_hand():
    close(fitness(np.array([[1, 1, 0.5, 0.3, 9, 9, 9], [0, 0, 0, 0, 9, 9, 9]])), [0.05 + 0.27, 0], 1e-12)


# --- confusion matrix -------------------------------------------------------------------------------------------------


def test_confusion_as_recorded(parity):
    recorded = parity("metrics")["confusion"]
    accumulate = {**recorded["accumulate"]}
    for case in [*recorded["cases"], accumulate]:
        confusion = ConfusionMatrix(case["nc"], case["conf"], case["iou"])
        for image in case.get("batches", [case]):
            confusion.update(boxes_of(image["detections"], 6), boxes_of(image["labels"], 5))
        assert confusion.matrix.tolist() == case["matrix"]
        if "tp_fp" in case:
            correct = confusion.matrix.diagonal()
            counts = correct, confusion.matrix.sum(1) - correct
            assert [numbers[:-1].tolist() for numbers in counts] == case["tp_fp"]


def slow_confusion(predictions, labels, nc):
    """Every prediction asks for its best label; of those who ask, the label takes the one that overlaps it most."""
    predictions, labels = [p for p in predictions.tolist() if p[4] > 0.25], labels.tolist()
    asked = [[] for _ in labels]
    for i, prediction in enumerate(predictions):
        overlaps = [slow_iou(prediction, label[1:]) for label in labels]
        if overlaps and max(overlaps) > 0.45:
            asked[int(np.argmax(overlaps))].append((max(overlaps), i))
    matrix, used = np.zeros((nc + 1, nc + 1)), set()
    for label, requests in zip(labels, asked):
        row = nc
        if requests:
            used.add(max(requests)[1])
            row = int(predictions[max(requests)[1]][5])
        matrix[row, int(label[0])] += 1
    for i, prediction in enumerate(predictions):
        matrix[int(prediction[5]), nc] += i not in used
    return matrix


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("labels", "predictions"), [(8, 40), (1, 3), (5, 1)])
def test_confusion_against_slow_loop(seed, labels, predictions):
    predictions, labels = random_image(np.random.default_rng(seed), labels, predictions)
    confusion = ConfusionMatrix(3, count_every_image=True)
    confusion.update(predictions, labels)
    assert (confusion.matrix == slow_confusion(predictions, labels, 3)).all()
    # Every label and every confident prediction is counted once.
    assert confusion.matrix[:, :3].sum() == len(labels)
    assert confusion.matrix[:3].sum() == (predictions[:, 4] > 0.25).sum()


FAR_APART = boxes_of([[100, 100, 140, 140, 0.9, 1]], 6), boxes_of([[0, 0, 0, 30, 30]], 5)


@pytest.mark.parametrize(
    ("predictions", "labels", "as_v61", "complete"),
    [
        (*FAR_APART, [[0, 0, 0], [0, 0, 0], [1, 0, 0]], [[0, 0, 0], [0, 0, 1], [1, 0, 0]]),  # nothing matched
        (FAR_APART[0], boxes_of([], 5), [[0] * 3] * 3, [[0, 0, 0], [0, 0, 1], [0, 0, 0]]),  # no labels
        (boxes_of([], 6), FAR_APART[1], [[0] * 3, [0] * 3, [1, 0, 0]], [[0] * 3, [0] * 3, [1, 0, 0]]),  # none found
    ],
)
def test_false_alarms_of_images_without_a_match(predictions, labels, as_v61, complete):
    for expected, count_every_image in ((as_v61, False), (complete, True)):
        confusion = ConfusionMatrix(2, count_every_image=count_every_image)
        confusion.update(predictions, labels)
        assert confusion.matrix.tolist() == expected


def test_one_prediction_serves_one_of_two_equal_labels():
    labels = boxes_of([[0, 10, 10, 50, 50], [0, 10, 10, 50, 50]], 5)
    predictions = boxes_of([[10, 10, 50, 50, 0.9, 0]], 6)
    confusion = ConfusionMatrix(1)
    confusion.update(predictions, labels)
    assert confusion.matrix.tolist() == [[1, 0], [1, 0]]
    assert match_predictions(predictions, labels, THRESHOLDS).all()


def test_normalized_columns_are_shares():
    confusion = ConfusionMatrix(2)
    confusion.matrix[:] = [[3, 0, 1], [1, 0, 3], [0, 0, 0]]
    close(confusion.normalized(), [[0.75, 0, 0.25], [0.25, 0, 0.75], [0, 0, 0]])
