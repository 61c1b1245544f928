"""detect.py on videos, lists, streams and batches: no frame of a file is lost, live sources are followed.

Videos are written, and streams served, by the tests themselves.
"""

import csv
import http.server
import io
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from small_world import BOXES, NAMES, SIZE, TINY, BrightBoxes, H, W, labels_in, picture

import detect
from engine import detection
from models.backend import load_checkpoint
from models.yolo import Model
from utils import checkpoint
from utils.inference import streams
from utils.inference.frames import in_background, read_batches
from utils.inference.results import ResultOptions, ResultWriter, VideoFile
from utils.inference.sources import Frame, list_sources
from utils.inference.streams import read_streams

FPS = 12.5


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "ein Ordner"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def found(monkeypatch, here):
    """`found(source, **options)`: the folder of results of detect.run, `BrightBoxes` being the detector."""
    monkeypatch.setattr(detection, "Backend", BrightBoxes)
    monkeypatch.setattr(detection, "find_weights", lambda name, download: Path(name))

    def run(*source, **options) -> Path:
        return detect.run("bright.pt", *source, **{"imgsz": SIZE, "device": "cpu", "project": "out", **options})

    return run


def write_video(path: Path, frames: list[np.ndarray], fps: float = FPS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    capture = cv2.VideoCapture(str(path))
    fps, frames = capture.get(cv2.CAP_PROP_FPS), []
    while (image := capture.read()[1]) is not None:
        frames.append(image)
    return frames, fps


def moving(n: int) -> list[np.ndarray]:
    """Pictures in which the red box moves by two pixels a frame."""
    return [picture((4 + 2 * i, 10, 26 + 2 * i, 40), None) for i in range(n)]


def left_edges(folder: Path, names: list[str]) -> list[float]:
    """x1 in pixels of the first box in each label file."""
    rows = [labels_in(folder / "labels" / f"{name}.txt")[0] for name in names]
    return [(row[1] - row[3] / 2) * W for row in rows]


# --- videos -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_video_keeps_its_size_rate_and_every_frame(found, here, batch_size):
    write_video(here / "clip.avi", moving(11))
    out = found("clip.avi", save_txt=True, batch_size=batch_size)
    assert sorted(os.listdir(out)) == ["clip.mp4", "labels"]
    frames, fps = read_video(out / "clip.mp4")
    assert len(frames) == 11 and fps == pytest.approx(FPS) and frames[0].shape == (H, W, 3)
    names = [f"clip_{i}" for i in range(1, 12)]
    assert sorted(p.stem for p in (out / "labels").iterdir()) == sorted(names)
    assert np.abs(np.subtract(left_edges(out, names), [4 + 2 * i for i in range(11)])).max() <= 1


def test_every_second_frame_plays_as_long(found, here):
    write_video(here / "clip.avi", moving(11))
    out = found("clip.avi", save_txt=True, vid_stride=2)
    frames, fps = read_video(out / "clip.mp4")
    assert len(frames) == 6 and fps == pytest.approx(FPS / 2)
    names = [f"clip_{i}" for i in range(1, 12, 2)]
    assert np.abs(np.subtract(left_edges(out, names), [4 + 4 * i for i in range(6)])).max() <= 1


def test_a_video_that_does_not_say_its_rate(found, here, monkeypatch):
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
        out = found("clip.avi")
    assert read_video(out / "clip.mp4")[1] == pytest.approx(30)


def test_pictures_and_videos_of_one_folder(found, here):
    cv2.imencode(".png", picture())[1].tofile(here / "b.png")
    cv2.imencode(".png", picture())[1].tofile(here / "clip_1.png")  # as the label file of a frame is called
    write_video(here / "a.avi", moving(3))
    write_video(here / "clip.avi", moving(2))
    frames = [Image.fromarray(image[..., ::-1].copy()) for image in moving(4)]
    frames[0].save(here / "c.gif", save_all=True, append_images=frames[1:], duration=40)
    (here / "notes.md").write_text("no picture")
    out = found(here, save_txt=True, save_crop=True)
    files = {"b.png", "clip_1.png", "a.mp4", "clip_avi.mp4", "c.mp4"}
    assert {p.name for p in out.iterdir() if p.is_file()} == files
    labels = {"b", "clip_1", "a_1", "a_2", "a_3", "c_1", "c_2", "c_3", "c_4", "clip_avi_1", "clip_avi_2"}
    assert {p.stem for p in (out / "labels").iterdir()} == labels
    assert sorted(os.listdir(out / "crops/red"))[:3] == ["a.jpg", "a2.jpg", "a3.jpg"]


def test_a_video_cut_short_keeps_its_frames(found, here, capsys):
    content = write_video(here / "clip.avi", moving(30)).read_bytes()
    (here / "clip.avi").write_bytes(content[: len(content) // 2])
    cv2.imencode(".png", picture())[1].tofile(here / "a.png")
    out = found(here)
    frames, _ = read_video(out / "clip.mp4")
    assert 5 < len(frames) < 30 and (out / "a.png").is_file()


def test_a_size_that_changes_is_brought_back(here):
    video = VideoFile(here / "a.mp4", 10, (64, 96))
    for shape in ((64, 96), (32, 48), (128, 100)):
        video.add(np.zeros((*shape, 3), np.uint8))
    assert os.listdir(here) == [".a.part.mp4"]  # not taken for a whole one
    video.close()
    frames, fps = read_video(here / "a.mp4")
    assert os.listdir(here) == ["a.mp4"] and fps == 10 and [f.shape for f in frames] == [(64, 96, 3)] * 3


def test_a_video_that_cannot_be_written(here):
    with pytest.raises(OSError, match=r"a.mp4: OpenCV cannot write a video of 96 x 64"):
        VideoFile(here / "none" / "a.mp4", 10, (64, 96))


def test_what_was_done_before_ctrl_c_is_whole(found, here, monkeypatch):
    write_video(here / "clip.avi", moving(11))
    real, calls = BrightBoxes.forward, []

    def forward(self, images, augment=False):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(self, images, augment)

    monkeypatch.setattr(BrightBoxes, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        found("clip.avi", save_json=True, save_csv=True)
    assert sorted(os.listdir("out/exp")) == ["clip.mp4", "predictions.csv", "predictions.json"]
    assert len(read_video(here / "out/exp/clip.mp4")[0]) == 5
    assert len(json.loads((here / "out/exp/predictions.json").read_text())) == 5
    assert threading.active_count() == 1 or not {"reader", "writer"} & {t.name for t in threading.enumerate()}


# --- lists, standard input, addresses of files ------------------------------------------------------------------------


def test_a_list_of_files(found, here, capsys):
    (here / "deep").mkdir()
    for name in ("deep/a.png", "b.png"):
        cv2.imencode(".png", picture())[1].tofile(here / name)
    write_video(here / "clip.avi", moving(2))
    (here / "deep/list.txt").write_text("../clip.avi\n\n./a.png\nb.png\ngone.jpg\n".replace("../clip", "clip"))
    out = found("deep/list.txt", save_txt=True)
    assert sorted(os.listdir(out)) == ["a.png", "b.png", "clip.mp4", "labels"]
    assert "left out: [Errno 2] No such file or directory: 'gone.jpg'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_a_picture_on_standard_input(found, monkeypatch, kind):
    content = io.BytesIO()
    Image.fromarray(picture()[..., ::-1]).save(content, kind)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content.getvalue())))
    out = found("-", save_txt=True)
    assert sorted(os.listdir(out)) == ["labels", "stdin.jpg"] and len(labels_in(out / "labels/stdin.txt")) == 2


def test_nothing_on_standard_input(found, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    with pytest.raises(ValueError, match="standard input: image cannot be decoded"):
        found("-")


# --- a server that the tests start ------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """`/a shot.png` is a picture; `/cam/...` a camera that sends `frames` JPEG pictures, then breaks off."""

    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        if self.path.partition("?")[0].endswith(".png"):
            body = cv2.imencode(".png", picture())[1].tobytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif server.asked.count(self.path) > server.lives:
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for image in server.frames:
                body = cv2.imencode(".jpg", image)[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
                try:
                    self.wfile.write(head.encode() + body + b"\r\n")
                except OSError:  # the reader has gone
                    return
                time.sleep(server.pause)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A running server; `lives`: how often a camera can be opened."""
    monkeypatch.setattr(streams, "RETRY_AFTER", (0.05, 0.05))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked, server.frames, server.pause, server.lives = [], moving(6), 0.01, 1
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_picture_is_fetched_when_asked(found, server, here):
    with pytest.raises(ValueError, match="--download fetches it to a shot"):
        found(f"{server.url}/a%20shot.png?size=1")
    assert not server.asked and not os.listdir(here)
    for _ in range(2):
        out = found(f"{server.url}/a%20shot.png?size=1", download=True, save_txt=True)
        assert len(labels_in(out / "labels/a shot.txt")) == 2
    assert server.asked == ["/a%20shot.png?size=1"]  # the second time the file is there
    with pytest.raises(ValueError, match=r"fetches it to passwd.png"):
        found(f"{server.url}/..%2F..%2Fpasswd.png")


def test_a_stream_that_breaks_off_is_opened_anew(found, server, capsys):
    server.lives = 3
    out = found(server.url.replace("http://", "http://me:secret@") + "/cam/1", save_txt=True, save_csv=True)
    err = capsys.readouterr().err
    cleaned = f"http_127.0.0.1_{server.server_port}_cam_1"
    assert server.asked.count("/cam/1") == 5  # three lives, two attempts after the last
    assert (
        err.count("attempt 1 of 2 to reopen it") == 3
        and f"{server.url}/cam/1: could not be reopened, and is given up" in err
    )
    frames, fps = read_video(out / f"{cleaned}.mp4")
    labels = sorted((int(p.stem.rpartition("_")[2]), p.stem) for p in (out / "labels").iterdir())
    assert labels[0] == (0, f"{cleaned}_0") and len(labels) == len(frames) > 6 and fps == 30
    assert {p.name for p in out.iterdir()} == {f"{cleaned}.mp4", "labels", "predictions.csv"}
    assert "secret" not in err + (out / "predictions.csv").read_text()


def test_several_streams_side_by_side(found, server, here):
    """Cameras, and a video of which no frame is lost."""
    write_video(here / "clip.avi", moving(7))
    (here / "list.streams").write_text(f"{server.url}/cam/1\n{server.url}/cam/2\nclip.avi\n")
    out = found("list.streams", save_json=True)
    names = [f"http_127.0.0.1_{server.server_port}_cam_{i}.mp4" for i in (1, 2)]
    assert {p.name for p in out.iterdir()} == {*names, "clip.mp4", "predictions.json"}
    assert len(read_video(out / "clip.mp4")[0]) == 7
    rows = json.loads((out / "predictions.json").read_text())
    assert {row["file"] for row in rows} == {f"{server.url}/cam/1", f"{server.url}/cam/2", "clip.avi"}


def test_streams_of_a_text_file_are_not_written_as_videos(found, server, here):
    (here / "list.txt").write_text(f"{server.url}/cam/1\n")
    assert os.listdir(found("list.txt", save_txt=True)) == ["labels"]


def test_old_frames_of_a_stream_are_dropped(server):
    """A slow reader gets the newest frame, not the next one."""
    server.frames, server.pause = moving(20), 0.02
    batches = read_streams(list_sources(f"{server.url}/cam/1"))
    edges = []
    for (frame,) in batches:
        red = (frame.image[..., 2] > 150).any(0).nonzero()[0]
        edges.append(int(red[0]))
        time.sleep(0.08)
    assert len(edges) < 15 and edges == sorted(edges) and edges[-1] >= 40


def test_a_stream_is_left_when_the_reader_has_enough(server):
    server.frames, server.pause = moving(6) * 100, 0.01
    batches = read_streams(list_sources(f"{server.url}/cam/1"))
    next(batches)
    batches.close()
    assert not any(t.name.startswith("http") for t in threading.enumerate())


def test_the_screen(found, monkeypatch):
    """Through a stand-in for Pillow's grab, which shows three pictures; then the display is gone."""
    left, boxes = [1, 1, 1, 1], []

    def grab(box):
        boxes.append(box)
        if not left:
            raise OSError("X connection failed")
        left.pop()
        return Image.fromarray(picture()[..., ::-1])

    monkeypatch.setattr("PIL.ImageGrab.grab", grab)
    monkeypatch.setattr(streams, "RETRY_AFTER", (0,))
    out = found("screen 10 20 96 64", save_txt=True)
    assert set(boxes) == {(10, 20, 106, 84)}
    assert "screen_10_20_96_64.mp4" in os.listdir(out)


# --- reading ahead ----------------------------------------------------------------------------------------------------


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
        cv2.imencode(".png", picture())[1].tofile(here / f"{name}.png")
    batches = list(read_batches(list_sources(here), 4))
    assert [len(b) for b in batches] == [4, 4, 1]
    frames = [frame for batch in batches for frame in batch]
    assert [(f.source, f.number) for f in frames] == [(0, None), (1, None), *((2, i) for i in range(1, 8))]
    assert [f.count for f in frames] == [1, 1] + [7] * 7


def test_batches_find_what_single_pictures_do(here):
    """Also where the pictures' shapes differ: each is seen in the frame that it has alone."""
    torch.manual_seed(0)
    model = Model(TINY)
    checkpoint.save("tiny.pt", checkpoint.pack(model))
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(64, 96), (96, 64), (64, 96), (50, 96), (64, 96)]):
        cv2.imencode(".png", rng.integers(0, 255, (*shape, 3)).astype(np.uint8))[1].tofile(here / f"{i}.png")
    options = {"imgsz": 96, "device": "cpu", "conf_thres": 1e-5, "nosave": True, "save_json": True, "max_det": 20}
    rows = []
    for batch_size in (1, 4):
        out = detect.run("tiny.pt", "*.png", batch_size=batch_size, **options)
        rows.append(json.loads((out / "predictions.json").read_text()))
    one, four = ([[r["image_id"], r["category_id"], *r["bbox"], r["score"]] for r in found] for found in rows)
    assert len(one) > 20
    np.testing.assert_allclose(np.array(one), np.array(four), atol=2e-3)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_json_and_csv_of_pictures(found, here):
    cv2.imencode(".png", picture(*BOXES))[1].tofile(here / "0042.png")
    cv2.imencode(".png", picture(None, None))[1].tofile(here / "none.png")
    out = found("*.png", save_json=True, save_csv=True, nosave=True)
    rows = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    white, red = rows
    assert red == {
        "image_id": 42, "category_id": 0, "bbox": [8, 10, 22, 30], "score": 0.5, "name": NAMES[0], "file": "0042.png",
    }  # fmt: skip
    assert white["category_id"] == 1 and white["bbox"] == [50, 20, 40, 32] and white["name"] == "weiß"
    with open(out / "predictions.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["confidence"] for row in table] == ["0.75000", "0.50000"]
    assert [float(table[1][k]) for k in ("xmin", "ymin", "xmax", "ymax")] == BOXES[0]
    assert table[1]["file"] == "0042.png" and table[1]["name"] == "red" and table[1]["frame"] == ""


def test_tables_without_a_box(found, here):
    cv2.imencode(".png", picture(None, None))[1].tofile(here / "none.png")
    out = found("none.png", save_json=True, save_csv=True)
    assert json.loads((out / "predictions.json").read_text()) == []
    assert len((out / "predictions.csv").read_text().splitlines()) == 1


# --- windows, layers, weights -----------------------------------------------------------------------------------------


def test_a_window_without_a_display(found, here, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    cv2.imencode(".png", picture())[1].tofile(here / "a.png")
    if sys.platform not in ("darwin", "win32"):
        with pytest.raises(ValueError, match="--view-img: no window can be opened here"):
            found("a.png", view_img=True)
        assert os.listdir(here) == ["a.png"]


def test_results_in_a_window_until_q(found, here, monkeypatch):
    write_video(here / "clip.avi", moving(7))
    shown = []
    monkeypatch.setattr(detection, "has_display", lambda: True)
    monkeypatch.setattr(cv2, "imshow", lambda title, image: shown.append((title, threading.current_thread())))
    monkeypatch.setattr(cv2, "waitKey", lambda ms: ord("q") if len(shown) == 3 else -1)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: shown.append("closed"))
    out = found("clip.avi", view_img=True)
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
    cv2.imencode(".png", picture())[1].tofile(here / "a.png")
    with pytest.raises(ValueError, match="--visualize records the layers of one model"):
        detect.run(["soca.pt", "soca.pt"], "a.png", imgsz=96, device="cpu", visualize=True)
    with pytest.raises(ValueError, match="which a stream never ends; give images or a video"):
        detect.run("soca.pt", "0", imgsz=96, device="cpu", visualize=True)


def test_update_strips_the_weights(soca, here):
    cv2.imencode(".png", picture())[1].tofile(here / "a.png")
    assert load_checkpoint("soca.pt")["optimizer"] is not None
    detect.run("soca.pt", "a.png", imgsz=96, device="cpu", update=True)
    content = load_checkpoint("soca.pt")
    assert content["optimizer"] is None and content["epoch"] == -1


# --- tiles ------------------------------------------------------------------------------------------------------------


class SmallBoxes(BrightBoxes):
    """Sees white squares one by one, but none that is less than 12 pixels wide in the frame."""

    def forward(self, images, augment=False):
        rows = torch.zeros(len(images), 40, 7)
        for image, row in zip(images, rows):
            white = (image > 0.7).all(0).numpy().astype(np.uint8)
            found = [s[:4] for s in cv2.connectedComponentsWithStats(white, connectivity=4)[2][1:] if s[2] >= 12]
            for k, (x, y, w, h) in enumerate(found):
                row[k] = torch.tensor([x + w / 2, y + h / 2, w, h, 0.8, 0, 1.0])
        return rows, None


def test_small_objects_of_a_large_picture_are_found_in_tiles(found, here, monkeypatch):
    monkeypatch.setattr(detection, "Backend", SmallBoxes)
    rng = np.random.default_rng(0)
    image = np.full((400, 500, 3), 60, np.uint8)
    truth = []
    for y in range(10, 370, 60):
        for x in range(10, 460, 60):
            x1, y1 = x + int(rng.integers(0, 25)), y + int(rng.integers(0, 20))
            truth.append([x1, y1, x1 + 14, y1 + 14])
    image[300:400, 360:500] = 60
    truth = [b for b in truth if not (b[3] >= 298 and b[2] >= 358)] + [[362, 302, 482, 392]]  # one larger than a tile
    for x1, y1, x2, y2 in truth:
        image[y1:y2, x1:x2] = 255
    cv2.imencode(".png", image)[1].tofile(here / "large.png")

    def boxes(**options):
        out = found("large.png", save_csv=True, nosave=True, **options)
        with open(out / "predictions.csv", newline="") as file:
            return np.array([[float(r[k]) for k in ("xmin", "ymin", "xmax", "ymax")] for r in csv.DictReader(file)])

    assert len(boxes()) == 1
    tiled = boxes(tile=0.25)
    assert len(tiled) == len(truth)
    distance = np.abs(tiled[:, None] - np.array(truth)[None]).max(2)
    assert distance.min(0).max() <= 6 and np.sort(distance.min(0))[:-1].max() <= 0.5  # the large one is seen small


def test_tiles_of_a_picture_no_larger_than_the_frame_change_nothing(found, here):
    cv2.imencode(".png", picture(*BOXES))[1].tofile(here / "a.png")
    texts = [(found("a.png", save_txt=True, tile=t) / "labels/a.txt").read_text() for t in (None, 0.5)]
    assert texts[0] == texts[1]


# --- tracks -----------------------------------------------------------------------------------------------------------


def crossing(n: int) -> list[np.ndarray]:
    """A red box that goes right and a white one that goes left, above each other."""
    return [picture((4 + 3 * i, 4, 30 + 3 * i, 26), (64 - 3 * i, 34, 94 - 3 * i, 60)) for i in range(n)]


def test_objects_keep_their_number_in_each_video(found, here):
    pytest.importorskip("trackers", reason="needs the package trackers")
    write_video(here / "a.avi", crossing(9))
    write_video(here / "b.avi", crossing(9))
    out = found("*.avi", track=True, save_csv=True, save_txt=True, save_json=True, batch_size=4)
    with open(out / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 36
    for file in ("a.avi", "b.avi"):
        tracks = [[r["track"] for r in rows if (r["file"], r["name"]) == (file, name)] for name in NAMES]
        assert all(one == ["", *one[-1:] * 8] for one in tracks)  # from the second frame on always the same
        assert {one[-1] for one in tracks} == {"1", "2"}
    found_rows = json.loads((out / "predictions.json").read_text())
    assert {row["track"] for row in found_rows if "track" in row} == {1, 2}
    assert set(labels_in(out / "labels/a_5.txt")[:, 5]) == {1, 2}  # the last column


def test_pictures_are_one_sequence(found, here):
    pytest.importorskip("trackers", reason="needs the package trackers")
    for i, image in enumerate(crossing(5)):
        cv2.imencode(".png", image)[1].tofile(here / f"{i}.png")
    cv2.imencode(".png", picture(None, None))[1].tofile(here / "5.png")
    out = found("*.png", track=True, save_txt=True)
    assert [set(labels_in(out / f"labels/{i}.txt")[:, 5]) for i in range(5)] == [{0}] + [{1, 2}] * 4


def test_tracks_without_the_package(found, here, monkeypatch):
    cv2.imencode(".png", picture())[1].tofile(here / "a.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--track needs the package trackers, which is not installed"):
        found("a.png", track=True)


# --- writing ----------------------------------------------------------------------------------------------------------


def test_an_error_in_the_writing_thread_ends_the_run(found, here, monkeypatch):
    write_video(here / "clip.avi", moving(9))
    monkeypatch.setattr(VideoFile, "add", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        found("clip.avi")
    with (
        pytest.raises(OSError, match="No space left"),
        ResultWriter(here, list_sources("clip.avi"), NAMES, ResultOptions()) as results,
    ):
        results.add(Frame(0, picture(), 1), torch.zeros(0, 6))  # the last frame: said at the end
