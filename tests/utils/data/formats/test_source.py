"""Every source of labels gives the same boxes, whatever tool has written it, and tells of its classes."""

import os
from pathlib import Path

import numpy as np
import pytest
from exports import EXPORTS, NAMES, coco_json, label_studio_yolo, labelme, photographs, two_folders

from utils.data.annotations import scan
from utils.data.dataset_yaml import load_dataset_yaml, open_source


def expected():
    """Returns the objects of each image, by its name: a set of (class name, x1, y1, x2, y2) in pixels."""
    return {path.stem: {(NAMES[c], *box) for c, *box in objects} for path, _, objects in photographs()}


def found(entry, names):
    """Returns the same, from what training reads."""
    labels, objects = scan(entry, use_cache=False), {}
    for i, path in enumerate(labels.images):
        rows = labels.labels_of(i).astype(float)
        corners = np.concatenate([rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2], 1)
        pixels = (corners * np.tile(labels.sizes[i], 2)).round(2).tolist()
        objects[Path(path).stem.removeprefix("3f2a-")] = {(names[int(c)], *box) for c, box in zip(rows[:, 0], pixels)}
    return objects


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.__name__)
def test_exports_hold_the_same_objects(export, tmp_path):
    data = open_source(export(tmp_path / "set"))
    assert sorted(data["names"]) == sorted(NAMES) and data["nc"] == 3
    assert found(data["train"], data["names"]) == expected()
    assert (data["val"] is not None) == export.__name__.startswith("roboflow")


@pytest.mark.parametrize("part", ["", "IMAGES", "ANNOTATIONS"])
def test_voc_is_found_from_each_of_its_folders(part, tmp_path):
    data = open_source(two_folders(tmp_path / "set") / part)
    assert data["names"] == sorted(NAMES)
    assert found(data["train"], data["names"]) == expected()


def test_a_source_without_splits_stands_for_each(tmp_path, caplog):
    data = load_dataset_yaml(labelme(tmp_path / "set"))
    assert data["train"] == data["val"] and data["test"] is None
    assert "train and val are the same images" in caplog.text and "tools/split.py" in caplog.text


def test_lists_of_names_and_of_images(tmp_path):
    root = two_folders(tmp_path / "set")
    stems = [path.stem for path, _, _ in photographs()][:3]
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for file in (lists / "train.txt", root / "mine.txt"):
        file.write_text("\n".join(stems))
        data = open_source(file)
        assert found(data["train"], data["names"]) == {stem: expected()[stem] for stem in stems}


def test_classes_without_names_are_numbers(tmp_path, caplog):
    for kind, name, text in (("images", "a.jpg", None), ("labels", "a.txt", "4 .5 .5 .2 .2\n0 .5 .5 .1 .1\n")):
        (tmp_path / kind).mkdir()
        file = tmp_path / kind / name
        file.write_bytes(photographs()[0][0].read_bytes()) if text is None else file.write_text(text)
    for source in (tmp_path, tmp_path / "images"):
        data = open_source(source)
        assert data["names"] == [f"class{i}" for i in range(5)]
    assert "no file of class names near it" in caplog.text


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: {1: dog, 0: cat}", ["cat", "dog"]),
        ("names: [1, yellow]", ["1", "yellow"]),
        ("names: 5", "names must be a list"),
        ("names: {5: cat}", "the keys of names must be 0 to 0"),
        ("names: [[cat]]", r"names\[0\] must be text"),
        (r'names: ["\ud800"]', r"names\[0\] must be text, got '.*', half a character"),
    ],
)
def test_names_of_a_yaml_above_the_images(text, names, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(photographs()[0][0].read_bytes())
    (tmp_path / "photos/a.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "data.yaml").write_text(text + "\n")
    if isinstance(names, list):
        assert open_source(tmp_path / "photos")["names"] == names
        return
    with pytest.raises(ValueError, match=rf"data\.yaml: .*{names}"):
        open_source(tmp_path / "photos")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes")
@pytest.mark.parametrize("name", ["a.json", "list.txt", "data.yaml"])
def test_a_pipe_that_never_ends_is_not_read(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: .*must be a plain file, and this is a pipe"):
        open_source(tmp_path / name)


@pytest.mark.parametrize("name", ["classes.txt", "a.json", "a.txt"])
def test_a_file_that_is_larger_than_memory_is_not_read(name, tmp_path):
    """A file that has nothing in it takes no space, whatever its size."""
    (tmp_path / "a.jpg").write_bytes(photographs()[0][0].read_bytes())
    (tmp_path / "a.txt").write_text("0 .5 .5 .2 .2\n")
    with open(tmp_path / name, "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=f"{name}.* has more than .* bytes, the maximum"):
        open_source(tmp_path / (name if name == "a.json" else ""))


def _without_labels(root):
    for path in labelme(root).glob("*.json"):
        path.unlink()
    return root


def _table(root):
    (root / "a.csv").write_text("x")
    return root / "a.csv"


@pytest.mark.parametrize("text", ["[1, 2]", '{"images": [', '{"a": 1}', "\xff"])
def test_a_json_of_another_tool_is_passed_over(text, tmp_path):
    root = label_studio_yolo(tmp_path)
    (root / "about.json").write_text(text, encoding="latin-1")
    assert found(open_source(root)["train"], NAMES) == expected()


def test_a_yaml_of_names_alone_gives_the_names(tmp_path):
    root = label_studio_yolo(tmp_path)
    (root / "classes.txt").unlink()
    (root / "data.yaml").write_text("nc: 3\nnames: [RBC, WBC, Platelets]\n")
    data = open_source(root)
    assert data["names"] == NAMES and found(data["train"], NAMES) == expected()


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.__name__)
def test_an_archive_unpacked_into_a_folder_of_its_name(export, tmp_path):
    export(tmp_path / "cells" / "export 1")
    (tmp_path / "cells" / "__MACOSX").mkdir()
    data = open_source(tmp_path / "cells")
    assert found(data["train"], data["names"]) == expected()
    assert (data["val"] is not None) == export.__name__.startswith("roboflow")


def test_labelme_in_sub_folders(tmp_path):
    root = labelme(tmp_path)
    for i, (path, _, _) in enumerate(photographs()):
        (root / f"day{i % 2}").mkdir(exist_ok=True)
        for file in root.glob(f"{path.stem}.*"):
            file.rename(root / f"day{i % 2}" / file.name)
    data = open_source(root)
    assert data["names"] == sorted(NAMES) and found(data["train"], data["names"]) == expected()


def test_coco_names_of_windows(tmp_path):
    file = coco_json(tmp_path)
    file.write_text(file.read_text().replace('"file_name": "', r'"file_name": "images\\'))
    data = open_source(file)
    assert found(data["train"], data["names"]) == expected()


def _cvat_xml(root):
    for path, _, _ in photographs():
        (root / path.name).write_bytes(path.read_bytes())
    (root / "annotations.xml").write_text("<annotations><version>1.1</version></annotations>")
    return root


def _archive(root):
    (root / "cells.zip").write_bytes(b"PK")
    return root / "cells.zip"


def _labelme_apart(root):
    labelme(root / "images")
    (root / "labels").mkdir()
    for file in (root / "images").glob("*.json"):
        file.rename(root / "labels" / file.name)
    return root


def _other_json(root):
    (_without_labels(root) / "via.json").write_text('{"_via_settings": {}}')
    return root


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda root: root / "nothing.json", FileNotFoundError, "no such file or folder: .*nothing.json; give a data"),
        (lambda root: root, ValueError, "no images in .*; an image file ends in"),
        (lambda root: next(labelme(root).glob("*.json")), ValueError, "LabelMe file of one image; give the folder"),
        (_without_labels, ValueError, "no labels were found: no XML of Pascal VOC, no COCO or Lab"),
        (_cvat_xml, ValueError, "annotations.xml: not Pascal VOC, but CVAT's own XML; export it from CVAT as COCO 1.0"),
        (_archive, ValueError, "cells.zip: an archive; unpack it and give the folder"),
        (_labelme_apart, ValueError, r"001.json is of LabelMe, whose JSON must lie beside its image"),
        (_other_json, ValueError, "via.json is neither COCO JSON nor of LabelMe"),
        (_table, ValueError, "or give a data set YAML, a COCO JSON"),
    ],
)
def test_what_is_no_source_says_what_would_be(make, error, message, tmp_path):
    with pytest.raises(error, match=message):
        open_source(make(tmp_path))
