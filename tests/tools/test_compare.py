"""tools/compare.py: the settings that differ and the results of runs, from whatever files their folders have."""

import json

import cv2
import numpy as np
import pytest
import yaml
from small_world import PageReader

from tools import compare
from utils import cli
from utils.evaluation import charts
from utils.training.records import COLUMNS

OPTIONS = {
    "weights": "",
    "data": "a.yaml",
    "imgsz": 320,
    "seed": 0,
    "freeze": [0],
    "name": "exp",
    "save_dir": "runs/exp",
}


def write_run(folder, options=None, values=None, hyp=None, measured=None):
    folder.mkdir(parents=True)
    for name, content in (("opt.yaml", options), ("hyp.yaml", hyp)):
        if content is not None:
            (folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    if values is not None:
        rows = [",".join(f"{v:20.5g}" for v in [epoch, *row]) for epoch, row in enumerate(values)]
        (folder / "results.csv").write_text("\n".join([",".join(f"{c:>20}" for c in COLUMNS), *rows]) + "\n")
    if measured is not None:
        (folder / "metrics.json").write_text(json.dumps(measured))
    return folder


def values(ap, epochs=3):
    table = np.full((epochs, 13), 0.5)
    table[:, 6], table[1, 6] = ap - 0.1, ap
    return table


@pytest.fixture
def runs(tmp_path):
    """A run of v6.1, with no metrics.json, and two of this project in folders of one name."""
    nasty = {**OPTIONS, "attention": "<script>x</script>", "seed": 1, "name": "other"}
    measured = {"mAP50-95": 0.31, "precision": 0.4, "recall": None, "split": "val", "classes": [
        {"name": "red\x1b[2J", "mAP50-95": 0.25}, {"name": "blue", "mAP50-95": None}, "no row"]}  # fmt: skip
    return [
        write_run(tmp_path / "old", OPTIONS, values(0.25), {"lr0": 0.01, "mosaic": 1.0}),
        write_run(tmp_path / "a/exp", nasty, values(0.3, 5), {"lr0": 0.02, "mosaic": 1.0}, measured),
        write_run(tmp_path / "b/exp", measured={**measured, "mAP50-95": 0.2, "settings": {**OPTIONS, "imgsz": 640}}),
    ]


def read(runs):
    return [compare.read_run(folder, name) for folder, name in zip(runs, compare.run_names(runs))]


def test_settings_that_differ_and_results(runs):
    records = read(runs)
    rows = {row[0]: row[1:] for row in compare.compared(records)}
    assert {row: rows[row] for row in list(rows)[:3]} == {
        "imgsz": ["320", "320", "640"], "seed": ["0", "1", "0"], "hyp: lr0": ["0.01", "0.02", "-"],
    }  # fmt: skip
    assert rows["epochs done"] == ["3", "5", "-"] and rows["best epoch"] == ["1", "1", "-"]
    assert rows["mAP50-95"] == ["0.2500", "0.3100", "0.2000"]  # of results.csv only where there is nothing better
    assert rows[f"mAP50-95 against {records[0].name}"] == ["+0.0000", "+0.0600", "-0.0500"]
    assert rows["recall"] == ["0.5000", "-", "-"]
    assert rows["mAP50-95 of blue"] == ["-", "-", "-"] and rows["mAP50-95 of red\x1b[2J"] == ["-", "0.2500", "0.2500"]
    assert "differ in imgsz" in compare.cautions(records)[0] and len(compare.cautions(records[:2])) == 1


def test_names_tell_folders_apart(tmp_path):
    folders = [tmp_path / name for name in ("x/exp", "y/exp", "y/exp2")]
    assert compare.run_names(folders) == ["x/exp", "y/exp", "y/exp2"]
    assert compare.run_names(folders[1:]) == ["exp", "exp2"]
    with pytest.raises(ValueError, match="given twice"):
        compare.run_names([tmp_path / "x", tmp_path / "y/../x"])


def test_the_command_prints_and_writes(runs, here, monkeypatch, capsys):
    monkeypatch.setattr(charts, "PANELS", ((1,), (11, 12, 13), (6,), (7,)))  # the others take time and are alike
    monkeypatch.setattr("sys.argv", ["compare.py", *map(str, runs)])
    cli.run(compare.main, compare.parse_opt, "compare")
    text = capsys.readouterr().out
    assert "\x1b" not in text and "mAP50-95 of red\\x1b[2J" in text
    folder = here / "runs/compare/exp"
    assert cv2.imdecode(np.fromfile(folder / "compare.png", np.uint8), cv2.IMREAD_COLOR).shape[1] == 1872
    page = PageReader((folder / "compare.html").read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("img") == 5 and "script" not in tags and "0.3100" in page.text
    assert all(
        value.startswith("data:") for _, attributes in page.tags for k, value in attributes.items() if k == "src"
    )


def test_runs_of_val_have_no_curves(runs, tmp_path, here):
    records = read([runs[2], write_run(tmp_path / "c", measured={"mAP50": 0.5})])
    compare.write(records, here)
    points = {line.get_label(): list(line.get_xdata()) for line in compare.draw_scores(records).axes[0].lines}
    assert list(points.values()) == [[0.4, 0.2], [0.5]]
    assert (here / "compare.png").is_file()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "must be the folder of a run, with the results.csv or the metrics.json in it"),
        ({"metrics.json": b"[1, 2]"}, "metrics.json: must be the mapping that train.py and val.py write"),
        ({"metrics.json": b'{"settings": 3}'}, "metrics.json: must be the mapping"),
        ({"metrics.json": b"[" * 100_000}, "metrics.json: must be the mapping"),
        ({"results.csv": b"\xff\xfe"}, "results.csv: not a CSV file in UTF-8"),
        ({"metrics.json": b"{}", "opt.yaml": b"a: [1"}, "opt.yaml:1: not valid YAML"),
    ],
)
def test_a_folder_that_is_no_run(tmp_path, runs, here, monkeypatch, capsys, content, says):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name, data in content.items():
        (broken / name).write_bytes(data)
    monkeypatch.setattr("sys.argv", ["compare.py", str(runs[0]), str(broken)])
    with pytest.raises(SystemExit) as end:
        cli.run(compare.main, compare.parse_opt, "compare")
    error = capsys.readouterr().err
    assert end.value.code == 1 and says in error and "Traceback" not in error and not list(here.iterdir())


def test_files_that_grow_when_they_are_read(tmp_path, here):
    """A text that a YAML names 100,000 times is not written out, and numbers beyond all axes are no curve."""
    rows = values(0.5)
    rows[0, :3] = 1e308, -1e308, 1e39
    folder = write_run(tmp_path / "run", None, rows)
    names = ", ".join(["*long"] * 100_000)
    (folder / "opt.yaml").write_text(f"a: &long {'x' * 100_000}\nlist: [{names}]\nmap: {{k: [{names}]}}\n")
    (record,) = read([folder])
    assert all(len(value) <= 304 for value in record.settings.values())
    assert record.curves.values[0, 1:4].tolist() == [np.inf, np.inf, np.inf]
    compare.write([record], here)
    assert (here / "compare.png").is_file()


def test_a_table_that_is_too_long(tmp_path):
    folder = write_run(tmp_path / "run", None, values(0.5))
    with open(folder / "results.csv", "r+b") as file:
        file.truncate(1 << 27)  # sparse
    with pytest.raises(ValueError, match=r"results\.csv: has more than 67108864 bytes"):
        read([folder])


def test_epochs_that_were_not_validated_have_no_scores(tmp_path):
    """With --noval train.py writes zeros for them; only the last epoch is measured."""
    rows = values(0.4)
    rows[:, 3:10] = 0
    table = dict(compare.compared(read([write_run(tmp_path / "stopped", OPTIONS, rows)])))
    assert {table[key] for key in (*compare.SCORES, "best epoch")} == {"-"} and table["epochs done"] == "3"
    rows[-1, 3:10] = 0.25
    table = dict(compare.compared(read([write_run(tmp_path / "ended", OPTIONS, rows)])))
    assert table["mAP50-95"] == "0.2500" and table["best epoch"] == "2"


def test_one_run_alone(runs, here, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["compare.py", str(runs[0])])
    with pytest.raises(SystemExit):
        cli.run(compare.main, compare.parse_opt, "compare")
    assert "at least two runs" in capsys.readouterr().err
