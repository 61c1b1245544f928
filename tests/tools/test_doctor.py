"""The doctor's text, JSON and page say what the checks find, and its command changes nothing."""

import json
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from clean_set import CLEAN, label, write_clean_set
from PIL import Image

from tools.doctor import diagnose, main, parse_options
from tools.doctor_report import as_html, as_text, draw
from utils.data.checks import FAULT
from utils.data.dataset_yaml import load_dataset_yaml
from utils.files import ROOT

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def clean(tmp_path):
    return write_clean_set(tmp_path)


def test_json_html_and_strict(clean, capsys):
    yaml = str(clean / "data.yaml")
    main(parse_options([yaml, "--strict"]))
    assert capsys.readouterr().out == (
        "6 train, 3 val images, 18 boxes, 2 classes\n\n"
        "class  train boxes  images  val boxes  images\n"
        "cat              6       6          3       3\n"
        "dog              6       6          3       3\n\n"
        "nothing found: no fault, no hint\n"
    )
    main(parse_options([yaml, "--json"]))
    assert json.loads(capsys.readouterr().out)["findings"] == []

    label(CLEAN + "0 .3 .3 .25 .29\n")(clean)
    page = clean / "report.html"
    with pytest.raises(SystemExit) as end:
        main(parse_options([yaml, "--json", "--strict", "--html", str(page)]))
    assert end.value.code == 1
    told = json.loads(capsys.readouterr().out)["findings"]
    assert [(finding["kind"], finding["severity"], finding["count"]) for finding in told] == [
        ("box-duplicate", FAULT, 1)
    ]
    assert str(clean / "labels/train/0.txt") + ":3" in told[0]["places"][0]
    text = page.read_text()
    assert text.count("<figure>") == 1 and "data:image/jpeg;base64," in text
    assert not re.search(r"(src|href)=['\"]?http", text)  # one page, no other file

    (clean / "labels/train/0.txt").write_text("0 .5 .5 1 1\n1 .7 .7 .2 .2\n")  # a hint does not fail
    main(parse_options([yaml, "--strict"]))
    assert "hint  box-huge" in capsys.readouterr().out


@pytest.mark.skipif(not BROWSER, reason="needs chromium or google-chrome")
def test_page_shows_the_marked_box_in_a_browser(clean):
    label("0 .5 .5 1 1\n1 .7 .7 .2 .2\n")(clean)
    page, shot = clean / "report.html", clean / "shot.png"
    main(parse_options([str(clean / "data.yaml"), "--html", str(page)]))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=900,700",
        f"--user-data-dir={clean}/browser",
    ]
    subprocess.run(
        [BROWSER, *options, f"--screenshot={shot}", page.as_uri()], check=True, capture_output=True, timeout=60
    )
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    marked = (np.abs(pixels - (0xD5, 0x5E, 0)) < 25).all(2)
    rows, columns = np.flatnonzero(marked.sum(1) > 4), np.flatnonzero(marked.sum(0) > 4)
    assert abs(np.ptp(columns) - 280) < 8 and abs(np.ptp(rows) - 210) < 8  # the frame around the image of 4 to 3


def test_names_are_escaped_and_nothing_is_written(clean):
    (clean / "data.yaml").write_text(f"path: {clean}\ntrain: images/train\nnames: ['<script>', dog, cow]\n")
    before = {path: path.stat().st_mtime_ns for path in clean.rglob("*")}
    anchors = np.array([[10, 13], [30, 60]])
    contents, findings = diagnose(load_dataset_yaml(clean / "data.yaml", ("train",)), 640, anchors)
    assert "2 cow: 0 in train" in as_text(contents, findings)
    assert "<script>" not in as_html(contents, findings, "<script>")
    assert {path: path.stat().st_mtime_ns for path in clean.rglob("*")} == before


def test_classes_are_counted_by_split_and_copies_shown_beside_each_other(clean, capsys):
    label("1 .3 .3 .25 .3\n1 .7 .7 .2 .2\n")(clean)
    for name, quality in (("train/7", 70), ("val/8", 80)):  # copies of the image that has two dogs
        image = Image.open(clean / "images/train/0.jpg")
        image.resize((100, 75)).save(clean / f"images/{name}.jpg", quality=quality)
        label("1 .3 .3 .25 .3\n", name)(clean)
    page = clean / "report.html"
    main(parse_options([str(clean / "data.yaml"), "--json", "--html", str(page)]))
    told = json.loads(capsys.readouterr().out)
    assert told["classes"] == [
        {"name": "cat", "train": {"boxes": 5, "images": 5}, "val": {"boxes": 3, "images": 3}},
        {"name": "dog", "train": {"boxes": 8, "images": 7}, "val": {"boxes": 4, "images": 4}},
    ]
    groups = {finding["kind"]: finding["groups"] for finding in told["findings"]}
    copies = [str(clean / f"images/{name}.jpg") for name in ("train/0", "train/7", "val/8")]
    assert groups == {"leak-near": [copies], "duplicate-near": [copies[:2]]}
    text = page.read_text()
    assert text.count("<div class=alike>") == 2 and text.count("<figure>") == 5
    assert "<tr><td>dog<td>8<td>7<td>4<td>4" in text


def test_drawn_boxes_bear_their_classes(clean):
    """The caption is above the box: the name of the class in vermilion for a marked row, in blue for the others."""
    contents, _ = diagnose(load_dataset_yaml(clean / "data.yaml"), 640, np.array([[10, 13]]))
    pixels = cv2.imdecode(np.frombuffer(draw(contents, 0, [1]), np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
    assert pixels.shape == (420, 560, 3)
    for (x, y, w, h), colour in (((0.3, 0.3, 0.25, 0.3), "56B4E9"), ((0.7, 0.7, 0.2, 0.2), "D55E00")):
        left, top = round((x - w / 2) * 560), round((y - h / 2) * 420)
        strip = pixels[top - 12 : top - 3, left : left + 24]
        assert (np.abs(strip - list(bytes.fromhex(colour))) < 40).all(2).mean() > 0.4, colour


def test_a_yaml_without_a_split_is_an_error(clean):
    (clean / "data.yaml").write_text("names: [cat]\n")
    with pytest.raises(ValueError, match="names no images"):
        main(parse_options([str(clean / "data.yaml")]))


def test_user_errors_end_in_one_line(tmp_path):
    (tmp_path / "a.yaml").write_text("path: nowhere\ntrain: images\nnames: [cat]\n")
    run = subprocess.run(
        [sys.executable, ROOT / "tools/doctor.py", tmp_path / "a.yaml"], capture_output=True, text=True
    )
    assert run.returncode == 1 and len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith("doctor: error: ") and "a.yaml: train names" in run.stderr
