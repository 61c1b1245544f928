"""--blocks: the README's block, used by the commands in a folder outside the repository, and files that are wrong."""

import re
import subprocess
import sys

import pytest
from small_world import SMALLEST, tree, write_boxes, write_yaml

from utils import user_blocks
from utils.files import ROOT


@pytest.fixture(scope="module")
def readme_block() -> str:
    """The code that README shows."""
    return re.search(r"```python\n(import torch  # my_blocks.py\n.*?)```", (ROOT / "README.md").read_text(), re.S)[1]


def test_the_readmes_have_one_block_of_twenty_lines(readme_block):
    chinese = (ROOT / "README.zh-CN.md").read_text()
    code = [line.partition("  #")[0] for line in readme_block.splitlines()]
    assert len(code) <= 22
    assert all(line in chinese for line in code)


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import detect, export, train, val
from tools import attend, explain
from utils import cli
mine = ["--blocks", "mine/my_blocks.py"]
common = dict(blocks=mine[1:], device="cpu", imgsz=64)
best = "runs/exp/weights/best.pt"
train.run(cfg="small.yaml", attention="MyAttention[4]@P3", weights="", data="boxes.yaml", epochs=1, batch_size=2,
          cache="off", workers=0, project="runs", **common)
val.run(weights=best, data="boxes.yaml", workers=0, project="runs", name="val", **common)
detect.run(weights=best, source="boxes/images/val", project="runs", name="detect", **common)
export.run(weights=best, include=["torchscript"], **common)
explain.main(cli.parse(explain.make_parser(), argv=["small.yaml", "--attention", "MyAttention@P3", *mine]))
image = "boxes/images/val/0000.png"
attend.main(cli.parse(attend.make_parser(), argv=[image, "--weights", best, "--img", "64", *mine]))
"""


def test_the_commands_outside_the_repository(readme_block, tmp_path):
    """A checkpoint that was trained with a block of the user's own is refused without --blocks, and nothing is run."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/my_blocks.py").write_text(readme_block)
    write_yaml(tmp_path / "small.yaml", SMALLEST)
    write_yaml(tmp_path / "boxes.yaml", write_boxes(tmp_path / "boxes", 2, 1))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(root=str(ROOT))], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"--blocks: running the code of {tmp_path / 'mine/my_blocks.py'}" in done.stderr + done.stdout
    assert re.search(r"2 +-1 +MyAttention +16 +8 ", done.stdout)  # explain: after layer 1, of 64 x 0.25 channels
    assert "2-MyAttention: 16 channels on a map of" in done.stdout  # attend
    assert (tmp_path / "runs/exp/weights/best.torchscript").exists()

    before = tree(tmp_path)
    command = [sys.executable, str(ROOT / "val.py"), "--weights", "runs/exp/weights/best.pt", "--data", "boxes.yaml"]
    refused = subprocess.run([*command, "--device", "cpu"], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "the file uses my_blocks.MyAttention" in refused.stderr and "--blocks my_blocks.py" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a-b.py", "", "must be a Python file with a name such as my_blocks.py"),
        ("mine.txt", "", "must be a Python file"),
        ("json.py", "", "has the name of another module, json"),
        ("train.py", "", "has the name of another module, train"),
        ("mine.py", "x = 1\ny = (\n", r"mine.py, line 2: SyntaxError"),
        ("mine.py", "x = 1\n\ny = unknown\n", r"mine.py, line 3: NameError: name 'unknown' is not defined"),
        ("mine.py", "from models.registry import *\n@register(keeps_channels)\nclass SE: pass\n", "'SE' is taken"),
    ],
)
def test_files_that_are_wrong(name, text, message, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        user_blocks.use([str(tmp_path / name)])
    assert not user_blocks.modules() and "mine" not in sys.modules


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="--blocks: no such file"):
        user_blocks.use([str(tmp_path / "mine.py")])


def test_a_file_is_run_once(tmp_path, monkeypatch):
    monkeypatch.setattr(user_blocks, "_loaded", {})
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "counted_blocks.py").write_text(
            "import sys\nsys.counted = getattr(sys, 'counted', 0) + 1\n"
        )
    try:
        user_blocks.use([str(tmp_path / "a/counted_blocks.py")] * 2)
        assert sys.counted == 1
        assert [module.__name__ for module in user_blocks.modules()] == ["counted_blocks"]
        with pytest.raises(ValueError, match="has the name of another module"):
            user_blocks.use([str(tmp_path / "b/counted_blocks.py")])
    finally:
        sys.modules.pop("counted_blocks", None)
        del sys.counted
