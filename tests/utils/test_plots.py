"""Pictures: they are written, readable, of the right size, say what they should, and change nothing they are given."""

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

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["circle", "square", "a triangle with a long name"]


def read(path):
    """The picture as uint8 (H, W, 3), RGB."""
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


# --- colours, names, fonts --------------------------------------------------------------------------------------------


def test_colours():
    assert plots.colors(0) == (0xFF, 0x38, 0x38) and plots.colors(0, bgr=True) == (0x38, 0x38, 0xFF)
    assert plots.colors(19) == plots.colors(39.0) == (0xFF, 0x37, 0xC7)
    assert len({plots.colors(i) for i in range(20)}) == 20


@pytest.mark.parametrize(
    ("names", "i", "name"),
    [
        (["cat", "dog"], 1, "dog"),
        ({0: "cat", 7: "dog"}, 7, "dog"),
        (["cat"], 3, "3"),  # more classes than names
        ({0: "cat"}, 3, "3"),
        (None, 3, "3"),
        (["a" * 50], 0, "a" * 38 + ".."),
    ],
)
def test_class_name(names, i, name):
    assert plots.class_name(names, i) == name


def test_fonts_come_from_matplotlib_or_the_system():
    assert plots.find_font(frozenset("aé Ωя"))[1] == "DejaVu Sans"
    # U+2312, an arc, is not in DejaVu Sans, but in other fonts that matplotlib brings
    file, family = plots.find_font(frozenset("a\u2312"))
    assert family != "DejaVu Sans" and Path(file).is_file()


def test_missing_characters_are_warned_of_once(warnings_said, recwarn, monkeypatch, tmp_path):
    from matplotlib.font_manager import fontManager

    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if font.name == "DejaVu Sans"])
    plots.find_font.cache_clear()
    plots._warn_missing_characters.cache_clear()
    chinese = ["红细胞", "白细胞"]
    for name in chinese:
        plots.Annotator(np.zeros((50, 80, 3), np.uint8)).box_label((10, 20, 40, 40), name)
    plots.plot_labels(np.random.default_rng(0).random((5, 5)), chinese, tmp_path)
    assert len(warnings_said) == 1 and "install a font" in warnings_said[0]
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    plots.find_font.cache_clear()


# --- annotator --------------------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("pil", [False, True])


@BOTH
def test_annotator_draws_on_a_copy_in_the_colour_asked_for(pil):
    image = np.zeros((100, 120, 3), np.uint8)
    annotator = plots.Annotator(image, line_width=1, pil=pil)
    annotator.rectangle((20, 30, 80, 90), (10, 20, 200))
    result = annotator.result()
    assert not image.any() and result.shape == image.shape and result.dtype == np.uint8
    for y, x in ((30, 50), (90, 50), (60, 20), (60, 80)):  # the four sides
        assert result[y, x].tolist() == [10, 20, 200]
    assert not result[40:80, 30:70].any() and not result[:28].any()


def drawn(box, label="word 0.5", **options):
    """What a label leaves on a black picture, as True where anything was drawn."""
    annotator = plots.Annotator(np.zeros((100, 200, 3), np.uint8), **options)
    annotator.caption(box, label, (90, 90, 90))
    return annotator.result().any(2)


@BOTH
def test_captions_stay_inside_the_picture(pil):
    middle = drawn((60, 50, 150, 90), pil=pil)
    rows, columns = np.flatnonzero(middle.any(1)), np.flatnonzero(middle.any(0))
    assert rows[-1] == 49 and columns[0] == 60  # on top of the box, flush left
    for box in ((-30, 50, 20, 90), (190, 50, 199, 90), (60, 2, 90, 40), (60, 150, 90, 190)):  # at the four borders
        assert drawn(box, pil=pil).sum() == middle.sum()
    wide = drawn((60, 50, 150, 90), "w" * 100, pil=pil)  # cut
    assert wide.any(0).sum() > 150
    assert wide.any(1).sum() == middle.any(1).sum()


def test_other_alphabets_switch_to_pillow_midway():
    annotator = plots.Annotator(np.zeros((100, 200, 3), np.uint8))
    annotator.box_label((10, 30, 60, 60), "first", (1, 2, 3))
    annotator.box_label((100, 30, 160, 60), "été", (1, 2, 3))
    result = annotator.result()
    assert result[60, 30].tolist() == result[60, 130].tolist() == [1, 2, 3]


@BOTH
@pytest.mark.parametrize("box", [(1e9, -1e9, 2e9, float("inf")), (50, 60, 40, 30), (10, 10, 10, 10)])
def test_odd_boxes_do_not_break_the_picture(box, pil):
    annotator = plots.Annotator(np.zeros((100, 120, 3), np.uint8), pil=pil)
    annotator.box_label(box, "odd", (1, 2, 3))
    assert annotator.result().shape == (100, 120, 3)


def test_text_contrasts_with_its_strip():
    for i in range(20):
        for bgr in (False, True):
            assert plots._readable_on(plots.colors(i, bgr)) == plots._readable_on(plots.colors(i))
    assert plots._readable_on((255, 255, 0)) == (0, 0, 0) and plots._readable_on((80, 0, 130)) == (255, 255, 255)


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((3, 9, 9), np.uint8)])
def test_only_colour_images_can_be_annotated(image):
    with pytest.raises(ValueError, match=r"must be uint8 with shape \(H, W, 3\)"):
        plots.Annotator(image)


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
    targets = plots.found_to_targets(found, (100, 200))
    np.testing.assert_allclose(targets, [[0, 1, 0.25, 0.5, 0.3, 0.6, 0.9], [0, 2, 0.125, 0.25, 0.15, 0.3, 0.2]])
    assert all(map(torch.equal, found, kept))

    images = torch.zeros(2, 3, 100, 200, dtype=torch.uint8)
    plots.plot_batch(images, targets, tmp_path / "both.png", NAMES)
    plots.plot_batch(images, targets[:1], tmp_path / "first.png", NAMES)
    assert np.array_equal(read(tmp_path / "both.png"), read(tmp_path / "first.png"))
    assert plots.found_to_targets([], (100, 200)).shape == (0, 7)


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
        (HEADER, "then one line for each epoch"),
        (HEADER + "0, 1, 2\n", r"results.csv:2: expected 14 numbers, found 3"),
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
