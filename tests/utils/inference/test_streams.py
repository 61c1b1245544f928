"""Live sources: cameras that a server of the tests stands for, and the screen."""

import http.server
import json
import os
import threading
import time

import cv2
import pytest
from PIL import Image
from small_world import boxes_image, labels_in
from videos import moving, read_video, write_video

from utils.inference import streams
from utils.inference.sources import list_sources
from utils.inference.streams import read_streams

pytestmark = pytest.mark.usefixtures("here")


class Handler(http.server.BaseHTTPRequestHandler):
    """`/a shot.png` is an image; `/cam/...` a camera that sends `frames` JPEG images, then breaks off."""

    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        if self.path.partition("?")[0].endswith(".png"):
            body = cv2.imencode(".png", boxes_image())[1].tobytes()
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


def test_an_image_is_fetched_when_asked(detected, server, here):
    with pytest.raises(ValueError, match="--download fetches it to a shot"):
        detected(f"{server.url}/a%20shot.png?size=1")
    assert not server.asked and not os.listdir(here)
    for _ in range(2):
        out = detected(f"{server.url}/a%20shot.png?size=1", download=True, save_txt=True)
        assert len(labels_in(out / "labels/a shot.txt")) == 2
    assert server.asked == ["/a%20shot.png?size=1"]  # the second time the file is there
    with pytest.raises(ValueError, match=r"fetches it to passwd.png"):
        detected(f"{server.url}/..%2F..%2Fpasswd.png")


def test_a_stream_that_breaks_off_is_opened_anew(detected, server, capsys):
    server.lives = 3
    out = detected(server.url.replace("http://", "http://me:secret@") + "/cam/1", save_txt=True, save_csv=True)
    err = capsys.readouterr().err
    cleaned = f"http_127.0.0.1_{server.server_port}_cam_1"
    assert server.asked.count("/cam/1") == 5  # three lives, two attempts after the last
    assert (
        err.count("attempt 1 of 2 to reopen it") == 3
        and f"{server.url}/cam/1: the stream could not be reopened and is not read any more" in err
    )
    frames, fps = read_video(out / f"{cleaned}.mp4")
    labels = sorted((int(p.stem.rpartition("_")[2]), p.stem) for p in (out / "labels").iterdir())
    assert labels[0] == (0, f"{cleaned}_0") and len(labels) == len(frames) > 6 and fps == 30
    assert {p.name for p in out.iterdir()} == {f"{cleaned}.mp4", "labels", "predictions.csv"}
    assert "secret" not in err + (out / "predictions.csv").read_text()


def test_several_streams_side_by_side(detected, server, here):
    """Cameras, and a video of which no frame is lost."""
    write_video(here / "clip.avi", moving(7))
    (here / "list.streams").write_text(f"{server.url}/cam/1\n{server.url}/cam/2\nclip.avi\n")
    out = detected("list.streams", save_json=True)
    names = [f"http_127.0.0.1_{server.server_port}_cam_{i}.mp4" for i in (1, 2)]
    assert {p.name for p in out.iterdir()} == {*names, "clip.mp4", "predictions.json"}
    assert len(read_video(out / "clip.mp4")[0]) == 7
    rows = json.loads((out / "predictions.json").read_text())
    assert {row["file"] for row in rows} == {f"{server.url}/cam/1", f"{server.url}/cam/2", "clip.avi"}


def test_streams_of_a_text_file_are_not_written_as_videos(detected, server, here):
    (here / "list.txt").write_text(f"{server.url}/cam/1\n")
    assert os.listdir(detected("list.txt", save_txt=True)) == ["labels"]


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


def test_the_screen(detected, monkeypatch):
    """Through a stand-in for Pillow's grab, which shows three images; then the display is gone."""
    left, boxes = [1, 1, 1, 1], []

    def grab(box):
        boxes.append(box)
        if not left:
            raise OSError("X connection failed")
        left.pop()
        return Image.fromarray(boxes_image()[..., ::-1])

    monkeypatch.setattr("PIL.ImageGrab.grab", grab)
    monkeypatch.setattr(streams, "RETRY_AFTER", (0,))
    out = detected("screen 10 20 96 64", save_txt=True)
    assert set(boxes) == {(10, 20, 106, 84)}
    assert "screen_10_20_96_64.mp4" in os.listdir(out)
