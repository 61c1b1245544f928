"""Shards give the images and labels that files would, each once an epoch, in an order that can be had again."""

import gc
import io
import json
import tarfile
import weakref

import cv2
import numpy as np
import pytest
import torch

from utils.data.annotations import scan
from utils.data.dataset_yaml import load_dataset_yaml
from utils.data.formats import ShardSplit
from utils.data.loader import create_dataloader
from utils.data.options import LoaderOptions
from utils.data.shard_loader import ShardLoader
from utils.data.shards import read_shard

pytest.importorskip("webdataset", reason="needs webdataset")

COUNTS = (5, 3, 4)  # images in each shard


def pack(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return str(path)


@pytest.fixture
def picture(noise_image):
    """`picture(i)`: a PNG file of 64 x 48 or 48 x 64 pixels, of one grey value that says which it is."""
    return lambda i: cv2.imencode(".png", np.full((48, 64) if i % 2 else (64, 48), 10 * i, np.uint8))[1].tobytes()


@pytest.fixture
def split(tmp_path, picture):
    """Three shards of 12 images; image i has one box of width (i + 1) / 100 of class i % 3."""
    files, i = [], 0
    for s, count in enumerate(COUNTS):
        members = []
        for _ in range(count):
            members += [(f"part/{i:03}.png", picture(i)), (f"part/{i:03}.txt", f"{i % 3} .5 .5 .{i + 1:02} .3\n")]
            i += 1
        files.append(pack(tmp_path / f"train-{s:03}.tar", members))
    return ShardSplit(tuple(files))


@pytest.fixture
def load(split, hyp):
    def make(entry=split, **options):
        defaults = {"image_size": 64, "batch_size": 2, "stride": 32, "augment": True, "hyp": hyp, "workers": 0}
        return create_dataloader(entry, LoaderOptions(**{**defaults, **options}))[0]

    return make


def epoch_of(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def numbers(batches):
    return [int(path[-7:-4]) for batch in batches for path in batch[2]]


def same(a, b):
    return all(
        torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) and x[2:] == y[2:] for x, y in zip(a, b, strict=True)
    )


# --- what is in them --------------------------------------------------------------------------------------------------


def test_labels_are_those_of_files(split, tmp_path, picture):
    folder = tmp_path / "plain"
    folder.mkdir()
    for file in split.files:
        with tarfile.open(file) as tar:
            for member in tar:
                (folder / member.name[5:]).write_bytes(tar.extractfile(member).read())
    plain, found = scan(str(folder), use_cache=False), scan(split, use_cache=False)
    assert [path.rpartition("/")[2] for path in found.images] == [p.rpartition("/")[2] for p in plain.images]
    assert found.images[5] == f"{split.files[1]}/part/005.png"
    for name in ("sizes", "labels", "starts", "points", "point_starts"):
        assert (getattr(found, name) == getattr(plain, name)).all(), name
    assert found.counts == plain.counts == {"found": 12, "missing": 0, "empty": 0, "corrupt": 0, "total": 12}


def test_json_polygons_backgrounds_and_broken_samples(tmp_path, picture):
    boxes = {"class": [0, 2], "boxes": [[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]}
    file = pack(
        tmp_path / "x.tar",
        [
            ("README", "no sample"),
            ("a.png", picture(1)), ("a.json", json.dumps(boxes)),
            ("b.png", picture(2)),
            ("c.png", picture(3)), ("c.txt", "1 .1 .1 .5 .1 .3 .4\n"),
            ("d.png", picture(4)), ("d.txt", ""),
            ("e.png", picture(5)[:60]), ("e.txt", "0 .5 .5 .1 .1"),
            ("f.png", picture(6)), ("f.txt", "0 .5 .5 .1 1.1"),
            ("g.png", picture(7)), ("g.json", '{"class": [0], "boxes": []}'),
            ("h.png", picture(8)), ("h.txt", b"\xff\xfe"),
            ("i.txt", "0 .5 .5 .1 .1"),
            ("j.png", picture(8)), ("j.json", '{"class": [0], "boxes": [[0.5, 0.5, 0.1]]}'),
        ],
    )  # fmt: skip
    found = scan(ShardSplit((file,)), use_cache=False)
    assert [path[len(file) :] for path in found.images] == ["/a.png", "/b.png", "/c.png", "/d.png"]
    expected = [[0, 0.5, 0.5, 0.2, 0.2], [2, 0.1, 0.1, 0.1, 0.1], [1, 0.3, 0.25, 0.4, 0.3]]
    assert found.labels == pytest.approx(np.array(expected)) and found.starts.tolist() == [0, 2, 2, 3, 3]
    assert [len(p) for p in found.polygons_of(2)] == [3]
    assert found.counts == {"found": 7, "missing": 1, "empty": 1, "corrupt": 6, "total": 10}
    for name, fault in [
        ("e.png", "not a readable image"),
        ("f.txt:1", "height must lie in 0-1, got 1.1"),
        ("g.json", 'expected {"class": [...], "boxes"'),
        ("h.txt", "not text in UTF-8"),
        ("i", "no image; a name has one dot"),
        ("j.json:1", "but this one has 4"),
    ]:
        assert any(m.startswith(f"{file}/{name}: ") and fault in m for m in found.messages), (name, found.messages)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: b"no tar" * 200, "x.tar: not a sound tar shard"),
        (lambda data: data[:700], "x.tar: not a sound tar shard: unexpected end of data"),
    ],
)
def test_damaged_shards_are_refused(tmp_path, picture, damage, message):
    file = tmp_path / "x.tar"
    pack(file, [("a.png", picture(1)), ("a.txt", "0 .5 .5 .1 .1")])
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=message):
        scan(ShardSplit((str(file),)), use_cache=False)


def test_names_that_come_twice_are_refused(tmp_path, picture):
    label = ("a.txt", "0 .5 .5 .1 .1")
    for members, message in [
        ([("a.png", picture(1)), ("a.png", picture(1))], "x.tar: not a sound tar shard: .*duplicate"),
        ([("a.png", picture(1)), ("b.png", picture(1)), ("a.png", picture(2)), label], "a.png: the name comes twice"),
    ]:
        with pytest.raises(ValueError, match=message):
            scan(ShardSplit((pack(tmp_path / "x.tar", members),)), use_cache=False)


def test_nothing_is_run(tmp_path, monkeypatch):
    """The library takes `pipe:` for a command; a shard here is a file and nothing else."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        list(read_shard("pipe:touch trap"))
    assert not list(tmp_path.iterdir())


def test_the_scan_is_cached_until_a_shard_changes(split, tmp_path, picture, monkeypatch):
    first = scan(split)
    monkeypatch.setattr("utils.data.annotations.check_shard", None)  # not called again
    assert (scan(split).labels == first.labels).all()
    monkeypatch.undo()
    pack(split.files[1], [("new.png", picture(1)), ("new.txt", "0 .5 .5 .1 .1")])
    assert len(scan(split).images) == 12 - 3 + 1


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_every_image_once_an_epoch(load, workers, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    loader = load(workers=workers)
    assert isinstance(loader, ShardLoader) and loader.num_workers == workers and len(loader.dataset) == 12
    orders = []
    for epoch in (0, 1):
        batches = epoch_of(loader, epoch)
        assert len(batches) == len(loader) and sorted(numbers(batches)) == list(range(12))
        orders.append(numbers(batches))
    assert orders[0] != orders[1] and orders[0] != list(range(12))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_had_again(load, workers):
    first, again = load(workers=workers), load(workers=workers)
    torch.manual_seed(workers)
    epochs = [epoch_of(first, epoch) for epoch in (0, 1, 2)]
    torch.manual_seed(99)
    assert same(epoch_of(again, 2), epochs[2])  # whatever came before: a run resumed there goes on the same way
    assert same(epoch_of(again, 1), epochs[1])
    assert not same(epoch_of(load(workers=workers, seed=5), 2), epochs[2])


def test_partners_of_a_mosaic_come_from_the_window(load, hyp):
    """Each image has a grey value and a class of its own kind, so that a mosaic shows whom it was made of."""
    loader = load(
        hyp={**hyp, "mosaic": 1.0, "mixup": 0.0, "hsv_h": 0, "hsv_s": 0, "hsv_v": 0, "degrees": 0, "shear": 0}
    )
    met = set()
    for epoch in range(4):
        for images, targets, _, shapes in epoch_of(loader, epoch):
            assert shapes == (None, None) and images.shape == (2, 3, 64, 64) and images.dtype == torch.uint8
            assert set(targets[:, 0].tolist()) <= {0, 1} and (targets[:, 2:] <= 1).all()
            met |= {int(value) // 10 for value in images.unique() if value % 10 == 0 and value < 114}
    assert met == set(range(12))


@pytest.mark.parametrize("count", [1, 7])
def test_a_small_window_serves_every_image_once(load, monkeypatch, count):
    monkeypatch.setattr("utils.data.shard_loader.WINDOW", count)
    monkeypatch.setattr("utils.data.shard_loader.SHUFFLED", 2)
    loader = load()
    assert sorted(numbers(epoch_of(loader, 0))) == list(range(12))
    assert len(loader.dataset.store._pixels) == count  # no more is kept


def test_no_mosaic_from_an_epoch_on(load):
    loader = load(mosaic_until=1)
    shapes = [[shape for batch in epoch_of(loader, epoch) for shape in batch[3]] for epoch in (0, 1)]
    assert None in shapes[0] and None not in shapes[1]


def test_validation_in_order_and_letterboxed(load, split, tmp_path):
    """Batches are those of the same files in square frames."""
    loader = load(augment=False, rect=True, pad=0.5, batch_size=4)
    batches = list(loader)
    assert numbers(batches) == list(range(12)) and len(batches) == 3
    labels = scan(split).labels
    for number, (images, targets, _, shapes) in enumerate(batches):
        assert images.shape == (4, 3, 96, 96)  # 64 pixels and half a stride, rounded up
        for k, ((h0, w0), (gain, (pad_w, pad_h))) in enumerate(shapes):
            i = 4 * number + k
            assert (h0, w0) == ((48, 64) if i % 2 else (64, 48)) and gain == (1, 1)
            c, x, y, w, h = labels[i]
            row = [k, c, (x * w0 + pad_w) / 96, (y * h0 + pad_h) / 96, w * w0 / 96, h * h0 / 96]
            assert targets[targets[:, 0] == k].numpy()[0] == pytest.approx(row, abs=1e-5)
            assert images[k, :, 48, 48].tolist() == [10 * i] * 3 and (images[k, :, 0, 0] == 114).all()


def test_processes_read_shards_of_their_own(load, split):
    loaders = [load(rank=rank, world_size=2, batch_size=3) for rank in (0, 1)]
    epochs = [epoch_of(loader, 1) for loader in loaders]
    assert len(epochs[0]) == len(epochs[1]) == len(loaders[0]) == 3  # 9 and 3 images
    first, second = map(numbers, epochs)
    assert sorted(first) == [0, 1, 2, 3, 4, 8, 9, 10, 11]
    assert sorted(second) == sorted([5, 6, 7] * 3)  # which are fewer, and come again
    with pytest.raises(ValueError, match="3 shards cannot be shared by 4 processes; each needs one"):
        load(rank=0, world_size=4)
    assert load(rank=0, world_size=3, workers=2).num_workers <= 1


def test_a_share_without_images_is_refused(load, split, tmp_path, picture):
    empty = pack(tmp_path / "z.tar", [("x.txt", "0 .5 .5 .1 .1")])
    with pytest.raises(ValueError, match=r"no usable image in the shards \[.*z.tar'\] of process 1, worker 0"):
        load(ShardSplit((split.files[0], empty)), world_size=2, rank=0)


def test_what_shards_cannot_do_is_said(load, caplog):
    loader = load(cache="ram")
    assert "cache, quad and rect are ignored: shards are read from front to back" in caplog.text
    loader.sampler.set_weights(None)
    with pytest.raises(ValueError, match="leave out --image-weights"):
        loader.sampler.set_weights(np.ones(12))


def test_options_of_a_dataset(load):
    assert len(load(fraction=0.5).dataset) == 6
    assert sorted(numbers(epoch_of(load(fraction=0.5), 0))) == sorted(
        int(path[-7:-4]) for path in load(fraction=0.5).dataset.image_files
    )
    assert set(load(single_cls=True).dataset.labels[:, 0]) == {0}
    with pytest.raises(ValueError, match="class 2 but there are 2 classes"):
        load(nc=2)
    assert next(iter(load(channels=1)))[0].shape == (2, 1, 64, 64)


def test_a_loader_goes_with_its_last_reference(load):
    # in a reference cycle it would wait for the garbage collector, and torch then 5 s for each of its workers
    gc.disable()
    try:
        loader = load()
        gone = weakref.ref(loader)
        del loader
        assert gone() is None
    finally:
        gc.enable()


# --- in a data set YAML -----------------------------------------------------------------------------------------------


def test_shards_in_a_yaml(split, tmp_path, monkeypatch):
    def read(train, splits=("train",)):
        (tmp_path / "set.yaml").write_text(f"path: {tmp_path}\ntrain: {train}\nval: train-000.tar\nnames: [a, b, c]\n")
        return load_dataset_yaml(tmp_path / "set.yaml", splits)

    data = read("train-{000..002}.tar", ("train", "val"))
    assert data["train"] == split and data["val"] == ShardSplit(split.files[:1])
    assert read("[train-000.tar, 'train-{001,002}.tar']")["train"] == split
    with pytest.raises(FileNotFoundError, match=r"train names .*train-003.tar, which does not exist"):
        read("train-{000..003}.tar")
    with pytest.raises(ValueError, match="train mixes formats of labels"):
        read("[train-000.tar, .]")
    with pytest.raises(ValueError, match="stands for more than 1000000 shards"):
        read("train-{0..99999999}.tar")
    monkeypatch.setattr("utils.data.dataset_yaml.MOST_SHARDS", 1000)
    with pytest.raises(ValueError, match="stands for more than 1000 shards"):
        read("train-{0..99}-{0..99}.tar")
    with pytest.raises(FileNotFoundError, match="pipe:touch trap"):
        read("'pipe:touch trap.tar'")


def test_shards_need_the_library(split, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "set.yaml").write_text("train: train-000.tar\nval: train-000.tar\nnames: [a]\n")
    with pytest.raises(ValueError, match=r"set.yaml: train: .*needs the package webdataset, .*pip install webdataset"):
        load_dataset_yaml(tmp_path / "set.yaml")
