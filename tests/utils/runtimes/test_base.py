"""What all runtimes share: frames, batches, rows and metadata."""

import pytest
import torch

from utils.runtimes import base as exported
from utils.runtimes.base import Metadata, Runtime, into_frame

META = Metadata(
    names=("red", "weiß"), stride=32, imgsz=(64, 96), batch=2, nms=True, half=True, conf_thres=0.25, iou_thres=0.5
)


class Echo(Runtime):
    """Notes the batches it gets; a row is the box around the white of an image."""

    def __init__(self, metadata: Metadata):
        super().__init__("echo")
        self.metadata, self.seen = metadata, []

    def run(self, images):
        self.seen.append(tuple(images.shape))
        rows = []
        for image in images:
            y, x = (image[0] > 0.5).nonzero().T
            box = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0]
            x1, y1, x2, y2 = map(float, box)
            rows.append([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, 1.0, 0.25, 0.75])
        rows = torch.tensor(rows)[:, None]
        if not self.metadata.nms:
            return (rows,)
        corners = torch.cat((rows[..., :2] - rows[..., 2:4] / 2, rows[..., :2] + rows[..., 2:4] / 2), -1)
        return corners, rows[..., 6], torch.ones(len(rows), 1, dtype=torch.int64)


def white(B: int, H: int, W: int) -> torch.Tensor:
    """Images with a white box from (8, 16) to (24, 24), x before y."""
    images = torch.zeros(B, 3, H, W)
    images[:, :, 16:24, 8:24] = 1
    return images


@pytest.mark.parametrize("nms", [False, True])
@pytest.mark.parametrize(
    ("B", "H", "W", "batches"),
    [
        (2, 64, 96, 1),  # as the file has it
        (5, 64, 96, 3),  # more images
        (1, 32, 64, 1),  # fewer, smaller
        (2, 128, 192, 1),  # twice as large
        (1, 64, 192, 1),  # too wide alone
    ],
)
def test_a_file_of_one_frame_takes_any_images(nms, B, H, W, batches):
    echo = Echo(Metadata(names=("a", "b"), stride=32, imgsz=(64, 96), batch=2, nms=nms))
    rows = echo(white(B, H, W))
    assert echo.seen == [(2, 3, 64, 96)] * batches
    assert rows.shape == (B, 1, 7)
    expected = torch.tensor([16.0, 20, 16, 8]).expand(B, 1, 4)
    assert (rows[..., :4] - expected).abs().max() <= (0 if H <= 64 and W <= 96 else 2)
    assert rows[0, 0, 4:].tolist() == ([0.75, 0, 1] if nms else [1, 0.25, 0.75])


def test_a_file_of_any_frame_is_left_alone():
    echo = Echo(Metadata(names=("a", "b"), dynamic=True))
    echo(white(3, 32, 160))
    assert echo.seen == [(3, 3, 32, 160)]


def test_channels_must_be_right():
    with pytest.raises(ValueError, match="takes images of 3 channels, got 1"):
        Echo(Metadata(names=("a",)))(torch.zeros(1, 1, 32, 32))


def test_the_frame_is_grey_around():
    framed, gain, corner = into_frame(torch.zeros(1, 1, 2, 4), (5, 4))
    assert framed[0, 0, :, 0].tolist() == pytest.approx([114 / 255, 0, 0, 114 / 255, 114 / 255])
    assert (gain, corner) == (1.0, (0, 1))


def test_what_stands_in_the_way(monkeypatch):
    monkeypatch.setattr(Echo, "packages", ("json", "no_such_package"))
    assert Echo.obstacle() == "runs with no_such_package, which is not installed here"
    monkeypatch.setattr(Echo, "packages", ())
    monkeypatch.setattr(Echo, "systems", ("Darwin",))
    monkeypatch.setattr(exported.platform, "system", lambda: "Linux")
    assert Echo.obstacle() == "runs on Darwin only"
    monkeypatch.setattr(exported.platform, "system", lambda: "Darwin")
    assert Echo.obstacle() is None


@pytest.mark.parametrize(
    ("metadata", "shape", "says"),
    [
        ({}, (1, 3, 64, 64), "its metadata says width 96, and its input has 64"),
        ({}, (1, 1, 64, 96), "says channels 3, and its input has 1"),
        ({}, (2, 3, 64, 96), "says batch 1, and its input has 2"),
        ({"dynamic": True}, (1, 3, 64, 96), "says batch any, and its input has 1"),
    ],
)
def test_metadata_must_be_that_of_the_graph(metadata, shape, says):
    echo = Echo(Metadata(names=("a",)))
    with pytest.raises(ValueError, match=says):
        echo.declare(Metadata(names=("a",), imgsz=(64, 96), **metadata), shape)


def test_names_are_as_many_as_the_classes_of_the_graph():
    echo = Echo(Metadata(names=("a",)))
    for names, expected in ((("a",), ("a", "1", "2")), ("abcd", ("a", "b", "c")), ((), ("class0", "class1", "class2"))):
        echo.declare(Metadata(names=tuple(names), stride=32), columns=8)
        assert echo.metadata == Metadata(names=expected, stride=32) and echo.declared == bool(names)


def test_a_class_without_a_name_is_an_error(monkeypatch):
    echo = Echo(Metadata(names=("a",), dynamic=True, nms=True))
    with pytest.raises(ValueError, match="echo found class 1, and names 1 classes from 0"):
        echo(white(1, 64, 96))
