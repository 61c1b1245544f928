"""Images: they are written, readable, of the right size, say what they should, and change nothing they are given."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from utils.evaluation import plots
from utils.log import LOGGER

ROOT = Path(__file__).resolve().parents[3]
NAMES = ["circle", "square", "a triangle with a long name"]


def read(path):
    """The image as uint8 (H, W, 3), RGB."""
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def random_batch(rng, images=3, height=64, width=96, targets=5):
    pixels = torch.tensor(rng.integers(0, 256, (images, 3, height, width)), dtype=torch.uint8)
    rows = np.concatenate(
        [
            rng.integers(0, images, (targets, 1)),
            rng.integers(0, 3, (targets, 1)),
            rng.uniform(0.3, 0.7, (targets, 2)),
            rng.uniform(0.1, 0.5, (targets, 2)),
        ],
        1,
    )
    return pixels, torch.tensor(rows, dtype=torch.float32)


@pytest.fixture
def warnings_said():
    """Warnings that the project's logger gives during the test."""
    said = []

    def listen(record):
        said.append(record.getMessage())
        return False

    LOGGER.addFilter(listen)
    yield said
    LOGGER.removeFilter(listen)


# --- mosaics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "side", "expected"),  # expected: height, width of the mosaic
    [
        (1, 160, (320, 320)),  # enlarged, so that its captions can be read
        (2, 160, (640, 320)),  # a column is filled first
        (5, 160, (960, 640)),
        (16, 160, (1280, 1280)),
        (20, 160, (1280, 1280)),  # the first sixteen
        (1, 640, (640, 640)),  # as it is
        (16, 640, (1920, 1920)),  # reduced
    ],
)
def test_mosaic_size(tmp_path, images, side, expected):
    plots.plot_batch(torch.zeros(images, 3, side, side, dtype=torch.uint8), torch.zeros(0, 6), tmp_path / "m.jpg")
    assert read(tmp_path / "m.jpg").shape == (*expected, 3)


def test_mosaic_places_images_and_boxes(tmp_path):
    images = torch.zeros(3, 3, 100, 200, dtype=torch.uint8)
    images[1, 0], images[2, 2] = 200, 200  # the second red, the third blue
    targets = torch.tensor([[2, 9, 0.5, 0.5, 0.5, 0.6]])
    plots.plot_batch(images, targets, tmp_path / "mosaic.png", min_tile=0)
    mosaic = read(tmp_path / "mosaic.png")
    assert mosaic.shape == (200, 400, 3)
    assert mosaic[50, 10].tolist() == [0, 0, 0]
    assert mosaic[150, 10].tolist() == [200, 0, 0]  # below the first
    assert mosaic[50, 210].tolist() == [0, 0, 200]  # next column
    assert mosaic[150, 300].tolist() == [255, 255, 255]  # no fourth
    for y, x in ((80, 300), (50, 250), (50, 350)):  # bottom, left and right side of the box
        assert mosaic[y, x].tolist() == list(plots.colors(9))


def test_mosaic_is_the_same_for_bytes_and_fractions_and_changes_neither(tmp_path):
    images, targets = random_batch(np.random.default_rng(0))
    fractions, kept = images.float() / 255, (images.clone(), targets.clone())
    plots.plot_batch(images, targets, tmp_path / "a.png", NAMES, ["x/one.jpg", "x/two.jpg", "x/three.jpg"])
    plots.plot_batch(
        fractions, targets, tmp_path / "b.png", dict(enumerate(NAMES)), [f"{n}.jpg" for n in ("one", "two", "three")]
    )
    assert torch.equal(images, kept[0]) and torch.equal(targets, kept[1])
    assert torch.equal(fractions, kept[0].float() / 255)
    assert np.array_equal(read(tmp_path / "a.png"), read(tmp_path / "b.png"))
    plots.plot_batch(fractions.half(), targets, tmp_path / "c.png", NAMES)


def test_only_confident_predictions_are_drawn(tmp_path):
    found = [torch.tensor([[20.0, 20, 80, 80, 0.9, 1], [10, 10, 40, 40, 0.2, 2]]), torch.zeros(0, 6)]
    kept = [boxes.clone() for boxes in found]
    targets = plots.detections_to_targets(found, (100, 200))
    np.testing.assert_allclose(targets, [[0, 1, 0.25, 0.5, 0.3, 0.6, 0.9], [0, 2, 0.125, 0.25, 0.15, 0.3, 0.2]])
    assert all(map(torch.equal, found, kept))

    images = torch.zeros(2, 3, 100, 200, dtype=torch.uint8)
    plots.plot_batch(images, targets, tmp_path / "both.png", NAMES)
    plots.plot_batch(images, targets[:1], tmp_path / "first.png", NAMES)
    assert np.array_equal(read(tmp_path / "both.png"), read(tmp_path / "first.png"))
    assert plots.detections_to_targets([], (100, 200)).shape == (0, 7)


# --- charts -----------------------------------------------------------------------------------------------------------


def test_boxes_of_sorted_labels_are_drawn_by_lot(tmp_path, monkeypatch):
    sorted_labels = np.full((5000, 5), 0.5)
    sorted_labels[:, 0] = np.repeat(np.arange(5), 1000)
    seen, draw = [], plots._centred_boxes
    monkeypatch.setattr(plots, "_centred_boxes", lambda labels: seen.append(labels) or draw(labels))
    plots.plot_labels(sorted_labels, None, tmp_path)
    counts = np.bincount(seen[0][:, 0].astype(int), minlength=5)
    assert counts.sum() == 1000 and counts.min() > 150


@pytest.mark.parametrize(
    ("n", "names"),
    [
        (300, NAMES),
        (0, NAMES),  # no label at all
        (1500, [f"class {i}" for i in range(80)]),  # too many classes for names, too many boxes to draw
    ],
)
def test_label_charts(tmp_path, n, names):
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.integers(0, len(names), (n, 1)), rng.random((n, 4))], 1)
    kept = labels.copy()
    plots.plot_labels(labels, names, tmp_path)
    assert np.array_equal(labels, kept)
    assert read(tmp_path / "labels.jpg").shape == read(tmp_path / "labels_correlogram.jpg").shape == (1600, 1600, 3)


def test_matplotlib_is_imported_late_and_pyplot_never(tmp_path):
    program = (
        "import sys, numpy as np\n"
        "from utils.evaluation import charts, plots\n"
        "assert not {'matplotlib', 'PIL', 'pandas'} & set(sys.modules), 'imported too early'\n"
        f"plots.plot_labels(np.random.rand(9, 5), ['a'], {str(tmp_path)!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot would choose a backend for everybody'\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
