"""A dataset YAML either resolves to paths that exist, or the error says which line of it to mend."""

import sys
import types
from pathlib import Path

import pytest
from label_files import NAMES, voc_object

from utils.data import dataset_yaml
from utils.data.dataset_yaml import load_dataset_yaml
from utils.data.formats.coco import CocoSplit
from utils.data.formats.shards import ShardSplit
from utils.data.formats.voc import VocSplit
from utils.downloads import KNOWN_SETS
from utils.files import ROOT, read_yaml


@pytest.fixture
def dataset(tmp_path):
    """`dataset(text)`: a YAML beside images/train and images/val."""
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)

    def write(text):
        path = tmp_path / "cells.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


PLACES = "train: images/train\nval: images/val\n"
CLASSES = "nc: 2\nnames: [red, white]\n"


@pytest.mark.parametrize(
    "text, names",
    [
        ("nc: 2\nnames: [red, white]\n", ["red", "white"]),
        ("nc: 2e0\nnames: [red, white]\n", ["red", "white"]),  # text for YAML 1.1
        ("nc: '2'\nnames: [red, white]\n", ["red", "white"]),  # v6.1 reads whatever int() does
        ("nc: 2.0\nnames: [red, white]\n", ["red", "white"]),
        ("nc: 2\nnames: {0: red, 1: white}\n", ["red", "white"]),
        ("nc: 2\nnames: {'1': white, '0': red}\n", ["red", "white"]),  # as JSON has its keys
        ("nc: 2\nnames: [red, white]\ndownload: false\n", ["red", "white"]),
        ("nc: 2\nnames: {1: white, 0: red}\n", ["red", "white"]),  # in any order
        ("nc: 2\n", ["class0", "class1"]),  # no names
        ("names: [red, white]\n", ["red", "white"]),  # no number
        ("nc: 2\nnames: [1, 2.5]\n", ["1", "2.5"]),  # numbers are names too
        ("nc: 1\nnames: ['no']\n", ["no"]),
        ("nc: 1\nnames: [细胞]\n", ["细胞"]),
    ],
)
def test_classes(dataset, text, names):
    data = load_dataset_yaml(dataset(PLACES + text))
    assert data["names"] == names and data["nc"] == len(names)


@pytest.mark.parametrize("front", ["../", "Cells-1/", "./Cells-1/"])
def test_exports_whose_paths_begin_above_the_yaml(front, tmp_path, caplog):
    """As Roboflow writes them: train/images is beside the YAML, and `test` is named although it is not there."""
    folder = tmp_path / "Cells-1"
    for split in ("train", "valid"):
        (folder / split / "images").mkdir(parents=True)
    text = f"train: {front}train/images\nval: {front}valid/images\ntest: {front}test/images\n"
    (folder / "data.yaml").write_text(text + CLASSES)
    with caplog.at_level("INFO", logger="yolov5"):
        data = load_dataset_yaml(folder / "data.yaml")
    assert [data[key] for key in ("train", "val", "test")] == [
        str(folder / split / "images") for split in ("train", "valid", "test")
    ]
    assert f"{front}train/images is taken as {folder / 'train/images'}" in caplog.text


def test_channels(dataset):
    assert load_dataset_yaml(dataset(PLACES + CLASSES))["channels"] == 3
    assert load_dataset_yaml(dataset(PLACES + CLASSES + "channels: 1\n"))["channels"] == 1


def test_paths_become_absolute(dataset, tmp_path):
    data = load_dataset_yaml(dataset(f"path: {tmp_path}\n" + PLACES + "test:\n" + CLASSES + "author: me\n"))
    assert data["path"] == str(tmp_path)
    assert data["train"] == str(tmp_path / "images/train")
    assert data["val"] == str(tmp_path / "images/val")
    assert data["test"] is None
    assert data["author"] == "me"  # other keys are handed on


def test_lists_of_paths_and_absolute_entries(dataset, tmp_path):
    text = (
        f"path: /nowhere/at/all\ntrain: [{tmp_path}/images/train, {tmp_path}/images/val]\nval: {tmp_path}/images/val\n"
    )
    data = load_dataset_yaml(dataset(text + CLASSES))
    assert data["train"] == [str(tmp_path / "images/train"), str(tmp_path / "images/val")]


def test_relative_path_is_also_seen_from_the_repository(dataset):
    text = "path: models\ntrain: SOCA.yaml\nval: hub\n" + CLASSES
    assert load_dataset_yaml(dataset(text))["path"] == str(ROOT / "models")


@pytest.mark.parametrize(
    "text", ["path: .\ntrain: .\nval: data\n", "train: data/images\nval: data\n", "train: .\nval: data\n"]
)
def test_folders_of_the_program_are_not_taken_for_those_beside_the_yaml(dataset, tmp_path, monkeypatch, text):
    (tmp_path / "data" / "images").mkdir(parents=True)  # as the repository has them
    monkeypatch.chdir("/")
    file = dataset(text + CLASSES)
    assert load_dataset_yaml(file)["val"] == str(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert load_dataset_yaml("cells.yaml")["val"] == str(tmp_path / "data")


def test_a_yaml_of_the_repository_means_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_yaml, "ROOT", tmp_path)
    for folder in ("data/own/images", "own/images"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data" / "my.yaml").write_text("path: own\ntrain: images\nval: .\nnc: 1\n")
    assert load_dataset_yaml(tmp_path / "data" / "my.yaml")["path"] == str(tmp_path / "own")


@pytest.mark.parametrize("text", ["path: .\ntrain: .\nval: data\n", "train: data/images\nval: data\n"])
def test_a_data_set_inside_the_repository_is_not_the_repository(tmp_path, monkeypatch, text):
    """v6.1's users unpack their data sets in the checkout, which has a folder data/images of its own."""
    monkeypatch.setattr(dataset_yaml, "ROOT", tmp_path)
    own = tmp_path / "datasets" / "own"
    for folder in (tmp_path, own):
        (folder / "data" / "images").mkdir(parents=True)
    (own / "my.yaml").write_text(text + "nc: 1\n")
    monkeypatch.chdir(tmp_path)
    assert load_dataset_yaml("datasets/own/my.yaml")["val"] == str(own / "data")


def test_a_path_may_be_seen_from_the_current_folder(dataset, tmp_path, monkeypatch):
    other = tmp_path / "somewhere" / "else"
    other.mkdir(parents=True)
    (other / "my.yaml").write_text("path: images\ntrain: train\nval: val\n" + CLASSES)
    dataset("")
    monkeypatch.chdir(tmp_path)
    assert load_dataset_yaml("somewhere/else/my.yaml")["path"] == str(tmp_path / "images")


def test_a_root_that_is_a_link_keeps_its_name(dataset, tmp_path):
    """Labels are looked for by the name of the folder images, which the folder behind a link need not have."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(tmp_path / "images")
    data = load_dataset_yaml(dataset("path: set/images\ntrain: train\nval: val\n" + CLASSES))
    assert data["train"] == str(tmp_path / "set/images/train")


def test_two_dots_behind_a_link_mean_what_the_system_means(dataset, tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "far" / "pictures").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    data = load_dataset_yaml(dataset("path: link/..\ntrain: pictures\nval: away\n" + CLASSES))
    assert data["path"] == str(tmp_path / "far")


def test_the_same_images_for_train_and_val_are_told_of(dataset, tmp_path, caplog):
    load_dataset_yaml(dataset(PLACES + CLASSES))
    assert "same images" not in caplog.text
    (tmp_path / "images" / "twin").symlink_to(tmp_path / "images" / "train")
    for val in ("images/train", "images/twin", "[images/train, images/twin]"):
        caplog.clear()
        load_dataset_yaml(dataset(f"train: images/train\nval: {val}\n" + CLASSES))
        assert "cells.yaml: train and val are the same images, so the results on val are too good" in caplog.text
    caplog.clear()
    load_dataset_yaml(dataset("train: images/train\nval: images/train\n" + CLASSES), splits=("val",))
    assert not caplog.text


@pytest.mark.parametrize("path", ["", "path:\n", "path: .\n", "path: images/..\n"])
def test_then_from_the_folder_of_the_yaml(dataset, tmp_path, path):
    assert load_dataset_yaml(dataset(path + PLACES + CLASSES))["path"] == str(tmp_path)


def test_only_asked_splits_must_exist(dataset):
    path = dataset("train: images/gone\nval: images/val\n" + CLASSES)
    assert load_dataset_yaml(path, splits=("val",))["train"].endswith("images/gone")
    with pytest.raises(FileNotFoundError, match=r"cells.yaml: train names .*images/gone, which does not exist"):
        load_dataset_yaml(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "cells.yaml: the file is empty"),
        ("- a\n- b\n", "cells.yaml: expected lines of 'key: value'"),
        ("nc: 2\nnames: [a, b\n", r"cells.yaml:\d+: not valid YAML"),  # bracket left open
        (CLASSES + "val: images/val\n", "cells.yaml: key 'train' is missing"),
        (CLASSES + "train:\nval: images/val\n", "key 'train' is missing"),  # there, but without a value
        (PLACES, "keys 'nc' and 'names' are missing"),
        (PLACES + "nc: 3\nnames: [a, b]\n", "nc is 3 but names has 2 entries"),
        (PLACES + "nc: two\n", "nc must be a whole number of classes, 1 to 32768, got 'two'"),
        (PLACES + "nc: 0\n", "nc must be"),
        (PLACES + "nc: 2.5\n", "nc must be .*, got 2.5"),
        (PLACES + "names: {'0': a, 0: b}\n", "the keys of names must be 0 to 1, got "),
        (PLACES + "nc: 1000000000\n", "nc must be a whole number of classes, 1 to 32768, got 1000000000"),
        (PLACES + "nc: 1\nchannels: 100000\n", "channels must be a whole number of channels of an image, 1 to 1024"),
        (PLACES + f"names: {['a'] * 32769}\n", "names has 32769 entries, more than 32768, the maximum"),
        (PLACES + "nc: true\n", "nc must be"),
        (PLACES + CLASSES + "channels: 0\n", "channels must be a whole number of channels of an image, .* got 0"),
        (PLACES + CLASSES + "channels: rgb\n", "channels must be .* got 'rgb'"),
        (PLACES + "names: {1: a, 2: b}\n", r"the keys of names must be 0 to 1, got \[1, 2\]"),
        (PLACES + "names: red\n", "names must be a list"),
        (PLACES + "names: []\n", "names must be a list"),
        (PLACES + "names: [yes, no]\n", r"names\[0\] must be text, got True; put it in quotes"),
        (CLASSES + "train: 5\nval: images/val\n", "train must be a path or a list of paths, got 5"),
        (CLASSES + "path: [a]\n" + PLACES, "path must be the dataset's folder"),
        (CLASSES + PLACES + "path: /nowhere\ndraw: circles\n", "draw must be 'shapes', .* got 'circles'"),
    ],
)
def test_faulty_text_is_refused(dataset, text, message):
    with pytest.raises(ValueError, match=message):
        load_dataset_yaml(dataset(text))


def test_unknown_split_is_refused(dataset):
    with pytest.raises(ValueError, match="a split must be one of train, val, test, got 'trial'"):
        load_dataset_yaml(dataset(PLACES + CLASSES), splits=("trial",))


def test_missing_file_is_named_and_a_near_one_offered(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("coco128.yaml", "VOC.yaml"):
        (tmp_path / "data" / name).touch()
    monkeypatch.setattr("utils.data.dataset_yaml.ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such file: 'coco_128.yaml'.*did you mean data/coco128.yaml\?"):
        load_dataset_yaml("coco_128.yaml")
    with pytest.raises(FileNotFoundError, match=r"those in data/: data/VOC.yaml, data/coco128.yaml"):
        load_dataset_yaml("zzz.yaml")


def test_missing_images_say_where_they_were_looked_for(dataset, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_dataset_yaml(dataset("path: no/such/place\n" + PLACES + CLASSES))
    assert f"'no/such/place' was looked for in {tmp_path}, {ROOT}" in str(error.value)
    assert "put the images there or correct 'train' or 'path'" in str(error.value)


def test_download_text_is_shown_and_never_run(dataset, tmp_path):
    trap = tmp_path / "trap"
    text = f"path: /nowhere\ndownload: |\n  from pathlib import Path\n  Path({str(trap)!r}).touch()\n"
    with pytest.raises(FileNotFoundError, match=r"run this yourself:\nfrom pathlib import Path\nPath\(") as error:
        load_dataset_yaml(dataset(text + PLACES + CLASSES))
    assert "is never executed" in str(error.value)
    assert not trap.exists()


def test_images_are_drawn_once_where_they_are_missing(dataset, tmp_path, monkeypatch):
    drawn = []

    def write_dataset(root):
        drawn.append(Path(root))
        for split in ("train", "val"):
            (Path(root) / "images" / split).mkdir(parents=True)

    monkeypatch.setitem(sys.modules, "utils.data.shapes", types.SimpleNamespace(write_dataset=write_dataset))
    path = dataset(f"path: {tmp_path}/shapes\ndraw: shapes\n" + PLACES + CLASSES)
    monkeypatch.setattr("utils.downloads.DATASETS", tmp_path / "datasets")
    with pytest.raises(ValueError, match=f"fetched and drawn below {tmp_path}/datasets, .*--download-to {tmp_path}"):
        load_dataset_yaml(path)
    assert not drawn
    for _ in range(2):
        assert load_dataset_yaml(path, to=str(tmp_path))["path"] == str(tmp_path / "shapes")
    assert drawn == [tmp_path / "shapes"]


def test_the_photographs_of_the_tests(bccd):
    data = load_dataset_yaml(bccd / "bccd.yaml", splits=("train", "val", "test"))
    assert data["names"] == ["RBC", "WBC", "Platelets"]
    assert data["path"] == str(bccd)


@pytest.mark.parametrize(
    "text, message",
    [
        ("when: 2001-99-99\n", "a value does not have the type that it looks like; put it in quotes: month"),
        ("flag: !!bool x\n", "a value does not have the type"),
        ("time: !!timestamp x\n", "a value does not have the type"),
        ("many: " + "1" * 5000, "a value does not have the type"),
        ("deep: " + "[" * 3000, "nested too deeply"),
        ("self: &a [*a]\n", "too many values, or for themselves"),
    ],
)
def test_values_that_yaml_stumbles_over(dataset, text, message):
    with pytest.raises(ValueError, match=rf"cells\.yaml.*{message}"):
        load_dataset_yaml(dataset(PLACES + CLASSES + text))


@pytest.mark.parametrize("rule", ["[*{0}, *{0}]", "{{<<: [*{0}, *{0}]}}"])
def test_aliases_that_double_line_by_line_are_refused_at_once(dataset, rule):
    lines = ["k0: &a0 {x: 1}", *(f"k{i}: &a{i} {rule.format(f'a{i - 1}')}" for i in range(1, 60))]
    with pytest.raises(ValueError, match=r"cells\.yaml: .* stand for too many values"):
        load_dataset_yaml(dataset(PLACES + CLASSES + "\n".join(lines)))


def test_one_long_text_many_times(dataset):
    """Aliases are few values, which can be many characters: written out, these would be gigabytes."""
    file = dataset(PLACES + f"long: &a {'x' * 10**6}\nnames: [{'*a, ' * 9000}]\n")
    with pytest.raises(ValueError, match=r"cells\.yaml: names\[0\] has 1000000 characters; at most 1000$"):
        load_dataset_yaml(file)
    file.write_text(file.read_text().replace("names: [", "names: [[").replace("]\n", "]]\n"))
    with pytest.raises(ValueError, match=r"cells\.yaml: names\[0\] must be text, got \['xxx.{,100}$"):
        load_dataset_yaml(file)


def test_honest_aliases_work(dataset):
    data = load_dataset_yaml(dataset("common: &c {nc: 2, names: [red, white]}\n<<: *c\n" + PLACES))
    assert data["names"] == ["red", "white"]


@pytest.mark.parametrize("place", ["a" * 300, "a/" * 3000, '"\\0"', "~nobody-here"])
def test_impossible_places_are_missing_places(dataset, place):
    for text in (f"train: {place}\nval: images/val\n", f"path: {place}\n" + PLACES):
        with pytest.raises((ValueError, FileNotFoundError), match=r"cells\.yaml: (train names|path must)"):
            load_dataset_yaml(dataset(text + CLASSES))


# --- the YAMLs in data/ -----------------------------------------------------------------------------------------------

CLASS_COUNTS = {
    "Argoverse": 8, "GlobalWheat2020": 1, "Objects365": 365, "SKU-110K": 1, "VOC": 20, "VisDrone": 10, "coco": 80,
    "coco128": 80, "xView": 60,
}  # fmt: skip


@pytest.mark.parametrize("name", CLASS_COUNTS)
def test_known_sets_have_their_classes_and_say_where_their_images_are(name, monkeypatch, tmp_path):
    monkeypatch.setattr("utils.data.dataset_yaml.ROOT", tmp_path)  # whose datasets are not here
    data = read_yaml(ROOT / "data" / f"{name}.yaml")
    assert data["nc"] == len(set(data["names"])) == CLASS_COUNTS[name]
    assert data["path"] == f"../datasets/{name}"
    with pytest.raises(FileNotFoundError, match=f"{name}.yaml: val names .*datasets/{name}/.*, which does not exist"):
        load_dataset_yaml(ROOT / "data" / f"{name}.yaml", splits=("val",))


@pytest.mark.parametrize(
    "name, like, sets", [("coco-json", "coco", ["coco2017"]), ("VOC-xml", "VOC", ["voc2007", "voc2012"])]
)
def test_sets_in_their_own_format(name, like, sets, monkeypatch, tmp_path):
    monkeypatch.setattr("utils.data.dataset_yaml.ROOT", tmp_path / "project")
    fetched = []

    def fetch(archives, root, to):
        """Places of the published archives, empty."""
        fetched.extend(archives)
        for place in (data["train"] if isinstance(data["train"], list) else [data["train"]]) + [data["val"]]:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).touch()

    data = read_yaml(ROOT / "data" / f"{name}.yaml")
    assert data["names"] == read_yaml(ROOT / f"data/{like}.yaml")["names"]
    with pytest.raises(FileNotFoundError, match="--download data fetches the images"):
        load_dataset_yaml(ROOT / "data" / f"{name}.yaml")
    monkeypatch.setattr("utils.data.dataset_yaml.download_dataset", fetch)
    train = load_dataset_yaml(ROOT / "data" / f"{name}.yaml", download=True)["train"]
    assert isinstance(train, CocoSplit if like == "coco" else VocSplit)
    assert fetched == [archive for name in sets for archive in KNOWN_SETS[name]]


def test_class_lists_are_those_of_the_sets():
    """Against the lists that torchvision gives with its weights."""
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights as Coco
    from torchvision.models.segmentation import FCN_ResNet50_Weights as Voc

    def names(weights):
        return [name for name in weights.DEFAULT.meta["categories"] if name not in ("__background__", "N/A")]

    assert read_yaml(ROOT / "data/coco.yaml")["names"] == read_yaml(ROOT / "data/coco128.yaml")["names"] == names(Coco)
    assert read_yaml(ROOT / "data/VOC.yaml")["names"] == names(Voc)


# --- splits in other formats ------------------------------------------------------------------------------------------


@pytest.fixture
def write_yaml(tmp_path):
    def write(text):
        (tmp_path / "set.yaml").write_text(text)
        return tmp_path / "set.yaml"

    return write


def test_coco_in_a_yaml(coco, tmp_path, write_yaml):
    split = coco({"bbox": [10, 10, 20, 10]})
    places = "train: instances.json\nval: instances.json\n"
    data = load_dataset_yaml(write_yaml(places + "images: images\nnames: [cat, dog]\n"))
    assert data["train"] == data["val"] == split and data["test"] is None and data["nc"] == 2
    data = load_dataset_yaml(write_yaml(places + "images: x\ntrain_images: y\n"))
    assert data["names"] == ["unused", "cat", "dog"]  # by id
    assert data["train"].images == str(tmp_path / "y") and data["val"].images == str(tmp_path / "x")
    assert load_dataset_yaml(write_yaml(places + "nc: 3\n"))["train"].images == str(tmp_path)
    with pytest.raises(ValueError, match="nc is 2 but names has 3 entries"):
        load_dataset_yaml(write_yaml(places + "nc: 2\n"))
    file = tmp_path / "instances.json"
    (tmp_path / "val.json").write_text(file.read_text().replace('{"id": 3, "name": "cat"}, ', ""))
    file = write_yaml("train: instances.json\nval: val.json\nimages: images\n")
    for splits in (("train", "val"), ("val",)):  # classes that only train has keep their numbers
        assert load_dataset_yaml(file, splits)["names"] == ["unused", "cat", "dog"]
    coco(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}])
    with pytest.raises(ValueError, match="several categories are called 'a'; give the names"):
        load_dataset_yaml(write_yaml(places))
    coco(categories=[])
    with pytest.raises(ValueError, match="there are no categories"):
        load_dataset_yaml(write_yaml(places))


def test_voc_in_a_yaml(voc, tmp_path, write_yaml):
    split = voc({"a": voc_object(), "b": voc_object("cat")})
    rest = "val: Annotations\nnames: [cat, dog]\n"
    data = load_dataset_yaml(write_yaml("train: ImageSets/Main/train.txt\n" + rest))
    assert data["train"] == split and data["val"] == VocSplit((str(tmp_path / "Annotations"),), None, NAMES)
    data = load_dataset_yaml(write_yaml("train: [ImageSets/Main/train.txt]\ndifficult: true\nimages: p\n" + rest))
    assert data["train"] == VocSplit(split.paths, str(tmp_path / "p"), NAMES, True)
    data = load_dataset_yaml(write_yaml("train: JPEGImages\nformat: voc\n" + rest))
    assert isinstance(data["train"], VocSplit)
    (tmp_path / "ImageSets/Main/train.txt").write_text("./a.png\n")  # a list of images, as ever
    data = load_dataset_yaml(write_yaml("train: ImageSets/Main/train.txt\n" + rest))
    assert data["train"] == str(tmp_path / "ImageSets/Main/train.txt")


@pytest.mark.parametrize(
    "text, message",
    [
        ("train: [x.json, images]\n", "set.yaml: all paths of train must have labels of one format"),
        ("train: images\nformat: coco\n", "format must be 'voc' or 'labelme' or be left out, got 'coco'"),
        ("train: images\ndifficult: 1\n", "difficult must be true or false, got 1"),
        ("train: images\nimages: [a]\n", r"images must be a folder, got \['a'\]"),
    ],
)
def test_faulty_yaml(images, tmp_path, write_yaml, text, message):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        load_dataset_yaml(write_yaml(text + "names: [a]\n"), splits=("train",))


def test_shards_in_a_yaml(shards, tmp_path, monkeypatch):
    def read(train, splits=("train",)):
        (tmp_path / "set.yaml").write_text(f"path: {tmp_path}\ntrain: {train}\nval: train-000.tar\nnames: [a, b, c]\n")
        return load_dataset_yaml(tmp_path / "set.yaml", splits)

    data = read("train-{000..002}.tar", ("train", "val"))
    assert data["train"] == shards and data["val"] == ShardSplit(shards.files[:1])
    assert read("[train-000.tar, 'train-{001,002}.tar']")["train"] == shards
    with pytest.raises(FileNotFoundError, match=r"train names .*train-003.tar, which does not exist"):
        read("train-{000..003}.tar")
    with pytest.raises(ValueError, match="all paths of train must have labels of one format"):
        read("[train-000.tar, .]")
    with pytest.raises(ValueError, match="means more than 1000000 shards"):
        read("train-{0..99999999}.tar")
    monkeypatch.setattr("utils.data.dataset_yaml.MAX_SHARDS", 1000)
    with pytest.raises(ValueError, match="means more than 1000 shards"):
        read("train-{0..99}-{0..99}.tar")
    with pytest.raises(FileNotFoundError, match="pipe:touch trap"):
        read("'pipe:touch trap.tar'")


def test_shards_need_the_library(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "set.yaml").write_text("train: train-000.tar\nval: train-000.tar\nnames: [a]\n")
    with pytest.raises(ValueError, match=r"set.yaml: train: .*needs the package webdataset, .*pip install webdataset"):
        load_dataset_yaml(tmp_path / "set.yaml")
