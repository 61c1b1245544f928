"""Programs written for v6.1 run as they stand: from the repository, and with its checkout as the package `yolov5`."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_world import boxes_image, labels_in, lively
from videos import moving, write_video

import detect
from utils import checkpoint
from utils.drawing import write_image

ROOT = Path(__file__).resolve().parents[1]

# The loop of v6.1's detect.py, as programs that embed it have it
DETECT = """
import sys
from pathlib import Path
import torch
from {package}models.common import DetectMultiBackend
from {package}utils.datasets import IMG_FORMATS, VID_FORMATS, LoadImages, LoadStreams
from {package}utils.general import (LOGGER, check_file, check_img_size, check_imshow, check_requirements, colorstr, cv2,
                                    increment_path, non_max_suppression, print_args, scale_coords, xyxy2xywh)
from {package}utils.plots import Annotator, colors, save_one_box
from {package}utils.torch_utils import select_device, time_sync

weights, source, project = sys.argv[1:]
check_requirements(exclude=("tensorboard", "thop"))
save_dir = increment_path(Path(project) / "exp", exist_ok=False)
(save_dir / "labels").mkdir(parents=True)
device = select_device("cpu")
model = DetectMultiBackend(weights, device=device, dnn=False, data=None)
stride, names, pt, jit, onnx, engine = model.stride, model.names, model.pt, model.jit, model.onnx, model.engine
imgsz = check_img_size((96, 96), s=stride)
half = (pt or jit or onnx or engine) and device.type != "cpu"
if pt or jit:
    model.model.half() if half else model.model.float()
dataset = LoadImages(source, img_size=imgsz, stride=stride, auto=pt)
model.warmup(imgsz=(1, 3, *imgsz), half=half)
for path, im, im0s, vid_cap, s in dataset:
    t1 = time_sync()
    im = torch.from_numpy(im).to(device)
    im = im.half() if half else im.float()
    im /= 255
    if len(im.shape) == 3:
        im = im[None]
    pred = model(im, augment=False, visualize=False)
    pred = non_max_suppression(pred, 0.25, 0.45, None, False, max_det=1000)
    for det in pred:
        p, im0, frame = Path(path), im0s.copy(), getattr(dataset, "frame", 0)
        txt = save_dir / "labels" / (p.stem + ("" if dataset.mode == "image" else f"_{{frame}}"))
        gn = torch.tensor(im0.shape)[[1, 0, 1, 0]]
        annotator = Annotator(im0, line_width=3, example=str(names))
        if len(det):
            det[:, :4] = scale_coords(im.shape[2:], det[:, :4], im0.shape).round()
            for c in det[:, -1].unique():
                s += f"{{(det[:, -1] == c).sum()}} {{names[int(c)]}}, "
            for *xyxy, conf, cls in reversed(det):
                xywh = (xyxy2xywh(torch.tensor(xyxy).view(1, 4)) / gn).view(-1).tolist()
                with open(f"{{txt}}.txt", "a") as f:
                    f.write(("%g " * 6).rstrip() % (cls, *xywh, conf) + "\\n")
                annotator.box_label(xyxy, f"{{names[int(cls)]}} {{conf:.2f}}", color=colors(int(cls), True))
                save_one_box(xyxy, im0s, file=save_dir / "crops" / names[int(cls)] / f"{{p.stem}}.jpg", BGR=True)
        cv2.imwrite(str(save_dir / f"{{p.stem}}_{{frame}}.png"), annotator.result())
    LOGGER.info(f"{{s}}Done. ({{time_sync() - t1:.3f}}s)")
"""

# The same as of v7.0
LATER = """
import sys
from pathlib import Path
import torch
from models.common import DetectMultiBackend
from utils.dataloaders import IMG_FORMATS, VID_FORMATS, LoadImages, LoadScreenshots, LoadStreams
from utils.general import (LOGGER, Profile, check_file, check_img_size, check_imshow, check_requirements, colorstr, cv2,
                           increment_path, non_max_suppression, print_args, scale_boxes, strip_optimizer, xyxy2xywh)
from utils.plots import Annotator, colors, save_one_box
from utils.torch_utils import select_device, smart_inference_mode

@smart_inference_mode()
def run(weights, source, project, imgsz=(96, 96), vid_stride=1, bs=1):
    save_dir = increment_path(Path(project) / "exp", exist_ok=False)
    (save_dir / "labels").mkdir(parents=True, exist_ok=True)
    device = select_device("cpu")
    model = DetectMultiBackend(weights, device=device, dnn=False, data=Path("data/coco128.yaml"), fp16=False)
    stride, names, pt = model.stride, model.names, model.pt
    imgsz = check_img_size(imgsz, s=stride)
    dataset = LoadImages(source, img_size=imgsz, stride=stride, auto=pt, vid_stride=vid_stride)
    model.warmup(imgsz=(1 if pt or model.triton else bs, 3, *imgsz))
    seen, windows, dt = 0, [], (Profile(), Profile(), Profile())
    for path, im, im0s, vid_cap, s in dataset:
        with dt[0]:
            im = torch.from_numpy(im).to(model.device)
            im = im.half() if model.fp16 else im.float()
            im /= 255
            if len(im.shape) == 3:
                im = im[None]
        with dt[1]:
            visualize = increment_path(save_dir / Path(path).stem, mkdir=True)
            pred = model(im, augment=False, visualize=visualize)
        with dt[2]:
            pred = non_max_suppression(pred, 0.25, 0.45, None, False, max_det=1000)
        for det in pred:
            seen += 1
            p, im0, frame = Path(path), im0s.copy(), getattr(dataset, "frame", 0)
            txt = str(save_dir / "labels" / p.stem) + ("" if dataset.mode == "image" else f"_{frame}")
            annotator = Annotator(im0, line_width=3, example=str(names))
            if len(det):
                det[:, :4] = scale_boxes(im.shape[2:], det[:, :4], im0.shape).round()
                for *xyxy, conf, cls in reversed(det):
                    gn = torch.tensor(im0.shape)[[1, 0, 1, 0]]
                    xywh = (xyxy2xywh(torch.tensor(xyxy).view(1, 4)) / gn).view(-1).tolist()
                    with open(f"{txt}.txt", "a") as f:
                        f.write(("%g " * 6).rstrip() % (cls, *xywh, conf) + "\\n")
                    annotator.box_label(xyxy, names[int(cls)], color=colors(int(cls), True))
                    save_one_box(xyxy, im0s, file=save_dir / "crops" / names[int(cls)] / f"{p.stem}.jpg", BGR=True)
            cv2.imwrite(str(save_dir / f"{p.stem}_{frame}.png"), annotator.result())
        LOGGER.info(f"{s}{'' if len(det) else '(no detections), '}{dt[1].dt * 1e3:.1f}ms")
    t = tuple(x.t / seen * 1e3 for x in dt)
    LOGGER.info(f"Results saved to {colorstr('bold', save_dir)}")

run(*sys.argv[1:])
"""


def run(code: str, folder: Path, *arguments, path: Path = ROOT) -> subprocess.CompletedProcess:
    (folder / "program.py").write_text(code, encoding="utf-8")
    environment = {"PYTHONPATH": str(path), "PATH": "", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "program.py", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def here(tmp_path) -> Path:
    """Two images and a video, weights that find objects in them, and a checkout whose folder is called yolov5."""
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in/a.png", boxes_image())
    write_image(tmp_path / "in/b.png", boxes_image((30, 20, 60, 50), None))
    write_video(tmp_path / "in/c.avi", moving(2))
    checkpoint.save(tmp_path / "tiny.pt", checkpoint.pack(lively()))
    (tmp_path / "above").mkdir()
    (tmp_path / "above/yolov5").symlink_to(ROOT)
    return tmp_path


@pytest.mark.parametrize(
    ("program", "path"),
    [(DETECT.format(package=""), ROOT), (DETECT.format(package="yolov5."), Path("above")), (LATER, ROOT)],
    ids=["v6.1", "v6.1 as a package", "v7.0"],
)
def test_the_loop_of_detect_finds_what_detect_finds(here, program, path):
    ended = run(program, here, "tiny.pt", "in", "runs", path=here / path)
    assert ended.returncode == 0, ended.stderr
    options = {"imgsz": 96, "device": "cpu", "save_txt": True, "save_conf": True, "nosave": True}
    expected = detect.run(here / "tiny.pt", here / "in", project=here / "own", **options)
    files = sorted(p.name for p in (expected / "labels").iterdir())
    assert len(files) == 4 and files == sorted(p.name for p in (here / "runs/exp/labels").iterdir())
    for name in files:
        rows = labels_in(here / "runs/exp/labels" / name)
        np.testing.assert_allclose(rows, labels_in(expected / "labels" / name), rtol=2e-5, atol=1e-6)
    drawn = sorted(p.name for p in (here / "runs/exp").glob("*.png"))
    assert drawn == ["a_0.png", "b_0.png", "c_1.png", "c_2.png"] and any((here / "runs/exp/crops").rglob("*.jpg"))


# --- the checkout as a package ----------------------------------------------------------------------------------------

PACKAGE = """
import sys
import yolov5.utils.general, yolov5.models.common
from yolov5 import detect, export, hubconf, train, val
from yolov5.models.experimental import attempt_load
from yolov5.models.yolo import Model
import detect as own, models.common, models.yolo, utils.general
assert yolov5.utils.general is utils.general and yolov5.models.common.Conv is models.common.Conv
assert detect is own and Model is models.yolo.Model
assert utils.general.__spec__.name == utils.general.__name__ == "utils.general"
try:
    import yolov5.utils.nothing
except ModuleNotFoundError as error:
    assert "utils.nothing" in str(error)
model = yolov5.load("tiny.pt", device="cpu")
assert len(model("in/a.png", size=96).xyxy[0])
assert len(yolov5.YOLOv5("tiny.pt", "cpu").predict(["in/a.png"], size=96).xyxy[0])
assert sys.path[-1].endswith(sys.argv[1]), sys.path
"""


def test_the_checkout_is_a_package_without_second_copies(here):
    ended = run(PACKAGE, here, ROOT.name, path=here / "above")
    assert ended.returncode == 0, ended.stderr


def test_a_command_of_the_package_runs_as_a_module(here):
    command = [
        sys.executable,
        "-m",
        "yolov5.detect",
        "--weights",
        "../tiny.pt",
        "--source",
        "../in/a.png",
        "--img",
        "96",
    ]
    ended = subprocess.run([*command, "--device", "cpu"], cwd=here / "above", capture_output=True, text=True)
    assert ended.returncode == 0 and (here / "above/runs/detect/exp/a.png").is_file(), ended.stderr


@pytest.mark.parametrize("own", ["utils.py", "utils/__init__.py"])
def test_a_program_with_a_module_utils_of_its_own_is_told(here, own):
    (here / own).parent.mkdir(exist_ok=True)
    (here / own).write_text("mine = 1")
    ended = run("import utils, yolov5\nassert utils.mine\nimport yolov5.utils.general", here, path=here / "above")
    assert ended.returncode == 1
    reason = ended.stderr.splitlines()[-1]
    assert reason.startswith("ImportError: yolov5.utils imports `utils`") and str(here / own) in reason
    assert f"put {ROOT} first on sys.path" in reason


OWN = {"utils.py": "x = 1", "utils/__init__.py": "x = 1", "utils/mine.py": "y = 2", "models.py": "z = 3"}
HUB = "import torch\nmodel = torch.hub.load(sys.argv[1], 'custom', path='tiny.pt', source='local', device='cpu')\n"
USES = "assert len(model('in/a.png', size=96).xyxy[0])\nmodel('in/a.png', size=96).save(save_dir='out')\n"


@pytest.mark.parametrize("package", [False, True])
@pytest.mark.parametrize("first", ["own", "hub"])
def test_the_hub_beside_modules_utils_and_models_of_the_program(here, package, first):
    for name, text in OWN.items():
        if name == "models.py" or package == ("/" in name):
            (here / name).parent.mkdir(exist_ok=True)
            (here / name).write_text(text)
    own = "import utils, models\nassert (utils.x, models.z) == (1, 3)\n"
    own += "from utils.mine import y\nassert y == 2\n" if package else ""
    program = "import sys\n" + (own + HUB + USES if first == "own" else HUB + own + USES)
    ended = run(program, here, ROOT, path=here)
    assert ended.returncode == 0, ended.stderr
    assert (here / "out/a.png").is_file() or (here / "out/a.jpg").is_file()


def test_the_hub_beside_a_module_of_the_same_names(here):
    """The detector works where it is loaded first; otherwise the error says which names both have."""
    (here / "utils").mkdir()
    for name in ("__init__", "boxes"):
        (here / f"utils/{name}.py").write_text("")
    ended = run("import sys, utils\n" + HUB, here, ROOT, path=here)
    assert ended.returncode == 1
    reason = ended.stderr.splitlines()[-1]
    assert f"both have a module `utils` ({here / 'utils/__init__.py'}) with the names boxes" in reason
    assert run("import sys\n" + HUB + USES, here, ROOT, path=here).returncode == 0


def test_a_broken_module_that_the_program_does_not_import_is_left_alone(here):
    (here / "utils.py").write_text("raise SystemError('not meant to be imported')")
    ended = run("import sys\n" + HUB + USES, here, ROOT, path=here)
    assert ended.returncode == 0, ended.stderr


def test_notebooks_begin_as_with_v61(here):
    ended = run("import torch, utils\ndisplay = utils.notebook_init()\nprint(display is None or display.Image)", here)
    assert ended.returncode == 0 and "torch" in ended.stderr, ended.stderr
