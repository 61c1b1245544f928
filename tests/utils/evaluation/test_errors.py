"""Kinds of errors against boxes made to be of each kind, gains by hand, a slow loop, and the images."""

import cv2
import numpy as np
import pytest

from utils.evaluation import errors as module
from utils.evaluation.errors import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    CORRECT,
    DUPLICATE,
    ERROR_KINDS,
    LOCALIZATION,
    MISSED,
    explain_errors,
    worst_images,
)
from utils.evaluation.evaluator import Boxes
from utils.evaluation.metrics import match_once
from utils.evaluation.report import draw_errors


def boxes_of(found, labels, image=None, label_image=None):
    found, labels = np.array(found, np.float32).reshape(-1, 6), np.array(labels, np.float32).reshape(-1, 5)
    image = np.zeros(len(found), int) if image is None else np.array(image)
    label_image = np.zeros(len(labels), int) if label_image is None else np.array(label_image)
    partner, iou = match_once(found, labels, 0.5, (image, label_image))
    n = 1 + max(image.max(initial=0), label_image.max(initial=0))
    return Boxes([f"{i}.png" for i in range(n)], [(200, 300)] * n, found, image, labels, label_image, partner, iou)


LABELS = [[0, 0, 0, 100, 100], [1, 0, 100, 100, 200], [0, 200, 0, 260, 60]]
OF_EACH_KIND = [
    ([0, 0, 100, 100, 0.9, 0], CORRECT),
    ([0, 0, 100, 95, 0.8, 0], DUPLICATE),
    ([0, 100, 100, 200, 0.7, 0], CLASSIFICATION),
    ([0, 140, 100, 240, 0.6, 1], LOCALIZATION),  # 0.43
    ([210, 30, 270, 90, 0.5, 1], BOTH),  # 0.26 with an object of the other class
    ([280, 150, 299, 199, 0.4, 1], BACKGROUND),
]


def test_one_of_each_kind():
    boxes = boxes_of([row for row, _ in OF_EACH_KIND], LABELS)
    errors = explain_errors(boxes, 0.25)
    assert errors.kind.tolist() == [kind for _, kind in OF_EACH_KIND]
    assert errors.missed.tolist() == [False, False, True]  # the second has a localization and a classification error
    assert errors.counts == {
        CORRECT: 1,
        LOCALIZATION: 1,
        CLASSIFICATION: 1,
        DUPLICATE: 1,
        BACKGROUND: 1,
        BOTH: 1,
        MISSED: 1,
    }
    rows = errors.table().splitlines()
    assert len(rows) == 7 and max(map(len, rows)) <= 100
    assert explain_errors(boxes, 0.65).missed.tolist() == [False, False, True]
    assert explain_errors(boxes, 0.75).missed.tolist() == [False, True, True]
    assert worst_images(boxes, errors, 5) == [0]


def test_gains_by_hand():
    """One class, two objects; the better box is 0.4 off its object, so AP falls from 0.995 to that of one late hit."""
    labels = [[0, 0, 0, 100, 100], [0, 200, 0, 300, 100]]
    boxes = boxes_of([[0, 60, 100, 160, 0.9, 0], [200, 0, 300, 100, 0.8, 0]], labels)
    errors = explain_errors(boxes, 0)
    assert errors.kind.tolist() == [LOCALIZATION, CORRECT] and not errors.missed.any()
    # recall 0.5 at precision 0.5, then a straight line to (1, 0), as v6.1 integrates
    assert errors.ap50 == pytest.approx(0.5 * 0.5 + 0.5 * 0.25, abs=0.005)
    assert errors.ap50 + errors.gain[LOCALIZATION] == pytest.approx(0.995, abs=1e-6)
    assert all(errors.gain[kind] == 0 for kind in ERROR_KINDS if kind != LOCALIZATION)


def test_a_mended_object_is_counted_once():
    """Three boxes of a wrong class on one object: the most confident becomes correct, the others are dropped."""
    rows = [[0, 0, 100, 100, 0.9 - 0.1 * k, 1] for k in range(3)]
    boxes = boxes_of(rows, [[0, 0, 0, 100, 100]])
    errors = explain_errors(boxes, 0)
    assert errors.kind.tolist() == [CLASSIFICATION] * 3
    assert errors.ap50 == 0 and errors.gain[CLASSIFICATION] == pytest.approx(0.995, abs=1e-6)
    assert errors.gain[MISSED] == errors.gain[DUPLICATE] == 0


def slow_kinds(boxes):
    kinds = []
    for box, image, partner in zip(boxes.predictions, boxes.image, boxes.partner):
        same = other = 0.0
        for label in boxes.labels[boxes.label_image == image]:
            w = max(0.0, min(box[2], label[3]) - max(box[0], label[1]))
            h = max(0.0, min(box[3], label[4]) - max(box[1], label[2]))
            areas = (box[2] - box[0]) * (box[3] - box[1]) + (label[3] - label[1]) * (label[4] - label[2])
            iou = w * h / (areas - w * h)
            same, other = (max(same, iou), other) if label[0] == box[5] else (same, max(other, iou))
        if partner >= 0:
            kinds.append(CORRECT)
        elif 0.1 <= same < 0.5:
            kinds.append(LOCALIZATION)
        elif other >= 0.5:
            kinds.append(CLASSIFICATION)
        elif same >= 0.5:
            kinds.append(DUPLICATE)
        else:
            kinds.append(BACKGROUND if max(same, other) < 0.1 else BOTH)
    return kinds


@pytest.mark.parametrize("at_once", [2_000_000, 100])
def test_against_a_slow_loop(monkeypatch, at_once):
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    label_image, near = np.sort(rng.integers(0, 8, 40)), rng.integers(0, 40, 400)
    corner = rng.uniform(0, 200, (40, 2))
    labels = np.column_stack([rng.integers(0, 3, 40), corner, corner + rng.uniform(20, 90, (40, 2))])
    rows = np.column_stack([labels[near, 1:] + rng.normal(0, 12, (400, 4)), rng.random(400), rng.integers(0, 3, 400)])
    order = np.lexsort((-rows[:, 4], label_image[near]))
    boxes = boxes_of(rows[order], labels, label_image[near][order], label_image)
    errors = explain_errors(boxes, 0.3)
    assert errors.kind.tolist() == slow_kinds(boxes)
    assert {*errors.kind.tolist()} == {CORRECT, LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND, BOTH}
    assert all(gain >= -1e-9 for gain in errors.gain.values())
    total = [
        ((boxes.image == i) & (errors.kind != CORRECT) & (boxes.predictions[:, 4] > 0.3)).sum()
        + errors.missed[label_image == i].sum()
        for i in range(8)
    ]
    worst = worst_images(boxes, errors, 3)
    assert [total[i] for i in worst] == sorted(total, reverse=True)[:3]


def test_images_of_errors(tmp_path):
    boxes = boxes_of([row for row, _ in OF_EACH_KIND], LABELS)
    boxes.paths = [str(tmp_path / "größe.png")]
    cv2.imencode(".png", np.full((200, 300, 3), 90, np.uint8))[1].tofile(boxes.paths[0])
    (file,) = draw_errors(tmp_path / "errors", boxes, explain_errors(boxes, 0.25), [0], ["Kot", "木"])
    assert file.name == "01_größe.jpg"
    drawn = cv2.imdecode(np.fromfile(file, np.uint8), 1)
    assert drawn.shape[1] == 1280
    colours = {tuple((pixel // 40).tolist()) for pixel in drawn[:853].reshape(-1, 3)[::7]}
    assert len(colours) > 8  # of six kinds of boxes, and ground
    boxes.paths = ["of no shard.tar/a.png"]
    assert draw_errors(tmp_path / "none", boxes, explain_errors(boxes, 0.25), [0], ["a", "b"]) == []
    assert not (tmp_path / "none").exists()
