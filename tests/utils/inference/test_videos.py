"""A video file is opened for what it holds; its name opens nothing else."""

import os
import socket

import cv2
import pytest
from videos import moving, write_video

from utils.inference.sources import list_sources
from utils.inference.streams import open_capture
from utils.inference.videos import open_video


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def port():
    """A port of this machine that nobody may connect to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        yield server.getsockname()[1]
        with pytest.raises(TimeoutError):
            server.accept()


def frames_of(capture):
    count = 0
    while capture.read()[0]:
        count += 1
    capture.release()
    return count


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no colon in a name")
@pytest.mark.parametrize("name", ["tcp:127.0.0.1:{}?x=.mp4", "http:127.0.0.1:{}.mp4", "udp:127.0.0.1:{}.mp4"])
@pytest.mark.parametrize("sound", [True, False])
def test_a_name_that_is_an_address_opens_no_connection(here, port, name, sound):
    name = name.format(port)
    if sound:
        os.rename(write_video(here / "v.mp4", moving(3)), name)
    else:
        (here / name).write_bytes(b"harmless")
    (source,) = list_sources(".")
    if sound:
        assert frames_of(open_video(source.name)) == frames_of(open_capture(source)) == 3
    else:
        assert open_capture(source) is None
        with pytest.raises(ValueError, match="its first bytes are not those of AVI, GIF, Matroska"):
            open_video(source.name)


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no colon in a name")
@pytest.mark.parametrize("name", ["file:v.mp4", "concat:v.mp4|v.mp4", "a%03d.mp4", "subfile,,start,0,end,9,,:v.mp4"])
def test_other_words_of_decoders_are_only_names(here, name):
    os.rename(write_video(here / "v.mp4", moving(2)), here / name)
    write_video(here / "v.mp4", moving(5))
    cv2.imwrite(str(here / "a000.jpg"), moving(1)[0])
    assert frames_of(open_video(name)) == 2


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1/a.ts\n",
        "ffconcat version 1.0\nfile secret.mp4\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "<?xml version='1.0'?><MPD></MPD>",
    ],
)
def test_a_list_that_names_other_files_is_no_video(here, text):
    (here / "a.mp4").write_text(text)
    with pytest.raises(ValueError, match=r"a\.mp4: video cannot be decoded: its first bytes are not those of"):
        open_video("a.mp4")


def test_frames_have_the_maximum_of_images(here, monkeypatch):
    path = write_video(here / "v.mp4", moving(2))
    height, width = moving(1)[0].shape[:2]
    monkeypatch.setenv("YOLOv5_MAX_IMAGE_PIXELS", str(width * height))
    open_video(str(path)).release()
    monkeypatch.setenv("YOLOv5_MAX_IMAGE_PIXELS", str(width * height - 1))
    with pytest.raises(ValueError, match=rf"v\.mp4: frames of {width} x {height} pixels, more than"):
        open_video(str(path))


def test_no_such_file(here):
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4: no such file"):
        open_video("gone.mp4")
