"""A page holds what it was given and nothing else: text is escaped, images are inside, no other file is needed."""

import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np

from utils import page

NASTY = "<script>alert('a&b')</script>\""


class Read(HTMLParser):
    """The tags of a page, the attributes of each, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


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
