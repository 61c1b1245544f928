"""report.html: one small file that needs no other, says the numbers of the run, and shows foreign names as they are."""

import re

import cv2
import numpy as np
import pytest
import torch
from small_world import PageReader, boxes_image, label_text, write_set

from utils.evaluation import run_page
from utils.evaluation.evaluator import _Collector
from utils.evaluation.metrics import ConfusionMatrix
from utils.evaluation.report import write_figures
from utils.training.records import COLUMNS

NASTY = "<script>alert(1)</script>\x1b[31m"


def evaluation(folder, images=12, nc=3):
    """Noise, the worst that a JPEG can be asked for, with a label that is found and one that is not in each image."""
    rng = np.random.default_rng(0)
    collector = _Collector(ConfusionMatrix(nc))
    paths = []
    for i in range(images):
        paths.append(str(folder / f"{i} <img>.png"))
        noise = rng.integers(0, 256, (400, 500, 3), dtype=np.uint8)
        cv2.imencode(".png", noise, (cv2.IMWRITE_PNG_COMPRESSION, 0))[1].tofile(paths[-1])
    rows = [[i, i % nc, x, 200, 100, 100] for i in range(images) for x in (120, 380)]
    found = [torch.tensor([[70.0, 150, 170, 250, 0.9, i % nc], [10, 10, 60, 60, 0.95, 0]]) for i in range(images)]
    shapes = [((400, 500), ((1.0, 1.0), (0.0, 0.0)))] * images
    collector.add(found, np.array(rows, np.float32), paths, shapes)
    return collector.evaluation([NASTY, *(f"class {i}" for i in range(1, nc))], (0, 0, 0), {"inference": 1.0})


def about(**more):
    options = {"weights": "a.pt", "epochs": 3, "name": NASTY}
    return run_page.About(title=NASTY, given={"epochs": 3}, options=options, data={"data set": NASTY}, **more)


def test_a_page_of_noise_and_of_foreign_names_is_small_safe_and_alone(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    result = evaluation(tmp_path)
    write_figures(result, folder)
    values = np.random.default_rng(0).random((4, 13)).round(5)
    rows = [",".join(map(str, [epoch, *row])) for epoch, row in enumerate(values)]
    (folder / "results.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    file = run_page.write_run_page(folder, about(hyp={"lr0": 0.01}, facts={"best epoch": "2"}), result)
    assert file == folder / "report.html" and file.stat().st_size < 5_000_000
    text = file.read_text(encoding="utf-8")
    page = PageReader(text)
    assert "script" not in [tag for tag, _ in page.tags] and page.text.count("<script>alert(1)</script>\\x1b[31m") >= 4
    sources = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(source.startswith("data:image/") for source in sources)
    assert len(sources) == 6 + 4 + run_page.WORST + 2 * run_page.PAIRS
    for number in (*result.metrics.means(), result.metrics.best_confidence):
        assert f"<em>{number:.3f}</em>" in text
    assert "results.csv" in page.text and "lr0" in page.text
    assert "missed" in page.text and "background" in page.text


def test_the_images_shown_are_spread_over_the_split(tmp_path):
    result = evaluation(tmp_path, images=11)
    shown = re.findall(r"<figcaption>(\d+) &lt;img&gt;.png: labels, 2", "".join(run_page._pairs(result)))
    assert list(map(int, shown)) == [0, 2, 4, 6, 8, 10]


def test_images_that_are_gone_are_left_out(tmp_path):
    result = evaluation(tmp_path, images=2)
    result.boxes.paths[:] = [str(tmp_path / "gone.png"), str(tmp_path)]
    text = run_page.write_run_page(tmp_path, about(), result).read_text()
    assert "<img" not in text and "Errors" in text


def test_nothing_there_and_nothing_found(tmp_path):
    collector = _Collector(ConfusionMatrix(1))
    shape = ((9, 9), ((1.0, 1.0), (0.0, 0.0)))
    collector.add([torch.zeros(0, 6)], np.zeros((0, 6), np.float32), ["a.png"], [shape])
    result = collector.evaluation(["a"], (0, 0, 0), {})
    text = run_page.write_run_page(tmp_path, about(), result).read_text()
    assert "1 of 1 classes have no object" in PageReader(text).text


def test_only_the_worst_of_many_classes_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(run_page, "MOST_CLASSES", 2)
    result = evaluation(tmp_path, images=3)
    text = PageReader("".join(run_page._classes(result))).text
    # the one false alarm of each image is of class 0
    assert NASTY[:8] in text and "class 1" in text and "class 2" not in text and "per_class.csv has all" in text


@pytest.mark.parametrize("command_name", ["val", "train"])
def test_both_commands_write_it(command, usual, variant, bright, world, here, command_name):
    if command_name == "train":
        text = (world.run / "report.html").read_text(encoding="utf-8")
        assert "Training exp: tiny model.yaml on my set.yaml" in PageReader(text).text
        assert "best epoch of 2" in text and "labels of the training images" in text
        return
    data = variant(val=str(write_set(here / "set", {"a.png": (boxes_image(), label_text((0, 8, 10, 30, 40)))}, "val")))
    assert command("val", *usual["val"], "--data", data, "--report", "page")[0] == 0
    page = PageReader((here / "out/exp/report.html").read_text(encoding="utf-8"))
    assert "Validation exp: best on data variant.yaml" in page.text and "a.png: labels, 1" in page.text
