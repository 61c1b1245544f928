"""A whole split: images and labels as recorded, every fault reported; the cache never tells an old story."""

import io
import os
import pickle
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.data import annotations as annotations_module
from utils.data.annotations import cache_path, check_pair, scan
from utils.log import LOGGER

PICTURE = np.full((48, 64, 3), 90, np.uint8)
KINDS = ("missing", "found", "empty", "corrupt")


# --- odd image files --------------------------------------------------------------------------------------------------


def jpeg(**options):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(exif=exif)


def encoded(height, width, suffix):
    return cv2.imencode(suffix, np.zeros((height, width, 3), np.uint8))[1].tobytes()


def gif():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "GIF")
    return buffer.getvalue()


IMAGE_FILES = {  # recorded name -> file name and content, None for no file
    "jpeg 40x30": ("a.jpg", jpeg()),
    "jpeg 40x30, last 2 bytes cut": ("a.jpg", jpeg()[:-2]),
    "jpeg 40x30 followed by junk bytes": ("a.jpg", jpeg() + b"junk"),
    "jpeg 40x30 EXIF orientation 6": ("a.jpg", oriented(6)),
    "jpeg 40x30 EXIF orientation 8": ("a.jpg", oriented(8)),
    "jpeg 40x30 EXIF orientation 3": ("a.jpg", oriented(3)),
    "jpeg 40x30 EXIF orientation 5": ("a.jpg", oriented(5)),
    "png 9x30": ("a.png", encoded(30, 9, ".png")),
    "png 10x10": ("a.png", encoded(10, 10, ".png")),
    "png 30x9": ("a.png", encoded(9, 30, ".png")),
    "png content named .jpg": ("a.jpg", encoded(30, 40, ".png")),
    "gif content named .png": ("a.png", gif()),
    "bmp": ("a.bmp", encoded(30, 40, ".bmp")),
    "tiff": ("a.tiff", encoded(30, 40, ".tiff")),
    "webp": ("a.webp", encoded(30, 40, ".webp")),
    "text named .jpg": ("a.jpg", b"hello"),
    "no image file": ("a.jpg", None),
    "empty file named .png": ("a.png", b""),
    "jpeg 40x30, second half cut": ("a.jpg", jpeg()[: len(jpeg()) // 2]),
}


def test_recorded_image_files(parity, tmp_path):
    cases = parity("labels")["images"]["cases"]
    assert {case["name"] for case in cases} == set(IMAGE_FILES)
    for case in cases:
        name, data = IMAGE_FILES[case["name"]]
        (tmp_path / "a.txt").write_text(case["text"])
        (tmp_path / name).unlink(missing_ok=True)
        if data is not None:
            (tmp_path / name).write_bytes(data)
        pair = check_pair(str(tmp_path / name), str(tmp_path / "a.txt"))
        assert [getattr(pair, kind) for kind in KINDS] == [case[kind] for kind in KINDS], case["name"]
        assert bool(pair.faults) == (case["message"] != "none"), case["name"]
        if case["accepted"]:
            # the recorded program did not see that orientation 5 lies on its side; the pixels it read did
            size = [30, 40] if case["name"].endswith("orientation 5") else case["shape_wh"]
            assert list(pair.size) == size, case["name"]
            assert np.array_equal(pair.labels.rows, np.array(case["labels"], np.float32)), case["name"]
        if data is not None:
            assert (tmp_path / name).read_bytes() == data, "no image is ever rewritten"


# --- a whole folder ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(parity, write_set):
    """The folder of the recording, and the record."""
    record = parity("labels")["folder"]
    texts = {case["name"]: case["text"] for case in parity("labels")["texts"]}
    images = {name: np.zeros((30, 40 + i, 3), np.uint8) for i, name in enumerate(record["files"])}
    labels = {name: texts[name.split("/")[-1]] for name in record["files"]}
    entry = write_set(images, {name: text for name, text in labels.items() if text is not None})
    (entry / "notes.txt").write_text("not an image")
    return entry, record


def test_recorded_folder(folder):
    entry, record = folder
    found = scan(str(entry))
    assert [os.path.relpath(path, entry) for path in found.images] == record["kept"]
    assert [found.counts[kind] for kind in ("found", "missing", "empty", "corrupt", "total")] == record[
        "results_found_missing_empty_corrupt_total"
    ]
    assert found.sizes.tolist() == record["shapes"]
    assert (entry.parent / record["cache_beside"]).is_file()
    for i, rows in enumerate(record["labels"]):
        assert np.array_equal(found.labels_of(i), np.array(rows, np.float32).reshape(-1, 5))
    assert [[len(polygon) for polygon in found.polygons_of(i)] for i in range(6)] == [
        [],
        [0, 0],
        [4],
        [0] * 3,
        [],
        [4, 5],
    ]
    faults = {message.split("/labels/")[1].split(";")[0] for message in map(str, found.faults)}
    assert faults == {
        "negative_x.txt:1: x must lie in 0-1, got -0.1",
        "sub/duplicate_rows.txt: 1 duplicate rows removed",
        "words.txt:1: 'cat' is not a number",
    }


def test_recorded_list_file(folder):
    entry, record = folder
    list_file = entry.parent / "list.txt"
    list_file.write_text("./images/plain.png\n./images/empty_file.png\n")
    found = scan(str(list_file))
    assert [os.path.relpath(path, entry) for path in found.images] == record["list_file"]["kept"]
    assert (entry.parent / "list.cache").is_file() == record["list_file"]["cache_exists"]


def test_recorded_empty_folder(parity, tmp_path):
    assert parity("labels")["folder"]["empty_folder"] == {"raises": "Exception"}
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        scan(str(tmp_path / "images"))


@pytest.fixture
def mixed(write_set):
    """Background, boxes, no label file, polygons; sorted by name."""
    images = {name: np.full((30 + i, 40, 3), 9 * i, np.uint8) for i, name in enumerate(["a", "b ü", "c", "d"])}
    labels = {"a": "", "b ü": "0 .5 .5 .2 .2\n1 .3 .3 .1 .1\n", "d": "2 .1 .1 .9 .1 .5 .9\n0 .2 .2 .8 .2 .8 .8 .2 .8\n"}
    return write_set(images, labels)


def test_arrays_hold_every_image_in_order(mixed):
    found = scan(str(mixed))
    assert found.labels[:, 0].tolist() == [0, 1, 2, 0]
    assert found.starts.tolist() == [0, 0, 2, 2, 4]
    assert found.point_starts.tolist() == [0, 0, 0, 3, 7]
    assert found.sizes.tolist() == [[40, 30], [40, 31], [40, 32], [40, 33]]
    assert found.counts == {"found": 3, "missing": 1, "empty": 1, "corrupt": 0, "total": 4}
    np.testing.assert_allclose(found.polygons_of(3)[0], [[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]], rtol=1e-6)


@pytest.mark.parametrize("order", [[3, 1, 0, 2], [1, 1, 3], [], [0]])
def test_take_agrees_with_one_image_at_a_time(mixed, order):
    found = scan(str(mixed))
    taken = found.take(np.array(order, dtype=int))
    assert taken.images == [found.images[i] for i in order]
    assert taken.sizes.tolist() == [found.sizes[i].tolist() for i in order]
    for new, old in enumerate(order):
        assert np.array_equal(taken.labels_of(new), found.labels_of(old))
        assert all(map(np.array_equal, taken.polygons_of(new), found.polygons_of(old)))
        assert len(taken.polygons_of(new)) == len(found.polygons_of(old))


def test_faults_are_reported_and_counted(mixed, capsys):
    for i in range(30):
        (mixed / f"broken{i}.png").touch()
    found = scan(str(mixed))
    assert found.counts["corrupt"] == 30 and len(found.images) == 4
    printed = capsys.readouterr().err
    assert f"{mixed}: 34 images; label files: 3 found, 1 missing, 1 empty; 30 corrupt" in printed
    assert "broken0.png: image cannot be decoded" in printed
    assert "... and 10 more such messages" in printed


def test_strict_makes_them_an_error(mixed, capsys):
    scan(str(mixed), strict=True)  # an image without labels, and an empty file, are no faults
    (mixed.parent / "labels" / "d.txt").write_text("0 .5 .5 .2 .2\n1 .3 .3 1.3 .1\n")
    (mixed / "e.png").touch()
    for _ in range(2):  # the second time from the cache
        with pytest.raises(ValueError, match="2 of 5 images cannot be used, which --strict forbids:\n") as error:
            scan(str(mixed), strict=True)
        first, second = str(error.value).splitlines()[1:]
        assert first.endswith("labels/d.txt:2: width must lie in 0-1, got 1.3")
        assert "e.png: image cannot be decoded" in second
        assert scan(str(mixed)).counts["corrupt"] == 2


def test_rehash_sees_what_size_and_time_hide(mixed, verified):
    assert scan(str(mixed)).labels[0, 0] == 0
    path = mixed.parent / "labels" / "b ü.txt"
    status = path.stat()
    path.write_text(path.read_text().replace("0 .5", "7 .5"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    verified.clear()
    assert scan(str(mixed)).labels[0, 0] == 0 and not verified
    assert scan(str(mixed), rehash=True).labels[0, 0] == 7
    assert scan(str(mixed)).labels[0, 0] == 7 and len(verified) == 1  # the cache was made anew


def test_nothing_usable_shows_the_first_fault(write_set):
    entry = write_set({"a": PICTURE}, {"a": "cat .5 .5 .2 .2"})
    with pytest.raises(ValueError, match=r"none of 1 images can be used; the first fault: .*a.txt:1: 'cat'"):
        scan(str(entry))


def test_no_label_files_is_a_warning_with_an_example(write_set, capsys):
    entry = write_set({"a": PICTURE}, {})
    assert len(scan(str(entry)).images) == 1
    assert f"no label files found; expected for example {entry.parent}/labels/a.txt" in capsys.readouterr().err


# --- cache ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def verified(monkeypatch):
    """Counts how often the files themselves are looked at."""
    calls = []
    original = annotations_module._check_all
    monkeypatch.setattr(annotations_module, "_check_all", lambda *args: calls.append(1) or original(*args))
    return calls


def same(a, b):
    return (a.images, a.counts, a.faults) == (b.images, b.counts, b.faults) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) and getattr(a, name).dtype == getattr(b, name).dtype
        for name in annotations_module.CACHED_ARRAYS
    )


def test_second_scan_comes_from_the_cache_and_is_the_same(mixed, verified):
    (mixed / "broken.png").touch()  # messages are kept, too
    first, second = scan(str(mixed)), scan(str(mixed))
    assert same(first, second) and len(first.faults) == 1
    assert len(verified) == 1


def edit_same_size(entry):
    path = entry.parent / "labels" / "b ü.txt"
    before = path.stat()
    path.write_text(path.read_text().replace(".5 .5", ".4 .4"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))


@pytest.mark.parametrize(
    "change",
    [
        edit_same_size,
        lambda entry: (entry.parent / "labels" / "c.txt").write_text("0 .5 .5 .2 .2"),  # label added
        lambda entry: (entry.parent / "labels" / "a.txt").unlink(),  # label removed
        lambda entry: (entry / "d.png").unlink(),  # image removed
        lambda entry: shutil.copy(entry / "a.png", entry / "e.png"),  # image added
        lambda entry: (entry / "a.png").rename(entry / "aa.png"),  # image renamed
    ],
)
def test_cache_is_made_anew_when_files_change(mixed, verified, change):
    scan(str(mixed))
    change(mixed)
    second = scan(str(mixed))
    assert len(verified) == 2
    assert same(second, scan(str(mixed), use_cache=False))


class Trap:
    """Runs when unpickled."""

    def __reduce__(self):
        return os.makedirs, ("trap",)


def npy_of_objects():
    buffer = io.BytesIO()
    np.save(buffer, np.array({"version": 0.6, "trap": Trap()}, dtype=object))  # how v6.1 keeps its cache
    return buffer.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:200] + bytes([data[200] ^ 255]) + data[201:],
        lambda data: npy_of_objects(),
    ],
    ids=["empty", "cut", "one byte", "v6.1"],
)
def test_unreadable_cache_is_replaced_and_never_executed(mixed, verified, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = scan(str(mixed))
    path = cache_path(str(mixed))
    path.write_bytes(damage(path.read_bytes()))
    assert same(first, scan(str(mixed)))
    assert same(first, scan(str(mixed)))
    assert len(verified) == 2
    assert not (tmp_path / "trap").exists()


def texts(path, data):
    path.write_bytes(data)


def a_link(path, data):
    (path.parent / "mine").write_bytes(data)
    path.symlink_to(path.parent / "mine")


def of_somebody_else(path, data):
    path.write_bytes(data)
    os.chown(path, 4321, -1)


@pytest.mark.parametrize(
    "make, data",
    [
        (texts, b"hello"),
        (texts, b"labels that I keep\n"),
        (texts, np.lib.format.magic(1, 0)),
        (texts, pickle.dumps(Trap())),
        (a_link, None),
        (lambda path, data: path.mkdir(), None),
        (lambda path, data: os.mkfifo(path), None),
        pytest.param(
            of_somebody_else,
            None,
            marks=pytest.mark.skipif(getattr(os, "geteuid", int)() != 0, reason="only root gives files away"),
        ),
    ],
    ids=["text", "text like it", "npy", "pickle", "link", "folder", "pipe", "owner"],
)
def test_a_file_that_is_no_cache_of_the_user_is_left_alone(mixed, verified, make, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, path = scan(str(mixed)), cache_path(str(mixed))
    data = data or path.read_bytes()
    path.unlink()
    make(path, data)
    before, inside = path.lstat(), path.read_bytes() if path.is_file() else None
    capsys.readouterr()
    for count in (2, 3):
        assert same(first, scan(str(mixed))) and len(verified) == count
    after = path.lstat()
    assert (after.st_ino, after.st_mtime_ns, after.st_mode) == (before.st_ino, before.st_mtime_ns, before.st_mode)
    assert not path.is_file() or path.read_bytes() == inside
    assert capsys.readouterr().err.count("labels.cache is not a label cache of yours, and is left alone") == 2
    assert not (tmp_path / "trap").exists()


def stored(path, digest, change, save=np.savez):
    """Writes a cache whose checksums agree, with other content."""
    with np.load(io.BytesIO(path.read_bytes().partition(b"\n")[2])) as archive:
        content = dict(archive)
    change(content)
    buffer = io.BytesIO()
    save(buffer, **content)
    path.write_bytes(annotations_module._cache_header(digest, buffer.getvalue()) + buffer.getvalue())


FORGED = {
    "an image of another folder": {
        "images": np.frombuffer("\0".join("/etc/x.png" for _ in range(4)).encode(), np.uint8)
    },
    "too few images": {"images": np.frombuffer(b"a.png", np.uint8)},
    "labels of another type": {"labels": np.zeros((4, 5))},
    "labels of another shape": {"labels": np.zeros((4, 6), np.float32)},
    "a class below 0": {"labels": np.array([[-1, 0.5, 0.5, 0.1, 0.1]] * 4, np.float32)},
    "a class of 1.5": {"labels": np.array([[1.5, 0.5, 0.5, 0.1, 0.1]] * 4, np.float32)},
    "a box that is no number": {"labels": np.array([[0, np.nan, 0.5, 0.1, 0.1]] * 4, np.float32)},
    "a box far outside": {"labels": np.array([[0, 1e30, 0.5, 0.1, 0.1]] * 4, np.float32)},
    "starts beyond the end": {"starts": np.array([0, 0, 2, 2, 9])},
    "starts that go back": {"starts": np.array([0, 3, 2, 2, 4])},
    "a corner at infinity": {"points": np.full((7, 2), np.inf, np.float32)},
    "sizes below 0": {"sizes": np.full((4, 2), -1)},
    "sizes without a second number": {"sizes": np.ones((4, 1), np.int64)},
    "a count below 0": {"count_found": np.array(-3)},
    "a count that is a list": {"count_found": np.array([1, 2])},
    "a count that does not agree": {"count_total": np.array(10**6)},
    "a count that is missing": {"count_total": None},
    "an unknown kind of fault": {"fault_kind": np.frombuffer(b"what", np.uint8)},
    "faults of several lengths": {"fault_line": np.arange(3)},
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_cache_is_not_believed(mixed, verified, name, monkeypatch):
    """Whoever writes the file writes its checksums too."""
    digests, original = [], annotations_module.files_digest
    monkeypatch.setattr(
        annotations_module, "files_digest", lambda paths: digests.append(original(paths)) or digests[-1]
    )
    first = scan(str(mixed))
    path = cache_path(str(mixed))
    stored(path, digests[0], lambda content: None)
    assert same(first, scan(str(mixed))) and len(verified) == 1  # so this is how a cache that is believed is made

    def change(content):
        content.update(FORGED[name])
        if content.get("count_total", 0) is None:
            del content["count_total"]

    stored(path, digests[0], change)
    assert same(first, scan(str(mixed))) and len(verified) == 2
    stored(path, digests[0], lambda content: None, np.savez_compressed)
    assert same(first, scan(str(mixed))) and len(verified) == 3


def test_random_damage_to_the_cache_is_never_an_error(mixed, monkeypatch):
    first = scan(str(mixed))
    path = cache_path(str(mixed))
    sound = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    monkeypatch.setattr(LOGGER, "disabled", True)
    for _ in range(50):
        damaged = sound.copy()
        damaged[rng.integers(0, len(sound), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        assert same(first, scan(str(mixed)))


def test_place_that_cannot_be_written_only_warns(mixed, monkeypatch, capsys):
    def refuse(path, sync):
        raise PermissionError(f"read-only: {path}")

    monkeypatch.setattr(annotations_module, "atomic_write", refuse)
    assert len(scan(str(mixed)).images) == 4
    assert "labels.cache cannot be written (read-only" in capsys.readouterr().err


def test_folder_without_labels_needs_no_labels_folder(write_set, capsys):
    entry = write_set({"a": PICTURE}, {})
    assert len(scan(str(entry)).images) == 1
    assert not (entry.parent / "labels").exists()


def test_cache_places(tmp_path):
    for name in ("set.v2/images/train", "set.v2/images/val", "pics"):
        (tmp_path / name).mkdir(parents=True)
    list_file = tmp_path / "train.txt"
    list_file.touch()
    train, val = str(tmp_path / "set.v2/images/train"), str(tmp_path / "set.v2/images/val")
    assert cache_path(train) == cache_path(train + "/") == tmp_path / "set.v2/labels/train.cache"
    assert cache_path(str(tmp_path / "set.v2/images")) == tmp_path / "set.v2/labels.cache"
    assert cache_path(str(tmp_path / "pics")) == tmp_path / "pics.cache"
    assert cache_path(str(list_file)) == tmp_path / "train.cache"
    # several entries do not take turns in the place of the first
    assert len({cache_path(train), cache_path([train, val]), cache_path([train, str(list_file)])}) == 3


# --- links ------------------------------------------------------------------------------------------------------------


def test_a_label_file_behind_a_broken_link_does_not_make_background(write_set, tmp_path):
    entry = write_set({"a": PICTURE, "b": PICTURE, "sub/c": PICTURE}, {"b": "0 .5 .5 .2 .2"})
    (tmp_path / "set/labels/a.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "set/labels/sub").symlink_to(tmp_path / "gone")
    found = scan(str(entry), use_cache=False)
    assert [os.path.basename(path) for path in found.images] == ["b.png"] and found.counts["corrupt"] == 2
    assert f"labels/a.txt is a link to {tmp_path}/gone.txt, which does not exist" in str(found.faults[0])
    assert f"labels/sub is a link to {tmp_path}/gone, which does not exist" in str(found.faults[1])
    assert list(found.counts.values()) == [3, 0, 0, 2, 3]


def test_a_folder_in_place_of_a_label_file_is_told_of(write_set, tmp_path):
    entry = write_set({"a": PICTURE, "b": PICTURE}, {"b": "0 .5 .5 .2 .2"})
    (tmp_path / "set/labels/a.txt").mkdir()
    assert "labels/a.txt: cannot be read: Is a directory" in str(scan(str(entry), use_cache=False).faults[0])


def test_of_two_paths_to_an_image_the_one_with_labels_counts(write_set, tmp_path):
    entry = write_set({"own": PICTURE}, {"own": "", "day2/a": "0 .5 .5 .2 .2"})
    write_set({"a": PICTURE, "b": PICTURE}, {}, tmp_path / "pool")
    for day in ("day1", "day2", "day3"):
        (entry / day).symlink_to(tmp_path / "pool" / "images")
    images = [os.path.relpath(path, entry) for path in scan(str(entry), use_cache=False).images]
    # b has labels nowhere: three times background, as its three paths say
    assert images == ["day1/b.png", "day2/a.png", "day2/b.png", "day3/b.png", "own.png"]


def test_lines_from_the_current_folder_find_their_labels(write_set, tmp_path, monkeypatch):
    write_set({"a": PICTURE, "b": PICTURE}, {"a": "0 .5 .5 .2 .2", "b": "1 .5 .5 .2 .2"})
    monkeypatch.chdir(tmp_path / "set")
    (tmp_path / "set" / "train.txt").write_text(f"images/a.png\n{tmp_path}/set/images/b.png\n")
    for entry in ("train.txt", "images", str(tmp_path / "set" / "train.txt")):
        assert scan(entry, use_cache=False).labels[:, 0].tolist() == [0, 1], entry


def test_many_images_without_labels_are_told_of(write_set, caplog):
    entry = write_set(dict.fromkeys("abcd", PICTURE), dict.fromkeys("abc", "0 .5 .5 .2 .2"))
    scan(str(entry), use_cache=False)
    assert "1 of 4 images have no label file, so they count as background" in caplog.text


def test_labels_are_cut_where_asked_whatever_the_cache_has(write_set, caplog):
    entry = str(write_set({"a": PICTURE, "b": PICTURE}, {"a": "0 .5 .5 1.01 .2", "b": "1 .5 .5 .2 .2"}))
    for _ in range(2):
        caplog.clear()
        assert scan(entry).counts["corrupt"] == 1
        assert "images left out for labels outside of 0-1: 1; --fix-labels clip keeps those" in caplog.text
        caplog.clear()
        found = scan(entry, fix_labels="clip")  # by 0.32 of 64 pixels
        assert found.labels == pytest.approx(np.array([[0, 0.5, 0.5, 1, 0.2], [1, 0.5, 0.5, 0.2, 0.2]]))
        assert found.counts["corrupt"] == 0 and "fix-labels" not in caplog.text
