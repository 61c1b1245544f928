"""Boxes and captions are where they should be, can be read, and change nothing they are given."""

from pathlib import Path

import numpy as np
import pytest

from utils.evaluation.plots import plot_labels
from utils.inference import drawing
from utils.log import LOGGER


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
    assert drawing.colors(0) == (0xFF, 0x38, 0x38) and drawing.colors(0, bgr=True) == (0x38, 0x38, 0xFF)
    assert drawing.colors(19) == drawing.colors(39.0) == (0xFF, 0x37, 0xC7)
    assert len({drawing.colors(i) for i in range(20)}) == 20


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
    assert drawing.class_name(names, i) == name


def test_fonts_come_from_matplotlib_or_the_system():
    assert drawing.find_font(frozenset("aé Ωя"))[1] == "DejaVu Sans"
    # U+2312, an arc, is not in DejaVu Sans, but in other fonts that matplotlib brings
    file, family = drawing.find_font(frozenset("a\u2312"))
    assert family != "DejaVu Sans" and Path(file).is_file()


def test_missing_characters_are_warned_of_once(warnings_said, recwarn, monkeypatch, tmp_path):
    from matplotlib.font_manager import fontManager

    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if font.name == "DejaVu Sans"])
    drawing.find_font.cache_clear()
    drawing._warn_missing_characters.cache_clear()
    chinese = ["红细胞", "白细胞"]
    for name in chinese:
        drawing.Annotator(np.zeros((50, 80, 3), np.uint8)).box_label((10, 20, 40, 40), name)
    plot_labels(np.random.default_rng(0).random((5, 5)), chinese, tmp_path)
    assert len(warnings_said) == 1 and "install a font" in warnings_said[0]
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    drawing.find_font.cache_clear()


# --- annotator --------------------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("pil", [False, True])


@BOTH
def test_annotator_draws_on_a_copy_in_the_colour_asked_for(pil):
    image = np.zeros((100, 120, 3), np.uint8)
    annotator = drawing.Annotator(image, line_width=1, pil=pil)
    annotator.rectangle((20, 30, 80, 90), (10, 20, 200))
    result = annotator.result()
    assert not image.any() and result.shape == image.shape and result.dtype == np.uint8
    for y, x in ((30, 50), (90, 50), (60, 20), (60, 80)):  # the four sides
        assert result[y, x].tolist() == [10, 20, 200]
    assert not result[40:80, 30:70].any() and not result[:28].any()


def drawn(box, label="word 0.5", **options):
    """What a label leaves on a black picture, as True where anything was drawn."""
    annotator = drawing.Annotator(np.zeros((100, 200, 3), np.uint8), **options)
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
    annotator = drawing.Annotator(np.zeros((100, 200, 3), np.uint8))
    annotator.box_label((10, 30, 60, 60), "first", (1, 2, 3))
    annotator.box_label((100, 30, 160, 60), "été", (1, 2, 3))
    result = annotator.result()
    assert result[60, 30].tolist() == result[60, 130].tolist() == [1, 2, 3]


@BOTH
@pytest.mark.parametrize("box", [(1e9, -1e9, 2e9, float("inf")), (50, 60, 40, 30), (10, 10, 10, 10)])
def test_odd_boxes_do_not_break_the_picture(box, pil):
    annotator = drawing.Annotator(np.zeros((100, 120, 3), np.uint8), pil=pil)
    annotator.box_label(box, "odd", (1, 2, 3))
    assert annotator.result().shape == (100, 120, 3)


def test_text_contrasts_with_its_strip():
    for i in range(20):
        for bgr in (False, True):
            assert drawing._readable_on(drawing.colors(i, bgr)) == drawing._readable_on(drawing.colors(i))
    assert drawing._readable_on((255, 255, 0)) == (0, 0, 0) and drawing._readable_on((80, 0, 130)) == (255, 255, 255)


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((3, 9, 9), np.uint8)])
def test_only_colour_images_can_be_annotated(image):
    with pytest.raises(ValueError, match=r"must be uint8 with shape \(H, W, 3\)"):
        drawing.Annotator(image)
