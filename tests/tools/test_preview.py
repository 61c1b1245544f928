"""The preview shows images that have the class, whatever the format; its table counts; its files need no others."""

import re

import cv2
import numpy as np
import pytest
from clean_set import CLEAN, label, write_clean_set
from exports import two_folders

from tools import preview, preview_report
from tools.convert import convert, read
from tools.preview_report import BACKGROUND, as_image, choose, drawn_images, read_data
from utils.drawing import colors


@pytest.fixture
def clean(tmp_path):
    """Nine images with a cat and a dog each, but two: one has two dogs, one has nothing."""
    root = write_clean_set(tmp_path)
    label(CLEAN.replace("0 ", "1 ", 1), "train/0")(root)
    (root / "labels/val/2.txt").unlink()
    return root


def run(*arguments):
    preview.main(preview.make_parser().parse_args([str(argument) for argument in arguments]))


def test_page_and_sheet(clean, capsys):
    run(clean / "data.yaml", "--out", clean / "look", "--per-class", 3)
    assert "6 train, 3 val images, 16 boxes, 2 classes" in capsys.readouterr().out
    text = (clean / "look.html").read_text()
    assert text.count("<figure>") == 1 + 3 + 3 + 1  # the charts, cats, dogs, the image without labels
    assert "<tr><td>cat<td>5<td>5<td>2<td>2<td>32 x 29" in text  # of 128 x 96 pixels
    assert "<tr><td>dog<td>7<td>6<td>2<td>2<td>26 x 19" in text
    assert "cat: 7 boxes in 7 images" in text and "without labels: 1 images" in text
    assert not re.search(r"(src|href)=['\"]?http", text)
    assert cv2.imread(str(clean / "look.png")).shape[1] == 750  # three cells of 250 pixels


def test_each_seed_has_its_images(clean):
    pages = []
    for seed in (0, 0, 1):
        run(clean / "data.yaml", "--out", clean / "look", "--per-class", 2, "--seed", seed)
        pages.append((clean / "look.html").read_bytes() + (clean / "look.png").read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_chosen_images_have_the_class_and_each_is_as_likely(clean):
    data = read_data(clean / "data.yaml")
    seen = {0: [], 1: [], BACKGROUND: []}
    for seed in range(60):
        for c, images in choose(data, None, 2, seed).items():
            assert len(set(images)) == len(images) == (1 if c == BACKGROUND else 2)
            seen[c] += images
    assert set(seen[0]) == {("train", i) for i in range(1, 6)} | {("val", 0), ("val", 1)}
    assert set(seen[1]) == set(seen[0]) | {("train", 0)}
    assert set(seen[BACKGROUND]) == {("val", 2)}
    assert min(seen[0].count(image) for image in set(seen[0])) > 7  # 17 of 120 expected
    assert choose(data, [1], 9, 0) == {1: sorted(set(seen[1]))}


def test_an_image_of_two_splits_is_shown_once(clean):
    (clean / "data.yaml").write_text(f"path: {clean}\ntrain: images/train\nval: images/train\nnames: [cat, dog]\n")
    assert choose(read_data(clean / "data.yaml"), [0], 9, 0) == {0: [("train", i) for i in range(1, 6)]}


def test_boxes_of_the_class_are_thick_the_others_thin(clean):
    data = read_data(clean / "data.yaml")
    (_, caption, image), *_ = drawn_images(data, {1: [("train", 1)]})
    assert caption == "train: 1.jpg" and image.shape == (360, 480, 3)
    thickness = []
    for c, (x, y, w, _) in enumerate([(0.3, 0.3, 0.25, 0.3), (0.7, 0.7, 0.2, 0.2)]):
        side = image[round(y * 360), round((x - w / 2) * 480) - 6 : round((x - w / 2) * 480) + 7]
        thickness.append((side == colors(c, bgr=True)).all(1).sum())
    assert 1 <= thickness[0] < 4 <= thickness[1]


@pytest.mark.parametrize("kind", ["coco", "voc", "shards", "yolo"])
def test_every_format_shows_the_same_boxes(clean, kind):
    (clean / "labels/val/2.txt").write_text("")
    splits = {split: read(clean / "data.yaml", split, []) for split in ("train", "val")}
    convert(splits, kind, clean / "converted")
    yaml = clean / "converted/data.yaml"
    if kind == "coco":  # its own names are used
        yaml.write_text(f"path: {clean}/converted\ntrain: train.json\nval: val.json\n"
                        "train_images: images/train\nval_images: images/val\n")  # fmt: skip
    elif kind == "voc":
        yaml.write_text(f"path: {clean}/converted\ntrain: train/Annotations\nval: val/Annotations\nnames: [cat, dog]\n")
    data, original = read_data(yaml), read_data(clean / "data.yaml")
    assert data.names == ["cat", "dog"]
    for name, split in data.splits.items():
        assert len(split.images) == len(original.splits[name].images)
        np.testing.assert_allclose(split.labels, original.splits[name].labels, atol=0.01)
    chosen = choose(data, None, 9, 0)
    assert sum(map(len, chosen.values())) == 7 + 8 + 1
    assert as_image(data, chosen).shape == as_image(original, choose(original, None, 9, 0)).shape


def test_mistakes_end_in_one_message(clean):
    yaml = clean / "data.yaml"
    with pytest.raises(ValueError, match="cannot be written; name files in a folder that exists"):
        run(yaml, "--out", clean / "nowhere/look")
    with pytest.raises(ValueError, match="has no class called 'dgo'; did you mean 'dog'"):
        run(yaml, "--out", clean / "look", "--classes", "dgo")
    yaml.write_text("names: [cat]\n")
    with pytest.raises(ValueError, match="names no images; give it train, val or test"):
        run(yaml, "--out", clean / "look")
    yaml.write_text(f"path: {clean}\ntrain: images/train\nnames: [cat, dog, cow]\n")
    with pytest.raises(ValueError, match="none of the chosen classes has an image"):
        run(yaml, "--out", clean / "look", "--classes", "cow")
    assert not list(clean.glob("look*"))


def test_difficult_objects_are_counted_in_one_line(tmp_path):
    root = two_folders(tmp_path)
    files = sorted((root / "ANNOTATIONS").glob("*.xml"))
    for file in files[:3]:
        file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 2))
    run(root, "--out", tmp_path / "look")
    text = (tmp_path / "look.html").read_text()
    assert "marked as difficult or as crowds: 6." in text and text.count("marked as difficult") == 1


def test_foreign_names_are_escaped(clean):
    (clean / "data.yaml").write_text(f"path: {clean}\ntrain: images/train\nnames: ['<script>', dog]\n")
    run(clean / "data.yaml", "--out", clean / "look")
    assert "<script>" not in (clean / "look.html").read_text()


def test_many_classes_stand_beside_each_other_and_the_page_stays_small(clean, monkeypatch):
    monkeypatch.setattr(preview_report, "PAGE_BYTES", 200_000)
    names = [f"kind{i}" for i in range(24)]
    (clean / "data.yaml").write_text(f"path: {clean}\ntrain: images/train\nnames: {names}\n")
    label("".join(f"{i} 0.5 0.5 0.2 0.2\n" for i in range(24)), "train/0")(clean)
    run(clean / "data.yaml", "--out", clean / "look", "--per-class", 2)
    height, width = cv2.imread(str(clean / "look.png")).shape[:2]
    assert 1000 < width < 1300 and height < 3000
    assert (clean / "look.html").stat().st_size < 1_000_000
