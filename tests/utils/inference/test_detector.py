"""Detection in batches and in tiles."""

import csv
import json

import cv2
import numpy as np
import pytest
import torch
from small_world import BOXES, TINY, BrightBoxes, boxes_image

import detect
from engine import detection
from models.yolo import Model
from utils import checkpoint
from utils.inference.detector import Detector

pytestmark = pytest.mark.usefixtures("here")


def test_batches_find_what_single_images_do(here):
    """Also where the images' shapes differ: each is seen in the frame that it has alone."""
    torch.manual_seed(0)
    model = Model(TINY)
    checkpoint.save("tiny.pt", checkpoint.pack(model))
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(64, 96), (96, 64), (64, 96), (50, 96), (64, 96)]):
        cv2.imencode(".png", rng.integers(0, 255, (*shape, 3)).astype(np.uint8))[1].tofile(here / f"{i}.png")
    options = {"imgsz": 96, "device": "cpu", "conf_thres": 1e-5, "nosave": True, "save_json": True, "max_det": 20}
    rows = []
    for batch_size in (1, 4):
        out = detect.run("tiny.pt", "*.png", batch_size=batch_size, **options)
        rows.append(json.loads((out / "predictions.json").read_text()))
    one, four = ([[r["image_id"], r["category_id"], *r["bbox"], r["score"]] for r in found] for found in rows)
    assert len(one) > 20
    np.testing.assert_allclose(np.array(one), np.array(four), atol=2e-3)


class SmallBoxes(BrightBoxes):
    """Sees white squares one by one, but none that is less than 12 pixels wide in the frame."""

    def forward(self, images, augment=False):
        rows = torch.zeros(len(images), 40, 7)
        for image, row in zip(images, rows):
            white = (image > 0.7).all(0).numpy().astype(np.uint8)
            found = [s[:4] for s in cv2.connectedComponentsWithStats(white, connectivity=4)[2][1:] if s[2] >= 12]
            for k, (x, y, w, h) in enumerate(found):
                row[k] = torch.tensor([x + w / 2, y + h / 2, w, h, 0.8, 0, 1.0])
        return rows, None


def test_small_objects_of_a_large_image_are_found_in_tiles(detected, here, monkeypatch):
    monkeypatch.setattr(detection, "Backend", SmallBoxes)
    rng = np.random.default_rng(0)
    image = np.full((400, 500, 3), 60, np.uint8)
    truth = []
    for y in range(10, 370, 60):
        for x in range(10, 460, 60):
            x1, y1 = x + int(rng.integers(0, 25)), y + int(rng.integers(0, 20))
            truth.append([x1, y1, x1 + 14, y1 + 14])
    image[300:400, 360:500] = 60
    truth = [b for b in truth if not (b[3] >= 298 and b[2] >= 358)] + [[362, 302, 482, 392]]  # one larger than a tile
    for x1, y1, x2, y2 in truth:
        image[y1:y2, x1:x2] = 255
    cv2.imencode(".png", image)[1].tofile(here / "large.png")

    def boxes(**options):
        out = detected("large.png", save_csv=True, nosave=True, **options)
        with open(out / "predictions.csv", newline="") as file:
            return np.array([[float(r[k]) for k in ("xmin", "ymin", "xmax", "ymax")] for r in csv.DictReader(file)])

    assert len(boxes()) == 1
    tiled = boxes(tile=0.25)
    assert len(tiled) == len(truth)
    distance = np.abs(tiled[:, None] - np.array(truth)[None]).max(2)
    assert distance.min(0).max() <= 6 and np.sort(distance.min(0))[:-1].max() <= 0.5  # the large one is seen small


def test_tiles_of_an_image_no_larger_than_the_frame_change_nothing(detected, here):
    cv2.imencode(".png", boxes_image(*BOXES))[1].tofile(here / "a.png")
    texts = [(detected("a.png", save_txt=True, tile=t) / "labels/a.txt").read_text() for t in (None, 0.5)]
    assert texts[0] == texts[1]


class Grey(torch.nn.Module):
    """Takes one channel, and keeps what it is given."""

    stride, dtype, channels = 32, torch.float32, 1

    def forward(self, images, augment=False):
        self.seen = images
        return torch.zeros(len(images), 1, 6), None


def test_a_grey_network_is_fed_grey():
    model = Grey()
    detector = Detector(model, (64, 64), torch.device("cpu"), conf_thres=0.25)
    detector([np.full((64, 64, 3), (255, 0, 0), np.uint8)])  # blue, which weighs 0.114 in grey
    assert model.seen.shape == (1, 1, 64, 64) and torch.allclose(model.seen * 255, torch.tensor(29.0))
