"""A data set is fetched only when asked for, whole and as promised; nothing in an archive gets out of its folder."""

import functools
import hashlib
import http.server
import io
import os
import stat
import tarfile
import threading
import zipfile

import pytest

from utils.data.dataset_yaml import load_dataset_yaml
from utils.downloads import KNOWN_SETS, Archive, download, download_dataset, unpack


@pytest.fixture
def served(tmp_path):
    """Folder whose files a web server on this machine offers, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def pack(path, members):
    """Writes a zip, or a tar of the suffix's kind, of {name: bytes}; None makes a folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
            for name, content in members.items():
                bundle.writestr(name + "/" if content is None else name, content or b"")
    else:
        with tarfile.open(path, {".tar": "w", ".tgz": "w:gz", ".xz": "w:xz"}[path.suffix]) as tar:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
                entry.size, entry.mode = len(content or b""), 0o777
                tar.addfile(entry, io.BytesIO(content or b""))
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


GOOD = {"set/images": None, "set/images/a.jpg": b"picture", "set/labels/a.txt": b"0 .5 .5 .1 .1", "set/empty": None}
KINDS = ["x.zip", "x.tar", "x.tgz", "x.tar.xz"]


# --- unpacking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_unpacks_what_is_in_it(tmp_path, kind):
    archive, folder = pack(tmp_path / kind, GOOD), tmp_path / "out"
    (folder / "set/images").mkdir(parents=True)
    (folder / "set/images/a.jpg").write_bytes(b"old")
    (folder / "set/images/b.jpg").write_bytes(b"stays")
    unpack(archive, folder)
    content = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files = {name: text for name, text in GOOD.items() if text is not None}
    assert content == {**files, "set/images/b.jpg": b"stays"} and (folder / "set/empty").is_dir()
    assert not os.access(folder / "set/images/a.jpg", os.X_OK) or os.name == "nt"
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
        ("x.tar.xz", {f"empty{i:05}": b"" for i in range(40000)}),
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
        (lambda data: data[: len(data) // 2], r"a damaged archive|must be a zip"),
        (lambda data: data.replace(b"picture", b"pictures"[:7][::-1]), "a damaged archive: Bad CRC"),
    ],
)
def test_damaged_archives_are_refused(tmp_path, damage, message):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as bundle:
        bundle.writestr("a", b"picture")
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


# --- fetching ---------------------------------------------------------------------------------------------------------


def test_fetches_verifies_and_unpacks(served, tmp_path):
    folder, url, asked = served
    names = ("one.zip", "two.tgz")
    pack(folder / names[0], {"a/1.jpg": b"1"})
    pack(folder / names[1], {"2.jpg": b"2"})
    one, two = (
        Archive(url=f"{url}/{name}", sha256=sha256(folder / name), folder=place)
        for name, place in zip(names, ("", "b/c"))
    )
    download_dataset([one, two], tmp_path / "root")
    assert files_below(tmp_path / "root") == ["a", "a/1.jpg", "b", "b/c", "b/c/2.jpg"]
    assert asked == ["/one.zip", "/two.tgz"]


def test_another_checksum_leaves_nothing(served, tmp_path):
    folder, url, _ = served
    pack(folder / "one.zip", GOOD)
    with pytest.raises(ValueError, match=f"SHA-256 is {sha256(folder / 'one.zip')}, expected 000"):
        download_dataset([Archive(url=f"{url}/one.zip", sha256="0" * 64)], tmp_path / "root")
    assert files_below(tmp_path / "root") == [".downloads"]


def test_what_is_there_whole_is_not_fetched_again(served, tmp_path):
    folder, url, asked = served
    pack(folder / "one.zip", {"1.jpg": b"1"})
    one = Archive(url=f"{url}/one.zip", sha256=sha256(folder / "one.zip"))
    with pytest.raises(FileNotFoundError, match=r"could not download .*gone.zip.*404"):
        download_dataset([one, Archive(url=f"{url}/gone.zip", sha256="1" * 64)], tmp_path / "root")
    download_dataset([one], tmp_path / "root")
    assert asked.count("/one.zip") == 1
    assert files_below(tmp_path / "root") == ["1.jpg"]


def test_a_disk_that_does_not_take_the_file_is_not_called_a_failed_download(served, tmp_path):
    folder, url, _ = served
    pack(folder / "one.zip", GOOD)
    with pytest.raises(FileNotFoundError, match="missing") as error:
        download(f"{url}/one.zip", tmp_path / "missing/one.zip")
    assert "could not download" not in str(error.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        (("file:///etc/passwd", "0" * 64), "url must start with http"),
        (("https://x/y.zip", ""), "sha256 of https://x/y.zip must be 64 digits"),
        (("https://x/y.zip", "0" * 64, "../up"), "folder of https://x/y.zip must be in"),
        (("https://x/y.zip", "0" * 64, "/up"), "must be in"),
    ],
)
def test_faulty_sources_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Archive(**dict(zip(("url", "sha256", "folder"), fields)))


def test_known_sets_are_whole():
    assert all(len({a.sha256 for a in archives}) == len(archives) >= 1 for archives in KNOWN_SETS.values())


# --- from a data set YAML ---------------------------------------------------------------------------------------------


@pytest.fixture
def write_yaml(tmp_path):
    def write(download):
        (tmp_path / "set.yaml").write_text(
            f"path: {tmp_path}/root\ntrain: images\nval: images\nnames: [a]\ndownload: {download}\n"
        )
        return tmp_path / "set.yaml"

    return write


def test_a_yaml_fetches_only_when_asked_to(served, tmp_path, write_yaml):
    folder, url, asked = served
    pack(folder / "x.zip", {"a.jpg": b"1"})
    path = write_yaml(f"{{url: {url}/x.zip, sha256: {sha256(folder / 'x.zip')}, folder: images}}")
    with pytest.raises(FileNotFoundError, match=r"set.yaml: train names .*root/images.*--download fetches the images"):
        load_dataset_yaml(path)
    assert not asked and not (tmp_path / "root").exists()
    for _ in range(2):
        assert load_dataset_yaml(path, download=True)["train"] == str(tmp_path / "root/images")
    assert asked == ["/x.zip"] and (tmp_path / "root/images/a.jpg").read_bytes() == b"1"


def test_an_archive_without_the_images_says_so(served, tmp_path, write_yaml):
    folder, url, _ = served
    pack(folder / "x.zip", {"a.jpg": b"1"})
    with pytest.raises(FileNotFoundError, match=r"set.yaml: train names .*root/images, which does not exist"):
        load_dataset_yaml(write_yaml(f"[{{url: {url}/x.zip, sha256: {sha256(folder / 'x.zip')}}}]"), download=True)


def test_known_sets_by_name(tmp_path, write_yaml, monkeypatch):
    fetched = []
    monkeypatch.setattr("utils.data.dataset_yaml.download_dataset", lambda archives, root: fetched.extend(archives))
    for text in ("voc2007", "[voc2007, voc2012]"):
        with pytest.raises(FileNotFoundError):
            load_dataset_yaml(write_yaml(text), download=True)
    assert fetched == [*KNOWN_SETS["voc2007"], *KNOWN_SETS["voc2007"], *KNOWN_SETS["voc2012"]]


@pytest.mark.parametrize("text", ["https://x/y.zip", "bash get.sh", "'touch trap'", "|\n  import os\n  os.abort()"])
def test_other_text_is_neither_run_nor_fetched(tmp_path, write_yaml, text):
    with pytest.raises(FileNotFoundError, match="left to you"):
        load_dataset_yaml(write_yaml(text), download=True)
    assert files_below(tmp_path) == ["set.yaml"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("[coco2016]", r"download must be the name of a known set \(coco2017, voc2007, voc2012\), .* got 'coco2016'"),
        ("{url: https://x/y.zip}", "download must be .* url and sha256"),
        ("{url: https://x/y.zip, sha256: 12}", "set.yaml: download: sha256 of https://x/y.zip must be 64 digits"),
        ("{url: https://x/y.zip, sha256: 12, run: sh}", "download must be"),
        ("5", "download must be .* got 5"),
    ],
)
def test_faulty_downloads_are_refused(write_yaml, text, message):
    with pytest.raises(ValueError, match=message):
        load_dataset_yaml(write_yaml(text))
