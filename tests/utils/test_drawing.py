"""Boxes and captions are where they should be, can be read, and change nothing they are given."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import drawing
from utils.evaluation.plots import plot_labels
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
    assert drawing.colors(0) == (0xD5, 0x5E, 0x00) and drawing.colors(0, bgr=True) == (0x00, 0x5E, 0xD5)
    assert drawing.colors(19) == drawing.colors(39.0) == (0x87, 0x0F, 0x87)
    assert len({drawing.colors(i) for i in range(20)}) == 20


# Machado, Oliveira and Fernandes, A physiologically-based model for simulation of color vision deficiency, TVCG 2009,
# severity 1.0; they apply to linear RGB.
SIGHT = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("sight", SIGHT)
def test_the_colour_blind_can_tell_classes_apart(sight):
    """Any two of the twenty differ by 15 or more in CIELAB."""
    rgb = np.array([drawing.colors(i) for i in range(20)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(SIGHT[sight]).T).clip(0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = seen @ to_xyz.T / (0.95047, 1, 1.08883)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    assert distance[~np.eye(20, dtype=bool)].min() >= 15


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
    from matplotlib import font_manager
    from matplotlib.font_manager import fontManager

    monkeypatch.setattr(font_manager, "findSystemFonts", list)
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


def test_a_font_is_found_that_was_installed_after_matplotlib_made_its_list(warnings_said, monkeypatch, tmp_path):
    from matplotlib import font_manager

    listed = font_manager.fontManager.ttflist
    arc = drawing.find_font(frozenset("a\u2312"))[0]  # not in DejaVu Sans
    new = shutil.copy(arc, tmp_path / "new.ttf")
    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes(b"no font")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [f for f in listed if f.name == "DejaVu Sans"])
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(damaged), str(new)])
    drawing.find_font.cache_clear()
    drawing._warn_missing_characters.cache_clear()
    file, family = drawing.find_font(frozenset("a\u2312"))
    assert file == str(new) and not warnings_said
    assert family in {font.name for font in font_manager.fontManager.ttflist}  # plots ask for it by its family
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
    """What a label leaves on a black image, as True where anything was drawn."""
    annotator = drawing.Annotator(np.zeros((100, 200, 3), np.uint8), **options)
    annotator.caption(box, label, (90, 90, 90))
    return annotator.result().any(2)


@BOTH
def test_captions_stay_inside_the_image(pil):
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
def test_odd_boxes_do_not_break_the_image(box, pil):
    annotator = drawing.Annotator(np.zeros((100, 120, 3), np.uint8), pil=pil)
    annotator.box_label(box, "odd", (1, 2, 3))
    assert annotator.result().shape == (100, 120, 3)


def contrast(first, second):
    """Contrast ratio of two RGB colours as WCAG 2.1 defines it, 1 to 21."""

    def luminance(colour):
        linear = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted(map(luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


def test_text_contrasts_with_its_strip():
    for i in range(20):
        for bgr in (False, True):
            assert drawing._readable_on(drawing.colors(i, bgr)) == drawing._readable_on(drawing.colors(i))
        assert contrast(drawing.colors(i), drawing._readable_on(drawing.colors(i))) > 3.8
    assert drawing._readable_on((255, 255, 0)) == (0, 0, 0) and drawing._readable_on((80, 0, 130)) == (255, 255, 255)


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((3, 9, 9), np.uint8)])
def test_only_colour_images_can_be_annotated(image):
    with pytest.raises(ValueError, match=r"must be uint8 with shape \(H, W, 3\)"):
        drawing.Annotator(image)


@pytest.mark.parametrize(
    ("shape", "usual", "width"),
    [((64, 96), 3, 1), ((250, 300), 3, 2), ((480, 640), 3, 3), ((480, 640), 2, 2), ((3000, 4000), 3, 10)],
)
def test_lines_grow_with_the_image(shape, usual, width):
    assert drawing.automatic_line_width(shape, usual) == width


@pytest.mark.parametrize("side", [100, 320, 640, 2000, 6000])
@pytest.mark.parametrize("name", ["person", "Größe"])
def test_captions_can_be_read_and_leave_the_image_visible(side, name):
    """Text is 8 to 16 pixels high where the image is shown at 640, and never below 8 as it is."""
    image = np.zeros((side, side, 3), np.uint8)
    line = drawing.automatic_line_width(image.shape, 3)
    annotator = drawing.Annotator(image, line, example=name)
    height = annotator._fit(name)[2]
    assert 8 <= height and 10 <= height * 640 / side <= (40 if side > 300 else 100)


def test_captions_keep_off_each_other():
    """Three boxes in one place: above, below, inside; each strip is whole."""
    names, box = ["aa", "bb", "cc"], [100.0, 100, 220, 160]
    boxes = torch.tensor([[*box, 0.9, 0], [*box, 0.8, 1], [*box, 0.7, 2]])
    drawn = drawing.draw_boxes(np.full((300, 300, 3), 128, np.uint8), boxes, names, 1, bgr=False)
    strips = []
    for c in range(3):
        rows = ((drawn == drawing.colors(c)).all(2).sum(1) > 20).nonzero()[0]
        strips.append(rows[(rows != 100) & (rows != 160)])
    assert strips[0].max() < 100 and strips[1].min() > 160 and 100 < strips[2].min() <= strips[2].max() < 160


def test_a_caption_that_others_hide_is_left_out():
    """Of nine boxes in one place, three have room: above, below, inside."""
    boxes = torch.tensor([[100.0, 100, 220, 160, 0.9 - 0.01 * i, i] for i in range(9)])
    names = [f"class {i}" for i in range(9)]
    drawn = drawing.draw_boxes(np.full((300, 300, 3), 128, np.uint8), boxes, names, 1, bgr=False)
    filled = [((drawn == drawing.colors(i)).all(2).sum(1) > 20).sum() for i in range(9)]
    assert all(rows > 8 for rows in filled[:3]) and not any(rows > 2 for rows in filled[3:])


def test_lines_and_text_fit_the_objects():
    """In an image of 3000 pixels text is as large as objects of 100 pixels allow, not as the image would."""

    def text_height(side):
        corner = torch.tensor([[1000.0, 1000, 1000 + side, 1000 + side, 0.9, 0]])
        drawn = drawing.draw_boxes(np.zeros((3000, 3000, 3), np.uint8), corner, ["word"], bgr=False)
        return ((drawn == drawing.colors(0)).all(2).sum(1) > 20)[:999].sum()

    assert text_height(100) < 50 < text_height(1000)
    assert drawing.automatic_line_width((3000, 3000), 3) == 9
    assert drawing.automatic_line_width((3000, 3000), 3, reach=100) == 3  # the usual one
    assert drawing.automatic_line_width((3000, 3000), 3, reach=200) == 5
    assert drawing.usual_side(np.array([[0, 0, 10, 40], [5, 5, 6, 6], [9, 9, 0, 0.0]])) == pytest.approx(9)
    assert drawing.usual_side(np.zeros((0, 4))) == np.inf


def test_the_most_confident_is_on_top():
    """Where texts find no room, and where outlines cross."""
    boxes = torch.tensor([[10.0, 10, 30, 20, 0.9, 0], [10, 10, 30, 20, 0.8, 1]])
    drawn = drawing.draw_boxes(np.zeros((24, 40, 3), np.uint8), boxes, ["a", "b"], 1, bgr=False)
    assert (drawn == drawing.colors(0)).all(2).sum() > (drawn == drawing.colors(1)).all(2).sum()


def test_tracks_and_hidden_parts():
    image = np.zeros((200, 300, 3), np.uint8)
    boxes = torch.tensor([[20.0, 50, 200, 150, 0.9, 0, 12]])
    changed = [
        (drawing.draw_boxes(image, shown, ["ab"], 2, **options) != image).any(2).sum()
        for shown, options in (
            (boxes, {}),
            (boxes[:, :6], {}),
            (boxes, {"hide_conf": True}),
            (boxes, {"hide_labels": True}),
        )
    ]
    assert changed[0] > changed[1] > changed[2] > changed[3] > 0
    assert not image.any()


def test_control_characters_in_a_caption_are_drawn_as_they_are_shown():
    """Pillow ends in an error of the library that lays its text out."""
    drawn = []
    for text in ("a\x1b[2J\nb", r"a\x1b[2J\nb"):
        annotator = drawing.Annotator(np.zeros((60, 300, 3), np.uint8), 1, 14, pil=True)
        annotator.text((0, 0), text)
        drawn.append(annotator.result())
    assert drawn[0].any() and (drawn[0] == drawn[1]).all()
