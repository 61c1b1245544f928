"""The rules of the house, held by parsing the imports: data walks one way, and importing has no side effects."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A file may import only files listed above it: rooms from top to bottom, the files of a room from left to right.
HOUSE = """
models              registry
utils               log cli boxes files dist device downloads activations pickles checkpoint nms drawing
utils.data          machine shapes faults images letterbox labels
utils.data.formats  yolo coco voc labelme shards
utils.data          dataset_yaml checks options annotations cache store augmentations mosaic dataset shard_loader loader
utils.training      hyperparameters targets loss optimizer schedule ema sampling autoanchor guard records autobatch
utils.training      loggers search
utils.runtimes      environments base torchscript program onnx_file openvino_model tensorrt_engine ncnn_model
utils.runtimes      coreml_model executorch_program litert_model tensorflow_server tensorflow_model web_model table
utils.inference     outputs sources streams frames detector tracking features ledger results
utils.export        formats graph images torchscript program quantise onnx_nms onnx_file openvino_model ncnn_model
utils.export        executorch_program coreml_model litert_model edge_tpu saved_model tensorflow_worker graph_def
utils.export        web_model tensorrt_engine proof exporter
utils.evaluation    metrics plots evaluator coco errors report
models              insert second_order common attention attention_view experimental
models              architecture yolo rebuild transfer backend autoshape
engine              run setup validation training detection
.                   hubconf train val detect export
"""
ORDER = [
    f"{room}.{name}".removeprefix("..") for room, *names in map(str.split, HOUSE.strip().splitlines()) for name in names
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def sources() -> list[Path]:
    files = [
        p for room in ("models", "utils", "engine") for p in (ROOT / room).rglob("*.py") if p.name != "__init__.py"
    ]
    return files + [ROOT / f"{verb}.py" for verb in ("hubconf", "train", "val", "detect", "export")]


def imported(path: Path) -> set[str]:
    """Modules of the project that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from utils import boxes` imports a module, `from utils.boxes import box_iou` a name of one
            found |= {name for name in names if name in ORDER} or {node.module}
    return {
        name
        for name in found
        if name.split(".")[0] in ("engine", "models", "utils", "train", "val", "detect", "export")
    }


def test_every_file_has_its_place():
    assert sorted(map(module_name, sources())) == sorted(ORDER)


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_go_one_way(path):
    here = module_name(path)
    above = ORDER[: ORDER.index(here)] + (["models.yolo"] if here == "models.yolo" else [])  # itself, as a script
    assert imported(path) <= set(above)
    if here.startswith("utils"):
        assert not any(name.startswith(("models", "engine")) for name in imported(path))


@pytest.mark.parametrize("verb", ["train", "val", "detect", "export"])
def test_help_does_not_load_torch(verb):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{verb}.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path('{verb}.py', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "heavy = {'torch', 'numpy', 'cv2', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


SLOW = {"torch._dynamo", "torch._inductor", "sympy", "torchvision", "matplotlib", "pandas"}


@pytest.mark.parametrize("name", ["yolov5n.yaml", "SOCA-n.yaml"])
def test_detecting_imports_nothing_for_nothing(name, tmp_path):
    """From the command to the picture with boxes; torch._dynamo alone takes as long to import as torch does."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import cv2, numpy, torch
import detect
from models.yolo import Model
from utils import checkpoint
cv2.imwrite("a.jpg", numpy.full((64, 64, 3), 99, numpy.uint8))
checkpoint.save("tiny.pt", checkpoint.pack(Model({name!r})))
out = detect.run("tiny.pt", "a.jpg", imgsz=64, conf_thres=0.0001, device="cpu", save_txt=True)  # finds boxes
assert sorted(p.name for p in out.rglob("*.*")) == ["a.jpg", "a.txt"]
assert not (slow := {SLOW!r} & sys.modules.keys()), slow
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_importing_everything_changes_nothing(tmp_path):
    """No file, folder, socket, print option, thread setting or environment variable is touched by an import."""
    code = f"""
import os, socket, sys
sys.path.insert(0, {str(ROOT)!r})
def no_network(*args, **kwargs): raise AssertionError("an import touched the network")
socket.socket.connect = no_network
import cv2, numpy, torch, torchvision  # what libraries do to the environment is not ours
def settings():
    threads = torch.get_num_threads(), cv2.getNumThreads()
    printing = numpy.get_printoptions(), repr(torch._tensor_str.PRINT_OPTS)
    return dict(os.environ), threads, printing, torch.is_grad_enabled()
before = settings()
rng = torch.get_rng_state()
for name in {ORDER!r}:
    __import__(name)
after = settings()
assert before == after, [(a, b) for a, b in zip(before, after) if a != b]
assert (rng == torch.get_rng_state()).all()
assert "matplotlib.pyplot" not in sys.modules and "pandas" not in sys.modules
assert not os.listdir("."), os.listdir(".")
"""
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    folder = tmp_path / "empty"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"]


def test_only_one_place_unpickles_and_nothing_is_evaluated():
    for path in sources() + list((ROOT / "tools").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                assert call not in ("eval", "exec", "os.system", "pickle.load", "pickle.loads"), (path, node.lineno)
                assert call != "torch.load" or module_name(path) == "utils.checkpoint", (path, node.lineno)
