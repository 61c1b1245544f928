"""Nothing in an archive gets out of its folder, over a file that is there, or out of hand."""

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from packed import GOOD, files_below, pack

from utils.archives import unpack

KINDS = ["x.zip", "x.tar", "x.tgz", "x.tar.xz"]


@pytest.mark.parametrize("kind", KINDS)
def test_unpacks_what_is_in_it(tmp_path, kind):
    archive, folder = pack(tmp_path / kind, GOOD), tmp_path / "out"
    (folder / "set/images").mkdir(parents=True)
    (folder / "set/images/a.jpg").write_bytes(b"image")  # of an interrupted call
    (folder / "set/images/b.jpg").write_bytes(b"stays")
    unpack(archive, folder)
    content = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files = {name: text for name, text in GOOD.items() if text is not None}
    assert content == {**files, "set/images/b.jpg": b"stays"} and (folder / "set/empty").is_dir()
    assert not os.access(folder / "set/labels/a.txt", os.X_OK) or os.name == "nt"
    assert files_below(tmp_path)[0] == "out" and len(list(tmp_path.iterdir())) == 2  # nothing beside


@pytest.mark.parametrize("kind", ["x.zip", "x.tar"])
@pytest.mark.parametrize(
    "name", ["../out2/evil", "/tmp/evil", "a/../../evil", "a\\..\\evil", "C:/evil", "c:evil", "..", "\\\\host\\evil"]
)
def test_names_outside_the_folder_are_refused(tmp_path, kind, name):
    archive = pack(tmp_path / kind, {"good.txt": b"1", name: b"evil"})
    with pytest.raises(ValueError, match=r"would be written outside the folder; no file is unpacked"):
        unpack(archive, tmp_path / "out")
    assert files_below(tmp_path) == ["out", kind]  # not even the good one


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, "zip"])
def test_links_and_devices_are_refused(tmp_path, kind):
    """A link to a folder outside, and then a file through it."""
    archive = tmp_path / "x"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as bundle:
            link = zipfile.ZipInfo("link")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            bundle.writestr(link, str(tmp_path))
            bundle.writestr("link/evil", b"evil")
    else:
        with tarfile.open(archive, "w") as tar:
            link = tarfile.TarInfo("link")
            link.type, link.linkname = kind, str(tmp_path)
            tar.addfile(link)
            tar.addfile(tarfile.TarInfo("link/evil"))
    with pytest.raises(ValueError, match=r"'link' is a link or device; no file is unpacked"):
        unpack(archive, tmp_path / "out")
    assert files_below(tmp_path) == ["out", "x"]


@pytest.mark.parametrize(
    "kind, members",
    [
        ("x.zip", {"zeros": bytes(40 << 20)}),
        ("x.tgz", {"zeros": bytes(40 << 20)}),
        ("x.tar.xz", {"zeros": bytes(40 << 20)}),
        ("x.tar.xz", {f"empty{i:05}": b"" for i in range(6000)}),
    ],
)
def test_bombs_are_refused(tmp_path, kind, members):
    archive = pack(tmp_path / kind, members)
    with pytest.raises(ValueError, match=r"unpacks to more than .* bytes"):
        unpack(archive, tmp_path / "out")
    assert files_below(tmp_path) == ["out", kind]


def test_a_full_disk_is_seen_before(tmp_path, monkeypatch):
    from collections import namedtuple

    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("usage", "free")(600))
    with pytest.raises(ValueError, match=r"more than 600 bytes, .* all free space"):
        unpack(pack(tmp_path / "x.zip", GOOD), tmp_path / "out")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: b"no archive", "must be a zip or a tar file"),
        (lambda data: data[: len(data) // 2], r"the archive is damaged|must be a zip"),
        (lambda data: data.replace(b"image", b"egami"), "the archive is damaged: Bad CRC"),
    ],
)
def test_damaged_archives_are_refused(tmp_path, damage, message):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as bundle:
        bundle.writestr("a", b"image")
    (tmp_path / "x.zip").write_bytes(damage((tmp_path / "x.zip").read_bytes()))
    with pytest.raises(ValueError, match=message):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_name_twice_or_a_file_as_a_folder_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a", "a"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(ValueError, match="contains 'a' twice"):
        unpack(tmp_path / "x.tar", tmp_path / "out")
    with pytest.raises(ValueError, match="contains 'b' twice"):
        unpack(pack(tmp_path / "y.tar", {"a": b"1", "a/b": b"2"}), tmp_path / "out")


@pytest.mark.parametrize("kind", ["x.zip", "x.tar"])
@pytest.mark.parametrize("name", ["", ".", "./", "/"])
def test_an_entry_without_a_name_is_refused(tmp_path, kind, name):
    if kind == "x.zip":
        entry = zipfile.ZipInfo("x")
        entry.filename = name
        with zipfile.ZipFile(tmp_path / kind, "w") as bundle:
            bundle.writestr(entry, b"1")
    else:
        with tarfile.open(tmp_path / kind, "w") as tar:
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(ValueError, match=f"{kind}: "):
        unpack(tmp_path / kind, tmp_path / "out")
    assert files_below(tmp_path) == ["out", kind]


# --- what is there stays ----------------------------------------------------------------------------------------------


def taken(path, kind):
    """Puts something into the way."""
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(path.parent.parent / "of the user")


@pytest.mark.parametrize("kind", ["folder", "file", "link", "dangling"])
@pytest.mark.parametrize("last", [True, False])
def test_a_file_in_the_way_is_seen_before_the_first_is_written(tmp_path, kind, last):
    outside, folder = tmp_path / "of the user", tmp_path / "out"
    if kind != "dangling":
        outside.write_text("mine")
    folder.mkdir()
    taken(folder / ("z39" if last else "z00"), kind)
    before = files_below(tmp_path)
    archive = pack(tmp_path / "x.zip", {f"z{i:02}": b"theirs" for i in range(40)})
    with pytest.raises(ValueError, match=r"x.zip: would replace .*/out/z.., .*no file is unpacked"):
        unpack(archive, folder)
    assert files_below(tmp_path) == sorted([*before, "x.zip"])
    assert kind == "dangling" or outside.read_text() == "mine"


@pytest.mark.parametrize("depth", ["a", "a/b", "a/b/c"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_link_or_file_in_place_of_a_folder_is_not_followed(tmp_path, depth, kind):
    outside, folder = tmp_path / "of the user", tmp_path / "out"
    outside.mkdir()
    (folder / depth).parent.mkdir(parents=True)
    taken(folder / depth, "file") if kind == "file" else (folder / depth).symlink_to(outside)
    archive = pack(tmp_path / "x.tar", {"0.txt": b"1", "a/b/c/keys": b"theirs"})
    with pytest.raises(ValueError, match=f"needs .*/out/{depth} as a folder, and that is a link or a file"):
        unpack(archive, folder)
    assert not list(outside.iterdir()) and not (folder / "0.txt").exists()


def test_a_link_above_the_folder_but_below_the_root_is_not_followed(tmp_path):
    (tmp_path / "of the user").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/images").symlink_to(tmp_path / "of the user")
    archive = pack(tmp_path / "x.zip", {"keys": b"theirs"})
    for folder in ("root/images", "root/images/train"):
        with pytest.raises(ValueError, match="root/images as a folder, and that is a link"):
            unpack(archive, tmp_path / folder, root=tmp_path / "root")
    assert not list((tmp_path / "of the user").iterdir())


# --- headers that claim much ------------------------------------------------------------------------------------------


def header(kind: bytes, size: int) -> bytes:
    entry = tarfile.TarInfo("h")
    entry.type, entry.size = kind, size
    return entry.tobuf()


@pytest.mark.parametrize("opened", [open, gzip.open, bz2.open, lzma.open], ids=lambda f: f.__module__)
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_large_headers_are_not_read(tmp_path, kind, opened):
    with opened(tmp_path / "x", "wb") as file:
        file.write(header(kind, 2 << 30) + bytes(1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"x: the headers of a file in it have more than"):
            unpack(tmp_path / "x", tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_headers_of_headers_are_refused(tmp_path):
    with gzip.open(tmp_path / "x", "wb") as file:
        for _ in range(5000):
            file.write(header(tarfile.XHDTYPE, 0))
    with pytest.raises(ValueError, match=r"x: "):
        unpack(tmp_path / "x", tmp_path / "out")


def test_sparse_files_are_refused(tmp_path):
    entry = tarfile.TarInfo("s")
    entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 15}
    with tarfile.open(tmp_path / "x", "w", format=tarfile.PAX_FORMAT) as tar:
        entry.size = 512
        tar.addfile(entry, io.BytesIO(b"1\n0\n5\n" + bytes(506)))
    with pytest.raises(ValueError, match=r"x: "):
        unpack(tmp_path / "x", tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_gives_a_traceback(tmp_path, kind):
    archive = pack(tmp_path / kind, GOOD)
    data, random = bytearray(archive.read_bytes()), np.random.default_rng(5)
    for i in range(150):
        broken = bytearray(data)
        for place in random.integers(0, len(data), 1 + i % 4):
            broken[place] = random.integers(256)
        archive.write_bytes(broken[: len(broken) if i % 3 else int(random.integers(len(broken)))])
        folder = tmp_path / f"out{i}"
        try:
            unpack(archive, folder)
        except ValueError as error:
            assert kind in str(error)
            assert not folder.exists() or not files_below(folder)
