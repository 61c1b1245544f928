"""What pip installs: the whole tree under one name, which leaves the user's modules and folders alone."""

import ast
import os
import pickletools
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from small_world import SMALLEST, boxes_image, write_boxes, write_yaml

import train
import yolov5_soca
from hatch_build import NAMES, rewrite, write_package
from models.backend import load_model
from utils.drawing import write_image

ROOT = Path(yolov5_soca.__file__).parent


def build(target: Path) -> Path:
    """Builds the wheel of this checkout without a network; returns the folder of what is in it."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    before = {p for p in ROOT.rglob("*") if "__pycache__" not in p.parts}
    subprocess.run([*command, "-w", target, ROOT], check=True, cwd=target)
    # other tests run at the same time, and their runner keeps a cache
    new = {p for p in ROOT.rglob("*") if "__pycache__" not in p.parts} - before
    assert not [p for p in new if p.name in ("build", "dist") or ".egg-info" in p.name or p.suffix == ".py"]
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target / "site")
    return target / "site"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def run(site: Path, folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess:
    """Runs Python in a folder, with the package among the installed ones."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "PYTHONPYCACHEPREFIX": str(site.parent / "pyc"),
        "COLUMNS": "120",
    }
    ended = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended


def test_the_wheel_holds_the_tree_under_one_name(site):
    assert {p.name for p in site.iterdir()} == {"yolov5_soca", f"yolov5_soca-{yolov5_soca.__version__}.dist-info"}
    package = site / "yolov5_soca"
    tracked = [p for room in ("engine", "models", "tools", "utils") for p in (ROOT / room).rglob("*.*")]
    tracked += [*(ROOT / "data").glob("*.yaml"), *(ROOT / "data/hyps").iterdir(), *(ROOT / "data/images").iterdir()]
    expected = {p.relative_to(ROOT) for p in tracked if "__pycache__" not in p.parts and p.is_file()}
    expected |= {Path("commands", f"{verb}.py") for verb in ("__init__", "train", "val", "detect", "export")}
    expected |= {Path(name) for name in ("__init__.py", "__main__.py", "hubconf.py", "requirements.txt")}
    assert {p.relative_to(package) for p in package.rglob("*") if p.is_file()} == expected
    for path in expected:
        if path.suffix in (".yaml", ".jpg", ".mjs"):
            assert (package / path).read_bytes() == (ROOT / path).read_bytes()


def test_the_wheel_says_what_it_needs_and_offers(site):
    (info,) = site.glob("*.dist-info")
    lines = (info / "METADATA").read_text().splitlines()
    requirements = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1].isalpha()]
    assert len(requirements) >= 9
    assert [line[15:] for line in lines if line.startswith("Requires-Dist: ") and "extra ==" not in line] == sorted(
        requirements
    )
    assert f"Version: {yolov5_soca.__version__}" in lines and "Provides-Extra: onnx" in lines
    assert "yolov5-soca = yolov5_soca:main" in (info / "entry_points.txt").read_text()


def test_no_file_of_the_package_imports_a_name_of_the_users(site):
    seen = 0
    for path in (site / "yolov5_soca").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            seen += any(name.startswith("yolov5_soca.") for name in names)
            assert not {name.split(".")[0] for name in names} & set(NAMES), (path, node.lineno)
    assert seen > 500


PROGRAM = """
import sys
import models, train, utils  # the program's own
import yolov5_soca as y
options = dict(imgsz=96, workers=0, device="cpu")
result = y.train(data="d.yaml", cfg="m.yaml", weights="", epochs=1, batch_size=4, noval=True, **options)
assert 0 <= result.map50 <= 1, result
best = "runs/train/exp/weights/best.pt"
numbers, maps, times = y.val(weights=best, data="d.yaml", batch_size=4, conf_thres=0.01, **options)
assert len(maps) == 2 and len(times) == 3
assert str(y.detect(weights=best, source="a.png", imgsz=96, device="cpu")).endswith("exp")
detections = y.load(best, device="cpu")("a.png", size=96)
assert detections.xyxy[0].shape[1] == 6 and len(detections) == 1
import copy, pickle
from yolov5_soca.models.common import AutoShape, DetectMultiBackend, Detections  # v6.1's names for other people
assert pickle.loads(pickle.dumps(AutoShape)) is AutoShape
try:
    y.train(epoch=1)
except TypeError as error:
    assert "did you mean 'epochs'" in str(error)
assert utils.mine and models.mine and train.mine and "utils.cli" not in sys.modules
assert not [path for path in sys.path if path.endswith("yolov5_soca")]
names = {name.split(".")[0] for name in sys.modules if getattr(sys.modules[name], "__file__", None)}
assert not names & {"engine", "tools", "val", "detect", "export", "hubconf"}
"""


def test_a_program_with_modules_of_the_same_names_uses_the_package(site, here):
    """Training, measuring and detecting; the checkpoint is that of the checkout, to the bit."""
    (here / "utils").mkdir()
    for name in ("utils/__init__.py", "models.py", "train.py"):
        (here / name).write_text("mine = True\n")
    write_yaml(here / "d.yaml", write_boxes(here / "boxes"))
    write_yaml(here / "m.yaml", {**SMALLEST, "nc": 2})
    write_image("a.png", boxes_image())
    before = {p: p.stat().st_mtime_ns for p in site.rglob("*")}
    run(site, here, "-c", PROGRAM)
    assert {p: p.stat().st_mtime_ns for p in site.rglob("*")} == before
    assert {p.name for p in (here / "runs").iterdir()} == {"train", "val", "detect"}

    train.run(
        data="d.yaml", cfg="m.yaml", weights="", epochs=1, batch_size=4, noval=True, imgsz=96, workers=0,
        device="cpu", project="own",
    )  # fmt: skip
    files = "runs/train/exp/weights/best.pt", "own/exp/weights/best.pt"
    theirs, ours = (load_model(file, fuse=False) for file in files)
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in theirs.state_dict().items())
    assert [layer.type for layer in theirs.model] == [layer.type for layer in ours.model]
    assert named(files[0]) == named(files[1]) >= {"models.yolo Model", "models.common SOCA"}


def named(checkpoint: str) -> set[str]:
    """Returns the classes and functions that a checkpoint names."""
    with zipfile.ZipFile(checkpoint) as archive:
        (file,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        return {value for opcode, value, _ in pickletools.genops(archive.read(file)) if opcode.name == "GLOBAL"}


def test_the_command_of_the_package_draws_its_data_set_where_it_is_called(site, here):
    """The words that it shows are those of the command."""
    (here / "utils.py").write_text("mine = True\n")
    code = (
        "from yolov5_soca.utils.data import dataset_yaml, shapes\n"
        "shapes.write_dataset = lambda root: print('draws into', root)\n"
        "dataset_yaml.load_dataset_yaml('shapes.yaml', ('train',))\n"
    )
    shown = run(site, here, "-c", code, code=1)
    assert shown.stdout == f"draws into {here / 'data/shapes'}\n", shown
    shown = run(site, here, "-m", "yolov5_soca", "preview", "--help").stdout
    assert shown.startswith("usage: yolov5-soca preview ") and "\nyolov5-soca preview photos/" in shown
    ended = run(site, here, "-m", "yolov5_soca", "detect", "--weights", "none.pt", code=1)
    assert ended.stderr.splitlines()[-1] == (
        "detect: error: no such weights: none.pt; train a model, or get official weights with "
        "yolov5-soca detect --download"
    )


SOURCE = '''
"""Run it: python tools/doctor.py my.yaml, python train.py, torchrun --nproc-per-node 2 train.py --epochs 3.

Übersicht: tools/benchmark_formats.py; as in train.py, `val.py --task x`
"""
from utils import cli, files as f
from utils.data.images import (  # two
    read_image,
    viewable,
); import os
from utilsx import y
from . import z
if True: import val; import train as t
    # the end
'''

REWRITTEN = '''
"""Run it: yolov5-soca doctor my.yaml, yolov5-soca train, torchrun --nproc-per-node 2 -m yolov5_soca.commands.train --epochs 3.

Übersicht: yolov5-soca benchmark; as in train.py, `yolov5-soca val --task x`
"""
from yolov5_soca.utils import cli, files as f
from yolov5_soca.utils.data.images import read_image, viewable; import os



from utilsx import y
from . import z
if True: from yolov5_soca.commands import val; from yolov5_soca.commands import train as t
    # the end
'''  # fmt: skip  # noqa: E501


def test_imports_and_commands_are_rewritten_in_their_lines():
    assert rewrite(SOURCE) == REWRITTEN
    with pytest.raises(SyntaxError, match=r"here.py:1: write `from PACKAGE import MODULE` for import utils.files"):
        rewrite("import utils.files", "here.py")


def test_what_lies_about_in_the_checkout_is_not_taken(tmp_path):
    root, target = tmp_path / "root", tmp_path / "target"
    names = [
        "utils/a.py",
        "data/d.yaml",
        "data/shapes/images/1.jpg",
        "data/.shapes-x/2.jpg",
        "data/best.pt",
        "notes.py",
    ]
    names += ["train.py", "val.py", "detect.py", "export.py", "hubconf.py", "yolov5_soca.py", "requirements.txt"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    target.mkdir()
    write_package(root, target)
    found = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    assert found == {
        "utils/a.py", "data/d.yaml", "hubconf.py", "requirements.txt", "__init__.py", "__main__.py",
        *(f"commands/{verb}.py" for verb in ("__init__", "train", "val", "detect", "export")),
    }  # fmt: skip
