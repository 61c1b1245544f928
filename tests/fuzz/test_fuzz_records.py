"""Metadata of exported files, and the record of an unfinished run, are read rightly or refused by their file's name."""

import json
import math
import os

import numpy as np
import pytest
import torch
from fuzzing import CHANGES, EDITS, TEXTS, changed, damaged, few, harmless, refusal
from hypothesis import example, given
from hypothesis import strategies as st

from tools import compare
from utils.inference.ledger import Ledger
from utils.inference.sources import IMAGE, VIDEO, Source
from utils.runtimes.base import folder_metadata, write_metadata
from utils.runtimes.litert_model import append_metadata, appended_metadata
from utils.runtimes.metadata import Metadata
from utils.runtimes.tensorrt_engine import join_engine, split_engine
from utils.training.records import COLUMNS

# --- metadata ---------------------------------------------------------------------------------------------------------

SOUND = Metadata(names=("cat", "dog", "a 'b\""), stride=32, imgsz=(320, 640), conf_thres=0.25, iou_thres=0.45)
ENTRIES = json.loads(SOUND.as_json())
LATER = {"stride": "32", "names": "{0: 'cat', 1: 'dog'}", "imgsz": "[640, 640]", "batch": "1", "half": "False"}


def check(found: Metadata | None) -> None:
    """Holds each entry to what a program may rely on."""
    if found is None:
        return
    assert isinstance(found.names, tuple) and all(type(name) is str and len(name) <= 200 for name in found.names)
    assert len(found.names) <= 10_000 and len(found.imgsz) == 2
    sides = [(side, 65_536) for side in (*found.imgsz, found.batch, found.channels)]
    for value, most in ((found.stride, 1024), *sides):
        assert type(value) is int and 1 <= value <= most
    assert all(type(getattr(found, key)) is bool for key in ("dynamic", "nms", "train", "half", "int8"))
    assert all(type(value) is float and 0 <= value <= 1 for value in (found.conf_thres, found.iou_thres))


@few
@given(CHANGES, st.booleans())
def test_entries(tmp_path_factory, changes, python):
    entries = changed(ENTRIES, changes)
    text = repr(entries) if python else json.dumps(entries)
    with harmless(tmp_path_factory.getbasetemp()):
        try:
            check(Metadata.from_json(text, "a/model.onnx"))
        except ValueError as error:
            refusal(error, "a/model.onnx")


@few
@given(CHANGES, st.lists(st.tuples(st.sampled_from(sorted(LATER)), TEXTS | st.text("{[(-~+'\"\\,:0x.)", max_size=40))))
def test_texts(tmp_path_factory, changes, more):
    texts = {key: str(value) for key, value in {**SOUND.as_texts(), **LATER, **dict(more)}.items()}
    texts = changed(texts, changes)
    if not isinstance(texts, dict) or not all(isinstance(text, str) for pair in texts.items() for text in pair):
        return
    with harmless(tmp_path_factory.getbasetemp()):
        try:
            check(Metadata.from_texts(texts, "a/model.onnx"))
        except ValueError as error:
            refusal(error, "a/model.onnx")


def _folder(path):
    path.mkdir(exist_ok=True)
    write_metadata(path, SOUND)
    return path / "metadata.json"


def _appended(path):
    path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(30))
    append_metadata(path, SOUND)
    return path


def _engine(path):
    path.write_bytes(join_engine(SOUND, b"an engine"))
    return path


FORMATS = {
    "x_ncnn_model": (_folder, folder_metadata),
    "x.tflite": (_appended, appended_metadata),
    "x.engine": (_engine, lambda path: split_engine(path)[0]),
}


@few
@given(st.sampled_from(sorted(FORMATS)), EDITS)
def test_formats(tmp_path_factory, name, edits):
    folder = tmp_path_factory.getbasetemp()
    write, read = FORMATS[name]
    file = write(folder / name)
    assert read(folder / name) == SOUND
    file.write_bytes(damaged(file.read_bytes(), edits))
    with harmless(folder):
        try:
            check(read(folder / name))
        except (ValueError, OSError) as error:
            refusal(error, folder / name)
    file.unlink()


# --- a run of detect --------------------------------------------------------------------------------------------------

SOURCES = [Source("/images/a.png", IMAGE), Source("/images/b.avi", VIDEO), Source("/images/c.png", IMAGE)]
BOXES = [[1.0, 2.0, 30.0, 40.0, 0.5, 1.0], [5.0, 6.0, 7.0, 8.0, 0.25, 0.0]]
LINES = [
    {"source": 0, "frame": None, "boxes": BOXES},
    {"source": 0, "done": True},
    {"source": 1, "frame": 1, "boxes": BOXES},
    {"source": 1, "frame": 2, "boxes": []},
    {"source": 1, "done": True},
    {"source": 2, "done": False},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed") / "run"
    Ledger.begin(folder, SOURCES, {"imgsz": [64, 64], "conf_thres": 0.25, "classes": None}, alone=False)
    record = folder / ".unfinished"
    return folder, json.loads((record / "run.json").read_text()), record


def _read_run(folder, record, run_json: bytes, journal: bytes) -> None:
    (record / "run.json").write_bytes(run_json)
    (record / "journal-1").write_bytes(journal)
    with harmless(folder):
        try:
            ledger = Ledger(folder)
            rows = list(ledger.rows(2))
            todo = ledger.todo(0, 1)
        except (ValueError, OSError) as error:
            assert any(str(place) in str(error) for place in (record / "run.json", record / "journal-1", folder)), error
            return
    assert set(os.listdir(record)) == {"run.json", "journal-1"}
    assert sorted({*todo, *ledger.positions}) == list(range(len(ledger.sources)))
    assert all(type(name) is str and kind in (IMAGE, VIDEO) for name, kind in ledger.sources)
    for source, frame, boxes in rows:
        assert 0 <= source < len(ledger.sources) and (frame is None or (type(frame) is int and frame >= 0))
        assert isinstance(boxes, torch.Tensor) and (len(boxes) == 0 or boxes.shape[1] in (6, 7))
        if len(boxes):
            assert bool(boxes.isfinite().all()) and set(boxes[:, 5].long().tolist()) <= {0, 1}


def _lines(entries) -> bytes:
    entries = entries if isinstance(entries, list) else [entries]
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


@few
@example([("set", 0, 0, 3)], False)
@example([("set", 0, 0, [])], False)
@example([("delete", 3, 0, 0)], True)  # a line without `frame`, which gave a KeyError
@given(CHANGES, st.booleans())
def test_runs(run, changes, journal):
    folder, sound, record = run
    if journal:
        _read_run(folder, record, json.dumps(sound).encode(), _lines(changed(LINES, changes)))
    else:
        _read_run(folder, record, json.dumps(changed(sound, changes)).encode(), _lines(LINES))


@few
@given(EDITS, st.booleans())
def test_bytes_of_runs(run, edits, journal):
    folder, sound, record = run
    whole = json.dumps(sound).encode(), _lines(LINES)
    _read_run(
        folder, record, *((whole[0], damaged(whole[1], edits)) if journal else (damaged(whole[0], edits), whole[1]))
    )


def test_a_sound_run_is_read(run):
    folder, sound, record = run
    (record / "run.json").write_text(json.dumps(sound))
    (record / "journal-1").write_bytes(_lines(LINES))
    ledger = Ledger(folder)
    rows = [(source, frame, np.round(boxes.tolist(), 6).tolist()) for source, frame, boxes in ledger.rows(2)]
    assert rows == [(0, None, BOXES), (1, 1, BOXES), (1, 2, [])] and math.prod(ledger.todo(0, 1)) == 1


# --- runs that are compared -------------------------------------------------------------------------------------------

MEASURED = {
    "split": "val", "image_size": 640, "settings": {"data": "a.yaml", "epochs": 3, "freeze": [0]}, "images": 9,
    "precision": 0.5, "recall": 0.25, "mAP50": 0.4, "mAP50-95": 0.3,
    "classes": [{"class": 0, "name": "cat", "images": 5, "objects": 7, "precision": None, "mAP50-95": 0.3}],
}  # fmt: skip
TABLE = "\n".join([",".join(COLUMNS), *(",".join(f"{0.1 * i + e:.5g}" for i in range(14)) for e in range(3))]) + "\n"
OPT = "weights: ''\ndata: a.yaml\nimgsz: 320\n"


def _compare(folder, **contents: bytes) -> None:
    for name, content in contents.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    with harmless(folder):
        try:
            runs = [compare.read_run(folder, "one"), compare.read_run(folder, "two")]
            rows = compare.compared(runs)
        except (ValueError, OSError) as error:
            refusal(error, folder)
            return
        assert all(type(cell) is str for row in rows for cell in row) and len({len(row) for row in rows}) == 1
        compare.as_text(["", "one", "two"], rows).encode()
        compare.page.table(["", "one", "two"], rows).encode()


@few
@example([("set", 4, 0, 10**400)], [])  # which no float holds
@given(CHANGES, EDITS)
def test_runs_that_are_compared(tmp_path_factory, changes, edits):
    folder = tmp_path_factory.getbasetemp() / "compared"
    folder.mkdir(exist_ok=True)
    sound = {"metrics_json": json.dumps(MEASURED).encode(), "results_csv": TABLE.encode(), "opt_yaml": OPT.encode()}
    _compare(folder, **{**sound, "metrics_json": json.dumps(changed(MEASURED, changes)).encode()})
    for name, content in sound.items():
        _compare(folder, **{**sound, name: damaged(content, edits)})
