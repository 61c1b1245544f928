"""What all runtimes share: frames, batches, rows and metadata."""

import json

import pytest
import torch

from utils.runtimes import base as exported
from utils.runtimes.base import Metadata, Runtime, assumed_metadata, into_frame

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


def test_metadata_survives_both_stores():
    assert Metadata.from_texts(META.as_texts(), "x") == META
    assert Metadata.from_json(META.as_json(shape=[1]), "x") == META
    assert Metadata.from_texts({"names": '["a"]', "other": "{"}, "x") == Metadata(names=("a",))
    assert Metadata.from_texts({"author": "me"}, "x") is None and Metadata.from_json("", "x") is None


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({}, "names"),
        ({"names": []}, "names"),
        ({"names": [1]}, "names"),
        ({"names": ["a"], "stride": 0}, "stride in its metadata must be a whole number from 1, found 0"),
        ({"names": ["a"], "batch": "2"}, "batch"),
        ({"names": ["a"], "imgsz": [64]}, "imgsz in its metadata must be height and width"),
        ({"names": ["a"], "imgsz": 64}, "imgsz"),
    ],
)
def test_metadata_that_makes_no_sense(entries, says):
    with pytest.raises(ValueError, match=f"x.onnx: .*{says}"):
        Metadata.from_json(json.dumps(entries), "x.onnx")


def test_metadata_that_is_no_json():
    with pytest.raises(ValueError, match="x: its metadata is not JSON"):
        Metadata.from_json("{", "x")
    with pytest.raises(ValueError, match="x: its metadata is not JSON"):
        Metadata.from_texts({"names": "["}, "x")


def test_later_releases_number_their_names():
    assert Metadata.from_json('{"names": {"0": "a", "1": "b"}}', "x").names == ("a", "b")


def test_what_a_file_without_metadata_tells():
    known = assumed_metadata([1, 3, 320, 640], 7)
    assert (known.names, known.imgsz, known.batch, known.stride) == (("class0", "class1"), (320, 640), 1, 64)
    free = assumed_metadata(["b", 3, "h", "w"], "n")
    assert free.dynamic and len(free.names) == 1000


def test_what_stands_in_the_way(monkeypatch):
    monkeypatch.setattr(Echo, "packages", ("json", "no_such_package"))
    assert Echo.obstacle() == "runs with no_such_package, which is not installed here"
    monkeypatch.setattr(Echo, "packages", ())
    monkeypatch.setattr(Echo, "systems", ("Darwin",))
    monkeypatch.setattr(exported.platform, "system", lambda: "Linux")
    assert Echo.obstacle() == "runs on Darwin only"
    monkeypatch.setattr(exported.platform, "system", lambda: "Darwin")
    assert Echo.obstacle() is None
