"""Images: they are written, readable, of the right size, say what they should, and change nothing they are given."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from utils.evaluation import plots
from utils.evaluation.metrics import ConfusionMatrix, ap_per_class
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


def random_metrics(rng, nc):
    n = 40 * nc
    tp = rng.random((n, 1)) > np.linspace(0.3, 0.9, 10)
    return ap_per_class(tp, rng.random(n), rng.integers(0, nc, n), rng.integers(0, nc, n))


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


HEADER = (
    "epoch, train/box_loss, train/obj_loss, train/cls_loss, metrics/precision, metrics/recall, metrics/mAP_0.5, "
    "metrics/mAP_0.5:0.95, val/box_loss, val/obj_loss, val/cls_loss, x/lr0, x/lr1, x/lr2\n"
)


def write_results(path, epochs):
    rows = [
        ", ".join(f"{value:.5g}" for value in [epoch, *np.random.default_rng(epoch).random(13)]) for epoch in epochs
    ]
    path.write_text(HEADER + "\n".join(rows) + "\n")


def test_results_chart(tmp_path):
    write_results(tmp_path / "results.csv", range(5))
    write_results(tmp_path / "results_other.csv", [0])
    assert plots.plot_results(tmp_path / "results.csv") == tmp_path / "results.png"
    assert read(tmp_path / "results.png").shape == (1200, 2400, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a line of at least 11 titles"),
        (HEADER, "then one line per epoch"),
        (HEADER + "0, 1, 2\n", r"results.csv:2: expected 14 numbers, got 3"),
        (HEADER + "\n" + "x, " * 13 + "1\n", r"results.csv:3: could not convert string to float: 'x'"),
    ],
)
def test_broken_results_are_named(tmp_path, text, message):
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        plots.plot_results(tmp_path / "results.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


def test_results_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results"):
        plots.plot_results(tmp_path / "results.csv")


@pytest.mark.parametrize("nc", [0, 2, 30])  # none, each with its name, too many for a legend
def test_curves(tmp_path, nc):
    metrics = random_metrics(np.random.default_rng(0), nc)
    plots.plot_curves(metrics, tmp_path, ["_plain", "$dollar$"])
    for stem in ("PR", "F1", "P", "R"):
        assert read(tmp_path / f"{stem}_curve.png").shape == (1500, 2250, 3)


@pytest.mark.parametrize("nc", [1, 40])  # with numbers in the cells, without
def test_confusion_chart(tmp_path, nc):
    confusion = ConfusionMatrix(nc)
    confusion.matrix[:] = np.random.default_rng(0).integers(0, 9, (nc + 1, nc + 1))
    kept = confusion.matrix.copy()
    plots.plot_confusion_matrix(confusion, tmp_path, [f"class {i}" for i in range(nc)])
    assert np.array_equal(confusion.matrix, kept)
    assert read(tmp_path / "confusion_matrix.png").shape == (2250, 3000, 3)


def test_matplotlib_is_imported_late_and_pyplot_never(tmp_path):
    program = (
        "import sys, numpy as np\n"
        "from utils.evaluation import metrics, plots\n"
        "assert not {'matplotlib', 'PIL', 'pandas'} & set(sys.modules), 'imported too early'\n"
        f"plots.plot_labels(np.random.rand(9, 5), ['a'], {str(tmp_path)!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot would choose a backend for everybody'\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
