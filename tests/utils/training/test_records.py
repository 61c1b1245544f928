"""results.csv against its text, and the pace against a clock that is set by hand."""

import os

import pytest
import torch

from utils.training import records
from utils.training.records import COLUMNS, Pace, Progress, append_results, clock, cut_results

VALUES = [0.123456789, 1e-7, 12345678.0, *range(10)]


def rows(file) -> list[str]:
    return [row.partition(",")[0].strip() for row in file.read_text().splitlines()]


def test_rows_are_appended_below_a_header(tmp_path):
    file = tmp_path / "results.csv"
    append_results(file, 0, VALUES)
    append_results(file, 11, VALUES)
    header, first, second = file.read_text().splitlines()
    assert [field.strip() for field in header.split(",")] == list(COLUMNS)
    assert first == "                   0,             0.12346,               1e-07,          1.2346e+07," + ",".join(
        f"{n:>20}" for n in range(10)
    )
    assert second == first.replace("0,", "11,", 1)[1:]
    assert file.read_text().endswith("\n") and os.listdir(tmp_path) == ["results.csv"]


@pytest.mark.parametrize(("epochs", "left"), [(9, ["0", "1", "2"]), (3, ["0", "1", "2"]), (2, ["0", "1"]), (0, [])])
def test_rows_beyond_an_epoch_are_cut(tmp_path, epochs, left):
    file = tmp_path / "results.csv"
    for epoch in range(3):
        append_results(file, epoch, VALUES)
    text = file.read_text()
    cut_results(file, epochs)
    assert rows(file) == ["epoch", *left] and text.startswith(file.read_text())
    append_results(file, len(left), VALUES)
    assert rows(file) == ["epoch", *left, str(len(left))]


def test_a_table_with_nothing_to_cut_is_not_written(tmp_path, monkeypatch):
    file = tmp_path / "results.csv"
    cut_results(file, 0)
    assert not file.exists()
    append_results(file, 0, VALUES)
    monkeypatch.setattr(records, "atomic_write", None)
    cut_results(file, 1)


@pytest.mark.parametrize(
    "damage", ["", "epoch,x\n0,1\n", "{text}x,1\n", "{text}1,2\n", "{text}0" + ",a" * 13 + "\n", "\udcff"]
)
def test_a_table_of_another_kind_is_named(tmp_path, damage):
    file = tmp_path / "results.csv"
    append_results(file, 0, VALUES)
    text = damage.replace("{text}", file.read_text())
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"results.csv: must have the columns of results.csv"):
        cut_results(file, 5)
    assert file.read_bytes() == text.encode("utf-8", "surrogateescape")


def test_a_table_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "results.csv"
    append_results(file, 0, VALUES)
    text = file.read_text()

    def full(*_):
        raise OSError("full")

    monkeypatch.setattr(os, "replace", full)
    for write in (lambda: append_results(file, 1, VALUES), lambda: cut_results(file, 0)):
        with pytest.raises(OSError):
            write()
        assert file.read_text() == text and os.listdir(tmp_path) == ["results.csv"]


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """The time of day in seconds, as its only element."""
    time = [1000.0]
    monkeypatch.setattr(records.time, "monotonic", lambda: time[0])
    return time


def test_pace_by_hand(now):
    pace = Pace(batches=4)
    now[0] += 10
    assert pace.line(images=20, batch=0, epochs=2) == "2 img/s, 0:01:10 left"  # 10 s a batch, 7 more
    now[0] += 30
    assert pace.line(20, 1, 2) == "1 img/s, 0:02:00 left"  # 20 s a batch, 6 more
    now[0] += 60  # two more batches and the validation
    pace.next_epoch()
    assert (pace.seconds, pace.epochs_done) == (100, 1)
    now[0] += 20
    assert pace.line(20, 0, 2) == "1 img/s, 0:01:12 left"  # 120 s for 1.25 epochs, 0.75 more
    assert pace.line(20, 0, 3) == "2 img/s, 0:02:48 left"
    assert pace.seconds_so_far() == 120


def test_pace_of_a_resumed_run(now):
    pace = Pace(batches=2, seconds=300.0, epochs_done=3)
    assert pace.seconds_so_far() == 300
    now[0] += 50
    assert pace.line(100, 0, 4) == "2 img/s, 0:00:50 left"  # 350 s for 3.5 epochs
    now[0] += 50
    pace.next_epoch()
    assert (pace.seconds, pace.epochs_done) == (400, 4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.4, "0:00:59"), (59.6, "0:01:00"), (3599.9, "1:00:00"), (360061, "100:01:01"), (-5, "0:00:00")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize("shown", [True, False])
def test_progress_gives_each_batch_and_shows_where_it_is(now, capsys, shown):
    progress = Progress(["a", "b"], 1, 5, Pace(2), torch.device("cpu"), shown)
    seen = []
    for batch in progress:
        seen.append(batch)
        now[0] += 1
        progress.update([0.5, 0.25, 0.125], 8, 12, 640)
    assert seen == ["a", "b"]
    header, *bars = capsys.readouterr().err.replace("\r", "\n").strip("\n").splitlines()
    assert header.split() == ["Epoch", "gpu_mem", "box", "obj", "cls", "labels", "img_size"]
    assert bool(bars) == shown
    if shown:
        assert bars[-1].split(":")[0].split() == ["1/4", "0G", "0.5", "0.25", "0.125", "12", "640"]
        assert "100%" in bars[-1] and bars[-1].rstrip().endswith("8 img/s, 0:00:08 left")  # 4 more epochs of 2 s
