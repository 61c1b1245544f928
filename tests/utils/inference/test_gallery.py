"""The page of detect.py counts as a loop does, shows frames spread over the run, and holds foreign text harmlessly."""

import numpy as np
import pytest
import torch
from small_world import PageReader

from utils.inference.gallery import Gallery

IMAGE = np.zeros((40, 60, 3), np.uint8)
NASTY = "<script>x</script>\x1b[2J"


def boxes(*rows):
    return torch.tensor([[5.0, 5, 30, 30, *row] for row in rows]).reshape(-1, 6)


def test_counts_and_confidences(tmp_path):
    gallery = Gallery([NASTY, "b", "never"])
    for found in (boxes((0.9, 1), (0.5, 1)), boxes(), boxes((0.7, 1), (0.6, 0))):
        gallery.add(NASTY, IMAGE, found)
    page = PageReader(gallery.write(tmp_path, NASTY, {"source": NASTY}, {"source": NASTY}).read_text("utf-8"))
    table = page.text.partition("highest")[2].split("\n")[1:3]
    assert table[0] == "b320.7000.900"  # name, detections, images, mean, highest
    assert table[1].startswith("<script>x</script>\\x1b[2J110.6000.600")
    assert "3images or frames4detections1without any" in page.text and "never" not in table
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags and tags.count("img") == 3


@pytest.mark.parametrize("frames", [1, 4, 5, 9, 100, 129])
def test_the_frames_kept_are_spread_over_the_run(frames, tmp_path):
    gallery = Gallery(["a"], most=4)
    for i in range(frames):
        gallery.add(f"frame {i}", IMAGE, boxes((0.9, 0)))
    shown = [int(figure.rpartition("frame ")[2].partition(":")[0]) for figure in gallery.kept]
    assert len(shown) <= 4 and shown == list(range(0, frames, gallery.step)) and (frames < 4 or len(shown) >= 2)


def test_noise_and_many_detections_stay_small(tmp_path):
    rng, gallery = np.random.default_rng(0), Gallery(["a"])
    for _ in range(24):
        gallery.add("noise", rng.integers(0, 256, (300, 400, 3), dtype=np.uint8), boxes(*[(0.9, 0)] * 20))
    assert gallery.write(tmp_path, "t", {}, {}).stat().st_size < 5_000_000


def test_nothing_found(tmp_path):
    gallery = Gallery(["a"])
    gallery.add("empty", IMAGE, boxes())
    assert "Nothing was detected." in PageReader(gallery.write(tmp_path, "t", {}, {}).read_text()).text
