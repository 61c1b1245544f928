"""What all command lines share: what goes wrong ends in one message, and leaves no file behind.

Everything runs in folders whose names have blanks and letters beyond ASCII.
"""

import errno
import http.client
import inspect
import io
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from small_world import SIZE, boxes_image, full_disk, label_text, labels_in, write_set

import detect
import train
import val

ROOT = Path(train.__file__).parent
VERBS = {"train": train, "val": val, "detect": detect}

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize(
    ("verb", "arguments", "says"),
    [
        ("train", ["--imgsz", 0], "--imgsz must be at least 1, got 0"),
        ("train", ["--imgsz", -5], "--imgsz must be at least 1, got -5"),
        ("val", ["--imgsz", 0], "image size must be positive, got 0; give --imgsz a multiple of 32"),
        ("detect", ["--imgsz", 64, -1], "image size must be positive, got [64, -1]"),
        ("detect", ["--imgsz", 64, 64, 64], "--imgsz takes one number, or height and width"),
        ("train", ["--batch-size", 0], "--batch-size must be at least 1, or -1 to fill the GPU, got 0"),
        ("val", ["--batch-size", 0], "--batch-size must be at least 1, got 0"),
        ("val", ["--conf-thres", 2], "--conf-thres must be between 0 and 1, got 2.0"),
        ("detect", ["--conf-thres", 2], "--conf-thres must be between 0 and 1, got 2.0"),
        ("detect", ["--conf-thres", "nan"], "--conf-thres must be between 0 and 1, got nan"),
        ("detect", ["--iou-thres", -0.1], "--iou-thres must be between 0 and 1, got -0.1"),
        ("detect", ["--max-det", 0], "--max-det must be at least 1, got 0"),
        ("detect", ["--line-thickness", -1], "--line-thickness must be at least 0"),
        ("detect", ["--classes", 0, 2], ["--classes", "has classes 0 to 1, got [2]"]),
        ("detect", ["--classes", -1], "got [-1]"),
        ("detect", ["--classes", "person"], ["--classes", "has no class called 'person'; it has"]),
        ("train", ["--device", 99], "--device 99"),
        ("val", ["--device", 99], "--device 99"),
        ("detect", ["--device", "nonsense"], "--device must be cpu, mps or GPU numbers such as 0 or 0,1"),
        ("train", ["--epochs", -1], "--epochs must be at least 0, got -1"),
        ("train", ["--workers", -1], "--workers must be at least 0, got -1"),
        ("val", ["--workers", -1], "--workers must be at least 0, got -1"),
        ("val", ["--report-images", -1], "--report-images must be at least 0, got -1"),
        ("train", ["--label-smoothing", 1], "--label-smoothing must be at least 0 and below 1"),
        ("train", ["--freeze", 99], "--freeze: the model has layers 0 to 7, got [99]"),
        ("train", ["--freeze", 8], "got [8]"),  # would freeze all of them
        ("train", ["--freeze", 3, 8], "got [8]"),
        ("train", ["--freeze", *range(8)], "nothing is left to train; name fewer layers"),
        ("train", ["--freeze", "model."], "nothing is left to train; name fewer layers"),
        ("train", ["--freeze", -1], "got [-1]"),
        ("train", ["--freeze", "model.1.", 99], "got [99]"),
        ("train", ["--freeze", 2, "backbone", "model.7"], "no parameter's name starts with ['backbone']; names look"),
        ("train", ["--freeze", "odel.1"], "no parameter's name starts with ['odel.1']; names look like model.0.conv."),
        ("train", ["--amp", "fp16"], "--amp fp16 needs a CUDA GPU, but training runs on cpu; use bf16 or off"),
        ("train", ["--device", "0,1,2"], "torchrun --nproc-per-node 3 train.py --device 0,1,2 ..."),
        ("train", ["--time", -1], "--time must be at least 0, got -1.0"),
        ("train", ["--fraction", 0], "--fraction must be above 0 and at most 1, got 0.0"),
        ("train", ["--image-weights", "--rect"], "--image-weights draws images in any order, --rect orders"),
        ("val", ["--task", "test"], ["my set.yaml", "key 'test' is missing"]),
        ("train", ["--cfg", ""], "there is no model to train: give --cfg models/SOCA.yaml, or --weights"),
    ],
)
def test_a_value_that_makes_no_sense(refused, verb, arguments, says):
    refused(verb, *arguments, says=says)


@pytest.mark.parametrize(
    ("verb", "arguments", "says"),
    [
        ("train", ["--optimizer", "Lion"], "invalid choice: 'Lion'"),
        ("train", ["--epochs", "many"], "invalid int value: 'many'"),
        ("val", ["--task", "nonsense"], "invalid choice: 'nonsense'"),
        ("detect", ["--conf-thres", "high"], "invalid float value: 'high'"),
        ("detect", ["--confidence", "1"], "unrecognized arguments: --confidence 1"),
        ("detect", ["--save"], "ambiguous option: --save could match"),
        ("train", ["--amp", "half"], "invalid choice: 'half'"),
        ("train", ["--bucket", "gs://mine"], "--bucket is not an option any more: machines share a search through"),
    ],
)
def test_a_word_that_argparse_refuses(refused, verb, arguments, says):
    refused(verb, *arguments, says=says, code=2)


@pytest.mark.parametrize(
    ("verb", "arguments", "name", "value"),
    [
        ("train", ["--batch", "8"], "batch_size", 8),
        ("train", ["--img", "64"], "imgsz", 64),
        ("train", ["--img-size", "64"], "imgsz", 64),
        ("train", ["--label", "0.1"], "label_smoothing", 0.1),
        ("train", ["--freeze", "1", "2"], "freeze", [1, 2]),
        ("train", ["--cache"], "cache", "ram"),
        ("train", ["--entity", "me"], "entity", "me"),
        ("val", ["--conf", "0.1"], "conf_thres", 0.1),
        ("val", ["--iou", "0.5"], "iou_thres", 0.5),
        ("val", ["--img-size", "64"], "imgsz", 64),
        ("val", ["--weights", "a.pt", "b.pt"], "weights", ["a.pt", "b.pt"]),
        ("detect", ["--conf", "0.1"], "conf_thres", 0.1),
        ("detect", ["--img", "64", "96"], "imgsz", [64, 96]),
        ("detect", ["--line", "1"], "line_thickness", 1),
    ],
)
def test_shortened_and_alternative_flags(monkeypatch, verb, arguments, name, value):
    monkeypatch.setattr(sys, "argv", [f"{verb}.py", *arguments])
    assert getattr(VERBS[verb].parse_opt(), name) == value


@pytest.mark.parametrize("verb", VERBS)
def test_an_image_size_is_rounded_up_to_the_stride(verb, usual, command, bright, here):
    (here / "a file").write_text("stops the command once everything is checked")
    code, err = command(verb, *usual[verb], "--imgsz", 70, "--project", "a file")
    assert code == 1 and "a file has its name" in err
    assert "is not a multiple of the model's stride 32" in err and "; using " in err


@pytest.mark.parametrize("verb", ["train", "val"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"nc": 3}, "nc is 3 but names has 2 entries; they must agree"),
        ({"nc": None, "names": None}, "keys 'nc' and 'names' are missing"),
        ({"names": {1: "a", 2: "b"}}, "the keys of names must be 0 to 1, got [1, 2]"),
        ({"names": ["a", True]}, "names[1] must be text, got True; put it in quotes"),
        ({"val": None}, "key 'val' is missing; give a folder of images or a list file"),
        ({"val": 7}, "val must be a path or a list of paths, got 7"),
        ({"val": "images/none"}, ["val names ", "images/none, which does not exist"]),
        ({"val": "images/none", "download": "touch pwned"}, ["run this yourself", "touch pwned"]),  # nothing is run
    ],
)
def test_a_data_yaml_with_a_fault(refused, variant, verb, changes, says):
    assert "data variant.yaml" in refused(verb, "--data", variant(**changes), says=says)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty folder", None, "no images in "),
        ("nothing.txt", "", "no images in "),
        ("words.txt", "hello\nworld\n", "an image file ends in bmp, dng, jpeg"),
        ("lost.txt", "/nowhere/a.jpg\n/nowhere/b.jpg\n", ["none of 2 images can be used", "/nowhere/a.jpg"]),
    ],
)
@pytest.mark.parametrize("verb", ["train", "val"])
def test_a_data_set_without_images(refused, variant, here, verb, name, content, says):
    (here / name).mkdir() if content is None else (here / name).write_text(content)
    assert name in refused(verb, "--data", variant(train=str(here / name), val=str(here / name)), says=says)


@pytest.mark.parametrize("verb", ["train", "val"])
def test_a_class_beyond_the_data_sets(refused, variant, here, verb):
    text = label_text((0, 8, 10, 30, 40), (2, 50, 20, 90, 52))
    folder = write_set(here / "set", {"a.png": (boxes_image(), text)})
    data = variant(train=str(folder), val=str(folder))
    refused(verb, "--data", data, says=["labels/train/a.txt:2: class must be a whole number, 0 to 1, got 2"])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def broken_weights(kind: str, good: bytes) -> bytes:
    """The bytes of a file that is no checkpoint of a detector."""
    content = {"nothing": b"", "text": b"hello world", "half": good[: len(good) // 2]}
    if kind in content:
        return content[kind]
    objects = {
        "evil": {"model": Evil()},
        "state": {"model": {"0.weight": torch.zeros(1)}},
        "tensors": {"0.weight": torch.zeros(1)},
        "other": {"model": torch.nn.Linear(2, 2)},
        "list": [1, 2],
    }
    buffer = io.BytesIO()
    torch.save(objects[kind], buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nothing", "an empty file; copy or download it again"),
        ("text", "cannot be read as a checkpoint (damaged, incomplete or another kind of file)"),
        ("half", "cannot be read as a checkpoint (damaged, incomplete or another kind of file)"),
        ("evil", ["refused, no code was executed: the file uses", "mkdir"]),
        ("state", "not a detector's checkpoint: expected a dict with a `model` module"),
        ("tensors", "not a detector's checkpoint"),
        ("other", "holds a Linear, not a detector of this family"),
        ("list", "not a detector's checkpoint: expected a dict with a `model` module, found a list"),
    ],
)
def test_weights_that_are_none(refused, world, here, verb, kind, says):
    file = here / "my weights.pt"
    file.write_bytes(broken_weights(kind, world.best.read_bytes()))
    assert "my weights.pt: " in refused(verb, "--weights", file, says=says)
    assert not (here / "executed").exists()


@pytest.mark.parametrize("verb", ["val", "detect"])
def test_default_weights_are_not_there_for_use(command, usual, here, world, verb):
    arguments = usual[verb].copy()
    at = arguments.index("--weights")
    del arguments[at : at + 2]
    code, err = command(verb, *arguments)
    assert code == 1 and f"{verb}: error: no such weights: yolov5s.pt; train a model" in err
    for name, time in (("exp", 1_000_000), ("exp2", 3_000_000), ("exp3", 2_000_000)):
        best = here / "runs/train" / name / "weights/best.pt"
        best.parent.mkdir(parents=True)
        best.write_bytes(b"")
        os.utime(best, (time, time))
    code, err = command(verb, *arguments)
    newest = (here / "runs/train/exp2/weights/best.pt").resolve()
    assert code == 1 and f"no such weights: yolov5s.pt; your newest trained weights are {newest}" in err
    assert not (here / "out").exists()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["yolov5s.pt", "mine.pt", "."])
def test_weights_asked_for_by_name_are_not_there(refused, verb, name):
    refused(verb, "--weights", name, says=f"no such weights: {name}")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("Name or service not known"),
        TimeoutError("timed out"),
        http.client.RemoteDisconnected("Remote end closed connection"),
        "cut short",
    ],
    ids=str,
)
def test_download_without_a_network(refused, monkeypatch, verb, failure):
    class CutShort(io.BytesIO):
        headers = {"Content-Length": "1000"}  # noqa: RUF012

    def open_url(self, url, timeout):
        if failure == "cut short":
            return CutShort(b"x" * 10)
        raise failure

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", open_url)
    says = ["could not download https://", "yolov5s.pt", "download it yourself and save it as yolov5s.pt"]
    says.append("10 of 1000 bytes" if failure == "cut short" else str(failure))
    refused(verb, "--weights", "yolov5s.pt", "--download", says=says)


def test_nothing_is_downloaded_unless_asked(refused, monkeypatch):
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", None)
    refused("detect", "--weights", "yolov5s.pt", says="no such weights")
    refused("detect", "--weights", "mine.pt", "--download", says=["no such file: mine.pt", "yolov5s.pt"])


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["--project", "--name", "--exist-ok"])
def test_a_file_where_the_folder_should_be(refused, here, verb, flag):
    (here / "a file").write_text("mine")
    arguments = {
        "--project": ["--project", "a file"],
        "--name": ["--project", "a file/deeper", "--name", "x"],
        "--exist-ok": ["--project", ".", "--name", "a file", "--exist-ok"],
    }
    refused(verb, *arguments[flag], says=["a file", "cannot create this folder: a file has its name"])
    assert (here / "a file").read_text() == "mine"


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_that_may_not_be_written(refused, monkeypatch, verb):
    def mkdir(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    refused(verb, says="Permission denied: 'out'")


@pytest.mark.parametrize("verb", ["val", "detect"])
def test_a_full_disk_while_writing_results(command, usual, here, monkeypatch, bright, verb):
    def write(self, data):
        full_disk()

    class File(io.FileIO):
        pass

    File.write = write
    monkeypatch.setattr(os, "fdopen", lambda handle, *a, **k: File(handle, "w"))
    code, err = command(verb, *usual[verb])
    assert code == 1 and "Traceback" not in err
    message = err.partition(f"{verb}: error: ")[2]
    assert "No space left on device: 'out/exp/" in message
    assert not [p for p in (here / "out").rglob("*") if p.is_file()]


def test_run_folders_count_up(command, usual, bright, here):
    for _ in range(3):
        assert command("detect", *usual["detect"], "--nosave")[0] == 0
    assert sorted(os.listdir("out")) == ["exp", "exp2", "exp3"]
    assert command("detect", *usual["detect"], "--exist-ok", "--save-txt")[0] == 0
    assert command("detect", *usual["detect"], "--exist-ok", "--save-txt")[0] == 0
    assert sorted(os.listdir("out")) == ["exp", "exp2", "exp3"]
    assert {len(labels_in(p)) for p in (here / "out/exp/labels").iterdir()} == {2}  # written anew, not doubled
    assert command("val", *usual["val"], "--name", "größer v1.0")[0] == 0
    assert command("val", *usual["val"], "--name", "größer v1.0")[0] == 0
    assert sorted(os.listdir("out")) == ["exp", "exp2", "exp3", "größer v1.0", "größer v1.02"]


def test_python_calls_from_another_folder(world, here, monkeypatch):
    """`world` was trained by such a call; paths are those of the current folder, not of the repository."""
    assert world.results._fields[:4] == ("precision", "recall", "map50", "map") and len(world.results) == 7
    results, maps, times = val.run(world.data, world.best, imgsz=SIZE, workers=0, device="cpu")
    assert len(results) == 7 and maps.shape == (2,) and len(times) == 3
    assert world.results[:4] == pytest.approx(results[:4], rel=1e-4)
    assert (here / "runs/val/exp/confusion_matrix.png").is_file()
    folder = detect.run(world.best, world.images, imgsz=SIZE, device="cpu", classes=1, conf_thres=0.001)
    assert folder.resolve() == (here / "runs/detect/exp").resolve() and len(os.listdir(folder)) == 4
    assert len(os.listdir(detect.run([world.best], str(world.images), imgsz=(64, 96), device="cpu"))) == 4
    with pytest.raises(ValueError, match="--conf-thres must be between 0 and 1"):
        detect.run(world.best, world.images, conf_thres=2)
    with pytest.raises(FileNotFoundError, match="no such weights"):
        detect.run(source=world.images)


def test_python_calls_are_refused_before_anything_is_written(world, here):
    for run, options, kind, says in (
        (detect.run, {"conf_three": 0.5}, TypeError, "there is no option 'conf_three'; did you mean 'conf_thres'?"),
        (detect.run, {"max_det": 0}, ValueError, "--max-det must be at least 1, got 0"),
        (detect.run, {"vid_stride": 1.5}, ValueError, "--vid-stride must be a whole number, got 1.5"),
        (detect.run, {"imgsz": (64, 64, 64)}, ValueError, "--imgsz takes one number, or height and width"),
        (val.run, {"task": "nonsense"}, ValueError, "--task must be one of train, val, test, speed, study, benchmark"),
        (val.run, {"report": "everything"}, ValueError, "--report must be one of sizes, errors, page, got"),
    ):
        with pytest.raises(kind) as error:
            run(weights=world.best, **options)
        assert says in str(error.value)
    assert not os.listdir(here)


def test_options_of_a_python_call_may_be_paths(world, bright, here):
    """Those of several files, too, which the record of an unfinished run holds."""
    folder = detect.run(
        world.best, world.images, data=Path(world.data), project=Path("out"), name=Path("a"), imgsz=SIZE, device="cpu"
    )
    assert folder == Path("out/a") and len(os.listdir(folder)) == 4
    val.run(Path(world.data), [Path(world.best)], imgsz=SIZE, workers=0, device="cpu", project=Path("out"), plots=False)
    assert (here / "out/exp").is_dir()


def test_help_of_the_functions_shows_every_option():
    """Names and defaults are the command line's; in Python, as in v6.1, val takes half precision by default."""
    for verb, first, differs in (("detect", ["weights", "source"], {}), ("val", ["data", "weights"], {"half": True})):
        shown = inspect.signature(VERBS[verb].run).parameters
        expected = {**vars(VERBS[verb].parse_opt(known=True)), **differs}
        assert list(shown)[:2] == first and expected.items() <= {n: p.default for n, p in shown.items()}.items()
        assert all(f"    {name}: " in VERBS[verb].run.__doc__ for name in expected)
    own = {"model": None, "dataloader": None, "save_dir": Path(""), "plots": True, "callbacks": None}
    assert own.items() <= {n: p.default for n, p in shown.items()}.items()


def from_elsewhere(verb: str, *arguments) -> subprocess.CompletedProcess:
    """The command run by its absolute path, in a process of its own, in the current folder."""
    command = [sys.executable, str(ROOT / f"{verb}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)


def test_the_commands_run_from_any_folder(world, here):
    """Imports and default files come from the repository, results go to the current folder."""
    names = set(os.listdir(ROOT))
    arguments = ["--cfg", world.cfg, "--weights", "", "--data", world.data, "--img", SIZE, "--epochs", 1, "--batch", 4]
    done = from_elsewhere("train", *arguments, "--workers", 0, "--device", "cpu", "--noautoanchor")
    assert done.returncode == 0, done.stderr
    best = here / "runs/train/exp/weights/best.pt"
    assert best.is_file()
    done = from_elsewhere("detect", "--weights", best, "--source", world.images, "--img", SIZE, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert len(os.listdir(here / "runs/detect/exp")) == 4
    assert set(os.listdir(ROOT)) == names


def test_an_error_in_a_process_of_its_own(world, here):
    done = from_elsewhere("val", "--weights", "none.pt", "--data", world.data)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("val: error: no such weights: none.pt; ")
    assert "Traceback" not in done.stderr and not os.listdir(here)
