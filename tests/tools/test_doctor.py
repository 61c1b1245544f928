"""The doctor's text, JSON and page say what the checks find, and its command changes nothing."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from clean_set import CLEAN, label, write_clean_set
from PIL import Image

from tools.doctor import diagnose, main, parse_options
from tools.doctor_report import as_html, as_text
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
    assert capsys.readouterr().out == "6 train, 3 val images, 18 boxes, 2 classes\nnothing found: no fault, no hint\n"
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
    red = (pixels[..., 0] > 220) & (pixels[..., 1:].max(2) < 60)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    assert abs(np.ptp(columns) - 280) < 8 and abs(np.ptp(rows) - 210) < 8  # the frame around the image of 4 to 3


def test_names_are_escaped_and_nothing_is_written(clean):
    (clean / "data.yaml").write_text(f"path: {clean}\ntrain: images/train\nnames: ['<script>', dog, cow]\n")
    before = {path: path.stat().st_mtime_ns for path in clean.rglob("*")}
    anchors = np.array([[10, 13], [30, 60]])
    contents, findings = diagnose(load_dataset_yaml(clean / "data.yaml", ("train",)), 640, anchors)
    assert "2 cow: 0 in train" in as_text(contents, findings)
    assert "<script>" not in as_html(contents, findings, "<script>")
    assert {path: path.stat().st_mtime_ns for path in clean.rglob("*")} == before


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
