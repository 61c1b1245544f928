"""Progress is redrawn on a terminal and written to a file a line at a time, at most one for each tenth."""

import io
import sys

import pytest

from utils import progress
from utils.progress import Bar


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds of the clock, which a test moves."""
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_a_file_gets_a_line_for_each_tenth(capsys, clock):
    with Bar(range(1000), "epoch 3") as bar:
        for i in bar:
            clock[0] += 1.5
            bar.set_postfix_str(f"loss {i}", refresh=False)
    text = capsys.readouterr().err
    lines = text.splitlines()
    assert len(lines) == 10 and "\r" not in text
    assert [int(line.partition("loss ")[2][:-1]) for line in lines] == list(range(99, 1000, 100))
    assert all(line.startswith("epoch 3: ") for line in lines) and "1000/1000 [25:00" in lines[-1]


def test_short_work_is_one_line(capsys, clock):
    for _ in range(3):
        assert list(Bar(range(1000), "epoch")) == list(range(1000))
    assert capsys.readouterr().err.count("\n") == 3
    for left_out in ({"leave": False}, {"disable": True}):
        list(Bar(range(1000), "measured", **left_out))
    assert not capsys.readouterr().err


def test_slow_work_that_leaves_no_line_is_seen_while_it_lasts(capsys, clock):
    for _ in Bar(iter(range(100)), "val", total=100, leave=False, bar_format="{desc} {percentage:3.0f}%"):
        clock[0] += 4
    assert capsys.readouterr().err.splitlines() == [f"val {p:3}%" for p in range(10, 100, 10)]


def test_bytes_of_unknown_number(capsys, clock):
    with Bar(total=None, unit="B", unit_scale=True) as bar:
        for _ in range(100):
            clock[0] += 1
            bar.update(1000)
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 10 and "100kB [01:40" in text


def test_a_terminal_is_redrawn(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Screen())
    for _ in Bar(range(3), "epoch", mininterval=0):
        pass
    assert sys.stderr.getvalue().count("\r") >= 3 and "3/3" in sys.stderr.getvalue()
