"""The rules of the house, held by parsing its files: data walks one way, imports change nothing, all is short."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VERBS = ("train", "val", "detect", "export")

# A file may import only files listed above it: rooms from top to bottom, the files of a room from left to right.
HOUSE = """
models              registry
utils               text log progress cli user_blocks boxes files dist device archives downloads activations pickles
utils               pickler checkpoint nms drawing class_names page
utils.data          machine alike shapes faults image_header images letterbox labels
utils.data.formats  yolo coco voc labelme shards source
utils.data          dataset_yaml options annotations contents checks splitting cache store augmentations mosaic dataset
utils.data          shard_loader loader
utils.training      hyperparameters targets loss optimizer schedule ema sampling autoanchor guard records autobatch
utils.training      loggers search
utils.runtimes      environments trust metadata
utils.runtimes      base torchscript program onnx_file openvino_model tensorrt_engine ncnn_model
utils.runtimes      coreml_model executorch_program litert_model tensorflow_server tensorflow_model web_model table
utils.inference     outputs sources videos streams frames detector tracking features ledger gallery results
utils.export        formats graph images torchscript program quantise onnx_nms onnx_file openvino_model ncnn_model
utils.export        executorch_program coreml_model litert_model edge_tpu saved_model tensorflow_worker graph_def
utils.export        web_model tensorrt_engine proof exporter
utils.evaluation    metrics plots charts evaluator coco errors numbers report run_page
models              insert second_order gates common attention channel_attention attention_view experimental
models              architecture yolo rebuild transfer backend autoshape
engine              run setup validation training detection
.                   hubconf train val detect export
tools               setup_env demo draw_shapes costs explain ablate_statistics ablate_report ablate_runs ablate
tools               attend_report attend_measures attend_split attend doctor_report doctor preview_report preview
tools               split convert benchmark_formats compare
.                   yolov5_soca
"""
# The doors for programs written for v6.1, which nothing else imports
DOORS = """
models              doors
utils               general augmentations datasets dataloaders plots torch_utils loss metrics autoanchor autobatch
utils               callbacks google_utils benchmarks
"""


def listed(rooms: str) -> list[str]:
    lines = map(str.split, rooms.strip().splitlines())
    return [f"{room}.{name}".removeprefix("..") for room, *names in lines for name in names]


ORDER = listed(HOUSE + DOORS.lstrip())


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def sources() -> list[Path]:
    files = [
        p
        for room in ("models", "utils", "engine", "tools")
        for p in (ROOT / room).rglob("*.py")
        if p.name != "__init__.py"
    ]
    return files + [ROOT / f"{verb}.py" for verb in ("hubconf", "yolov5_soca", *VERBS)]


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
    return {name for name in found if name.split(".")[0] in ("engine", "models", "utils", "tools", *VERBS)}


def test_every_file_has_its_place():
    assert sorted(map(module_name, sources())) == sorted(ORDER)


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_go_one_way(path):
    here = module_name(path)
    above = ORDER[: ORDER.index(here)] + (["models.yolo"] if here == "models.yolo" else [])  # itself, as a script
    assert imported(path) <= set(above)
    if here not in listed(DOORS):
        assert not imported(path) & set(listed(DOORS))
    if here.startswith("utils") and here not in listed(DOORS):
        assert not any(name.startswith(("models", "engine")) for name in imported(path))


@pytest.mark.parametrize("verb", VERBS)
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
    """From the command to the image with boxes; torch._dynamo alone takes as long to import as torch does."""
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
runtimes = {{name for name in sys.modules if name.startswith("utils.runtimes.")}}
assert runtimes == {{f"utils.runtimes.{{name}}" for name in ("base", "metadata", "table", "trust")}}, runtimes
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


def test_the_documents_name_every_file():
    """All of engine/, models/ and utils/ itself; the other rooms by their purpose."""
    names = {name for name in listed(HOUSE) if name.count(".") == 1 and not name.startswith("tools")}
    for document in ("README.md", "docs/design.md"):
        words = set(re.findall(r"\w+", (ROOT / document).read_text()))
        assert not {name for name in names if name.split(".")[1] not in words}, document


# --- style ------------------------------------------------------------------------------------------------------------

MOST_LINES, MOST_LINES_OF_A_TEST_FILE, MOST_LINES_OF_A_COMMAND = 450, 600, 250
MOST_LINES_OF_A_FUNCTION, MOST_PARAMETERS = 60, 10
PROGRAMS = [
    p for room in ("benchmarks", "examples") for p in (ROOT / room).rglob("*.py") if "node_modules" not in p.parts
]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def too_long(path: Path) -> list[str]:
    text = path.read_text()
    lines, most = len(text.splitlines()), MOST_LINES_OF_A_TEST_FILE if path in TESTS else MOST_LINES
    most = MOST_LINES_OF_A_COMMAND if path.parent == ROOT else most
    faults = [f"{path} has {lines} lines"] if lines > most else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            names = {a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)} - {"self", "cls"}
            if lines > MOST_LINES_OF_A_FUNCTION or len(names) > MOST_PARAMETERS:
                faults.append(f"{path}:{node.lineno}: {node.name} has {lines} lines, {len(names)} parameters")
    return faults


def test_files_and_functions_are_short():
    assert not [fault for path in sources() + PROGRAMS + TESTS for fault in too_long(path)]


def test_imports_stand_at_the_top():
    assert not [path for path in sources() + PROGRAMS + TESTS if "noqa" + ": E402" in path.read_text()]


def test_whoever_catches_everything_says_why():
    for path in sources() + PROGRAMS:
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.ExceptHandler):
                caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                if {error and ast.unparse(error) for error in caught} & {None, "Exception", "BaseException"}:
                    assert "  # " in lines[node.lineno - 1], f"{path}:{node.lineno}: no comment says why"


# The file that has it runs in an environment without this project
ALONE = {("utils/export/tensorflow_worker.py", "METADATA_NODE")}


def test_what_means_one_thing_is_defined_once():
    """No constant of one name and value, no function of one body (of more than two statements) stands in two files."""
    first: dict[tuple[str, str], Path] = {}
    for path in sources():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name, content = node.targets[0].id, node.value
            elif isinstance(node, ast.FunctionDef) and len(node.body) > 3:
                name, content = "", ast.Module(node.body[ast.get_docstring(node) is not None :], [])
            else:
                continue
            if (str(path.relative_to(ROOT)), name) not in ALONE:
                earlier = first.setdefault((name, ast.dump(content)), path)
                assert earlier == path, f"{path}:{node.lineno} repeats what {earlier} defines: import it"


# Test files of no single module: what all verbs share, data that is broken on purpose, programs that stand alone
OF_NO_MODULE = {"test_architecture", "test_commands", "test_programs", "examples/test_examples"}


def test_tests_lie_where_what_they_test_lies():
    """tests/ROOM/test_MODULE.py, or test_MODULE_aspect.py, is about ROOM/MODULE.py, or the folder ROOT/MODULE."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        place = path.relative_to(ROOT / "tests").with_suffix("")
        if str(place) not in OF_NO_MODULE and place.parts[0] != "fuzz":
            room, name = ROOT / place.parent, place.name.removeprefix("test_")
            modules = {p.stem for p in room.glob("*") if p.suffix == ".py" or p.is_dir()}
            assert any(f"{name}_".startswith(f"{module}_") for module in modules), f"{path}: no such module in {room}"


def test_names_of_test_files_are_unique():
    """pytest imports them by name alone: two of one name end the whole run."""
    names = sorted(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert not (twice := {name for name in names if names.count(name) > 1}), twice
