"""tools/benchmark_formats.py: every format gets a row, also one that fails."""

import csv

import cv2
import numpy as np
import pytest
from small_world import lively, write_boxes, write_yaml

import export
from tools import benchmark_formats
from tools.benchmark_formats import Row, as_csv, as_figure, as_table, variants
from utils import checkpoint
from utils.export.formats import BY_ARGUMENT, ExportError

ROWS = [
    Row(name="PyTorch", precision="float32", megabytes=4.0, map50=0.9, map=0.56, milliseconds=30.0),
    Row(name="ONNX", precision="float32", megabytes=7.5, map50=0.9, map=0.56, milliseconds=15.0),
    Row(name="OpenVINO", precision="int8", reason="nncf failed"),
]


def test_what_is_measured():
    formats = [BY_ARGUMENT[argument] for argument in ("onnx", "openvino")]
    found = [(precision, kind.argument if kind else "-") for precision, kind in variants(formats, ["int8", "float32"])]
    of_edge_tpu = variants([BY_ARGUMENT["edgetpu"]], ["int8", "float16", "float32"])
    assert of_edge_tpu[1:] == [("int8", BY_ARGUMENT["edgetpu"])]
    assert found == [("float32", "-"), ("float32", "onnx"), ("float32", "openvino"), ("int8", "openvino")]


def test_the_table_and_the_csv():
    lines = as_table(ROWS).splitlines()
    assert lines[3] == "| ONNX | float32 | 7.5 | 0.900 | 0.560 | 15.0 | 2.00 |"
    assert lines[4] == "| OpenVINO | int8 | | | | | nncf failed |"
    not_run = Row(name="CoreML", precision="float32", megabytes=7.5, reason="it runs on Darwin only")
    assert as_table([ROWS[0], not_run]).splitlines()[3] == "| CoreML | float32 | 7.5 | | | | it runs on Darwin only |"
    rows = list(csv.DictReader(as_csv(ROWS).splitlines()))
    assert rows[1]["milliseconds"] == "15.0" and rows[2]["map"] == "" and rows[2]["reason"] == "nncf failed"
    formula = Row(name="ONNX", precision="float32", reason='=HYPERLINK("http://x")')
    assert next(csv.DictReader(as_csv([formula]).splitlines()))["reason"] == '\'=HYPERLINK("http://x")'


def test_the_figure_leaves_out_what_failed():
    time, accuracy = as_figure(ROWS, "title").axes
    assert [text.get_text() for text in time.get_yticklabels()] == ["PyTorch, float32", "ONNX, float32"]  # upwards
    assert [discs.get_offsets().tolist() for discs in time.collections] == [[[30, 0], [15, 1]]]
    assert [discs.get_offsets().tolist() for discs in accuracy.collections] == [[[0.56, 0], [0.56, 1]]]


def test_small_differences_of_map_are_drawn_small():
    for maps, span in (((0.5601, 0.56), 0.05), ((0.3, 0.6), 0.42)):
        rows = [Row(name="a", precision="float32", megabytes=4.0, map=value, milliseconds=9.0) for value in maps]
        low, high = as_figure(rows, "title").axes[1].get_xlim()
        assert high - low == pytest.approx(span) and (low + high) / 2 == pytest.approx(sum(maps) / 2)


@pytest.mark.parametrize(
    "error", [ExportError("no half today"), ValueError("no half today"), RuntimeError("no half today\n  at line 7")]
)
def test_a_run(here, monkeypatch, error):
    model = lively(nc=2)
    model.names = ["red", "weiß"]
    checkpoint.save(here / "best.pt", checkpoint.pack(model))
    data = write_yaml(here / "boxes.yaml", write_boxes(here / "boxes"))
    real = export.run

    def fails_in_half(**options):
        if options["half"]:
            raise error
        return real(**options)

    monkeypatch.setattr(export, "run", fails_in_half)
    options = {"include": ["onnx"], "imgsz": 96, "rounds": 2, "project": "out", "cpu_seconds": True}
    rows = benchmark_formats.run(weights="best.pt", data=str(data), **options)
    assert [(row.name, row.precision) for row in rows] == [
        ("PyTorch", "float32"), ("ONNX", "float32"), ("ONNX", "float16")
    ]  # fmt: skip
    assert rows[2].reason == "no half today" and rows[2].milliseconds is None
    assert rows[0].map == pytest.approx(rows[1].map, abs=1e-4) and min(r.milliseconds for r in rows[:2]) > 0
    assert len((here / "out/exp/benchmark.csv").read_text().splitlines()) == 4
    assert np.ptp(cv2.imread(str(here / "out/exp/benchmark.png"))) > 200
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml"):  # not a fault of a format
        benchmark_formats.run(weights="best.pt", data="gone.yaml", **options)
    assert (here / "out/exp/float32/best.onnx").is_file() and not (here / "best.onnx").exists()
