"""Frames are read ahead in batches, and none of a file is lost."""

import threading
import time

import cv2
import pytest
from small_world import boxes_image
from videos import moving, write_video

from utils.inference.frames import in_background, read_batches
from utils.inference.sources import list_sources

pytestmark = pytest.mark.usefixtures("here")


def test_reading_ahead_keeps_order_and_errors():
    def count():
        yield from range(100)
        raise OSError("the end")

    seen = []
    with pytest.raises(OSError, match="the end"):
        seen.extend(in_background(count(), 3))
    seen = []
    with pytest.raises(OSError, match="the end"):
        for item in in_background(count(), 3):
            seen.append(item)
    assert seen == list(range(100))


def test_reading_ahead_goes_no_further_than_asked():
    made = []
    items = in_background((made.append(i) or i for i in range(100)), 3)
    assert next(items) == 0
    time.sleep(0.1)
    assert len(made) <= 1 + 3 + 1  # taken, waiting, in the thread's hand
    items.close()
    assert not any(t.name == "reader" for t in threading.enumerate())


def test_batches_hold_every_frame(here):
    write_video(here / "clip.avi", moving(7))
    for name in ("a", "b"):
        cv2.imencode(".png", boxes_image())[1].tofile(here / f"{name}.png")
    batches = list(read_batches(list_sources(here), 4))
    assert [len(b) for b in batches] == [4, 4, 1]
    frames = [frame for batch in batches for frame in batch]
    assert [(f.source, f.number) for f in frames] == [(0, None), (1, None), *((2, i) for i in range(1, 8))]
    assert [f.count for f in frames] == [1, 1] + [7] * 7
