"""detect.py resumed and shared among processes: whatever is killed, the results are those of one undisturbed run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_world import SIZE, boxes_image
from videos import read_video, write_video

from utils import dist
from utils.inference.ledger import RECORD, Ledger
from utils.inference.results import ResultWriter

TESTS = Path(__file__).parents[1]
OPTIONS = {"save_txt": True, "save_conf": True, "save_crop": True, "save_json": True, "save_csv": True}

# Slow enough to be killed on the way; says what it hands to the writing thread.
WORKER = f"""
import json, os, sys, time
sys.path[:0] = [{str(TESTS.parent)!r}, {str(TESTS)!r}]
from pathlib import Path
import detect
from engine import detection
from small_world import SIZE, BrightBoxes
detection.Backend, detection.find_weights = BrightBoxes, lambda name, download: Path(name)
add, seen = detection.ResultWriter.add, open(sys.argv[1], "a", buffering=1)
def slow(self, frame, boxes):
    print(self.stem(frame), file=seen)
    add(self, frame, boxes)
    time.sleep(0.05)
detection.ResultWriter.add = slow
detect.run("bright.pt", imgsz=SIZE, device="cpu", **json.loads(sys.argv[2]))
"""


def start(rank: int, log: str, **options) -> subprocess.Popen:
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}
    environment.pop("MASTER_ADDR", None)
    return subprocess.Popen([sys.executable, "-c", WORKER, log, json.dumps(options)], env=environment)


def lines(path: str | Path) -> list[str]:
    return Path(path).read_text().split() if Path(path).exists() else []


def shots(n: int) -> list[np.ndarray]:
    return [boxes_image((8 + i % 8, 10, 30 + i % 8, 40), (50, 20, 90, 52)) for i in range(n)]


def make_files() -> None:
    """Six images (places 0 to 5, of which 4 is damaged), and two videos (6, 7)."""
    for i, image in enumerate(shots(6)):
        Path("in").mkdir(exist_ok=True)
        cv2.imencode(".png", image)[1].tofile(f"in/p{i}.png")
    Path("in/p4.png").write_bytes(b"no image")
    for name in ("v", "w"):
        write_video(Path(f"in/{name}.avi"), shots(12))


def contents(folder: Path) -> dict[str, bytes | int]:
    """What each file holds; of videos the number of frames."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {
        p.relative_to(folder).as_posix(): len(read_video(p)[0]) if p.suffix == ".mp4" else p.read_bytes() for p in files
    }


def recorded(folder: Path) -> set[str]:
    """Stems of the files that the journals call done."""
    ledger = Ledger(folder)
    return {Path(ledger.sources[i].name).stem for i, place in ledger.positions.items() if place}


def in_journals(folder: Path, text: bytes) -> bool:
    return any(text in path.read_bytes() for path in (folder / RECORD).glob("journal-*"))


def test_killed_and_resumed_it_is_one_undisturbed_run(detected, here):
    make_files()
    expected = contents(detected("in", name="alone", **OPTIONS))
    assert {"p0.png", "labels/v_12.txt", "crops/red/v12.jpg", "w.mp4", "predictions.csv"} <= expected.keys()
    assert "p4.png" not in expected and expected["v.mp4"] == 12

    together = dict(OPTIONS, source="in", resume="out/together")
    processes = [start(rank, f"seen{rank}", **together) for rank in (0, 1)]
    try:
        deadline = time.monotonic() + 120
        while not in_journals(here / "out/together", b'{"source": 7, "frame": 3,') and time.monotonic() < deadline:
            time.sleep(0.005)  # until it is in the middle of its video, w
        os.kill(processes[1].pid, signal.SIGKILL)
        assert processes[0].wait(120) == 0 and processes[1].wait(120) == -signal.SIGKILL
    finally:
        for process in processes:
            process.kill()
    folder = here / "out/together"
    before, done = lines("seen0") + lines("seen1"), recorded(folder)
    assert 3 + 3 <= len(lines("seen1")) < 3 + 12
    assert {"p0", "p1", "p2", "p3", "v"} <= done and "w" not in done
    assert not (folder / "predictions.json").exists() and (folder / RECORD).exists()

    again = start(0, "seen2", resume="out/together")  # half of what is left, which is nothing; then the other half
    assert again.wait(120) == 0 and lines("seen2") == []
    again = start(1, "seen3", resume="out/together", batch_size=3)
    assert again.wait(120) == 0
    assert contents(folder) == expected
    assert not any(name.startswith(".") for name in os.listdir(folder))

    after = Counter(lines("seen3"))
    assert not {name for name in after if name.split("_")[0] in done}  # nothing that was done is done again
    assert {f"w_{i}" for i in range(1, 13)} <= after.keys() and set(after.values()) == {1}
    assert max(Counter(before).values()) == 1


def test_an_interrupted_run_goes_on(detected, here, monkeypatch, capsys):
    make_files()
    expected = contents(detected("in", name="alone", **OPTIONS))
    write, count = ResultWriter._write, []

    def stopped(self, frame, boxes):
        count.append(frame)
        if len(count) == 4:
            raise KeyboardInterrupt(signal.SIGTERM)
        write(self, frame, boxes)

    monkeypatch.setattr(ResultWriter, "_write", stopped)
    with pytest.raises(KeyboardInterrupt):
        detected("in", name="stopped", **OPTIONS)
    folder = here / "out/stopped"
    assert f"--resume '{Path('out/stopped')}'" in capsys.readouterr().err
    assert len({row["file"] for row in json.loads((folder / "predictions.json").read_text())}) == 3
    journal = next((folder / RECORD).glob("journal-*"))
    journal.write_bytes(journal.read_bytes() + b'{"source": 5, "do')  # as a kill in the middle of a line leaves it
    (folder / ".p5.png.x1.part").write_bytes(b"half")
    monkeypatch.setattr(ResultWriter, "_write", write)

    with pytest.raises(ValueError, match=r"--conf-thres is 0.5, but the run in .* was begun with 0.25; leave the opti"):
        detected(resume=folder, conf_thres=0.5)
    detected(resume=folder, batch_size=2)
    assert contents(folder) == expected
    with pytest.raises(ValueError, match="holds no unfinished run of detect; to begin a run, leave --resume out"):
        detected(resume=folder)


# options a run is begun with, options of the call that resumes it, what the error says
RESUMED = [
    ({}, {"source": "in", "conf_thres": 0.25}, None),  # given, and equal to a default
    ({}, {"imgsz": (SIZE, SIZE), "nosave": False, "data": None}, None),
    ({"conf_thres": 0.4, "classes": (0, 1)}, {"classes": [0, 1]}, None),
    ({"data": Path("names.yaml")}, {"data": Path("names.yaml")}, None),
    ({}, {"device": "", "view_img": False, "project": "elsewhere", "name": "other", "batch_size": 3}, None),
    ({"conf_thres": 0.4}, {"conf_thres": 0.25}, "--conf-thres is 0.25, but the run in out/exp was begun with 0.4"),
    ({"save_txt": True}, {"save_txt": False}, "--save-txt is False, but the run in out/exp was begun with True"),
    ({}, {"source": "data/images"}, "--source is data/images, but the run in out/exp was begun with in"),
    ({}, {"imgsz": SIZE + 32}, f"--imgsz is [{SIZE + 32}, {SIZE + 32}], but the run in out/exp was begun with"),
    ({}, {"data": "data/shapes.yaml"}, "--data is data/shapes.yaml, but the run in out/exp was begun with None"),
]


def interrupt(monkeypatch, detected, **begun):
    """Begins a run on the files here that ends before its second frame is written."""
    make_files()
    write, count = ResultWriter._write, []

    def stopped(self, frame, boxes):
        count.append(frame)
        if len(count) == 2:
            raise KeyboardInterrupt
        write(self, frame, boxes)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ResultWriter, "_write", stopped)
        detected("in", **begun)


def test_one_side_in_the_record_of_a_run_is_both(detected, here, monkeypatch):
    interrupt(monkeypatch, detected)
    (record,) = (here / "out/exp").rglob("run.json")
    content = json.loads(record.read_text())
    assert content["options"]["imgsz"] == [SIZE, SIZE]
    content["options"]["imgsz"] = [SIZE]
    record.write_text(json.dumps(content))
    detected(resume="out/exp")
    with pytest.raises(ValueError, match="no unfinished run"):
        detected(resume="out/exp")


@pytest.mark.parametrize(("begun", "given", "says"), RESUMED)
def test_options_given_to_a_resumed_run_must_be_those_it_was_begun_with(
    detected,
    here,
    monkeypatch,
    begun,
    given,
    says,
):
    interrupt(monkeypatch, detected, **begun)
    if says:
        with pytest.raises(ValueError) as error:
            detected(resume="out/exp", **given)
        assert says in str(error.value)
        assert (here / "out/exp" / RECORD).exists()
    else:
        assert detected(resume="out/exp", **given) == Path("out/exp")
        assert not (here / "out/exp" / RECORD).exists()


def test_to_begin_a_run_in_a_folder_its_source_is_given(detected, here):
    with pytest.raises(ValueError, match="there is no such folder; to begin a run in it, give its --source"):
        detected(resume="out/new")
    folder = here / "data/images"
    folder.mkdir(parents=True)
    cv2.imencode(".png", boxes_image())[1].tofile(folder / "a.png")
    assert os.listdir(detected("data/images", resume="out/new")) == ["a.png"]  # the default, but given


def test_what_cannot_be_shared(detected, here, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    make_files()
    with pytest.raises(ValueError, match="only files can be resumed or shared among processes"):
        detected("0")
    with pytest.raises(ValueError, match="--track follows objects from image to image"):
        detected("in", track=True)
    with pytest.raises(ValueError, match="start them with torchrun, or give all of them the same --resume FOLDER"):
        detected("in")
    assert sorted(os.listdir(here)) == ["in"]


def test_files_of_which_none_can_be_read(detected, here, monkeypatch):
    for name in "abc":
        Path(f"{name}.png").write_bytes(b"no image")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        if rank == "1":
            with pytest.raises(ValueError, match="none of the 3 files of this run can be read"):
                detected("*.png", resume="run")
        else:
            detected("*.png", resume="run")


def test_the_first_process_tells_the_others_through_the_store(monkeypatch):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 0, "WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    dist._rendezvous.cache_clear()
    assert dist.agree(lambda: "runs/detect/exp7") == "runs/detect/exp7"
    dist._rendezvous.cache_clear()


# --- the folder of a run that comes from elsewhere --------------------------------------------------------------------


@pytest.fixture
def unfinished(detected, here, monkeypatch):
    """`unfinished(**options)`: a run that was stopped, with these changes to its recorded options."""

    def make(**options) -> Path:
        make_files()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(ResultWriter, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            detected("in")
        file = here / "out/exp" / RECORD / "run.json"
        record = json.loads(file.read_text())
        file.write_text(json.dumps({**record, "options": {**record["options"], **options}}))
        return here / "out/exp"

    return make


def test_a_received_run_decides_only_its_results(detected, unfinished, monkeypatch):
    import detect
    from engine import detection

    seen = []
    real = detection._load_detector
    monkeypatch.setattr(detection, "_load_detector", lambda opt, streams: (seen.append(opt), real(opt, streams))[1])
    foreign = {
        "download": True,
        "update": True,
        "device": "7",
        "project": "/etc",
        "trust_weights": True,
        "view_img": True,
    }
    detected(resume=unfinished(**foreign, exist_ok=True, name="x", batch_size=99, conf_thres=0.5))
    usual = vars(detect.parse_opt(known=True)) | {"device": "cpu", "project": "out"}
    assert seen[-1].conf_thres == 0.5
    assert {name: getattr(seen[-1], name, None) for name in foreign} == {name: usual.get(name) for name in foreign}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"conf_thres": 7}, "--conf-thres must be between 0 and 1, got 7"),
        ({"imgsz": ["a"]}, "--imgsz must be a whole number"),
        ({"save_txt": "yes"}, "--save-txt must be True or False"),
        ({"source": {"a": 1}}, "--source must be str"),
        ({"weights": [1]}, "--weights must be str"),
    ],
)
def test_options_of_another_type_are_refused(detected, unfinished, changes, says):
    folder = unfinished(**changes)
    with pytest.raises(ValueError) as error:
        detected(resume=folder)
    assert says in str(error.value) and "run.json: one of its options is wrong: " in str(error.value)


@pytest.mark.parametrize("name", ["labels", "crops/red", "p1.png", f"{RECORD}/journal-x", "predictions.json"])
def test_a_link_in_a_received_folder_leads_nowhere(detected, unfinished, here, name):
    folder = unfinished(save_txt=True)
    (here / "of the user").mkdir()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(here / "of the user")
    with pytest.raises(ValueError, match=f"{Path(name).name} is a link, a pipe or a device"):
        detected(resume=folder)
    assert not list((here / "of the user").iterdir())
