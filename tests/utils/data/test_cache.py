"""Images in memory are one copy whoever asks, gone with the last process; those on disk never tell old pixels."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from utils.data import cache as cache_module
from utils.data.cache import ImagesOnDisk, SharedImages
from utils.data.dataset import open_dataset
from utils.data.options import LoaderOptions
from utils.files import ROOT, cache_folder

SHAPES = np.array([(4, 5), (1, 1), (7, 3)])


def random_images(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES.tolist()]


def fill(places, seed=0):
    for place, image in zip(places, random_images(seed), strict=True):
        place[:] = image


def never(places):
    raise AssertionError("was filled already")


def holds(images, seed=0):
    return all(np.array_equal(images[i], image) for i, image in enumerate(random_images(seed)))


@pytest.fixture(params=["memfd", "file"])
def kind(request, monkeypatch):
    """Memory without a name, as on Linux, or a temporary file, as elsewhere."""
    if request.param == "file":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif not hasattr(os, "memfd_create"):
        pytest.skip("needs Linux")


def test_one_block_for_all_who_ask(kind):
    first = SharedImages("a", SHAPES, fill)
    second = SharedImages("a", SHAPES, never)
    assert holds(first) and holds(second)
    assert holds(SharedImages("b", SHAPES, lambda places: fill(places, 1)), 1)
    with pytest.raises(ValueError, match="read-only"):
        second[0][0] = 1


def test_a_block_that_is_gone_is_made_again(kind):
    images = SharedImages("a", SHAPES, fill)
    del images
    assert holds(SharedImages("a", SHAPES, lambda places: fill(places, 2)), 2)


def test_a_filling_that_fails_leaves_nothing_behind(kind):
    def fail(places):
        places[0][:] = 9
        raise ValueError("no such image")

    with pytest.raises(ValueError, match="no such image"):
        SharedImages("a", SHAPES, fail)
    assert holds(SharedImages("a", SHAPES, fill))


def test_memory_is_asked_for_before_it_is_taken(kind):
    with pytest.raises(MemoryError):
        SharedImages("a", SHAPES, never, fits=lambda size: size < 100)


def test_no_cache_folder_is_a_warning(kind, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert holds(SharedImages("a", SHAPES, fill))
    assert "other processes cannot use the images of this one" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_not_a_folder_that_cannot_be_written(kind, capsys):
    calls = []

    def read(arrays):
        calls.append(1)
        raise FileNotFoundError("a.jpg")

    with pytest.raises(FileNotFoundError, match=r"a\.jpg"):
        SharedImages("a", SHAPES, read)
    assert len(calls) == 1 and "cannot be written" not in capsys.readouterr().err


def check_in_worker(images, queue):
    queue.put(holds(images))


def test_a_forked_worker_sees_the_block(kind):
    images = SharedImages("a", SHAPES, fill)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=check_in_worker, args=(images, queue))
    worker.start()
    assert queue.get(timeout=60)
    worker.join()


def test_a_spawned_worker_sees_the_block(kind):
    images = SharedImages("a", SHAPES, fill)
    handed = pickle.dumps(images)
    assert len(handed) < 2000  # the way to the pixels, not the pixels
    # what a spawned worker does with it, without its import of all that this file needs
    code = f"import pickle, sys; sys.path[:0] = [{str(ROOT)!r}]; images = pickle.load(sys.stdin.buffer); "
    code += f"[sys.stdout.buffer.write(images[i].tobytes()) for i in range({len(SHAPES)})]"
    worker = subprocess.run([sys.executable, "-c", code], input=handed, capture_output=True, check=True, timeout=60)
    assert worker.stdout == b"".join(image.tobytes() for image in random_images())


PROCESS = f"""
import sys, time
sys.path[:0] = [{str(ROOT)!r}]
import numpy as np
from utils.data.cache import SharedImages
def fill(places):
    print("filled", flush=True)
    time.sleep(0.3)
    places[0][:] = 7
images = SharedImages("shared", np.array([(20, 30)]), fill)
assert (images[0] == 7).all()
print("ready", flush=True)
sys.stdin.read()
"""


def test_processes_that_start_together_fill_once():
    start = [sys.executable, "-c", PROCESS]
    processes = [subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [[iter(p.stdout.readline, "ready\n"), p] for p in processes]
    lines = {p.pid: list(heard) for heard, p in said}
    assert sorted(lines.values()) == [[], [], ["filled\n"]]
    maker = next(p for p in processes if lines[p.pid])
    maker.send_signal(signal.SIGKILL)  # the others still have the block
    maker.wait()
    time.sleep(0.1)
    for process in processes:
        process.communicate()
        assert process.returncode == (-signal.SIGKILL if process is maker else 0)


# --- the images of a dataset ------------------------------------------------------------------------------------------


@pytest.fixture
def entry(write_set, noise_image):
    return str(write_set({f"{i}": noise_image(60, 40 + i, seed=i) for i in range(4)}, {"0": "0 .5 .5 .5 .5"}))


def test_automatic_only_if_there_is_room(entry, monkeypatch, capsys):
    assert open_dataset(entry, LoaderOptions(image_size=64, cache="auto")).store._in_memory is not None
    assert "images are kept in memory: 0.0 GiB of the" in capsys.readouterr().err
    needed = sum(
        image.nbytes for image in (open_dataset(entry, LoaderOptions(image_size=64)).store.load(i) for i in range(4))
    )
    for cache, share in (("auto", 0.5), ("ram", 0.8)):
        monkeypatch.setenv("XDG_CACHE_HOME", os.environ["XDG_CACHE_HOME"] + cache)
        monkeypatch.setattr("utils.data.store.free_memory", lambda share=share: int(needed / share * 0.99))
        assert open_dataset(entry, LoaderOptions(image_size=64, cache=cache)).store._in_memory is None
        assert f"more than {share:.0%} of the" in capsys.readouterr().err


def test_images_that_changed_are_another_block(entry, tmp_path, write_image, noise_image):
    first = open_dataset(entry, LoaderOptions(image_size=64, cache="ram"))
    again = open_dataset(entry, LoaderOptions(image_size=64, cache="ram"))
    assert again.store._in_memory._mark == first.store._in_memory._mark
    write_image(tmp_path / "set" / "images" / "0.png", noise_image(60, 40, seed=9))
    changed = open_dataset(entry, LoaderOptions(image_size=64, cache="ram"))
    assert np.array_equal(changed.store.load(0), open_dataset(entry, LoaderOptions(image_size=64)).store.load(0))
    assert not np.array_equal(changed.store.load(0), first.store.load(0))


def entries_of(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_images_on_disk_are_known_by_their_bytes(entry, tmp_path, write_image, noise_image):
    plain, kept = (
        open_dataset(entry, LoaderOptions(image_size=64)),
        open_dataset(entry, LoaderOptions(image_size=64, cache="disk")),
    )
    images = tmp_path / "set" / "images"
    for _ in range(2):
        assert all(np.array_equal(kept.store.load(i), plain.store.load(i)) for i in range(4))
        assert len(entries_of(cache_folder())) == 4
    assert not [path for path in entries_of(images) if path.suffix != ".png"]  # nothing beside the originals
    # another image in the place of one, with its time of change
    status = os.stat(images / "0.png")
    write_image(images / "0.png", noise_image(60, 40, seed=9))
    os.utime(images / "0.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert np.array_equal(kept.store.load(0), plain.store.load(0))
    open_dataset(entry, LoaderOptions(image_size=32, cache="disk")).store.load(1)  # of another size
    assert len(entries_of(cache_folder())) == 6


def test_a_damaged_entry_is_made_again(entry):
    kept = open_dataset(entry, LoaderOptions(image_size=64, cache="disk"))
    expected = kept.store.load(2)
    (path,) = entries_of(cache_folder())
    path.write_bytes(path.read_bytes()[:-7])
    assert np.array_equal(kept.store.load(2), expected)
    assert path.stat().st_size == expected.nbytes


def test_a_full_disk_is_a_warning_once(entry, monkeypatch, capsys):
    kept = open_dataset(entry, LoaderOptions(image_size=64, cache="disk"))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "atomic_write", full)
    for i in range(4):
        assert kept.store.load(i).shape[0] == 64
    assert capsys.readouterr().err.count("they are read each time") == 1
    monkeypatch.setattr("utils.data.store.shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    assert open_dataset(entry, LoaderOptions(image_size=64, cache="disk")).store._on_disk is None
    assert "not cached" in capsys.readouterr().err


def save_many(seeds):
    disk = ImagesOnDisk("64")
    for seed in seeds:
        data = np.random.default_rng(seed % 5).integers(0, 256, 100, dtype=np.uint8)
        image = np.full((50, 60, 3), seed % 5, np.uint8)
        found = disk.load(data, (50, 60))
        assert found is None or np.array_equal(found, image)
        disk.save(data, image)
    return len(entries_of(cache_folder()))


def test_several_writers_at_once():
    with multiprocessing.get_context("fork").Pool(3) as pool:
        pool.map(save_many, [range(k, k + 40) for k in range(6)])
    assert save_many(range(5)) == 5
