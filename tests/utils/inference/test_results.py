"""Videos, tables and the thread that writes them."""

import csv
import json
import os

import cv2
import numpy as np
import pytest
import torch
from small_world import BOXES, NAMES, boxes_image
from videos import moving, read_video, write_video

from utils.inference.results import CsvTable, JsonTable, ResultOptions, ResultWriter, VideoFile
from utils.inference.sources import Frame, list_sources

pytestmark = pytest.mark.usefixtures("here")


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


def test_json_and_csv_of_images(detected, here):
    cv2.imencode(".png", boxes_image(*BOXES))[1].tofile(here / "0042.png")
    cv2.imencode(".png", boxes_image(None, None))[1].tofile(here / "none.png")
    out = detected("*.png", save_json=True, save_csv=True, nosave=True)
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


def test_ids_of_one_number_are_kept_apart(detected, here):
    for name in ("1", "0001"):
        cv2.imencode(".png", boxes_image(*BOXES))[1].tofile(here / f"{name}.png")
    rows = json.loads((detected("*.png", save_json=True) / "predictions.json").read_text(encoding="utf-8"))
    assert {(row["image_id"], row["file"]) for row in rows} == {("1", "1.png"), ("0001", "0001.png")}


def test_tables_without_a_box(detected, here):
    cv2.imencode(".png", boxes_image(None, None))[1].tofile(here / "none.png")
    out = detected("none.png", save_json=True, save_csv=True)
    assert json.loads((out / "predictions.json").read_text()) == []
    assert len((out / "predictions.csv").read_text().splitlines()) == 1


def test_an_error_in_the_writing_thread_ends_the_run(detected, here, monkeypatch):
    write_video(here / "clip.avi", moving(9))
    monkeypatch.setattr(VideoFile, "add", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        detected("clip.avi")
    with (
        pytest.raises(OSError, match="No space left"),
        ResultWriter(here, list_sources("clip.avi"), NAMES, ResultOptions()) as results,
    ):
        results.add(Frame(0, boxes_image(), 1), torch.zeros(0, 6))  # the last frame: said at the end


def test_tables_hold_foreign_names(tmp_path):
    """No field of the CSV begins a formula, and a name that is no UTF-8 is written, as JSON writes it."""
    boxes, title = torch.tensor([[1, 2, 3, 4, 0.5, 0.0]]), "=HYPERLINK(1)\udc80.jpg"
    for kind, name in ((CsvTable, "a.csv"), (JsonTable, "a.json")):
        table = kind(tmp_path / name)
        table.add(title, "stem", None, boxes, ["@cmd"])
        table.close()
    row = next(csv.DictReader((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()))
    assert (row["file"], row["name"], row["xmin"]) == ("'=HYPERLINK(1)\\udc80.jpg", "'@cmd", "1.000")
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))[0]
    assert (found["file"], found["name"]) == (title, "@cmd")
