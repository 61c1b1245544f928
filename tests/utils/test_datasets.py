"""v6.1's readers of images, videos and streams give what its programs take from them, frame by frame."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from small_world import boxes_image, full_disk, write_boxes
from videos import moving, read_video, write_video

from utils import dataloaders
from utils.datasets import (
    IMG_FORMATS,
    VID_FORMATS,
    LoadImages,
    LoadScreenshots,
    LoadStreams,
    create_dataloader,
    img2label_paths,
    letterbox,
)


@pytest.fixture
def folder(tmp_path):
    """Two images, a video of three frames and one of two."""
    write_video(tmp_path / "a.avi", moving(3))
    write_video(tmp_path / "c.avi", moving(2))
    for name in ("b.png", "d.jpg"):
        cv2.imwrite(str(tmp_path / name), boxes_image())
    return tmp_path


def test_images_come_before_videos_with_all_that_v61_gives(folder):
    dataset = LoadImages(folder, img_size=64, stride=32, auto=True)
    assert (dataset.nf, len(dataset), dataset.mode) == (4, 4, "image")
    for _ in range(2):  # it may be read again
        seen, texts = [], []
        for path, im, im0, cap, text in dataset:
            seen.append((path, dataset.mode, dataset.frame if cap else 0))
            texts.append(text)
            assert (cap is not None) == path.endswith(".avi") and (cap is dataset.cap)
            expected = letterbox(im0, 64, stride=32, auto=True)[0][..., ::-1].transpose(2, 0, 1)
            assert im.shape == (3, 64, 64) and im.flags.c_contiguous and (im == expected).all()
        names = ["b.png", "d.jpg", "a.avi", "a.avi", "a.avi", "c.avi", "c.avi"]
        frames = [0, 0, 1, 2, 3, 1, 2]
        assert seen == [
            (str(folder / name), "video" if frame else "image", frame) for name, frame in zip(names, frames)
        ]
        assert texts[0] == f"image 1/4 {folder / 'b.png'}: " and texts[4] == f"video 3/4 (3/3) {folder / 'a.avi'}: "
        dataset.mode = "image"


def test_frames_and_pixels_are_the_files(folder):
    given = [im0 for _, _, im0, _, _ in LoadImages(str(folder / "*.avi"))]
    assert all((a == b).all() for a, b in zip(given, read_video(folder / "a.avi")[0] + read_video(folder / "c.avi")[0]))
    [(_, im, im0, cap, _)] = list(LoadImages([folder / "b.png"], (32, 96), auto=False))
    assert (im0 == boxes_image()).all() and im.shape == (3, 32, 96) and cap is None


def test_frames_may_be_passed_over_and_inputs_made_otherwise(folder):
    dataset = LoadImages(folder / "a.avi", vid_stride=2, transforms=lambda image: image[:1])
    frames = read_video(folder / "a.avi")[0]
    items = list(dataset)
    assert [text.split()[2] for *_, text in items] == ["(1/2)", "(2/2)"]
    assert all((im0 == frame).all() and im.shape == (1, 96, 3) for (_, im, im0, *_), frame in zip(items, frames[::2]))
    streamed = LoadStreams(str(folder / "a.avi"), vid_stride=2, transforms=lambda image: image[:1])
    assert [im.shape for _, im, *_ in streamed] == [(1, 1, 96, 3)] * 2


def test_the_screen_is_read_like_a_stream(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "PIL.ImageGrab.grab", lambda box: asked.append(box) or Image.fromarray(boxes_image()[..., ::-1])
    )
    source, im, im0, cap, text = next(iter(LoadScreenshots("screen 0 0 96 64", img_size=64, stride=32, auto=True)))
    assert asked == [(0, 0, 96, 64)] and (im0 == boxes_image()).all() and im.shape == (3, 64, 64)
    assert (source, cap, text) == ("screen 0 0 96 64", None, "screen 0 0 96 64 0: ")
    monkeypatch.setattr("PIL.ImageGrab.grab", full_disk)
    with pytest.raises(ValueError, match="the screen cannot be read"):
        next(LoadScreenshots("screen"))


def test_what_is_not_there_is_an_error(folder):
    with pytest.raises(FileNotFoundError, match="nothing"):
        LoadImages("nothing.jpg")
    with pytest.raises(ValueError, match="use LoadStreams"):
        LoadImages("rtsp://127.0.0.1/x")
    (folder / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"broken.mp4"):
        list(LoadImages(folder / "broken.mp4"))
    with pytest.raises(ValueError, match=r"broken.mp4"):
        LoadStreams(str(folder / "broken.mp4"))


def test_streams_give_a_frame_of_each_at_a_time(folder):
    (folder / "streams.txt").write_text(f"{folder / 'a.avi'}\n{folder / 'a.avi'}\n")
    dataset = LoadStreams(str(folder / "streams.txt"), img_size=64, stride=32, auto=True)
    assert len(dataset) == 2 and dataset.mode == "stream" and dataset.rect
    batches = list(dataset)
    sources, im, im0, cap, text = batches[0]
    assert sources == [str(folder / "a.avi")] * 2 and im.shape == (2, 3, 64, 64) and (cap, text) == (None, "")
    frames = read_video(folder / "a.avi")[0]
    assert (im0[0] == frames[0]).all() and (batches[-1][2][0] == frames[-1]).all()
    assert (im[1] == letterbox(im0[1], 64)[0][..., ::-1].transpose(2, 0, 1)).all()
    assert not any(stream.thread.is_alive() for stream in dataset.streams if stream.thread.join(5) is None)


def test_a_single_video_as_a_stream_loses_no_frame(folder):
    given = [im0[0] for _, _, im0, _, _ in LoadStreams(str(folder / "a.avi"))]
    assert all((a == b).all() for a, b in zip(given, read_video(folder / "a.avi")[0], strict=True))


def test_streams_of_two_shapes_are_squares(folder):
    tall = [frame.transpose(1, 0, 2).copy() for frame in moving(2)]
    write_video(folder / "tall.avi", tall)
    (folder / "streams.txt").write_text(f"{folder / 'a.avi'}\n{folder / 'tall.avi'}\n")
    dataset = LoadStreams(folder / "streams.txt", img_size=96)
    assert not dataset.rect and next(dataset)[1].shape == (2, 3, 96, 96)
    dataset.close()


def test_the_training_loader_by_v61s_arguments(tmp_path):
    write_boxes(tmp_path, train=5)
    loader, dataset = create_dataloader(
        tmp_path / "images/train", 96, 2, 32, False, hyp=None, augment=False, cache=False, pad=0.5, rect=True,
        rank=-1, workers=0, prefix="train: ",
    )  # fmt: skip
    batches = list(loader)
    assert [len(im) for im, *_ in batches] == [2, 2, 1] and len(dataset) == 5
    assert batches[0][0].dtype == torch.uint8 and batches[0][1].shape == (4, 6)
    with pytest.raises(ValueError, match="image-weights"):
        create_dataloader(tmp_path / "images/train", 96, 2, 32, image_weights=True)


def test_names():
    assert {"jpg", "png", "webp"} <= set(IMG_FORMATS) and {"mp4", "avi"} <= set(VID_FORMATS)
    assert img2label_paths(["/a/images/images/b.jpg"]) == ["/a/images/labels/b.txt"]
    assert all(getattr(dataloaders, name) for name in dataloaders.__all__)
    assert np.all(dataloaders.letterbox(boxes_image(), 32)[0][0] == 114)
