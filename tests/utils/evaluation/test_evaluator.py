"""The table that val.py prints, of classes that may be called anything."""

from types import SimpleNamespace

import numpy as np

from utils.evaluation.evaluator import Evaluation
from utils.evaluation.report import _row

NAME = "\x1b[2Ja\nb\u202e"


def test_names_in_the_table_steer_no_terminal():
    two = np.array([0.5, 0.25])
    metrics = SimpleNamespace(classes=[0, 1], p=two, r=two, ap50=two, ap=two[:, None], means=lambda: (0.5,) * 4)
    counts = np.array([3, 4])
    found = SimpleNamespace(
        images=5, labels_per_class=counts, images_per_class=counts, metrics=metrics, names=[NAME, "dog"]
    )
    lines = Evaluation.table(found).split("\n")
    assert len(lines) == 3 and all(line.isprintable() for line in lines)
    assert lines[1].split() == [r"\x1b[2Ja\nb\u202e", "3", "3", "0.5", "0.5", "0.5", "0.5"]


def test_names_in_the_tables_of_sizes_too():
    line = _row(NAME, [3, 4], [0.5, float("nan")])
    assert line.isprintable() and line.split() == [r"\x1b[2Ja\nb\u202e", "3", "4", "0.5", "-"]
