"""Shards give the images and labels that files would, and no fault in them passes unnoticed."""

import json
import tarfile

import numpy as np
import pytest
from label_files import pack

from utils.data.annotations import scan
from utils.data.formats.shards import ShardSplit, load, read_shard

pytest.importorskip("webdataset", reason="needs webdataset")


def test_labels_are_those_of_files(shards, tmp_path, png_file):
    folder = tmp_path / "plain"
    folder.mkdir()
    for file in shards.files:
        with tarfile.open(file) as tar:
            for member in tar:
                (folder / member.name[5:]).write_bytes(tar.extractfile(member).read())
    plain, found = scan(str(folder), use_cache=False), scan(shards, use_cache=False)
    assert [path.rpartition("/")[2] for path in found.images] == [p.rpartition("/")[2] for p in plain.images]
    assert found.images[5] == f"{shards.files[1]}/part/005.png"
    for name in ("sizes", "labels", "starts", "points", "point_starts"):
        assert (getattr(found, name) == getattr(plain, name)).all(), name
    assert found.counts == plain.counts == {"found": 12, "missing": 0, "empty": 0, "corrupt": 0, "total": 12}


def test_json_polygons_backgrounds_and_broken_samples(tmp_path, png_file):
    boxes = {"class": [0, 2], "boxes": [[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]}
    file = pack(
        tmp_path / "x.tar",
        [
            ("README", "no sample"),
            ("a.png", png_file(1)), ("a.json", json.dumps(boxes)),
            ("b.png", png_file(2)),
            ("c.png", png_file(3)), ("c.txt", "1 .1 .1 .5 .1 .3 .4\n"),
            ("d.png", png_file(4)), ("d.txt", ""),
            ("e.png", png_file(5)[:60]), ("e.txt", "0 .5 .5 .1 .1"),
            ("f.png", png_file(6)), ("f.txt", "0 .5 .5 .1 1.1"),
            ("g.png", png_file(7)), ("g.json", '{"class": [0], "boxes": []}'),
            ("h.png", png_file(8)), ("h.txt", b"\xff\xfd"),
            ("i.txt", "0 .5 .5 .1 .1"),
            ("j.png", png_file(8)), ("j.json", '{"class": [0], "boxes": [[0.5, 0.5, 0.1]]}'),
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
        ("i", "no image of this name; a file name must have only one dot"),
        ("j.json:1", "but this one has 4"),
    ]:
        assert any(m.startswith(f"{file}/{name}: ") and fault in m for m in list(map(str, found.faults))), (
            name,
            list(map(str, found.faults)),
        )


def test_a_name_that_leads_out_of_its_shard_is_left_out(tmp_path, png_file):
    """A label file beside such a name, or results under it, would lie anywhere."""
    names = ["../../out", "/abs", "a", "x/../../y"]
    file = pack(
        tmp_path / "x.tar", [m for n in names for m in ((f"{n}.png", png_file(1)), (f"{n}.txt", "0 .5 .5 .1 .1"))]
    )
    found = scan(ShardSplit((file,)), use_cache=False)
    assert found.images == [f"{file}/a.png"] and found.counts["corrupt"] == 3
    assert all("must have no `..` and no / in front; the image is left out" in str(fault) for fault in found.faults)
    with pytest.raises(ValueError, match="must have no"):
        load(ShardSplit((file,)), ["cat"])


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: b"no tar" * 200, "x.tar: the tar shard is damaged"),
        (lambda data: data[:700], "x.tar: the tar shard is damaged: unexpected end of data"),
    ],
)
def test_damaged_shards_are_refused(tmp_path, png_file, damage, message):
    file = tmp_path / "x.tar"
    pack(file, [("a.png", png_file(1)), ("a.txt", "0 .5 .5 .1 .1")])
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=message):
        scan(ShardSplit((str(file),)), use_cache=False)


def sparse(size):
    entry = tarfile.TarInfo("a.png")
    entry.type, entry.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 512)  # where the first piece stands, and how long it is
    header[483:495] = b"%011o\0" % size  # of the whole
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header[:512]) + bytes(512 + 1024)


def long_header(size):
    entry = tarfile.TarInfo("a.png")
    text = b"%d comment=" % size + b"x" * size
    head = tarfile.TarInfo("pax")
    head.type, head.size = tarfile.XHDTYPE, len(text)
    return head.tobuf() + text + bytes(-len(text) % 512) + entry.tobuf() + bytes(1024)


def promises(size):
    entry = tarfile.TarInfo("a.png")
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


@pytest.mark.parametrize(
    "data, message",
    [
        (sparse(2**33 - 1), "stored sparsely, or has more than"),
        (promises(10**12), "stored sparsely, or has more than"),
        (promises(2**30), "unexpected end of data|the file ends before"),
        (long_header(2**23), "the headers of a file in it have more than"),
    ],
    ids=["sparse", "too large", "longer than the file", "header"],
)
def test_a_shard_makes_no_room_for_what_a_header_promises(tmp_path, data, message):
    file = tmp_path / "x.tar"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"x\.tar: the tar shard is damaged: .*({message})"):
        list(read_shard(str(file)))


def test_names_that_come_twice_are_refused(tmp_path, png_file):
    label = ("a.txt", "0 .5 .5 .1 .1")
    for members, message in [
        ([("a.png", png_file(1)), ("a.png", png_file(1))], "x.tar: the tar shard is damaged: .*duplicate"),
        (
            [("a.png", png_file(1)), ("b.png", png_file(1)), ("a.png", png_file(2)), label],
            "a.png: the name comes twice",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            scan(ShardSplit((pack(tmp_path / "x.tar", members),)), use_cache=False)


def test_nothing_is_run(tmp_path, monkeypatch):
    """The library takes `pipe:` for a command; a shard here is a file and nothing else."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        list(read_shard("pipe:touch trap"))
    assert not list(tmp_path.iterdir())


def test_the_scan_is_cached_until_a_shard_changes(shards, tmp_path, png_file, monkeypatch):
    first = scan(shards)
    monkeypatch.setattr("utils.data.annotations.check_shard", None)  # not called again
    assert (scan(shards).labels == first.labels).all()
    monkeypatch.undo()
    pack(shards.files[1], [("new.png", png_file(1)), ("new.txt", "0 .5 .5 .1 .1")])
    assert len(scan(shards).images) == 12 - 3 + 1


def test_labels_in_a_shard_are_cut_where_asked(tmp_path, png_file):
    file = pack(tmp_path / "x.tar", [("a.png", png_file(1)), ("a.txt", "0 .5 .5 1.01 .2")])
    with pytest.raises(ValueError, match="none of 1 images can be used"):
        scan(ShardSplit((file,)), use_cache=False)
    found = scan(ShardSplit((file,)), use_cache=False, fix_labels="clip")
    assert found.labels.tolist() == [[0, 0.5, 0.5, 1, pytest.approx(0.2)]]
