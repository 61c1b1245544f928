"""Objects keep their numbers from frame to frame."""

import csv
import json

import cv2
import numpy as np
import pytest
from small_world import NAMES, boxes_image, labels_in
from videos import write_video

pytestmark = pytest.mark.usefixtures("here")


def crossing(n: int) -> list[np.ndarray]:
    """A red box that goes right and a white one that goes left, above each other."""
    return [boxes_image((4 + 3 * i, 4, 30 + 3 * i, 26), (64 - 3 * i, 34, 94 - 3 * i, 60)) for i in range(n)]


def test_objects_keep_their_number_in_each_video(detected, here):
    pytest.importorskip("trackers", reason="needs the package trackers")
    write_video(here / "a.avi", crossing(9))
    write_video(here / "b.avi", crossing(9))
    out = detected("*.avi", track=True, save_csv=True, save_txt=True, save_json=True, batch_size=4)
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


def test_images_are_one_sequence(detected, here):
    pytest.importorskip("trackers", reason="needs the package trackers")
    for i, image in enumerate(crossing(5)):
        cv2.imencode(".png", image)[1].tofile(here / f"{i}.png")
    cv2.imencode(".png", boxes_image(None, None))[1].tofile(here / "5.png")
    out = detected("*.png", track=True, save_txt=True)
    assert [set(labels_in(out / f"labels/{i}.txt")[:, 5]) for i in range(5)] == [{0}] + [{1, 2}] * 4


def test_tracks_without_the_package(detected, here, monkeypatch):
    cv2.imencode(".png", boxes_image())[1].tofile(here / "a.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--track needs the package trackers, which is not installed"):
        detected("a.png", track=True)
