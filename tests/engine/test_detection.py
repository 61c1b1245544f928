"""detect.py on videos, lists of files and standard input; windows, layers, weights.

Videos are written by the tests themselves.
"""

import io
import json
import os
import sys
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from small_world import TINY, BrightBoxes, H, W, boxes_image, labels_in
from videos import FPS, left_edges, moving, read_video, write_video

import detect
from engine import detection
from models.backend import load_checkpoint
from models.yolo import Model
from utils import checkpoint
from utils.inference.sources import VIDEO, list_sources

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_video_keeps_its_size_rate_and_every_frame(detected, here, batch_size):
    write_video(here / "clip.avi", moving(11))
    out = detected("clip.avi", save_txt=True, batch_size=batch_size)
    assert sorted(os.listdir(out)) == ["clip.mp4", "labels"]
    frames, fps = read_video(out / "clip.mp4")
    assert len(frames) == 11 and fps == pytest.approx(FPS) and frames[0].shape == (H, W, 3)
    names = [f"clip_{i}" for i in range(1, 12)]
    assert sorted(p.stem for p in (out / "labels").iterdir()) == sorted(names)
    assert np.abs(np.subtract(left_edges(out, names), [4 + 2 * i for i in range(11)])).max() <= 1


def test_every_second_frame_plays_as_long(detected, here):
    write_video(here / "clip.avi", moving(11))
    out = detected("clip.avi", save_txt=True, vid_stride=2)
    frames, fps = read_video(out / "clip.mp4")
    assert len(frames) == 6 and fps == pytest.approx(FPS / 2)
    names = [f"clip_{i}" for i in range(1, 12, 2)]
    assert np.abs(np.subtract(left_edges(out, names), [4 + 4 * i for i in range(6)])).max() <= 1


def test_a_video_that_does_not_say_its_rate(detected, here, monkeypatch):
    write_video(here / "clip.avi", moving(3))
    real = cv2.VideoCapture

    class Silent:
        def __init__(self, *arguments):
            self.real = real(*arguments)

        def __getattr__(self, name):
            return getattr(self.real, name)

        def get(self, what):
            return 0.0 if what == cv2.CAP_PROP_FPS else self.real.get(what)

    with monkeypatch.context() as patch:
        patch.setattr(cv2, "VideoCapture", Silent)
        out = detected("clip.avi")
    assert read_video(out / "clip.mp4")[1] == pytest.approx(30)


def test_images_and_videos_of_one_folder(detected, here):
    cv2.imencode(".png", boxes_image())[1].tofile(here / "b.png")
    cv2.imencode(".png", boxes_image())[1].tofile(here / "clip_1.png")  # as the label file of a frame is called
    write_video(here / "a.avi", moving(3))
    write_video(here / "clip.avi", moving(2))
    frames = [Image.fromarray(image[..., ::-1].copy()) for image in moving(4)]
    frames[0].save(here / "c.gif", save_all=True, append_images=frames[1:], duration=40)
    (here / "notes.md").write_text("no image")
    out = detected(here, save_txt=True, save_crop=True)
    files = {"b.png", "clip_1.png", "a.mp4", "clip_avi.mp4", "c.mp4"}
    assert {p.name for p in out.iterdir() if p.is_file()} == files
    labels = {"b", "clip_1", "a_1", "a_2", "a_3", "c_1", "c_2", "c_3", "c_4", "clip_avi_1", "clip_avi_2"}
    assert {p.stem for p in (out / "labels").iterdir()} == labels
    assert sorted(os.listdir(out / "crops/red"))[:3] == ["a.jpg", "a2.jpg", "a3.jpg"]


def test_a_video_cut_short_keeps_its_frames(detected, here, capsys):
    content = write_video(here / "clip.avi", moving(30)).read_bytes()
    (here / "clip.avi").write_bytes(content[: len(content) // 2])
    cv2.imencode(".png", boxes_image())[1].tofile(here / "a.png")
    out = detected(here)
    frames, _ = read_video(out / "clip.mp4")
    assert 5 < len(frames) < 30 and (out / "a.png").is_file()


def test_a_webm_video(detected, here):
    frames = moving(6)
    writer = cv2.VideoWriter(str(here / "clip.webm"), cv2.VideoWriter_fourcc(*"VP80"), 10, frames[0].shape[1::-1])
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no WebM")
    for frame in frames:
        writer.write(frame)
    writer.release()
    assert [source.kind for source in list_sources(str(here))] == [VIDEO]
    out = detected(str(here / "clip.webm"), save_txt=True)
    assert len(list((out / "labels").iterdir())) == len(read_video(out / "clip.mp4")[0]) == 6


def test_what_was_done_before_ctrl_c_is_whole(detected, here, monkeypatch):
    write_video(here / "clip.avi", moving(11))
    real, calls = BrightBoxes.forward, []

    def forward(self, images, augment=False):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(self, images, augment)

    monkeypatch.setattr(BrightBoxes, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        detected("clip.avi", save_json=True, save_csv=True)
    assert sorted(os.listdir("out/exp")) == ["clip.mp4", "predictions.csv", "predictions.json"]
    assert len(read_video(here / "out/exp/clip.mp4")[0]) == 5
    assert len(json.loads((here / "out/exp/predictions.json").read_text())) == 5
    assert threading.active_count() == 1 or not {"reader", "writer"} & {t.name for t in threading.enumerate()}


def test_a_list_of_files(detected, here, capsys):
    (here / "deep").mkdir()
    for name in ("deep/a.png", "b.png"):
        cv2.imencode(".png", boxes_image())[1].tofile(here / name)
    write_video(here / "clip.avi", moving(2))
    (here / "deep/list.txt").write_text("../clip.avi\n\n./a.png\nb.png\ngone.jpg\n".replace("../clip", "clip"))
    out = detected("deep/list.txt", save_txt=True)
    assert sorted(os.listdir(out)) == ["a.png", "b.png", "clip.mp4", "labels"]
    assert "left out: [Errno 2] No such file or directory: 'gone.jpg'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_an_image_on_standard_input(detected, monkeypatch, kind):
    content = io.BytesIO()
    Image.fromarray(boxes_image()[..., ::-1]).save(content, kind)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content.getvalue())))
    out = detected("-", save_txt=True)
    assert sorted(os.listdir(out)) == ["labels", "stdin.jpg"] and len(labels_in(out / "labels/stdin.txt")) == 2


def test_nothing_on_standard_input(detected, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    with pytest.raises(ValueError, match="standard input: image cannot be decoded"):
        detected("-")


def test_a_window_without_a_display(detected, here, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    cv2.imencode(".png", boxes_image())[1].tofile(here / "a.png")
    if sys.platform not in ("darwin", "win32"):
        with pytest.raises(ValueError, match="--view-img: no window can be opened here"):
            detected("a.png", view_img=True)
        assert os.listdir(here) == ["a.png"]


def test_results_in_a_window_until_q(detected, here, monkeypatch):
    write_video(here / "clip.avi", moving(7))
    shown = []
    monkeypatch.setattr(detection, "has_display", lambda: True)
    monkeypatch.setattr(cv2, "imshow", lambda title, image: shown.append((title, threading.current_thread())))
    monkeypatch.setattr(cv2, "waitKey", lambda ms: ord("q") if len(shown) == 3 else -1)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: shown.append("closed"))
    out = detected("clip.avi", view_img=True)
    assert shown == [("clip.avi", threading.main_thread())] * 3 + ["closed"]
    assert len(read_video(out / "clip.mp4")[0]) == 3


@pytest.fixture
def soca(here) -> Model:
    """A tiny model with SOCA as layer 6, saved as `soca.pt`."""
    torch.manual_seed(0)
    rows = [*TINY["backbone"], [-1, 1, "SOCA", []]]
    model = Model(
        {**TINY, "backbone": rows, "head": [[-1, 1, "SPPF", [256, 5]], [[4, 7], 1, "Detect", ["nc", "anchors"]]]}
    )
    checkpoint.save("soca.pt", checkpoint.pack(model, optimizer={"state": {}}))
    return model


def test_maps_and_gates_are_written(soca, here):
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    for name in ("a.png", "b.png"):
        cv2.imencode(".png", image)[1].tofile(here / name)
    out = detect.run("soca.pt", "*.png", imgsz=96, device="cpu", visualize=True, nosave=True)
    assert sorted(os.listdir(out)) == ["a", "b"]
    modules = ["Conv", "Conv", "C3", "Conv", "C3", "Conv", "SOCA", "SPPF"]
    features = {f"stage{i}_{m}_features.{s}" for i, m in enumerate(modules) for s in ("png", "npy")}
    assert set(os.listdir(out / "a")) == features | {
        f"stage6_SOCA_{n}" for n in ("gate.csv", "gate.png", "emphasis.png")
    }

    # the numbers are those of the layer's own arithmetic
    model = load_checkpoint("soca.pt")["model"].float().fuse().eval()
    x = torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy())[None] / 255
    with torch.no_grad():
        for layer in model.model[:6]:
            x = layer(x)
        y = model.model[6](x)
    np.testing.assert_allclose(np.load(out / "a/stage5_Conv_features.npy"), x[0], atol=1e-4)
    gate = np.array(
        [float(line.split(",")[1]) for line in (out / "a/stage6_SOCA_gate.csv").read_text().splitlines()[1:]]
    )
    np.testing.assert_allclose(gate[:, None, None] * x[0].numpy(), y[0], atol=1e-4)
    assert cv2.imread(str(out / "a/stage6_SOCA_emphasis.png")).shape == (64, 96, 3)


def test_layers_of_streams_and_ensembles_are_refused(soca, here):
    cv2.imencode(".png", boxes_image())[1].tofile(here / "a.png")
    with pytest.raises(ValueError, match="--visualize records the layers of one model"):
        detect.run(["soca.pt", "soca.pt"], "a.png", imgsz=96, device="cpu", visualize=True)
    with pytest.raises(ValueError, match="and a stream has no last frame; give images or a video"):
        detect.run("soca.pt", "0", imgsz=96, device="cpu", visualize=True)


def test_update_strips_the_weights(soca, here):
    cv2.imencode(".png", boxes_image())[1].tofile(here / "a.png")
    assert load_checkpoint("soca.pt")["optimizer"] is not None
    detect.run("soca.pt", "a.png", imgsz=96, device="cpu", update=True)
    content = load_checkpoint("soca.pt")
    assert content["optimizer"] is None and content["epoch"] == -1
