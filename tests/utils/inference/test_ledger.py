"""The record of what is done of a run."""

import os

import pytest
import torch

from utils.inference.ledger import Ledger
from utils.inference.sources import IMAGE, VIDEO, Source

pytestmark = pytest.mark.usefixtures("here")


def test_a_run_goes_on_where_it_was_begun(here, monkeypatch):
    (here / "out").mkdir()
    Ledger.begin(here / "out", [Source("a.png", IMAGE), Source("b.png", IMAGE)], {}, alone=True)
    monkeypatch.chdir("out")
    with pytest.raises(ValueError, match=r"the paths of this run, such as a.png, start in .*; resume it there"):
        Ledger(here / "out")


def test_the_first_to_begin_a_run_says_what_it_is(here):
    first = Ledger.begin(here / "run", [Source("a.png", IMAGE)], {"imgsz": [64, 64]}, alone=False)
    second = Ledger.begin(here / "run", [Source("b.png", IMAGE)], {"imgsz": [96, 96]}, alone=False)
    assert second.sources == first.sources == [Source("a.png", IMAGE)] and second.options == {"imgsz": [64, 64]}
    assert os.listdir(here) == ["run"]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_shares_are_disjoint_and_rows_come_in_order(processes, here):
    sources = [Source(f"{i}.avi", VIDEO) for i in range(7)]
    ledger = Ledger.begin(here / "run", sources, {}, alone=False)
    shares = [ledger.todo(rank, processes) for rank in range(processes)]
    assert sorted(i for share in shares for i in share) == list(range(7))
    for rank in reversed(range(processes)):
        worker = Ledger(here / "run")
        for i in shares[rank]:
            if i == 3:
                worker.left_out(i)
                continue
            for number in (1, 2):
                worker.record(i, number, torch.tensor([[0.1, 1, 2, 3, 0.5, i]]))
            if i != 5:  # its process was killed
                worker.done(i)
        worker.close()
    assert not ledger.complete() and set(ledger.positions) == {0, 1, 2, 3, 4, 6}
    assert [Ledger(here / "run").todo(rank, 2) for rank in (0, 1)] == [[], [5]]
    rows = [(source, number, boxes.tolist()) for source, number, boxes in ledger.rows()]
    assert [row[:2] for row in rows] == [(i, n) for i in (0, 1, 2, 4, 6) for n in (1, 2)]
    assert rows[-1][2] == torch.tensor([[0.1, 1, 2, 3, 0.5, 6]]).tolist()  # to the last bit
