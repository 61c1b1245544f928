"""The record of what is done of a run."""

import json
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
    with pytest.raises(ValueError, match=r"the paths of this run, such as a.png, are relative to .*; resume it there"):
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
    rows = [(source, number, boxes.tolist()) for source, number, boxes in ledger.rows(7)]
    assert [row[:2] for row in rows] == [(i, n) for i in (0, 1, 2, 4, 6) for n in (1, 2)]
    assert rows[-1][2] == torch.tensor([[0.1, 1, 2, 3, 0.5, 6]]).tolist()  # to the last bit


# --- a record that comes from elsewhere -------------------------------------------------------------------------------


def record(folder, **changes) -> None:
    Ledger.begin(folder, [Source("a.png", IMAGE), Source("b.avi", VIDEO)], {"imgsz": [64, 64]}, alone=False)
    file = folder / ".unfinished/run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"sources": [["rtsp://10.0.0.1/x", "stream"]]},
        {"sources": [["rtsp://10.0.0.1/x", "video"]]},
        {"sources": [["-", "image"]]},
        {"sources": [["a.png"]]},
        {"sources": [["a.png", "image", 1]]},
        {"sources": [[1, "image"]]},
        {"sources": [["a\0.png", "image"]]},
        {"sources": {"a.png": "image"}},
        {"options": []},
        {"where": None},
    ],
)
def test_a_record_of_another_kind_is_refused(here, changes):
    record(here / "run", **changes)
    with pytest.raises(ValueError, match=r"run.json: .*begin the run anew"):
        Ledger(here / "run")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff", "[1, 2]", '"text"'])
def test_a_record_that_is_no_json(here, text):
    record(here / "run")
    (here / "run/.unfinished/run.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"run.json: .*begin the run anew"):
        Ledger(here / "run")


@pytest.mark.parametrize("line", ["[]", "{}", '{"source": 2, "done": true}', '{"source": -1}', '{"source": true}', "x"])
def test_a_line_of_another_kind_is_refused(here, line):
    record(here / "run")
    (here / "run/.unfinished/journal-x").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"journal-x: .*begin the run anew"):
        Ledger(here / "run")


@pytest.mark.parametrize(
    "boxes",
    ["[1]", '["a"]', "[[1, 2]]", "[[1, 2, 3, 4, 0.5, 3]]", "[[1, 2, 3, 4, 0.5, -1]]", "[[1, 2, NaN, 4, 0.5, 0]]",
     "[[1, 2, 3, 4, 0.5, 0], [1]]", "[[1e999, 2, 3, 4, 0.5, 0]]", "[[[1, 2, 3, 4, 0.5, 0]]]", '[{"a": 1}]'],
)  # fmt: skip
def test_boxes_of_another_kind_are_refused(here, boxes):
    record(here / "run")
    lines = f'{{"source": 0, "frame": null, "boxes": {boxes}}}\n{{"source": 0, "done": true}}\n'
    (here / "run/.unfinished/journal-x").write_text(lines)
    with pytest.raises(ValueError, match=r"journal-x: .*begin the run anew"):
        list(Ledger(here / "run").rows(3))
