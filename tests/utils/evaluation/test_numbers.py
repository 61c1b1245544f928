"""metrics.json, per_class.csv and per_class.tex hold the numbers of an evaluation; foreign names harm none."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from small_world import SIZE, boxes_image, label_text, write_set

from utils.evaluation import numbers
from utils.evaluation.evaluator import _Collector, log_evaluation
from utils.evaluation.metrics import ConfusionMatrix

NASTY = ["=cmd|' /C calc'!A1", "50 % & <b>_$~^\\ #{}", "\x1b[31mrot\n\udce9", "unseen"]
SHAPE = ((100, 100), ((1.0, 1.0), (0.0, 0.0)))


def evaluation(names=NASTY):
    """Three images: class 0 in two of them (two objects in the first), class 1 in one, class 2 in none but found."""
    collector = _Collector(ConfusionMatrix(len(names)))
    labels = np.array(
        [[0, 0, 20, 20, 20, 20], [0, 0, 70, 70, 20, 20], [0, 1, 20, 70, 20, 20], [1, 0, 50, 50, 40, 40]], np.float32
    )
    found = [
        torch.tensor([[10, 10, 30, 30, 0.9, 0], [60, 60, 80, 80, 0.8, 0]]),
        torch.tensor([[30, 30, 70, 70, 0.7, 0], [0, 0, 9, 9, 0.6, 2]]),
        torch.zeros(0, 6),
    ]
    collector.add(found, labels, ["a.png", "b.png", "c.png"], [SHAPE] * 3)
    return collector.evaluation(names, (0.1, 0.2, float("nan")), {"inference": 1.25})


def test_images_of_a_class_are_those_that_have_it(caplog):
    result = evaluation()
    assert result.images_per_class.tolist() == [2, 1, 0, 0] and result.labels_per_class.tolist() == [3, 1, 0, 0]
    caplog.set_level("INFO", "yolov5")
    log_evaluation(result)
    rows = [line.rsplit(maxsplit=6)[1:3] for line in caplog.text.splitlines()[1:4]]
    assert rows == [["3", "4"], ["2", "3"], ["1", "1"]]


def test_the_csv_has_every_class_and_no_formula(tmp_path):
    result = evaluation()
    numbers.write_numbers(result, tmp_path, {})
    with open(tmp_path / "per_class.csv", newline="", encoding="utf-8") as file:
        every, first, second, third, fourth = csv.DictReader(file)
    assert (every["class"], every["name"], every["images"], every["objects"]) == ("", "all", "3", "4")
    assert float(every["mAP50"]) == pytest.approx(result.metrics.means()[2], abs=1e-5)
    assert float(every["mAP50-95"]) == pytest.approx(
        (float(first["mAP50-95"]) + float(second["mAP50-95"])) / 2, abs=1e-5
    )
    assert (first["class"], first["images"], first["objects"]) == ("0", "2", "3")
    assert first["name"] == f"'{NASTY[0]}" and float(first["P"]) == 1 and float(first["R"]) == 1
    assert float(first["mAP50"]) == pytest.approx(0.995, abs=1e-5)  # v6.1's value of a perfect class
    assert float(second["R"]) == float(second["mAP50"]) == 0
    for row in (third, fourth):  # nothing to find: no number, not 0
        assert row["images"] == row["objects"] == "0" and not any(row[key] for key in ("P", "R", "mAP50", "mAP50-95"))
    assert "\\udce9" in third["name"]


def test_the_json_is_strict_and_names_what_was_measured(tmp_path):
    result = evaluation()
    numbers.write_numbers(result, tmp_path, {"split": "val"}, {"AP": 0.5, "APsmall": float("nan")})
    text = (tmp_path / "metrics.json").read_text(encoding="ascii")
    content = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert next(iter(content)) == "split" and content["images"] == 3 and content["objects"] == 4
    assert [content[key] for key in ("precision", "recall", "mAP50", "mAP50-95")] == pytest.approx(
        result.metrics.means(), abs=1e-6
    )
    assert content["loss"] == {"box": 0.1, "objectness": 0.2, "class": None} and content["coco"]["APsmall"] is None
    assert [row["name"] for row in content["classes"]] == NASTY
    assert content["classes"][3] == {
        "class": 3, "name": "unseen", "images": 0, "objects": 0, "precision": None, "recall": None, "mAP50": None,
        "mAP50-95": None,
    }  # fmt: skip
    assert content["confidence"] == pytest.approx(result.metrics.best_confidence, abs=1e-6)


def test_the_latex_table_is_balanced_and_escaped(tmp_path):
    numbers.write_numbers(evaluation(), tmp_path, {}, latex=True)
    lines = (tmp_path / "per_class.tex").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.endswith("\\\\")]
    assert len(rows) == 4  # head, two classes that have objects, all
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == 6  # seven columns, whatever the names hold
    assert rows[2].startswith(
        r"50 \% \& \textless{}b\textgreater{}\_\$\textasciitilde{}\textasciicircum{}\textbackslash{} \#\{\} &"
    )
    assert rows[-1].startswith("all & 3 & 4 &") and lines[0] == r"\begin{tabular}{lrrrrrr}"


def test_without_any_object(tmp_path):
    collector = _Collector(ConfusionMatrix(1))
    collector.add([torch.zeros(0, 6)], np.zeros((0, 6), np.float32), ["a.png"], [SHAPE])
    numbers.write_numbers(collector.evaluation(["a"], (0, 0, 0), {}), tmp_path, {}, latex=True)
    assert (tmp_path / "per_class.csv").read_text().splitlines()[1:] == [",all,1,0,,,,", "0,a,0,0,,,,"]


def test_both_commands_write_them(command, usual, variant, bright, here):
    images = {
        "a.png": (boxes_image(), label_text((0, 8, 10, 30, 40), (1, 50, 20, 90, 52))),
        "b.png": (boxes_image(white=None), label_text((0, 8, 10, 30, 40))),
    }
    data = variant(val=str(write_set(here / "set", images, "val")))
    assert command("val", *usual["val"], "--data", data, "--latex")[0] == 0
    content = json.loads((here / "out/exp/metrics.json").read_text())
    assert [row["images"] for row in content["classes"]] == [2, 1] and content["settings"]["imgsz"] == SIZE
    assert (here / "out/exp/per_class.tex").is_file() and content["settings"]["data"] == str(data)
