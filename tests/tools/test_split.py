"""A split writes lists, moves nothing, and is read by training with the labels that the source has."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from exports import EXPORTS, cvat_yolo, labelme, photographs, roboflow_yolo, two_folders
from PIL import Image

from tools.split import main, parse_options
from utils.data.annotations import scan
from utils.data.dataset_yaml import load_dataset_yaml, open_source

ROOT = Path(__file__).resolve().parents[2]


def split(source, out, *options):
    main(parse_options([str(source), "--out", str(out), *options]))
    return load_dataset_yaml(out / "data.yaml") if (out / "data.yaml").exists() else None


def labels_by_image(entry):
    """Returns the label rows of each image of an entry, by its path."""
    found = scan(entry, use_cache=False)
    return {path: found.labels_of(i).tolist() for i, path in enumerate(found.images)}


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.__name__)
def test_the_parts_hold_what_the_source_holds(export, tmp_path, capsys):
    source = export(tmp_path / "set")
    before = {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()}
    of = ["--of", "train"] if "roboflow" in export.__name__ else []
    data = split(source, tmp_path / "out", "--val", "0.25", "--test", "0", *of)
    whole = open_source(source)
    assert data["names"] == whole["names"] and data["test"] is None
    train, val = labels_by_image(data["train"]), labels_by_image(data["val"])
    assert not train.keys() & val.keys() and 1 <= len(val) <= 3
    assert train | val == labels_by_image(whole["train"])
    after = {path for path in (tmp_path / "set").rglob("*") if path.is_file() and path.suffix != ".cache"}
    assert after == set(before) and all(path.read_bytes() == content for path, content in before.items())
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split()[:2] == ["all", "images"] and int(lines[-1].split()[2]) == len(train)


def test_folds_are_each_once_val(tmp_path):
    split(cvat_yolo(tmp_path / "set"), tmp_path / "out", "--folds", "4")
    folds = [load_dataset_yaml(tmp_path / f"out/fold{i}/data.yaml") for i in range(1, 5)]
    parts = [(set(labels_by_image(fold["train"])), set(labels_by_image(fold["val"]))) for fold in folds]
    assert all(not train & val and len(train | val) == 8 for train, val in parts)
    assert sum(len(val) for _, val in parts) == 8 and len(set.union(*(val for _, val in parts))) == 8


def test_groups_and_copies_stay_together(tmp_path):
    root = labelme(tmp_path / "set")
    first = photographs()[0][0]
    for i in range(3):  # the same photograph under other names
        (root / f"zz{i}{first.suffix}").write_bytes(first.read_bytes())
        text = (root / f"{first.stem}.json").read_text().replace(first.name, f"zz{i}{first.suffix}")
        (root / f"zz{i}.json").write_text(text)
    data = split(root, tmp_path / "alike", "--val", "0.4", "--test", "0", "--near-duplicates")
    names = [{Path(path).stem for path in labels_by_image(data[part])} for part in ("train", "val")]
    copies = {first.stem, "zz0", "zz1", "zz2"}
    assert any(copies <= part for part in names) and not all(part & copies for part in names)
    data = split(root, tmp_path / "named", "--val", "0.4", "--test", "0", "--group-by", "^zz")
    names = [{Path(path).stem for path in labels_by_image(data[part])} for part in ("train", "val")]
    assert any({"zz0", "zz1", "zz2"} <= part for part in names)


def test_copies_of_a_file_stay_together_unasked(tmp_path):
    root = labelme(tmp_path / "set")
    for path, _, _ in photographs():  # a copy or a link of each
        twin = root / f"twin_{path.name}"
        twin.symlink_to(path) if path.stem[-1] in "13579" else twin.write_bytes(path.read_bytes())
        (root / f"twin_{path.stem}.json").write_bytes((root / f"{path.stem}.json").read_bytes())
    for seed in "012":
        data = split(root, tmp_path / seed, "--seed", seed)
        parts = [{Path(path).name for path in labels_by_image(data[part])} for part in ("train", "val", "test")]
        assert sorted(map(len, parts)) == [2, 2, 12]
        assert all({f"twin_{name}" for name in part if "twin_" not in name} <= part for part in parts)


def test_difficult_objects_are_kept_when_asked_for(tmp_path):
    root = two_folders(tmp_path / "set")
    file = next((root / "ANNOTATIONS").glob("*.xml"))
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    counts = {}
    for name, option in (("without", ()), ("with", ("--difficult",))):
        data = split(root, tmp_path / name, "--val", "0.25", "--test", "0", *option)
        counts[name] = sum(len(rows) for part in ("train", "val") for rows in labels_by_image(data[part]).values())
    assert counts["with"] == counts["without"] + 1


@pytest.mark.parametrize(
    "options, message",
    [
        (["--val", "1.2"], "--val must be"),
        (["--val", "0.6", "--test", "0.4"], "must leave images for train"),
        (["--folds", "1"], "--folds must be"),
        (["--group-by", "("], "--group-by must be a regular expression"),
        (["--group-by", "."], "none of the 8 images are left for"),
        (["--of", "test"], "has no test; --of may be train"),
        (["--seed", "-1"], "--seed must be"),
    ],
)
def test_options_that_cannot_be(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        split(cvat_yolo(tmp_path / "set"), tmp_path / "out", *options)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("name", ["a\nb.jpg", "a\u2028b.jpg", "a\x0cb.jpg"])
def test_names_that_no_list_can_hold_are_refused(name, tmp_path):
    root = labelme(tmp_path / "set")
    first = photographs()[0][0].name
    (root / first).rename(root / name)
    (root / first).with_suffix(".json").rename((root / name).with_suffix(".json"))
    with pytest.raises(ValueError, match="a list holds no name with a line break or a blank at an end; rename it"):
        split(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_of_xml_with_blanks_at_an_end_are_refused(tmp_path):
    root = two_folders(tmp_path / "set")
    for file in [*root.rglob("*.jpg"), *root.rglob("*.xml")]:
        file.rename(file.with_name(f" {file.name}"))
    with pytest.raises(ValueError, match="a blank at an end"):
        split(root, tmp_path / "out")


def test_a_coco_json_with_two_dots_and_half_a_character(tmp_path):
    for i, (image, *_) in enumerate(photographs()[:6]):
        (tmp_path / f"{i}.jpg").write_bytes(Path(image).read_bytes())
    width, height = Image.open(tmp_path / "0.jpg").size
    content = {
        "info": "\ud800",
        "images": [{"id": i, "file_name": f"x/../{i}.jpg", "width": width, "height": height} for i in range(6)],
        "annotations": [{"image_id": i, "category_id": 1, "bbox": [1, 1, 9, 9]} for i in range(6)],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "all.json").write_text(json.dumps(content))
    data = split(tmp_path / "all.json", tmp_path / "out", "--val", "0.5", "--test", "0")
    assert len(scan(data["train"], use_cache=False).images) == len(scan(data["val"], use_cache=False).images) == 3


def test_what_is_split_already_is_told(tmp_path):
    root = roboflow_yolo(tmp_path / "set")
    with pytest.raises(ValueError, match="is split already, into train, val; say which part"):
        split(root, tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="--out must be a new folder"):
        split(root, tmp_path / "there", "--of", "train")


def test_command(tmp_path):
    command = [sys.executable, ROOT / "tools/split.py", tmp_path / "none", "--out", tmp_path / "out"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.startswith("split: error: no such file") and "Traceback" not in run.stderr


def test_autosplit_of_v61(tmp_path):
    from utils.datasets import autosplit

    root = roboflow_yolo(tmp_path / "set")
    autosplit(root / "train" / "images", (0.5, 0.5, 0))
    lists = [str(root / "train" / f"autosplit_{part}.txt") for part in ("train", "val")]
    lines = [Path(file).read_text().splitlines() for file in lists]
    assert all(lines) and not set(lines[0]) & set(lines[1])
    assert sorted([*lines[0], *lines[1]]) == sorted(f"./images/{path.name}" for path, _, _ in photographs())
    assert not (root / "train/autosplit_test.txt").exists()
    assert scan(lists, use_cache=False).counts["found"] == 8
