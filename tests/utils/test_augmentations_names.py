"""v6.1's names for letterboxing and augmentation, under its arguments."""

import inspect
import random

import cv2
import numpy as np
import pytest
from small_world import boxes_image

from utils.augmentations import (
    augment_hsv,
    bbox_ioa,
    box_candidates,
    copy_paste,
    hist_equalize,
    letterbox,
    mixup,
    random_perspective,
)


def test_letterbox_has_v61s_arguments():
    wanted = "im new_shape color auto scaleFill scaleup stride"
    assert list(inspect.signature(letterbox).parameters) == wanted.split()
    image, ratio, (dw, dh) = letterbox(boxes_image(), new_shape=(96, 192), color=(1, 2, 3), auto=False)
    assert image.shape == (96, 192, 3) and ratio == (1.5, 1.5) and (dw, dh) == (24, 0)
    assert (image[:, :24] == (1, 2, 3)).all() and (image[:, -24:] == (1, 2, 3)).all()
    assert letterbox(boxes_image(), 192, auto=True, stride=32)[0].shape == (128, 192, 3)
    assert letterbox(boxes_image(), 192, auto=False, scaleup=False)[1] == (1, 1)
    stretched, ratio, pad = letterbox(boxes_image(), [128, 96], auto=False, scaleFill=True)
    assert stretched.shape == (128, 96, 3) and ratio == (1, 2) and pad == (0, 0)
    assert letterbox(boxes_image()[..., 0], 96)[0].shape == (64, 96)


def test_warps_move_boxes_with_the_pixels():
    random.seed(1)
    boxes = np.array([[0, 8, 10, 30, 40], [1, 50, 20, 90, 52]], np.float32)
    image, labels = random_perspective(boxes_image(), boxes, degrees=0, translate=0.1, scale=0.2, shear=0)
    assert image.shape == (64, 96, 3) and len(labels) == 2 and not np.allclose(labels, boxes)
    x1, y1, x2, y2 = labels[1, 1:]
    ys, xs = (image > 200).all(-1).nonzero()
    np.testing.assert_allclose([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], [x1, y1, x2, y2], atol=1.5)
    assert random_perspective(boxes_image(), border=(-16, -16))[0].shape == (32, 64, 3)


def test_colours_change_in_place():
    random.seed(0)
    image = boxes_image()
    augment_hsv(image, 0.1, 0.5, 0.5)
    assert not (image == boxes_image()).all()
    assert (np.median(image[20:50, 50:90]) > 100).all()


def test_mixing_and_pasting():
    random.seed(0)
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 200, np.uint8)
    image, labels = mixup(black, np.zeros((1, 5)), white, np.ones((2, 5)))
    assert 60 < image.mean() < 140 and labels[:, 0].tolist() == [0, 1, 1]
    outline = np.array([[8, 10], [30, 10], [30, 40], [8, 40]], np.float32)
    image, labels, outlines = copy_paste(
        boxes_image(white=None), np.array([[0, 8, 10, 30, 40]], np.float32), [outline], p=1
    )
    assert labels[1].tolist() == [0, 66, 10, 88, 40] and len(outlines) == 2
    assert (image[20, 70] == image[20, 20]).all()


def test_boxes_after_a_warp():
    before = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]], float).T
    after = np.array([[0, 0, 10, 10], [0, 0, 1, 10], [0, 0, 3, 3]], float).T
    assert box_candidates(before, after).tolist() == [True, False, False]
    assert box_candidates(before, after, area_thr=0.05).tolist() == [True, False, True]
    assert bbox_ioa(np.array([0, 0, 5, 10.0]), after.T[:1])[0] == pytest.approx(0.5)


def test_brightness_is_spread():
    image = np.tile(np.arange(100, 120, dtype=np.uint8)[:, None, None], (1, 20, 3))
    assert hist_equalize(image, clahe=False).std() > 2 * image.std()
    assert (hist_equalize(image[..., ::-1], bgr=True) == hist_equalize(image)[..., ::-1]).all()
    assert cv2.cvtColor(hist_equalize(image), cv2.COLOR_RGB2HSV)[..., 1].max() < 20
