"""Boxes in pixels are cut at their image, or reported."""

import re

import numpy as np
import pytest

from utils.data.faults import Location
from utils.data.labels import normalise_boxes


@pytest.mark.parametrize(
    "box, expected, message",
    [
        ((10, 10, 30, 20), (0.2, 0.3, 0.2, 0.2), None),
        ((0, 0, 100, 50), (0.5, 0.5, 1, 1), None),
        ((-0.5, 0, 100.9, 50), (0.5, 0.5, 1, 1), None),  # rounding
        ((90, 10, 110, 20), (0.95, 0.3, 0.1, 0.2), r"box \(90, 10, 110, 20\) reaches over the image of 100 x 50"),
        ((10, 10, 10, 20), None, "has no area; left out"),
        ((30, 10, 10, 20), None, "has no area; left out"),
        ((float("nan"), 10, 30, 20), None, "has no area; left out"),
        ((0, 0, float("inf"), 20), None, "has no area; left out"),
        ((100, 10, 120, 20), None, "lies outside the image of 100 x 50 pixels; left out"),
        ((0, -20, 10, -5), None, "lies outside"),
    ],
)
def test_boxes(box, expected, message):
    scaled, useful, faults = normalise_boxes(np.array([box], float), (100, 50), [Location("place")])
    assert useful.tolist() == [expected is not None]
    if expected:
        assert scaled[0] == pytest.approx(expected)
    assert [str(m).startswith("place: ") for m in faults] == ([True] if message else [])
    if message:
        assert re.search(message, str(faults[0]))
