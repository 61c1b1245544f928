"""A page holds what it was given and nothing else: text is escaped, images are inside, no other file is needed."""

import base64
import re

import cv2
import numpy as np
import pytest
from small_world import PageReader as Read

from utils import page

NASTY = "<script>alert('a&b')</script>\""


def test_text_is_escaped_everywhere():
    image = np.zeros((4, 4, 3), np.uint8)
    parts = [
        page.heading(NASTY), page.paragraph(NASTY), page.bullets([NASTY]), page.table([NASTY], [[NASTY]]),
        page.preformatted(NASTY), page.figure(image, NASTY),
    ]  # fmt: skip
    read = Read(page.page(NASTY, parts))
    assert "script" not in [tag for tag, _ in read.tags]
    assert read.text.count(NASTY) == 9  # title and h1, each part, head and cell of the table
    (figure,) = [attributes for tag, attributes in read.tags if tag == "img"]
    assert figure["alt"] == NASTY and set(figure) == {"alt", "src"}


def test_images_are_inside():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = cv2.imencode(".png", image)[1].tobytes()
    for html in (page.figure(image, "a", "png"), page.figure(data, "a", "png")):
        found = re.search("src='data:image/png;base64,([^']*)'", html)
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(found[1]), np.uint8), cv2.IMREAD_COLOR)
        assert np.array_equal(decoded, image)
    assert "src='data:image/jpeg;base64," in page.figure(image, "a")


def test_a_page_fits_a_phone_and_needs_no_other_file():
    text = page.page("title", [page.group("row", [page.paragraph("a *better* way", note=True)])], ".row{color:red}")
    tags = Read(text).tags
    assert ("meta", {"name": "viewport", "content": "width=device-width,initial-scale=1"}) in tags
    assert ("em", {}) in tags and ("div", {"class": "row"}) in tags and ("p", {"class": "note"}) in tags
    assert not any(key in attributes for _, attributes in tags for key in ("src", "href"))
    assert "@import" not in text and "url(" not in text


def test_settings_are_cut_and_shown_as_they_are():
    read = Read(page.mapping(("a", "b"), {NASTY: "x" * 5000, "steers \x1b[2J\udce9": None}))
    assert (
        NASTY in read.text
        and "x" * page.MOST_TEXT + " ..." in read.text
        and "x" * (page.MOST_TEXT + 1) not in read.text
    )
    assert r"steers \x1b[2J\udce9" in read.text and read.text.encode()


@pytest.mark.parametrize("shape", [(2000, 1500, 3), (40, 3000, 3)])
def test_a_photo_has_its_maximum_of_bytes_whatever_it_shows(shape):
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = base64.b64decode(re.search("base64,([^']*)'", page.photo(noise, "a", 640, 30_000))[1])
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert len(data) <= 30_000 and max(decoded.shape) <= 640
    assert decoded.shape[0] / decoded.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.15)


def test_files_of_a_folder_are_listed_with_their_sizes(tmp_path):
    (tmp_path / "weights").mkdir()
    for name, count in (("weights/best.pt", 3_700_000), ("a <b>.txt", 120), (".hidden", 5)):
        (tmp_path / name).write_bytes(bytes(count))
    text = Read(page.files(tmp_path)).text.split("\n")
    assert text[1:] == ["a <b>.txt0.1 kB", "weights/best.pt3.7 MB"]
    assert "... and 1 more." in page.files(tmp_path, most=1)
