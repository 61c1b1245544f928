"""Files and data sets are fetched only when asked for, whole, as promised, within limits, and over nothing."""

import functools
import http.server
import threading
import time

import pytest
from packed import GOOD, files_below, pack, sha256

from utils import google_utils
from utils.data.dataset_yaml import load_dataset_yaml
from utils.downloads import KNOWN_SETS, MARK, STORE, Archive, Limits, attempt_download, download, download_dataset


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
    assert files_below(tmp_path / "root") == [MARK, "a", "a/1.jpg", "b", "b/c", "b/c/2.jpg"]
    assert asked == ["/one.zip", "/two.tgz"]


def test_another_checksum_leaves_nothing(served, tmp_path):
    folder, url, _ = served
    pack(folder / "one.zip", GOOD)
    with pytest.raises(ValueError, match=f"SHA-256 is {sha256(folder / 'one.zip')}, expected 000"):
        download_dataset([Archive(url=f"{url}/one.zip", sha256="0" * 64)], tmp_path / "root")
    assert files_below(tmp_path / "root") == [MARK, STORE]


def test_what_is_there_whole_is_not_fetched_again(served, tmp_path):
    folder, url, asked = served
    pack(folder / "one.zip", {"1.jpg": b"1"})
    one = Archive(url=f"{url}/one.zip", sha256=sha256(folder / "one.zip"))
    with pytest.raises(FileNotFoundError, match=r"could not download .*gone.zip.*404"):
        download_dataset([one, Archive(url=f"{url}/gone.zip", sha256="1" * 64)], tmp_path / "root")
    download_dataset([one], tmp_path / "root")
    assert asked.count("/one.zip") == 1
    assert files_below(tmp_path / "root") == [MARK, "1.jpg"]


def test_a_disk_that_does_not_take_the_file_is_not_called_a_failed_download(served, tmp_path):
    folder, url, _ = served
    pack(folder / "one.zip", GOOD)
    with pytest.raises(FileNotFoundError, match="missing") as error:
        download(f"{url}/one.zip", tmp_path / "missing/one.zip")
    assert "could not download" not in str(error.value)


# --- where a data set may go ------------------------------------------------------------------------------------------


def test_a_folder_of_the_user_is_left_alone(served, tmp_path):
    folder, url, asked = served
    pack(folder / "one.zip", {"1.jpg": b"1"})
    one = Archive(url=f"{url}/one.zip", sha256=sha256(folder / "one.zip"))
    root = tmp_path / "root"
    (root / ".downloads").mkdir(parents=True)
    (root / ".downloads/thesis.pdf").write_text("mine")
    with pytest.raises(ValueError, match="holds files that --download did not write"):
        download_dataset([one], root)
    assert files_below(root) == [".downloads", ".downloads/thesis.pdf"] and not asked
    (tmp_path / "empty").mkdir()
    download_dataset([one], tmp_path / "empty")
    assert (tmp_path / "empty/1.jpg").read_bytes() == b"1"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError):
        download_dataset([one], tmp_path / "file")


@pytest.mark.parametrize("name", [MARK, STORE])
def test_a_link_in_a_fetched_folder_is_not_followed(served, tmp_path, name):
    _, url, asked = served
    root = tmp_path / "root"
    root.mkdir()
    (root / MARK).write_text("")
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(tmp_path / "of the user")
    with pytest.raises(ValueError, match="is a link; remove it"):
        download_dataset([Archive(url=f"{url}/one.zip", sha256="0" * 64)], root)
    assert not asked and not (tmp_path / "of the user").exists()


def test_data_sets_go_below_their_folder(served, tmp_path, monkeypatch):
    folder, url, asked = served
    pack(folder / "one.zip", {"1.jpg": b"1"})
    one = Archive(url=f"{url}/one.zip", sha256=sha256(folder / "one.zip"))
    monkeypatch.setattr("utils.downloads.DATASETS", tmp_path / "datasets")
    for root in (tmp_path / "other", tmp_path, tmp_path / "datasets/../other", tmp_path / "datasets2"):
        with pytest.raises(
            ValueError, match=f"fetched and drawn below {tmp_path}/datasets, .*--download-to {tmp_path}"
        ):
            download_dataset([one], root, "")
    assert not asked
    download_dataset([one], tmp_path / "datasets/one", "")
    download_dataset([one], tmp_path / "other", tmp_path)
    assert (tmp_path / "other/1.jpg").exists() and (tmp_path / "datasets/one/1.jpg").exists()


# --- limits, and where an answer leads --------------------------------------------------------------------------------


@pytest.fixture
def answering():
    """`answering(answer)`: the address of a server that calls answer(handler) for each request."""
    servers = []

    def serve(answer) -> str:
        handler = type("Handler", (http.server.BaseHTTPRequestHandler,), {"do_GET": answer, "log_message": int})
        handler.log_message = lambda *_: None
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/x.zip"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def endless(handler, length=None, pause=0.0):
    handler.send_response(200)
    if length is not None:
        handler.send_header("Content-Length", length)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(1 << 16) if not pause else b"x")
            time.sleep(pause)
    except OSError:  # the client has gone
        pass


SMALL = Limits(1 << 20, 3600)


@pytest.mark.parametrize("length", [None, "1000000000000000"])
def test_a_file_has_a_size(answering, tmp_path, length):
    with pytest.raises(ValueError, match="has more than 1 MB, the limit of such a file; the file was not kept"):
        download(answering(lambda handler: endless(handler, length)), tmp_path / "x", limits=SMALL)
    assert not files_below(tmp_path)


@pytest.mark.parametrize("length", ["abc", "-5", "1_000", "9" * 30, ""])
def test_a_size_that_is_no_number(answering, tmp_path, length):
    with pytest.raises(FileNotFoundError, match=r"could not download .*the server states its size as"):
        download(answering(lambda handler: endless(handler, length)), tmp_path / "x", limits=SMALL)
    assert not files_below(tmp_path)


@pytest.mark.parametrize(
    ("limits", "says"),
    [(Limits(1 << 20, 0.2), "not complete after .* hours"), (Limits(1 << 20, 60, 1e6), "sends fewer than 1000 kB")],
)
def test_a_download_has_a_time(answering, tmp_path, monkeypatch, limits, says):
    monkeypatch.setattr("utils.downloads.SLOW_AFTER", 0.2)
    with pytest.raises(ValueError, match=says):
        download(answering(lambda handler: endless(handler, pause=0.02)), tmp_path / "x", limits=limits)
    assert not files_below(tmp_path)


def test_headers_have_a_time_too(answering, tmp_path):
    def drip(handler):
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while True:
                handler.wfile.write(b"X-A: b\r\n")
                time.sleep(0.1)
        except OSError:
            pass

    with pytest.raises(ValueError, match=r"not complete after .* hours"):
        download(answering(drip), tmp_path / "x", limits=Limits(1 << 20, 0.5))
    assert not files_below(tmp_path)


def test_a_full_disk_is_seen_before(answering, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 1000}))
    with pytest.raises(OSError, match="the disk has 0 MB free"):
        download(answering(lambda handler: endless(handler, "5000")), tmp_path / "x")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://x/"])
def test_redirects_stay_on_the_web(answering, tmp_path, target):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()

    with pytest.raises(FileNotFoundError, match="could not download"):
        download(answering(answer), tmp_path / "x")
    assert not files_below(tmp_path)


def test_no_redirect_from_https_to_http():
    from urllib.request import Request

    from utils.downloads import _SameScheme

    def follow(start, url):
        return _SameScheme().redirect_request(Request(start), None, 302, "Found", {}, url)

    assert follow("http://a/x", "https://b/y").full_url == "https://b/y"
    assert follow("https://a/x", "https://b/y").full_url == "https://b/y"
    with pytest.raises(OSError, match=r"redirected from https to http://\*\*\*@b/y, which is not allowed"):
        follow("https://a/x", "http://u:S3CRET@b/y")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://h/x", "/etc/passwd", "data:,x", "javascript:x"])
def test_only_the_web_is_opened(tmp_path, url):
    with pytest.raises(ValueError, match="must start with http:// or https://"):
        download(url, tmp_path / "x")


def test_nothing_is_written_over(served, tmp_path):
    folder, url, asked = served
    pack(folder / "one.zip", GOOD)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("mine", "link"):
        with pytest.raises(FileExistsError, match="a download does not replace a file"):
            download(f"{url}/one.zip", tmp_path / name)
    assert not asked and (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_an_error_does_not_tell_the_password(tmp_path, caplog):
    with pytest.raises(FileNotFoundError) as error:
        download("http://user:S3C@RET/Geheim@127.0.0.1:9/x?token=S3CRET", tmp_path / "x", timeout=2)
    assert not any(secret in str(error.value) for secret in ("S3C", "RET", "Geheim"))


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
    with pytest.raises(
        FileNotFoundError, match=r"set.yaml: train names .*root/images.*--download data fetches the images"
    ):
        load_dataset_yaml(path)
    assert not asked and not (tmp_path / "root").exists()
    for _ in range(2):
        assert load_dataset_yaml(path, download=True, to=str(tmp_path))["train"] == str(tmp_path / "root/images")
    assert asked == ["/x.zip"] and (tmp_path / "root/images/a.jpg").read_bytes() == b"1"


def test_an_archive_without_the_images_says_so(served, tmp_path, write_yaml):
    folder, url, _ = served
    pack(folder / "x.zip", {"a.jpg": b"1"})
    with pytest.raises(FileNotFoundError, match=r"set.yaml: train names .*root/images, which does not exist"):
        load_dataset_yaml(
            write_yaml(f"[{{url: {url}/x.zip, sha256: {sha256(folder / 'x.zip')}}}]"), download=True, to=str(tmp_path)
        )


def test_known_sets_by_name(tmp_path, write_yaml, monkeypatch):
    fetched = []
    monkeypatch.setattr("utils.data.dataset_yaml.download_dataset", lambda archives, root, to: fetched.extend(archives))
    for text in ("voc2007", "[voc2007, voc2012]"):
        with pytest.raises(FileNotFoundError):
            load_dataset_yaml(write_yaml(text), download=True)
    assert fetched == [*KNOWN_SETS["voc2007"], *KNOWN_SETS["voc2007"], *KNOWN_SETS["voc2012"]]


@pytest.mark.parametrize("text", ["https://x/y.zip", "bash get.sh", "'touch trap'", "|\n  import os\n  os.abort()"])
def test_other_text_is_neither_run_nor_fetched(tmp_path, write_yaml, text):
    with pytest.raises(FileNotFoundError, match="run this yourself"):
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


# --- v6.1's name ------------------------------------------------------------------------------------------------------


def test_official_weights_are_fetched_by_v61s_name(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr("utils.downloads.download", lambda url, path, **limits: fetched.append(url) or path)
    here = tmp_path / "own.pt"
    here.touch()
    assert attempt_download(str(here)) == str(here) and not fetched
    assert google_utils.attempt_download(f"'{tmp_path / 'yolov5s.pt'}'") == str(tmp_path / "yolov5s.pt")
    assert fetched == ["https://github.com/ultralytics/yolov5/releases/download/v6.1/yolov5s.pt"]
    with pytest.raises(FileNotFoundError, match=r"no such file: .*mine\.pt"):
        attempt_download(tmp_path / "mine.pt")
