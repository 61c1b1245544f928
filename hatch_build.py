"""How pip builds the project: the wheel holds the whole tree as the one package `yolov5_soca`.

In a checkout the files import each other as v6.1's do, `from utils.files import ROOT`. Installed, such names would take
those of the user's own modules. So the hook copies the files to a temporary folder with every import rewritten, to
`from yolov5_soca.utils.files import ROOT`, and the wheel takes them from there; nothing is written into the checkout.
`pip install -e .` copies nothing: there Python finds the checkout itself.
"""

import ast
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

PACKAGE = "yolov5_soca"
ROOMS = ("engine", "models", "utils", "tools")
VERBS = ("train", "val", "detect", "export")
# name of a module of the checkout -> its name in the package; `yolov5_soca.train` is the function
NAMES = {name: f"{PACKAGE}.{name}" for name in (*ROOMS, "hubconf")} | {v: f"{PACKAGE}.commands.{v}" for v in VERBS}
SUFFIXES = {".py", ".yaml", ".mjs", ".jpg"}  # of the files that the project consists of
COMMANDS = {"benchmark_formats": "benchmark"}  # whose name is not that of the file
MAIN = f'"""Runs the command yolov5-soca: `python -m {PACKAGE}`."""\n\nfrom {PACKAGE} import main\n\nmain()\n'


class CustomBuildHook(BuildHookInterface):
    """Gives the wheel the rewritten tree."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Is called before a wheel is built; of version "editable" it has only the path of the checkout in it."""
        if version != "editable":
            self.folder = tempfile.mkdtemp()
            write_package(Path(self.root), Path(self.folder))
            build_data["force_include"][self.folder] = PACKAGE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Is called when the wheel is there."""
        if version != "editable":
            shutil.rmtree(self.folder)


class CustomMetadataHook(MetadataHookInterface):
    """Takes the dependencies from requirements.txt, so that they are stated once."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Is called with the content of [project]."""
        lines = (Path(self.root) / "requirements.txt").read_text("utf-8").splitlines()
        metadata["dependencies"] = [line for line in lines if line.strip() and not line.startswith("#")]


def write_package(root: Path, target: Path) -> None:
    """Writes the content of the package into the folder `target`."""
    files = {path.relative_to(root): path for room in (*ROOMS, "data") for path in sorted((root / room).rglob("*.*"))}
    files = {
        name: path for name, path in files.items()
        if path.suffix in SUFFIXES and not name.is_relative_to("data/shapes") and "/." not in f"/{name.as_posix()}"
    }  # fmt: skip
    files |= {Path("commands", f"{verb}.py"): root / f"{verb}.py" for verb in VERBS}
    files |= {Path("hubconf.py"): root / "hubconf.py", Path("__init__.py"): root / f"{PACKAGE}.py"}
    files[Path("requirements.txt")] = root / "requirements.txt"
    for name, path in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        (target / name).write_bytes(rewrite(content.decode(), str(name)).encode() if name.suffix == ".py" else content)
    (target / "commands" / "__init__.py").write_text(
        '"""What the commands of v6.1 are: train, val, detect, export."""\n'
    )
    (target / "__main__.py").write_text(MAIN)


def rewrite(source: str, name: str = "<text>") -> str:
    """Returns the text of a file with its imports, and the commands that it tells the user, as the package has them.

    Lines keep their numbers. Raises SyntaxError for an import that cannot be rewritten, `import utils.files`: it would
    define another name.
    """
    lines = source.encode().splitlines(keepends=True)  # ast counts columns in bytes
    imports = [n for n in ast.walk(ast.parse(source, name)) if isinstance(n, ast.Import | ast.ImportFrom)]
    for node in sorted(imports, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        if statement := _renamed(node, name):
            first, last = node.lineno - 1, node.end_lineno - 1
            tail = lines[last][node.end_col_offset :] + b"\n" * (last - first)
            lines[first : last + 1] = [lines[first][: node.col_offset] + statement.encode() + tail]
            lines[first + 1 : first + 1] = [b""] * (last - first)
    return _commands(b"".join(lines).decode())


def _renamed(node: ast.Import | ast.ImportFrom, name: str) -> str | None:
    """Returns an import with the names of the package; None where it imports nothing of the project."""
    if isinstance(node, ast.ImportFrom):
        room, _, rest = (node.module or "").partition(".")
        if node.level or room not in NAMES:
            return None
        return ast.unparse(ast.ImportFrom(".".join(filter(None, (NAMES[room], rest))), node.names, 0))
    if not any(alias.name.split(".")[0] in NAMES for alias in node.names):
        return None
    if len(node.names) > 1 or "." in node.names[0].name:
        raise SyntaxError(f"{name}:{node.lineno}: write `from PACKAGE import MODULE` for {ast.unparse(node)}")
    package, _, module = NAMES[node.names[0].name].rpartition(".")
    return ast.unparse(ast.ImportFrom(package, [ast.alias(module, node.names[0].asname)], 0))


def _commands(text: str) -> str:
    """Returns a text with `python tools/doctor.py` as `yolov5-soca doctor`, and its like; `train.py` alone stays."""
    text = re.sub(r"(torchrun [^\n`]*?)\b(train|val|detect|export)\.py", rf"\1-m {PACKAGE}.commands.\2", text)
    text = re.sub(
        r"\b(?:python (?:tools/)?|tools/)(\w+)\.py", lambda m: f"yolov5-soca {COMMANDS.get(m[1], m[1])}", text
    )
    text = re.sub(r"\b(train|val|detect|export)\.py(?= --)", r"yolov5-soca \1", text)
    return re.sub(r"\bpython -m (utils|models)\.", rf"python -m {PACKAGE}.\1.", text)
